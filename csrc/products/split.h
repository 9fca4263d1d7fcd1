// Factors of float32 in parts of bfloat16 (SplitKernels).
#pragma once
#include "products/pack.h"

namespace fastlstm {

// A row of so many terms, in elements.
inline int64_t split_row(const SplitKernels& split, int64_t terms) { return padded_row<Bf16Pair>(split.pairs(terms)); }

// The last block of each row becomes zero, where terms that are written later don't fill it.
inline void clear_split_ends(const SplitKernels& split, int64_t rows, int64_t terms, Block<Bf16Pair> to) {
  if (terms % kSplitTerms) fill_rows(rows, split.block(), Bf16Pair{}, {to.p + split.pairs(terms) - split.block(), to.row});
}

// Rows of w (units, K) as columns of pairs along K: split.pairs(K) rows of a panel.
inline void pack_split(const SplitKernels& split, const float* w, int64_t units, int64_t K, Block<Bf16Pair> to) {
  constexpr int64_t kMost = kSplitTerms;  // pairs of a block
  alignas(64) Bf16Pair part[kPanel * kMost] = {};
  for (int64_t k = 0; k < K; k += kSplitTerms) {
    const int64_t n = std::min(kSplitTerms, K - k);
    if (n < kSplitTerms) std::fill(std::begin(part), std::end(part), Bf16Pair{});
    split.split(units, n, {w + k, K}, 0, {part, kMost});
    transpose<float, float>(kPanel, split.block(), {reinterpret_cast<const float*>(part), kMost},  // as numbers of as many bytes
                            {reinterpret_cast<float*>(to.p + split.pair_of(k) * to.row), to.row});
  }
}

// Panel p of w (gates * H, K), as pack_gates gives it: split.pairs(K) rows of a packed matrix from `first` on.
inline void pack_split_gates(const SplitKernels& split, const float* w, const GateMap& map, int64_t H, int64_t K, int64_t p,
                             const Packed& packed, int64_t first, Bf16Pair* to) {
  for (int64_t i = 0; i < map.gates; i++)
    pack_split(split, w + (map.gate[i] * H + p * kPanel) * K, units_of(H, p), K,
               {to + packed.at(first, i * kPanel), packed.row(i * kPanel)});
}

// Columns [first, first + packed.n) of w (gates * H, stride) as the right-hand side of dG @ w, as pack_gate_columns gives them, for one
// panel's rows. Columns from K on, and units that don't exist, are zero.
inline void pack_split_columns(const SplitKernels& split, const float* w, int64_t stride, const GateMap& map, int64_t H, int64_t K,
                               int64_t panel, int64_t first, const Packed& packed, Bf16Pair* to) {
  alignas(64) static constexpr float kNone[kMaxBlock] = {};
  for (int64_t slot = 0; slot < map.gates; slot++)
    for (int64_t u = 0; u < kPanel; u += 2) {
      const int64_t unit = panel * kPanel + u, term = (panel * map.gates + slot) * kPanel + u;
      const int64_t row = split.pair_of(term);
      const float* const from = w + (map.gate[slot] * H + unit) * stride + first;
      for (int64_t i = 0; i < packed.n; i += packed.row(i)) {
        const int64_t n = packed.row(i), exist = unit < H ? std::clamp<int64_t>(K - first - i, 0, n) : 0;
        const Block<Bf16Pair> block{to + packed.at(row, i), n};
        split.split_columns(exist, from + i, unit + 1 < H ? from + stride + i : kNone, block);
        for (int64_t part = 0; part < split.parts && exist < n; part++)
          std::fill_n(block.p + part * kPanel * n + exist, n - exist, Bf16Pair{});
      }
    }
}

// Rows that such a matrix of `terms` terms has behind its last ones become zero.
inline void clear_split_rows(const SplitKernels& split, int64_t terms, const Packed& packed, Bf16Pair* to) {
  const int64_t pairs = terms % kSplitTerms / 2;
  if (!pairs) return;
  for (int64_t i = 0; i < packed.n; i += packed.row(i))
    for (int64_t part = 0; part < split.parts; part++)
      std::fill_n(to + packed.at(packed.rows - split.block() + part * kPanel + pairs, i), (kPanel - pairs) * packed.row(i), Bf16Pair{});
}

// Rows `rows` of n numbers, in pairs of rows, as the right factor of a sum over them: n columns.
inline void split_row_pairs(const SplitKernels& split, int64_t rows, int64_t n, Block<const float> from, Block<Bf16Pair> to) {
  alignas(64) static constexpr float kNone[kMaxBlock] = {};
  for (int64_t m = 0; m < (rows + kSplitTerms - 1) / kSplitTerms * kSplitTerms; m += 2) {
    const float *const one = from.p + m * from.row, *const two = one + from.row;
    split.split_columns(n, m < rows ? one : kNone, m + 1 < rows ? two : kNone,
                        {to.p + split.pair_of(m) * to.row, to.row});
  }
}

// The transpose of `rows` rows of n <= kPanel numbers, as the left factor of such a sum: n rows.
inline void split_transposed(const SplitKernels& split, int64_t rows, int64_t n, Block<const float> from, Block<Bf16Pair> to) {
  alignas(64) float part[kPanel * kSplitTerms];
  for (int64_t m = 0; m < rows; m += kSplitTerms) {
    const int64_t count = std::min(kSplitTerms, rows - m);
    if (count < kSplitTerms) std::fill(std::begin(part), std::end(part), 0.0f);
    transpose<float, float>(count, n, {from.p + m * from.row, from.row}, {part, kSplitTerms});
    split.split(n, kSplitTerms, {part, kSplitTerms}, m, to);
  }
}

}  // namespace fastlstm
