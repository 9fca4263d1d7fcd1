// What the backward of attention sums over all steps: the gradients of the memory, its keys and the weights of additive scores.
#pragma once
#include "attention/reader.h"
#include "loop/context.h"

namespace fastlstm {

// Rows of (T, B, ...), zero where a sequence has ended: each is read in whole panels, so that the last may be read beyond its end.
template <class T>
struct Reads {
  const T *queries, *weights;     // as the forward left them
  const T *dcontexts, *dscores;
};

template <class T>
class MemoryGradients {
  static constexpr int64_t kRows = 48;  // slots at a time

 public:
  MemoryGradients(const Reader<T>& reader, const MicroKernels<T>& micro, int64_t steps, int64_t workers)
      : reader_(reader), m_(reader.memory), micro_(micro), steps_(steps), tiles_(workers * kRows * kMaxBlock),
        scratch_(workers * (reader.scratch_size() + m_.S * m_.A)), dscores_(reader.additive() ? m_.B * m_.A : 0) {}

  // This thread's sequences; dmemory (S, B, M), and dkeys (S, B, A) or null.
  void run(const Thread& thread, const Reads<T>& of, T* dmemory, T* dkeys) {
    const Range mine = thread.mine(m_.B);
    T* const tile = tiles_ + thread.worker * kRows * kMaxBlock;
    for (int64_t b = mine.begin; b < mine.end; b++) {
      multiply(b, of.weights, of.dcontexts, m_.M, false, tile, dmemory);
      if (reader_.additive()) additive_keys(thread.worker, b, of, dkeys);
      else multiply(b, of.dscores, of.queries, m_.A, !m_.own_keys, tile, m_.own_keys ? dkeys : dmemory);
    }
  }

  // After all threads have run: sums over sequences in their order.
  void write_score(T* dscore) const {
    for (int64_t a = 0; a < m_.A; a++) {
      double sum = 0;
      for (int64_t b = 0; b < m_.B; b++) sum += dscores_[b * m_.A + a];
      dscore[a] = static_cast<T>(sum);
    }
  }

 private:
  // to[s][b] = sum over the steps of left[t][b][s] * right[t][b], added where `add` is set.
  void multiply(int64_t b, const T* left, const T* right, int64_t n, bool add, T* tile, T* to) const {
    const int64_t S = m_.length(b);
    for (int64_t column = 0; column < n; column += kMaxBlock) {
      const int64_t exist = std::min(kMaxBlock, n - column), width = panels_of(exist) * kPanel;
      for (int64_t s = 0; s < S; s += kRows) {
        const int64_t rows = std::min(kRows, S - s);
        micro_.gemm({.m = rows, .n = width, .k = steps_, .a = left + b * m_.S + s, .a_m = 1, .a_k = m_.B * m_.S,
                     .b = right + b * n + column, .b_k = m_.B * n, .c = tile, .c_m = kMaxBlock});
        for (int64_t i = 0; i < rows; i++) {
          T* const row = to + ((s + i) * m_.B + b) * n + column;
          for (int64_t j = 0; j < exist; j++) row[j] = (add ? row[j] : T(0)) + tile[i * kMaxBlock + j];
        }
      }
    }
    for (int64_t s = S; s < m_.S && !add; s++) std::fill_n(to + (s * m_.B + b) * n, n, T(0));
  }

  void additive_keys(int64_t worker, int64_t b, const Reads<T>& of, T* dkeys) {
    const int64_t S = m_.length(b), A = m_.A;
    T* const scratch = scratch_ + worker * (reader_.scratch_size() + m_.S * A);
    T* const dk = scratch + reader_.scratch_size();
    if (S > 0)
      reader_.keys_backward(b, {of.queries + b * A, m_.B * A}, steps_, scratch, {of.dscores + b * m_.S, m_.B * m_.S}, dk, dscores_ + b * A);
    else std::fill_n(dscores_ + b * A, A, T(0));
    std::fill(dk + S * A, dk + m_.S * A, T(0));
    for (int64_t s = 0; s < m_.S; s++) std::copy_n(dk + s * A, A, dkeys + (s * m_.B + b) * A);
  }

  const Reader<T>& reader_;
  const Memory<T>& m_;
  const MicroKernels<T>& micro_;
  const int64_t steps_;
  Buffer<T> tiles_, scratch_, dscores_;
};

// The gradients of a linear layer's weight (N, columns of `row`) and bias (N), over all rows of a product's sides.
template <class T>
class WeightProduct {
  static constexpr int64_t kRows = 48;

 public:
  // dw[:, first : first + n] = dy^T x, dy (rows, N), x (rows, n), in the order of rows; then += where `add` is set. A thread's share.
  static void run(const Thread& thread, const MicroKernels<T>& micro, int64_t rows, int64_t N, const T* dy, int64_t n, const T* x, T* tile,
                  T* dw, int64_t row, int64_t first, bool add = false) {
    const int64_t blocks = (n + kMaxBlock - 1) / kMaxBlock, per_block = (N + kRows - 1) / kRows;
    const Range jobs = thread.mine(blocks * per_block);
    for (int64_t job = jobs.begin; job < jobs.end; job++) {
      const int64_t column = job / per_block * kMaxBlock, r = job % per_block * kRows, count = std::min(kRows, N - r);
      const int64_t exist = std::min(kMaxBlock, n - column);
      micro.gemm({.m = count, .n = panels_of(exist) * kPanel, .k = rows, .a = dy + r, .a_m = 1, .a_k = N, .b = x + column, .b_k = n,
                  .c = tile, .c_m = kMaxBlock});
      for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < exist; j++) {
          T& to = dw[(r + i) * row + first + column + j];
          to = (add ? to : T(0)) + tile[i * kMaxBlock + j];
        }
    }
  }

  // sums += those of dy over its rows; then db from the sums of all. A thread's share.
  static void bias(const Thread& thread, int64_t rows, int64_t N, const T* dy, std::vector<double>& sums) {
    const Range mine = thread.mine(N);
    for (int64_t row = 0; row < rows; row++)
      for (int64_t i = mine.begin; i < mine.end; i++) sums[i] += dy[row * N + i];
  }
  static void write_bias(const Thread& thread, int64_t N, const std::vector<double>& sums, T* db) {
    const Range mine = thread.mine(N);
    for (int64_t i = mine.begin; i < mine.end; i++) db[i] = static_cast<T>(sums[i]);
  }
  static constexpr int64_t kTile = kRows * kMaxBlock;
};

}  // namespace fastlstm
