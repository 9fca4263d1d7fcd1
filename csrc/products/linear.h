// A linear layer within a step: y = [a, a2] W^T + bias, and the gradients of its inputs.
#pragma once
#include "products/forward.h"

namespace fastlstm {

// W is (N, K + K2), rows contiguous. As it is, where so few rows are multiplied that packing would not pay; else packed.
template <class S>
class Linear {
  using T = compute_t<S>;
  using A = factor_t<S>;

 public:
  Linear() = default;
  Linear(const Arithmetic<S>& with, const S* w, const S* bias, int64_t N, int64_t K, int64_t K2, bool packed)
      : with_(&with), w_(w), N_(N), K_(K), K2_(K2), bias_(panels_of(N) * kPanel),
        packed_(packed || !with.kSameType ? panels_of(N) * kPanel * terms() : 0) {
    for (int64_t n = 0; n < panels_of(N) * kPanel; n++) bias_[n] = bias && n < N ? static_cast<T>(bias[n]) : T(0);
  }

  int64_t panels() const { return panels_of(N_); }

  // Once for each unit group.
  void set_up(const Thread& thread) {
    if (!packed_ || !thread.in_plan() || thread.row_group() > 0) return;
    const Range mine = thread.of_unit_group(panels());
    for_column_blocks(mine.begin, mine.end, [&](int64_t p, int64_t count) {
      pack_columns<true>(factors<A>(w_), terms(), N_, p * kPanel, {terms(), count * kPanel, with_->micro.width}, packed_of(p));
    });
  }

  // `count` panels of y from p on, for some rows; they are those of a block of this thread's unit group.
  void multiply(int64_t rows, int64_t p, int64_t count, Block<const S> a, Block<const S> a2, Block<T> y) const {
    const T* const bias = bias_ + p * kPanel;
    if (packed_)
      return with_->gemm(Gemm<T, A>{.m = rows, .n = count * kPanel, .k = K_ / kTerms<A>, .a = factors<A>(a.p), .a_m = a.row / kTerms<A>,
                                    .a2 = factors<A>(a2.p), .a2_m = a2.row / kTerms<A>, .k2 = K2_ / kTerms<A>, .b = packed_of(p),
                                    .init = bias, .c = y.p, .c_m = y.row, .block = kStepwiseBlock / kTerms<A>});
    if constexpr (Arithmetic<S>::kSameType) {
      with_->micro.copy(rows, count * kPanel, {bias, 0}, y);
      for (int64_t i = 0; i < count; i++) {
        const T* const w = w_ + (p + i) * kPanel * (K_ + K2_);
        const Block<T> to{y.p + i * kPanel, y.row};
        add(rows, p + i, K_, a, w, to);
        if (K2_) add(rows, p + i, K2_, a2, w + K_, to);
      }
    }
  }

  // y += a W^T, with what rounding took of the first K: it is added to what was multiplied, which `packed` weights are there for.
  void add_rest(int64_t rows, int64_t p, int64_t count, Block<const S> a, Block<T> y) const {
    with_->gemm(Gemm<T, A>{.m = rows, .n = count * kPanel, .k = K_ / kTerms<A>, .a = factors<A>(a.p), .a_m = a.row / kTerms<A>,
                           .b = packed_of(p), .b_rows = terms(), .c = y.p, .c_m = y.row, .accumulate = true});
  }

 private:
  int64_t terms() const { return (K_ + K2_) / kTerms<A>; }
  A* packed_of(int64_t p) const { return packed_ + p * kPanel * terms(); }

  void add(int64_t rows, int64_t p, int64_t k, Block<const T> a, const T* w, Block<T> to) const {
    with_->micro.gemm_unpacked_t({.m = rows, .n = units_of(N_, p), .k = k, .a = a.p, .a_m = a.row, .w = w, .w_n = K_ + K2_,
                                  .init = to.p, .init_m = to.row, .c = to.p, .c_m = to.row});
  }

  const Arithmetic<S>* with_ = nullptr;
  const S* w_ = nullptr;
  int64_t N_ = 0, K_ = 0, K2_ = 0;
  Buffer<T> bias_;
  Buffer<A> packed_;
};

// dx = dy W[:, first : first + n], W (N, K).
template <class S>
class LinearBackward {
  using T = compute_t<S>;
  using A = factor_t<S>;

 public:
  LinearBackward() = default;
  LinearBackward(const Arithmetic<S>& with, const S* w, int64_t N, int64_t K, int64_t first, int64_t n)
      : with_(&with), w_(w), N_(N), K_(K), first_(first), n_(n), packed_(panels_of(n) * kPanel * terms()) {}

  int64_t panels() const { return panels_of(n_); }

  void set_up(const Thread& thread) {
    if (!packed_ || !thread.in_plan() || thread.row_group() > 0) return;
    const Range mine = thread.of_unit_group(panels());
    for_column_blocks(mine.begin, mine.end, [&](int64_t p, int64_t count) {
      const Packed layout{terms(), count * kPanel, with_->micro.width};
      if constexpr (kPaired<A>) pack_pairs_of_rows(*with_->bf16, w_, N_, K_, first_ + p * kPanel, layout, packed_of(p));
      else pack_columns<false>(w_, N_, K_, first_ + p * kPanel, layout, packed_of(p));
    });
  }

  void multiply(int64_t rows, int64_t p, int64_t count, Block<const S> dy, Block<T> dx, bool accumulate) const {
    with_->gemm(Gemm<T, A>{.m = rows, .n = count * kPanel, .k = terms(), .a = factors<A>(dy.p), .a_m = dy.row / kTerms<A>,
                           .b = packed_of(p), .c = dx.p, .c_m = dx.row, .accumulate = accumulate});
  }

 private:
  int64_t terms() const { return N_ / kTerms<A>; }
  A* packed_of(int64_t p) const { return packed_ + p * kPanel * terms(); }

  const Arithmetic<S>* with_ = nullptr;
  const S* w_ = nullptr;
  int64_t N_ = 0, K_ = 0, first_ = 0, n_ = 0;
  Buffer<A> packed_;
};

}  // namespace fastlstm
