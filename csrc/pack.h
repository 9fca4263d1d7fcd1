// Weights rearranged for gemm.h: blocks of columns, each a contiguous (k, n) matrix, zero where units don't exist.
#pragma once
#include <algorithm>

#include "lstm.h"

namespace fastlstm {

// Panel p of w (4H, K) as the right-hand side of x @ w.T: (K, 4 gates x 16 units).
template <class S, class T>
void pack_gates(const S* w, int64_t H, int64_t K, int64_t p, T* to) {
  const int64_t units = std::min(kLanes, H - p * kLanes);
  for (int64_t gate = 0; gate < kGates; gate++) {
    const S* rows = w + (gate * H + p * kLanes) * K;
    for (int64_t k = 0; k < K; k++) {
      T* out = to + k * kPanel + gate * kLanes;
      for (int64_t u = 0; u < units; u++) out[u] = static_cast<T>(rows[u * K + k]);
      for (int64_t u = units; u < kLanes; u++) out[u] = T(0);
    }
  }
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

// Columns [first, first + n) of a plain matrix w (K, N), or of its transpose (N, K) where TRANSPOSE: (K, n).
template <bool TRANSPOSE, class S, class T>
void pack_columns(const S* w, int64_t K, int64_t N, int64_t first, int64_t n, T* to) {
  const int64_t exist = std::min(n, N - first);
  for (int64_t k = 0; k < K; k++)
    for (int64_t i = 0; i < n; i++)
      to[k * n + i] = i < exist ? static_cast<T>(TRANSPOSE ? w[(first + i) * K + k] : w[k * N + first + i]) : T(0);
}

// Blocks of at most four kLanes columns that together cover `units` columns [begin * kLanes, end * kLanes).
template <class F>
void for_column_blocks(int64_t begin, int64_t end, const F& f) {
  for (int64_t block = begin; block < end; block += 4) f(block, std::min<int64_t>(4, end - block));
}

}  // namespace fastlstm
