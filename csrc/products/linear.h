// A linear layer within a step: y = [a, a2] W^T + bias, and the gradients of its inputs.
#pragma once
#include "products/forward.h"

namespace fastlstm {

// W is (N, K + K2), rows contiguous. As it is, where so few rows are multiplied that packing would not pay; else packed.
template <class T>
class Linear {
 public:
  Linear() = default;
  Linear(const MicroKernels<T>& micro, const T* w, const T* bias, int64_t N, int64_t K, int64_t K2, bool packed)
      : micro_(&micro), w_(w), N_(N), K_(K), K2_(K2), bias_(panels_of(N) * kPanel),
        packed_(packed ? panels_of(N) * kPanel * (K + K2) : 0) {
    for (int64_t n = 0; n < panels_of(N) * kPanel; n++) bias_[n] = bias && n < N ? bias[n] : T(0);
  }

  int64_t panels() const { return panels_of(N_); }

  // Once for each unit group.
  void set_up(const Thread& thread) {
    if (!packed_ || !thread.in_plan() || thread.row_group() > 0) return;
    const Range mine = thread.of_unit_group(panels());
    for_column_blocks(mine.begin, mine.end, [&](int64_t p, int64_t count) {
      pack_columns<true>(w_, K_ + K2_, N_, p * kPanel, {K_ + K2_, count * kPanel, micro_->width}, packed_ + p * kPanel * (K_ + K2_));
    });
  }

  // `count` panels of y from p on, for some rows; they are those of a block of this thread's unit group.
  void multiply(int64_t rows, int64_t p, int64_t count, Block<const T> a, Block<const T> a2, Block<T> y) const {
    const T* const bias = bias_ + p * kPanel;
    if (packed_)
      return micro_->gemm({.m = rows, .n = count * kPanel, .k = K_, .a = a.p, .a_m = a.row, .a2 = a2.p, .a2_m = a2.row, .k2 = K2_,
                           .b = packed_ + p * kPanel * (K_ + K2_), .init = bias, .c = y.p, .c_m = y.row,
                           .block = kStepwiseBlock});
    micro_->copy(rows, count * kPanel, {bias, 0}, y);
    for (int64_t i = 0; i < count; i++) {
      const T* const w = w_ + (p + i) * kPanel * (K_ + K2_);
      const Block<T> to{y.p + i * kPanel, y.row};
      add(rows, p + i, K_, a, w, to);
      if (K2_) add(rows, p + i, K2_, a2, w + K_, to);
    }
  }

 private:
  void add(int64_t rows, int64_t p, int64_t k, Block<const T> a, const T* w, Block<T> to) const {
    micro_->gemm_unpacked_t({.m = rows, .n = units_of(N_, p), .k = k, .a = a.p, .a_m = a.row, .w = w, .w_n = K_ + K2_, .init = to.p,
                             .init_m = to.row, .c = to.p, .c_m = to.row});
  }

  const MicroKernels<T>* micro_ = nullptr;
  const T* w_ = nullptr;
  int64_t N_ = 0, K_ = 0, K2_ = 0;
  Buffer<T> bias_, packed_;
};

// dx = dy W[:, first : first + n], W (N, K).
template <class T>
class LinearBackward {
 public:
  LinearBackward() = default;
  LinearBackward(const MicroKernels<T>& micro, const T* w, int64_t N, int64_t K, int64_t first, int64_t n)
      : micro_(&micro), w_(w), N_(N), K_(K), first_(first), n_(n), packed_(panels_of(n) * kPanel * N) {}

  int64_t panels() const { return panels_of(n_); }

  void set_up(const Thread& thread) {
    if (!packed_ || !thread.in_plan() || thread.row_group() > 0) return;
    const Range mine = thread.of_unit_group(panels());
    for_column_blocks(mine.begin, mine.end, [&](int64_t p, int64_t count) {
      pack_columns<false>(w_, N_, K_, first_ + p * kPanel, {N_, count * kPanel, micro_->width}, packed_ + p * kPanel * N_);
    });
  }

  void multiply(int64_t rows, int64_t p, int64_t count, Block<const T> dy, Block<T> dx, bool accumulate) const {
    micro_->gemm({.m = rows, .n = count * kPanel, .k = N_, .a = dy.p, .a_m = dy.row, .b = packed_ + p * kPanel * N_, .c = dx.p,
                  .c_m = dx.row, .accumulate = accumulate});
  }

 private:
  const MicroKernels<T>* micro_ = nullptr;
  const T* w_ = nullptr;
  int64_t N_ = 0, K_ = 0, first_ = 0, n_ = 0;
  Buffer<T> packed_;
};

}  // namespace fastlstm
