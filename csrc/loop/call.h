// One call of a recurrence over time on the CPU: what its ops hand to the loops.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <functional>

#include "cell/record.h"
#include "loop/image.h"
#include "loop/sequence.h"

namespace fastlstm {

// Arithmetic type of a storage type.
template <class S>
struct Compute { using type = float; };
template <>
struct Compute<double> { using type = double; };
template <class S>
using compute_t = typename Compute<S>::type;

template <class S>
struct Weights {
  // (gates * H, I), (gates * H, R), (gates * H) or null, (gates * H) or null, (P, H) or null, (peepholes, peephole_rows, H) or null;
  // contiguous. Of images: (gates * H, taps, I) and (gates * H, taps, R).
  const S *ih, *hh, *b_ih, *b_hh, *hr, *peephole;
};

// States of all sequences, (B, n), contiguous; `moved`: of images, channels come before the pixels. Null: zero.
template <class S>
struct State {
  const S* p;
  bool moved;

  State(const S* from = nullptr, bool has_moved = false) : p(from), moved(has_moved) {}
};

template <class S>
struct ForwardCall {
  using T = compute_t<S>;
  const Variant& variant;
  Sequence seq;
  Sizes size;
  Weights<S> w;
  Rows<const S> x;
  const Images* images = nullptr;  // null where a row is a sequence
  State<S> h0, c0;       // (B, R), (B, H)
  S *y, *h_n, *c_n;      // y: one row of R per row of the sequence, in order, or null; c_n: null where c is h
  S* cells;              // c of every row, or null
  T* saved;              // null where no backward follows
  bool stepwise = false;  // inputs of a step are not there before it
  bool streams = false;   // other steps follow in later calls: weights are packed however few there are now
  void run();
};

// Where the gradients of weights go, by the names in Weights; b_hh: null where it equals b_ih.
template <class S>
struct WeightGradients {
  S *ih, *hh, *b_ih, *b_hh, *hr, *peephole;
  // Where they are to be added up before they are rounded: these stand for those above that are null.
  const WeightGradients<compute_t<S>>* sums = nullptr;

  template <class F>
  void visit(const F& f) const {
    if (sums) f(*sums);
    else f(*this);
  }
};

template <class S>
struct BackwardCall {
  using T = compute_t<S>;
  const Variant& variant;
  Sequence seq;
  Sizes size;
  Weights<S> w;
  Rows<const S> x, dy, dcells;  // dy.p and dcells.p may be null: zero
  Rows<const T> given;          // beside dy, by what runs this call step by step; or null
  const Images* images = nullptr;
  State<S> h0, c0;
  const S* h = nullptr;  // of every row, in order; null: what is saved yields it, as no projection made it
  bool gives_hidden = false;  // whether others ask for h, which is not there
  State<S> dh_n, dc_n;
  const T* saved;
  S *dx;  // null where not wanted; rows of I in the order of y's
  S *dh0, *dc0;  // null where not wanted; dc0 also where c is h
  bool need_dw;
  // Where inputs are not kept as they were: puts those of `rows` sequences from b on, of step t.
  std::function<void(int64_t t, int64_t b, int64_t rows, Block<S> to)> inputs;
  // Columns of the inputs whose gradients each step gives by itself: not in dx, which ends before them.
  int64_t stepwise_begin = 0, stepwise_columns = 0;
  int64_t dx_columns() const { return stepwise_columns ? stepwise_begin : size.I; }
  // Called once where need_dw is set: at the end, when packed weights are done with and their memory can serve again, or at the
  // beginning where none are packed.
  std::function<WeightGradients<S>()> make_dw;
  void run();
};

}  // namespace fastlstm
