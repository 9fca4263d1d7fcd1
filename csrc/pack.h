// Weights rearranged for gemm.h: blocks of columns, each a contiguous (k, n) matrix, zero where units don't exist.
#pragma once
#include <algorithm>

#include "lstm.h"

namespace fastlstm {

// to[j][i] = from[i][j], in blocks whose lines stay in the cache.
template <class From, class To>
void transpose(int64_t rows, int64_t columns, Block<const From> from, Block<To> to) {
  for (int64_t i0 = 0; i0 < rows; i0 += kLanes)
    for (int64_t j0 = 0; j0 < columns; j0 += kLanes)
      for (int64_t i = i0; i < std::min(rows, i0 + kLanes); i++)
        for (int64_t j = j0; j < std::min(columns, j0 + kLanes); j++)
          to.p[j * to.row + i] = static_cast<To>(from.p[i * from.row + j]);
}

// Panel p of w (4H, K) as the right-hand side of x @ w.T: (K, 4 gates x 16 units).
template <class S, class T>
void pack_gates(const S* w, int64_t H, int64_t K, int64_t p, T* to) {
  const int64_t units = std::min(kLanes, H - p * kLanes);
  if (units < kLanes) std::fill(to, to + K * kPanel, T(0));
  for (int64_t gate = 0; gate < kGates; gate++)
    transpose<S, T>(units, K, {w + (gate * H + p * kLanes) * K, K}, {to + gate * kLanes, kPanel});
}

// The sum of both biases for panel p.
template <class S, class T>
void pack_bias(const S* b_ih, const S* b_hh, int64_t H, int64_t p, T* to) {
  for (int64_t gate = 0; gate < kGates; gate++)
    for (int64_t u = 0; u < kLanes; u++) {
      const int64_t unit = p * kLanes + u, i = gate * H + unit;
      const bool exists = unit < H;
      to[gate * kLanes + u] = (exists && b_ih ? static_cast<T>(b_ih[i]) : T(0)) + (exists && b_hh ? static_cast<T>(b_hh[i]) : T(0));
    }
}

// Columns [first, first + n) of w (4H, K) as the right-hand side of dG @ w, whose rows are in the order of dG: panel, gate, unit.
// n counts up to whole blocks of kLanes; `panel` packs one panel's rows.
template <class S, class T>
void pack_gate_columns(const S* w, int64_t H, int64_t K, int64_t panel, int64_t first, int64_t n, T* to) {
  const int64_t exist = std::min(n, K - first);
  for (int64_t gate = 0; gate < kGates; gate++)
    for (int64_t u = 0; u < kLanes; u++) {
      T* out = to + ((panel * kGates + gate) * kLanes + u) * n;
      const int64_t unit = panel * kLanes + u;
      const S* row = w + (gate * H + unit) * K + first;
      const int64_t copied = unit < H ? exist : 0;
      for (int64_t i = 0; i < copied; i++) out[i] = static_cast<T>(row[i]);
      for (int64_t i = copied; i < n; i++) out[i] = T(0);
    }
}

// Columns [first, first + n) of a plain matrix w (K, N), or of the transpose of w (N, K) where TRANSPOSED: (K, n).
template <bool TRANSPOSED, class S, class T>
void pack_columns(const S* w, int64_t K, int64_t N, int64_t first, int64_t n, T* to) {
  const int64_t exist = std::min(n, N - first);
  if (exist < n) std::fill(to, to + K * n, T(0));
  if constexpr (TRANSPOSED)
    transpose<S, T>(exist, K, {w + first * K, K}, {to, n});
  else
    convert<S, T>(K, exist, {w + first, N}, {to, n});
}

// Blocks of at most four kLanes columns that together cover `units` columns [begin * kLanes, end * kLanes).
template <class F>
void for_column_blocks(int64_t begin, int64_t end, const F& f) {
  for (int64_t block = begin; block < end; block += 4) f(block, std::min<int64_t>(4, end - block));
}

}  // namespace fastlstm
