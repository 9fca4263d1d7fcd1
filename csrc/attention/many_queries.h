// Scores of products, and their sums over slots, by many queries of a sequence at once.
#pragma once
#include <vector>

#include "attention/reader.h"
#include "loop/context.h"

namespace fastlstm {

template <class T>
class ManyQueries {
  static constexpr int64_t kSlots = 256;  // as many terms as a product sums up before they join the total

 public:
  static constexpr int64_t kSteps = 96;  // at most

  ManyQueries(const Memory<T>& memory, bool with_backward)
      : m_(memory), micro_(micro_kernels<T>()), width_(std::max(memory.A, memory.M)) {
    const Kernels& softmax = find_kernels("softmax");
    softmax_ = reinterpret_cast<Softmax>(softmax.address(Pass::forward, sizeof(T) == 8));
    if (with_backward) backward_ = reinterpret_cast<Backward>(softmax.address(Pass::backward, sizeof(T) == 8));
  }

  // Where results are whole panels, and slots have a distance.
  static bool serve(const Memory<T>& m) {
    return !m.score && m.A % kPanel == 0 && m.M % kPanel == 0 && m.memory.slot > 0 && m.keys.slot > 0;
  }

  int64_t scratch_size() const { return std::max(width_, kSlots) * kMaxBlock + kSteps * kMaxBlock; }

  // As Reader's read(), of `steps` queries of sequence b.
  void read(int64_t b, int64_t steps, Block<const T> queries, T* scratch, Block<T> weights, Block<T> contexts) const {
    const int64_t S = m_.length(b);
    scores(steps, queries, m_.A, m_.keys, b, scratch, weights);
    for (int64_t t = 0; t < steps && S > 0; t++) softmax_(weights.p + t * weights.row, S);
    sums(steps, {weights.p, weights.row}, m_.memory, b, m_.M, scratch, contexts);
  }

  // As read_backward(); dweights.p and dqueries.p may be null.
  void read_backward(int64_t b, int64_t steps, T* scratch, Block<const T> weights, Block<const T> dcontexts, Block<const T> dweights,
                     Block<T> dscores, Block<T> dqueries) const {
    const int64_t S = m_.length(b);
    scores(steps, dcontexts, m_.M, m_.memory, b, scratch, dscores);
    for (int64_t t = 0; t < steps && S > 0; t++) {
      T* const d = dscores.p + t * dscores.row;
      for (int64_t s = 0; s < S && dweights.p; s++) d[s] += dweights.p[t * dweights.row + s];
      backward_(weights.p + t * weights.row, d, S);
    }
    if (dqueries.p) sums(steps, {dscores.p, dscores.row}, m_.keys, b, m_.A, scratch, dqueries);
  }

 private:
  using Softmax = void (*)(T*, int64_t);
  using Backward = void (*)(const T*, T*, int64_t);

  // to[t][s] = left[t] . slot s of n values, 0 beyond the sequence's length.
  void scores(int64_t steps, Block<const T> left, int64_t n, const MemoryRows<T>& slots, int64_t b, T* scratch, Block<T> to) const {
    const int64_t S = m_.length(b);
    T *const turned = scratch, *const tile = scratch + std::max(width_, kSlots) * kMaxBlock;
    for (int64_t s = 0; s < S; s += kMaxBlock) {
      const int64_t exist = std::min(kMaxBlock, S - s);
      micro_.transpose(exist, n, {slots.at(b) + s * slots.slot, slots.slot}, {turned, kMaxBlock});
      micro_.gemm({.m = steps, .n = panels_of(exist) * kPanel, .k = n, .a = left.p, .a_m = left.row, .b = turned, .b_k = kMaxBlock,
                   .c = tile, .c_m = kMaxBlock});
      for (int64_t t = 0; t < steps; t++) std::copy_n(tile + t * kMaxBlock, exist, to.p + t * to.row + s);
    }
    for (int64_t t = 0; t < steps; t++) std::fill(to.p + t * to.row + S, to.p + t * to.row + m_.S, T(0));
  }

  // to[t] = the sum over slots of left[t][s] times slot s, of n values.
  void sums(int64_t steps, Block<const T> left, const MemoryRows<T>& slots, int64_t b, int64_t n, T* scratch, Block<T> to) const {
    const int64_t S = m_.length(b);
    for (int64_t t = 0; t < steps && S == 0; t++) std::fill_n(to.p + t * to.row, n, T(0));
    for (int64_t column = 0; column < n; column += kMaxBlock) {
      const int64_t width = std::min(kMaxBlock, n - column);
      for (int64_t s = 0; s < S; s += kSlots) {
        const int64_t exist = std::min(kSlots, S - s);
        micro_.copy(exist, width, {slots.at(b) + s * slots.slot + column, slots.slot}, {scratch, kMaxBlock});
        micro_.gemm({.m = steps, .n = width, .k = exist, .a = left.p + s, .a_m = left.row, .b = scratch, .b_k = kMaxBlock,
                     .c = to.p + column, .c_m = to.row, .accumulate = s > 0});
      }
    }
  }

  const Memory<T>& m_;
  const MicroKernels<T>& micro_;
  const int64_t width_;
  Softmax softmax_ = nullptr;
  Backward backward_ = nullptr;
};

}  // namespace fastlstm
