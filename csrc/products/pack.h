// Weights rearranged for gemm.h: blocks of columns, each a contiguous (k, n) matrix, zero where units don't exist.
#pragma once
#include <algorithm>
#include <type_traits>

#include "loop/context.h"

namespace fastlstm {

// to[j][i] = from[i][j]; where types differ, in blocks whose lines stay in the cache.
template <class From, class To>
void transpose(int64_t rows, int64_t columns, Block<const From> from, Block<To> to) {
  if constexpr (std::is_same_v<From, To> && std::is_floating_point_v<To>) return micro_kernels<To>().transpose(rows, columns, from, to);
  for (int64_t i0 = 0; i0 < rows; i0 += kPanel)
    for (int64_t j0 = 0; j0 < columns; j0 += kPanel)
      for (int64_t i = i0; i < std::min(rows, i0 + kPanel); i++)
        for (int64_t j = j0; j < std::min(columns, j0 + kPanel); j++)
          to.p[j * to.row + i] = static_cast<To>(from.p[i * from.row + j]);
}

// Panel p of w (gates * H, K) as the right-hand side of x @ w.T: (K, the feed's slots x 16 units).
template <class S, class T>
void pack_gates(const S* w, const GateMap& map, int64_t H, int64_t K, int64_t p, T* to) {
  const int64_t units = units_of(H, p);
  if (units < kPanel) std::fill(to, to + K * map.width(), T(0));
  for (int64_t i = 0; i < map.gates; i++)
    transpose<S, T>(units, K, {w + (map.gate[i] * H + p * kPanel) * K, K}, {to + i * kPanel, map.width()});
}

// The same for bfloat16 and an even K, as pairs along K: (K / 2, the feed's slots x 16 units).
template <class S>
void pack_gates(const S* w, const GateMap& map, int64_t H, int64_t K, int64_t p, Bf16Pair* to) {
  const int64_t units = units_of(H, p);
  if (units < kPanel) std::fill(to, to + K / 2 * map.width(), Bf16Pair{});
  for (int64_t i = 0; i < map.gates; i++)
    transpose<Bf16Pair, Bf16Pair>(units, K / 2, {reinterpret_cast<const Bf16Pair*>(w + (map.gate[i] * H + p * kPanel) * K), K / 2},
                          {to + i * kPanel, map.width()});
}

// Adds a bias of panel p to the slots that it feeds.
template <class S, class T>
void add_bias(const S* bias, const GateMap& map, int64_t H, int64_t p, T* to) {
  if (!bias) return;
  for (int64_t i = 0; i < map.gates; i++)
    for (int64_t u = 0; u < units_of(H, p); u++)
      to[map.offset() + i * kPanel + u] += static_cast<T>(bias[map.gate[i] * H + p * kPanel + u]);
}

// Columns [first, first + n) of w (gates * H, K) as the right-hand side of dG @ w, whose rows are in the order of dG: panel,
// slot, unit. n counts up to whole blocks of kPanel; `panel` packs one panel's rows.
template <class S, class T>
void pack_gate_columns(const S* w, const GateMap& map, int64_t H, int64_t K, int64_t panel, int64_t first, int64_t n, T* to) {
  const int64_t exist = std::min(n, K - first);
  for (int64_t slot = 0; slot < map.gates; slot++)
    for (int64_t u = 0; u < kPanel; u++) {
      T* out = to + ((panel * map.gates + slot) * kPanel + u) * n;
      const int64_t unit = panel * kPanel + u;
      const S* row = w + (map.gate[slot] * H + unit) * K + first;
      const int64_t copied = unit < H ? exist : 0;
      for (int64_t i = 0; i < copied; i++) out[i] = static_cast<T>(row[i]);
      for (int64_t i = copied; i < n; i++) out[i] = T(0);
    }
}

// The same for bfloat16, as pairs of neighbouring units.
template <class S>
void pack_gate_columns(const S* w, const GateMap& map, int64_t H, int64_t K, int64_t panel, int64_t first, int64_t n, Bf16Pair* to) {
  const uint16_t* const bits = reinterpret_cast<const uint16_t*>(w);
  const int64_t exist = std::min(n, K - first);
  for (int64_t slot = 0; slot < map.gates; slot++)
    for (int64_t u = 0; u < kPanel; u += 2) {
      Bf16Pair* out = to + ((panel * map.gates + slot) * kPanel + u) / 2 * n;
      const int64_t unit = panel * kPanel + u;
      const uint16_t* row = bits + (map.gate[slot] * H + unit) * K + first;
      for (int64_t i = 0; i < n; i++)
        out[i] = {i < exist && unit < H ? row[i] : uint16_t{0}, i < exist && unit + 1 < H ? row[K + i] : uint16_t{0}};
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

// Blocks of at most four kPanel columns that together cover `units` columns [begin * kPanel, end * kPanel).
template <class F>
void for_column_blocks(int64_t begin, int64_t end, const F& f) {
  for (int64_t block = begin; block < end; block += 4) f(block, std::min<int64_t>(4, end - block));
}

}  // namespace fastlstm
