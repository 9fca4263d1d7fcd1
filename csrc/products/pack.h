// Weights rearranged for gemm.h: blocks of columns, each a contiguous (k, n) matrix, zero where units don't exist.
#pragma once
#include <algorithm>
#include <cstdint>

#include "loop/context.h"

namespace fastlstm {

// `n` elements of each row = value.
template <class T>
void fill_rows(int64_t rows, int64_t n, T value, Block<T> to) {
  for (int64_t m = 0; m < rows; m++) std::fill_n(to.p + m * to.row, n, value);
}

// Panel p of w (gates * H, K), or of its first `terms` columns, as the right-hand side of x @ w.T: that many rows of a packed matrix
// from `first` on, whose columns are the map's slots x 16 units.
template <class S, class T>
void pack_gates(const S* w, const GateMap& map, int64_t H, int64_t K, int64_t p, const Packed& packed, int64_t first, T* to,
                int64_t terms) {
  const int64_t units = units_of(H, p);
  for (int64_t i = 0; i < map.gates; i++) {
    const Block<T> block{to + packed.at(first, i * kPanel), packed.row(i * kPanel)};
    if (units < kPanel) fill_rows(terms, kPanel, T{}, block);
    transpose<S, T>(units, terms, {w + (map.gate[i] * H + p * kPanel) * K, K}, block);
  }
}
template <class S, class T>
void pack_gates(const S* w, const GateMap& map, int64_t H, int64_t K, int64_t p, const Packed& packed, int64_t first, T* to) {
  pack_gates(w, map, H, K, p, packed, first, to, K);
}

// Rows of w (units, K) for bfloat16 as columns of pairs along K, the last of which are filled up with zeros: `terms` / 2 rows of a panel.
template <class S>
void pack_pairs(const S* w, int64_t units, int64_t K, int64_t terms, Block<Bf16Pair> to) {
  const int64_t pairs = (K + 1) / 2;
  if (units < kPanel) fill_rows(pairs, kPanel, Bf16Pair{}, to);
  fill_rows(terms / 2 - pairs, kPanel, Bf16Pair{}, {to.p + pairs * to.row, to.row});
  const auto put = [&](int64_t first, int64_t count, Block<const S> from) {  // as numbers of as many bytes
    transpose<float, float>(units, count, {reinterpret_cast<const float*>(from.p), from.row / 2},
                            {reinterpret_cast<float*>(to.p + first * to.row), to.row});
  };
  if (K % 2 == 0 && reinterpret_cast<std::uintptr_t>(w) % alignof(float) == 0) return put(0, pairs, {w, K});
  constexpr int64_t kAtOnce = 64;
  alignas(64) S part[kPanel * 2 * kAtOnce];  // rows of whole pairs
  for (int64_t first = 0; first < pairs; first += kAtOnce) {
    const int64_t count = std::min(kAtOnce, pairs - first), given = std::min(2 * count, K - 2 * first);
    convert<S, S>(units, given, {w + 2 * first, K}, {part, 2 * kAtOnce});
    if (given < 2 * count) fill_rows(units, 1, S(0), {part + given, 2 * kAtOnce});
    put(first, count, {part, 2 * kAtOnce});
  }
}

// The same as pack_gates for bfloat16, as pairs along K.
template <class S>
void pack_gates(const S* w, const GateMap& map, int64_t H, int64_t K, int64_t terms, int64_t p, const Packed& packed, int64_t first,
                Bf16Pair* to) {
  for (int64_t i = 0; i < map.gates; i++)
    pack_pairs(w + (map.gate[i] * H + p * kPanel) * K, units_of(H, p), K, terms,
               {to + packed.at(first, i * kPanel), packed.row(i * kPanel)});
}

// Adds a bias of panel p to the slots that it feeds.
template <class S, class T>
void add_bias(const S* bias, const GateMap& map, int64_t H, int64_t p, T* to) {
  if (!bias) return;
  for (int64_t i = 0; i < map.gates; i++)
    for (int64_t u = 0; u < units_of(H, p); u++)
      to[map.offset() + i * kPanel + u] += static_cast<T>(bias[map.gate[i] * H + p * kPanel + u]);
}

// Columns [first, first + packed.n) of w (gates * H, K) as the right-hand side of dG @ w: a packed matrix, whose rows are in the
// order of dG: panel, slot, unit, after `before` others. `panel` packs one panel's rows, of so many `units`. Columns that w lacks are
// zero. Rows of w are `stride` elements apart, columns `stride_k`.
template <class S, class T>
void pack_gate_columns(const S* w, int64_t stride, const GateMap& map, int64_t H, int64_t K, int64_t panel, int64_t first,
                       const Packed& packed, T* to, int64_t before = 0, int64_t stride_k = 1, int64_t units = kPanel) {
  for (int64_t slot = 0; slot < map.gates; slot++)
    for (int64_t u = 0; u < units; u++) {
      const int64_t unit = panel * kPanel + u, row = before + panel * map.width() + slot * units + u;
      const S* const from = w + (map.gate[slot] * H + unit) * stride + first * stride_k;
      for (int64_t i = 0; i < packed.n; i += packed.row(i)) {
        T* const out = to + packed.at(row, i);
        const int64_t n = packed.row(i), copied = unit < H ? std::clamp<int64_t>(K - first - i, 0, n) : 0;
        if (stride_k == 1)
          for (int64_t j = 0; j < copied; j++) out[j] = static_cast<T>(from[i + j]);
        else
          for (int64_t j = 0; j < copied; j++) out[j] = static_cast<T>(from[(i + j) * stride_k]);
        for (int64_t j = copied; j < n; j++) out[j] = T(0);
      }
    }
}

// The same for bfloat16, as pairs of neighbouring units; `before` counts pairs.
template <class S>
void pack_gate_columns(const S* w, int64_t stride, const GateMap& map, int64_t H, int64_t K, int64_t panel, int64_t first,
                       const Packed& packed, Bf16Pair* to, int64_t before = 0, int64_t stride_k = 1) {
  const uint16_t* const bits = reinterpret_cast<const uint16_t*>(w);
  for (int64_t slot = 0; slot < map.gates; slot++)
    for (int64_t u = 0; u < kPanel; u += 2) {
      const int64_t unit = panel * kPanel + u, row = before + ((panel * map.gates + slot) * kPanel + u) / 2;
      const uint16_t* const from = bits + (map.gate[slot] * H + unit) * stride + first * stride_k;
      for (int64_t i = 0; i < packed.n; i += packed.row(i)) {
        Bf16Pair* const out = to + packed.at(row, i);
        const int64_t n = packed.row(i), exist = unit < H ? std::clamp<int64_t>(K - first - i, 0, n) : 0;
        const uint16_t *const one = from + i * stride_k, *const two = one + stride;
        if (unit + 1 < H && stride_k == 1)
          bf16_kernels()->interleave(exist, one, two, out);
        else if (unit + 1 < H)
          for (int64_t j = 0; j < exist; j++) out[j] = {one[j * stride_k], two[j * stride_k]};
        else
          for (int64_t j = 0; j < exist; j++) out[j] = {one[j * stride_k], 0};
        std::fill_n(out + exist, n - exist, Bf16Pair{});
      }
    }
}

// Columns [first, first + packed.n) of a plain matrix w (K, N), or of the transpose of w (N, K) where TRANSPOSED, packed; zero
// where w has none.
template <bool TRANSPOSED, class S, class T>
void pack_columns(const S* w, int64_t K, int64_t N, int64_t first, const Packed& packed, T* to) {
  for (int64_t i = 0; i < packed.n; i += packed.row(i)) {
    const Block<T> block{to + packed.at(0, i), packed.row(i)};
    const int64_t exist = std::clamp<int64_t>(N - first - i, 0, block.row);
    if (exist < block.row) fill_rows(K, block.row, T{}, block);
    if constexpr (TRANSPOSED) transpose<S, T>(exist, K, {w + (first + i) * K, K}, block);
    else convert<S, T>(K, exist, {w + first + i, N}, block);
  }
}

// Of bfloat16 and an even K, not transposed: as pairs of rows, K / 2 of them.
inline void pack_pairs_of_rows(const Bf16Kernels& bf16, const BFloat16* w, int64_t K, int64_t N, int64_t first, const Packed& packed,
                               Bf16Pair* to) {
  for (int64_t i = 0; i < packed.n; i += packed.row(i)) {
    const int64_t n = packed.row(i), exist = std::clamp<int64_t>(N - first - i, 0, n);
    for (int64_t k = 0; k < K / 2; k++) {
      const uint16_t* const row = bits(w) + 2 * k * N + first + i;
      Bf16Pair* const out = to + packed.at(k, i);
      bf16.interleave(exist, row, row + N, out);
      std::fill_n(out + exist, n - exist, Bf16Pair{});
    }
  }
}

// Panel p of the columns of a plain matrix w (K, N): (K, 16), zero where w has none.
template <class S, class T>
void pack_panel(const S* w, int64_t K, int64_t N, int64_t p, T* to) {
  pack_columns<false>(w, K, N, p * kPanel, {K, kPanel, kPanel}, to);
}

// The same for bfloat16, as pairs along K with zeros behind them: `terms` / 2 rows.
template <class S>
void pack_panel(const S* w, int64_t K, int64_t terms, int64_t N, int64_t p, Bf16Pair* to) {
  const uint16_t* const bits = reinterpret_cast<const uint16_t*>(w) + p * kPanel;
  std::fill_n(to, terms / 2 * kPanel, Bf16Pair{});
  for (int64_t k = 0; k < K; k++)
    for (int64_t u = 0; u < units_of(N, p); u++) (k % 2 ? to[k / 2 * kPanel + u].second : to[k / 2 * kPanel + u].first) = bits[k * N + u];
}

// Blocks of at most four kPanel columns that together cover `units` columns [begin * kPanel, end * kPanel).
template <class F>
void for_column_blocks(int64_t begin, int64_t end, const F& f) {
  for (int64_t block = begin; block < end; block += 4) f(block, std::min<int64_t>(4, end - block));
}
// The same, the last one first where `backwards` is set.
template <class F>
void for_column_blocks(int64_t begin, int64_t end, bool backwards, const F& f) {
  if (!backwards) return for_column_blocks(begin, end, f);
  for (int64_t block = begin + (end - begin - 1) / 4 * 4; begin < end && block >= begin; block -= 4)
    f(block, std::min<int64_t>(4, end - block));
}

}  // namespace fastlstm
