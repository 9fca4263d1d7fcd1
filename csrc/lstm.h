// The LSTM's loop over time on the CPU: what its forward and backward share.
//
// Hidden units are handled in panels of kLanes = 16. A panel's gate kernel works on records, one per row of the batch, each a
// few slots of 16 values; which slots those are is said in kernels/lstm/cpu.py, where the gate math is. C++ only fills
// and reads slots.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "gemm.h"
#include "kernel_table.h"
#include "memory.h"
#include "parallel.h"
#include "plan.h"
#include "sequence.h"

namespace fastlstm {

constexpr int64_t kGates = 4;
constexpr int64_t kPanel = kGates * kLanes;
// Slots of the forward record: four pre-activations that become gates, c_prev that becomes c, and o * tanh(c).
constexpr int64_t kCellSlot = 4, kHiddenSlot = 5, kForwardSlots = 6;
// Slots of the backward record: the saved i f g o c, then c_prev, dh, dc. It leaves dG in the first four and dc_prev in the last.
constexpr int64_t kPrevCellSlot = 5, kGradHiddenSlot = 6, kGradCellSlot = 7, kBackwardSlots = 8;

// Arithmetic type of a storage type.
template <class S>
struct Compute { using type = float; };
template <>
struct Compute<double> { using type = double; };
template <class S>
using compute_t = typename Compute<S>::type;

template <class T>
constexpr Kernel forward_kernel = sizeof(T) == 4 ? Kernel::lstm_fwd_f32 : Kernel::lstm_fwd_f64;
template <class T>
constexpr Kernel backward_kernel = sizeof(T) == 4 ? Kernel::lstm_bwd_f32 : Kernel::lstm_bwd_f64;

struct Sizes {
  int64_t I, H, R;  // R: size of the recurrent state, the projection's where there is one
  bool project;

  int64_t panels() const { return blocks(H); }
  // Slots that the forward saves per record for the backward: i f g o c, and o * tanh(c) where a projection needs it.
  int64_t saved_slots() const { return project ? 6 : 5; }
  int64_t saved_row() const { return saved_slots() * kLanes; }
  static int64_t blocks(int64_t units) { return (units + kLanes - 1) / kLanes; }
};

template <class S>
struct Weights {
  const S *ih, *hh, *b_ih, *b_hh, *hr;  // (4H, I), (4H, R), (4H) or null, (4H) or null, (P, H) or null; contiguous
};

// Values of one panel, from rows of T to rows of S (or back), of which only `n` <= kLanes exist.
template <class From, class To>
void convert(int64_t rows, int64_t n, Block<const From> from, Block<To> to) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] = static_cast<To>(from.p[m * from.row + i]);
}

template <class S>
struct LstmForward {
  using T = compute_t<S>;
  Sequence seq;
  Sizes size;
  Weights<S> w;
  Rows<const S> x;
  const S *h0, *c0;  // (B, R), (B, H), contiguous
  S *y, *h_n, *c_n;  // y: one row of R per row of the sequence, in order
  T* saved;          // null where no backward follows
  void run();
};

template <class S>
struct LstmBackward {
  using T = compute_t<S>;
  Sequence seq;
  Sizes size;
  Weights<S> w;
  Rows<const S> x, dy;  // dy.p may be null: zero
  const S *h0, *c0, *y;
  const S *dh_n, *dc_n;  // null: zero
  const T* saved;
  S *dx;  // null where not wanted; rows of I in the order of y's
  S *dh0, *dc0;
  bool need_dw;
  S *dw_ih, *dw_hh, *db, *dw_hr;  // not written where need_dw is false
  void run();
};

}  // namespace fastlstm
