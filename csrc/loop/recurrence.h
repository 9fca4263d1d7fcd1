// The loop over time on the CPU, for the LSTM family and the GRU: what its forward and backward share.
//
// Hidden units are handled in panels of kPanel = 16. A panel's gate kernel works on records, one per row of the batch, each a
// few slots of 16 values; what the slots are is said in kernels/*/cpu.py, where the gate math is. C++ only fills and reads
// slots. Every variant has pre-activations, a state c that is carried unit by unit, and a state h that goes through the
// recurrent weights; a GRU's c is its h.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <functional>

#include "gemm/gemm.h"
#include "loop/kernel_table.h"
#include "loop/parallel.h"
#include "loop/plan.h"
#include "loop/sequence.h"
#include "memory/memory.h"

namespace fastlstm {

constexpr int64_t kMaxGates = 4;

// The pre-activations of a record that one weight feeds: slots side by side, each from one of the weight's gates.
struct GateMap {
  int64_t first, gates;
  std::array<int64_t, kMaxGates> gate;  // of slot first + i

  int64_t width() const { return gates * kPanel; }
  int64_t offset() const { return first * kPanel; }
};

struct Variant {
  GateMap ih, hh;
  int64_t slots;            // of pre-activations
  int64_t peepholes;        // slots of peephole weights
  bool cell;                // c is a state of its own; else it is h
  Recurrence recurrence;    // which gate kernels

  // Both weights feed the same slots: their products are sums over one record.
  bool joint() const { return ih.first == hh.first; }
};

// Slots: i f g o; i g o; and for the GRU n (its x part), r, z, n (its h part).
inline Variant lstm_variant(bool coupled, bool peephole) {
  const GateMap all{0, coupled ? 3 : 4, {0, 1, 2, 3}};
  const Recurrence recurrence = coupled ? (peephole ? Recurrence::cifg_peephole_lstm : Recurrence::cifg_lstm)
                                        : (peephole ? Recurrence::peephole_lstm : Recurrence::lstm);
  return {all, all, all.gates, peephole ? all.gates - 1 : 0, true, recurrence};
}
inline Variant gru_variant() { return {{0, 3, {2, 0, 1}}, {1, 3, {0, 1, 2}}, 4, 0, false, Recurrence::gru}; }

// Arithmetic type of a storage type.
template <class S>
struct Compute { using type = float; };
template <>
struct Compute<double> { using type = double; };
template <class S>
using compute_t = typename Compute<S>::type;

// bfloat16 as the CPU's instructions see it.
using torch::headeronly::BFloat16;
inline uint16_t* bits(BFloat16* p) { return reinterpret_cast<uint16_t*>(p); }
inline const uint16_t* bits(const BFloat16* p) { return reinterpret_cast<const uint16_t*>(p); }
inline const Bf16Pair* pairs(const BFloat16* p) { return reinterpret_cast<const Bf16Pair*>(p); }

struct Sizes {
  int64_t I, H, R;  // R: size of the recurrent state, the projection's where there is one
  bool project;

  int64_t panels() const { return blocks(H); }
  static int64_t blocks(int64_t units) { return (units + kPanel - 1) / kPanel; }
  // Whether rows of inputs and states are whole pairs of bfloat16. (It may depend on nothing but shapes: results would.)
  bool paired() const { return I % 2 == 0 && R % 2 == 0 && !project; }
};

// Where the slots of a record are, in elements, and how long records are.
struct Record {
  int64_t slots, peepholes;
  bool project;

  Record(const Variant& v, const Sizes& size) : slots(v.slots), peepholes(v.peepholes), project(size.project) {}

  // Both passes: pre-activations that become gates, then c; the backward finds them as the forward saved them.
  int64_t gate_width() const { return slots * kPanel; }
  int64_t c() const { return gate_width(); }
  // Forward: c_prev becomes c; then the hidden values, and peepholes.
  int64_t m() const { return c() + kPanel; }
  int64_t forward_peepholes() const { return m() + kPanel; }
  int64_t forward() const { return forward_peepholes() + peepholes * kPanel; }
  // Backward: c_prev, dh, dc, and peepholes. It leaves the gradients of pre-activations in their slots, and dc_prev.
  int64_t c_prev() const { return c() + kPanel; }
  int64_t dh() const { return c_prev() + kPanel; }
  int64_t dc() const { return dh() + kPanel; }
  int64_t backward_peepholes() const { return dc() + kPanel; }
  int64_t backward() const { return backward_peepholes() + peepholes * kPanel; }
  // What the forward saves for the backward: gates and c, and the hidden values where a projection needs them.
  int64_t saved() const { return m() + (project ? kPanel : 0); }
};

template <class S>
struct Weights {
  // (gates * H, I), (gates * H, R), (gates * H) or null, (gates * H) or null, (P, H) or null, (peepholes, H) or null; contiguous
  const S *ih, *hh, *b_ih, *b_hh, *hr, *peephole;
};

// Values of one panel, from rows of T to rows of S (or back), of which only `n` <= kPanel exist.
template <class From, class To>
void convert(int64_t rows, int64_t n, Block<const From> from, Block<To> to) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] = static_cast<To>(from.p[m * from.row + i]);
}

template <class S>
struct ForwardCall {
  using T = compute_t<S>;
  Variant variant;
  Sequence seq;
  Sizes size;
  Weights<S> w;
  Rows<const S> x;
  const S *h0, *c0;      // (B, R), (B, H), contiguous
  S *y, *h_n, *c_n;      // y: one row of R per row of the sequence, in order; c_n: null where c is h
  S* cells;              // c of every row, or null
  T* saved;              // null where no backward follows
  void run();
};

// Where the gradients of weights go, by the names in Weights; b_hh: null where it equals b_ih.
template <class S>
struct WeightGradients {
  S *ih, *hh, *b_ih, *b_hh, *hr, *peephole;
};

template <class S>
struct BackwardCall {
  using T = compute_t<S>;
  Variant variant;
  Sequence seq;
  Sizes size;
  Weights<S> w;
  Rows<const S> x, dy, dcells;  // dy.p and dcells.p may be null: zero
  const S *h0, *c0, *y;
  const S *dh_n, *dc_n;  // null: zero
  const T* saved;
  S *dx;  // null where not wanted; rows of I in the order of y's
  S *dh0, *dc0;  // dc0: null where c is h
  bool need_dw;
  // Called once where need_dw is set: at the end, when packed weights are done with and their memory can serve again, or at the
  // beginning where none are packed.
  std::function<WeightGradients<S>()> make_dw;
  void run();
};

}  // namespace fastlstm
