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
  template <class V>
  void run(const Thread& thread, const Reads<T>& of, V* dmemory, V* dkeys) {
    const Range mine = thread.mine(m_.B);
    T* const tile = tiles_ + thread.worker * kRows * kMaxBlock;
    for (int64_t b = mine.begin; b < mine.end; b++) {
      multiply(b, of.weights, of.dcontexts, m_.M, false, tile, dmemory);
      if (reader_.additive()) additive_keys(thread.worker, b, of, dkeys);
      else multiply(b, of.dscores, of.queries, m_.A, !m_.own_keys, tile, m_.own_keys ? dkeys : dmemory);
    }
  }

  // After all threads have run: sums over sequences in their order.
  template <class V>
  void write_score(V* dscore) const {
    for (int64_t a = 0; a < m_.A; a++) {
      double sum = 0;
      for (int64_t b = 0; b < m_.B; b++) sum += dscores_[b * m_.A + a];
      dscore[a] = static_cast<V>(sum);
    }
  }

 private:
  // to[s][b] = sum over the steps of left[t][b][s] * right[t][b], added where `add` is set.
  template <class V>
  void multiply(int64_t b, const T* left, const T* right, int64_t n, bool add, T* tile, V* to) const {
    const int64_t S = m_.length(b);
    for (int64_t column = 0; column < n; column += kMaxBlock) {
      const int64_t exist = std::min(kMaxBlock, n - column), width = panels_of(exist) * kPanel;
      for (int64_t s = 0; s < S; s += kRows) {
        const int64_t rows = std::min(kRows, S - s);
        micro_.gemm({.m = rows, .n = width, .k = steps_, .a = left + b * m_.S + s, .a_m = 1, .a_k = m_.B * m_.S,
                     .b = right + b * n + column, .b_k = m_.B * n, .c = tile, .c_m = kMaxBlock});
        for (int64_t i = 0; i < rows; i++) {
          V* const row = to + ((s + i) * m_.B + b) * n + column;
          for (int64_t j = 0; j < exist; j++) row[j] = static_cast<V>((add ? static_cast<T>(row[j]) : T(0)) + tile[i * kMaxBlock + j]);
        }
      }
    }
    for (int64_t s = S; s < m_.S && !add; s++) std::fill_n(to + (s * m_.B + b) * n, n, V(0));
  }

  template <class V>
  void additive_keys(int64_t worker, int64_t b, const Reads<T>& of, V* dkeys) {
    const int64_t S = m_.length(b), A = m_.A;
    T* const scratch = scratch_ + worker * (reader_.scratch_size() + m_.S * A);
    T* const dk = scratch + reader_.scratch_size();
    if (S > 0)
      reader_.keys_backward(b, {of.queries + b * A, m_.B * A}, steps_, scratch, {of.dscores + b * m_.S, m_.B * m_.S}, dk, dscores_ + b * A);
    else std::fill_n(dscores_ + b * A, A, T(0));
    std::fill(dk + S * A, dk + m_.S * A, T(0));
    convert<T, V>(m_.S, A, {dk, A}, {dkeys + b * A, m_.B * A});
  }

  const Reader<T>& reader_;
  const Memory<T>& m_;
  const MicroKernels<T>& micro_;
  const int64_t steps_;
  Buffer<T> tiles_, scratch_, dscores_;
};

}  // namespace fastlstm
