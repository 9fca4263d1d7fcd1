// Records: what a gate kernel works on, one per row of the batch and panel of hidden units.
//
// Hidden units are handled in panels of kPanel = 16. A record is a few slots of 16 values; what the slots are is said in
// kernels/*/cpu.py, where the gate math is. C++ only fills and reads slots. Every variant has pre-activations, a state c that is
// carried unit by unit, and a state h that goes through the recurrent weights; a GRU's c is its h.
#pragma once
#include <algorithm>

#include "cell/variant.h"

namespace fastlstm {

inline int64_t panels_of(int64_t units) { return (units + kPanel - 1) / kPanel; }
// How many units of panel p there are, of n in all.
inline int64_t units_of(int64_t n, int64_t p) { return std::min(kPanel, n - p * kPanel); }

struct Sizes {
  int64_t I, H, R;  // R: size of the recurrent state, the projection's where there is one
  bool project;
  int64_t peephole_rows = 1;  // 1, or the pixels of an image, each of which has peepholes of its own
};

// Where the slots of a record are, in elements, and how long records are.
struct Record {
  int64_t slots, peephole_width;
  bool project;

  Record(const Variant& v, const Sizes& size) : slots(v.slots), peephole_width(v.peephole_width()), project(size.project) {}

  // Both passes: pre-activations that become gates, then c; the backward finds them as the forward saved them.
  int64_t gate_width() const { return slots * kPanel; }
  int64_t c() const { return gate_width(); }
  // Forward: c_prev becomes c; then the hidden values m, and peepholes.
  int64_t m() const { return c() + kPanel; }
  int64_t forward_peepholes() const { return m() + kPanel; }
  int64_t forward() const { return forward_peepholes() + peephole_width; }
  // Backward: c_prev, dh, dc, and peepholes. It leaves the gradients of pre-activations in their slots, and dc_prev.
  int64_t c_prev() const { return c() + kPanel; }
  int64_t dh() const { return c_prev() + kPanel; }
  int64_t dc() const { return dh() + kPanel; }
  int64_t backward_peepholes() const { return dc() + kPanel; }
  int64_t backward() const { return backward_peepholes() + peephole_width; }
  // What the forward saves for the backward: gates and c, and the hidden values where a projection needs them.
  int64_t saved() const { return m() + (project ? kPanel : 0); }
  // Of it, what h = m comes from: o and c, side by side; or where c is h, that alone.
  int64_t o() const { return c() - kPanel; }
};

}  // namespace fastlstm
