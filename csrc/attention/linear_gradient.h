// The gradients of a linear layer's weight and bias, summed up over chunks of rows.
#pragma once
#include "products/row_pairs.h"

namespace fastlstm {

// y = [x, x2] W^T + bias, W (N, K + K2). Rows are added in their order, whatever the number of threads.
template <class S>
class LinearGradient {
  using T = compute_t<S>;
  using A = factor_t<S>;
  static constexpr bool kSameType = Arithmetic<S>::kSameType;
  static constexpr int64_t kRows = kSameType ? 48 : 64;  // of W at a time

 public:
  LinearGradient() = default;
  // `most`: rows of a chunk. `dw`: where the gradient is to be; sums are kept there, or in memory of their own where T is wider.
  LinearGradient(const Arithmetic<S>& with, int64_t N, int64_t K, int64_t K2, int64_t most, int64_t workers, S* dw)
      : with_(&with), N_(N), K_(K), K2_(K2), dw_(dw), bias_(N, 0.0), tiles_(kSameType && dw ? workers * kRows * kMaxBlock : 0) {
    if constexpr (kPaired<A>) {
      if (!dw) return;
      sums_ = Buffer<T>(N * width()), left_ = RowPairs<S>(with, most, N), right_ = Buffer<A>(row_pairs(*with.bf16, most) * width());
    }
  }

  // Of `rows` rows of dy (N), x (K) and x2 (K2), the first ones where `add` is not set: this thread's share. It ends without a barrier.
  void run(const Thread& thread, int64_t rows, const S* dy, const S* x, const S* x2, bool add) {
    const Range mine = thread.mine(N_);
    for (int64_t row = 0; row < rows; row++)
      for (int64_t i = mine.begin; i < mine.end; i++) bias_[i] += static_cast<T>(dy[row * N_ + i]);
    if constexpr (kPaired<A>) {
      const int64_t pairs = row_pairs(*with_->bf16, rows);
      const Range of_pairs = thread.mine(pairs);
      left_.pair(thread, rows, {dy, N_});
      for (int64_t pair = of_pairs.begin; pair < of_pairs.end; pair++) {
        put_right(x, rows, K_, pair, 0);
        put_right(x2, rows, K2_, pair, panels_of(K_) * kPanel);
      }
      thread.barrier_all();
      for_jobs(thread, width(), [&](int64_t first, int64_t count, int64_t column, int64_t n) {
        with_->gemm(Gemm<T, A>{.m = count, .n = n, .k = pairs, .a = left_.at(first), .a_m = left_.m(), .a_k = left_.k(),
                               .b = right_ + column, .b_k = width(), .c = sums_ + first * width() + column, .c_m = width(),
                               .accumulate = add, .block = 256 / kTerms<A>});
      });
    } else {
      multiply(thread, rows, dy, x, K_, 0, add);
      if (K2_) multiply(thread, rows, dy, x2, K2_, K_, add);
    }
  }

  // After all: this thread's share. `db` may be null.
  void write(const Thread& thread, S* db) const {
    const Range mine = thread.mine(N_);
    for (int64_t i = mine.begin; i < mine.end && db; i++) db[i] = static_cast<S>(bias_[i]);
    if constexpr (!kSameType) {
      for (int64_t i = mine.begin; i < mine.end; i++) {
        const T* const row = sums_ + i * width();
        with_->store(1, K_, {row, 0}, {dw_ + i * (K_ + K2_), 0});
        with_->store(1, K2_, {row + panels_of(K_) * kPanel, 0}, {dw_ + i * (K_ + K2_) + K_, 0});
      }
    }
  }

 private:
  // Calls f(first, count, column, n) for this thread's blocks of rows of W and of `columns` columns.
  template <class F>
  void for_jobs(const Thread& thread, int64_t columns, const F& f) const {
    const int64_t blocks = (columns + kMaxBlock - 1) / kMaxBlock, per_block = (N_ + kRows - 1) / kRows;
    const Range jobs = thread.mine(blocks * per_block);
    for (int64_t job = jobs.begin; job < jobs.end; job++) {
      const int64_t column = job / per_block * kMaxBlock, first = job % per_block * kRows;
      f(first, std::min(kRows, N_ - first), column, std::min(kMaxBlock, columns - column));
    }
  }

  void multiply(const Thread& thread, int64_t rows, const S* dy, const S* x, int64_t columns, int64_t before, bool add) const {
    T* const tile = tiles_ + thread.worker * kRows * kMaxBlock;
    for_jobs(thread, columns, [&](int64_t first, int64_t count, int64_t column, int64_t n) {
      with_->gemm(Gemm<T>{.m = count, .n = panels_of(n) * kPanel, .k = rows, .a = dy + first, .a_m = 1, .a_k = N_, .b = x + column,
                          .b_k = columns, .c = tile, .c_m = kMaxBlock});
      for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < n; j++) {
          T& to = dw_[(first + i) * (K_ + K2_) + before + column + j];
          to = (add ? to : T(0)) + tile[i * kMaxBlock + j];
        }
    });
  }

  // Two rows of n side by side, with zeros up to whole panels, into columns of the right factor.
  void put_right(const S* from, int64_t rows, int64_t n, int64_t pair, int64_t column) {
    if (n == 0) return;
    A* const to = right_ + pair * width() + column;
    pair_rows(*with_->bf16, Block<const S>{from, n}, rows, n, pair, to);
    std::fill(to + n, to + panels_of(n) * kPanel, A{});
  }

  int64_t width() const { return (panels_of(K_) + panels_of(K2_)) * kPanel; }

  const Arithmetic<S>* with_ = nullptr;
  int64_t N_ = 0, K_ = 0, K2_ = 0;
  S* dw_ = nullptr;
  std::vector<double> bias_;
  Buffer<T> tiles_, sums_;
  std::conditional_t<kPaired<A>, RowPairs<S>, Buffer<S>> left_;
  Buffer<A> right_;  // rows in pairs
};

}  // namespace fastlstm
