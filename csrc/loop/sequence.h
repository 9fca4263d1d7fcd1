// Where the rows of a batch of sequences lie: dense (T, B, ...), packed (N, ...) or padded (T, B, ...) with sizes per step.
#pragma once
#include <cstdint>
#include <numeric>
#include <vector>

namespace fastlstm {

constexpr int64_t kChunkRows = 256;

struct Sequence {
  int64_t T, B;  // B rows: of a batch of images, all their pixels
  bool packed, reverse;
  std::vector<int64_t> size;   // rows of step t: the first size[t] of the batch take part
  std::vector<int64_t> first;  // index of its first row among the rows of contiguous tensors such as y
  const bool* reset = nullptr;  // of each step and sequence: it is cut before it; null where none is
  int64_t pixels = 1;           // rows of a sequence in each step
  int64_t together = 1;         // rows side by side that no share of the work and no tile may part
  int64_t chunk_rows = kChunkRows;  // about as many rows are in a chunk of steps

  int64_t rows() const { return std::accumulate(size.begin(), size.end(), int64_t{0}); }
  int64_t step(int64_t s) const { return reverse ? T - 1 - s : s; }  // the s-th step to be run
  // Rows of the step before t (in running order), and of the step after it: others begin or end their sequence at t.
  int64_t size_before(int64_t t) const { return in_range(reverse ? t + 1 : t - 1); }
  int64_t size_after(int64_t t) const { return in_range(reverse ? t - 1 : t + 1); }
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }

  // Whether the state of row b is zeroed before step t is run. A cut lies between t - 1 and t: run in reverse, it is met before
  // t - 1, by the rows that come from t.
  bool resets_before(int64_t t, int64_t b) const {
    if (!reset) return false;
    if (!reverse) return reset[(first[t] + b) / pixels];
    return b < size_before(t) && reset[(first[t + 1] + b) / pixels];
  }

 private:
  int64_t in_range(int64_t t) const { return t < 0 || t >= T ? 0 : size[t]; }
};

// A tensor with one row per step and sequence.
template <class S>
struct Rows {
  S* p = nullptr;
  int64_t t_stride = 0, b_stride = 0;
  bool moved = false;  // of images, channels come before pixels; b_stride is that of images

  S* at(const Sequence& seq, int64_t t, int64_t b) const {
    return p + (seq.packed ? (seq.first[t] + b) * b_stride : t * t_stride + b * b_stride);
  }
};

}  // namespace fastlstm
