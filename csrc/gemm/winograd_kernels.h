// The maps of winograd.h over vectors of channels. Included by one source file per instruction set, after microkernel.h.
#include <utility>

#include "gemm/winograd.h"

namespace fastlstm::ISA {
namespace {

// Each algorithm computes y = outputs((weights g) * (inputs d)) along an axis.
struct Taps3 {
  static constexpr int taps = 3, products = 4;
  static constexpr float inputs[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
  static constexpr float weights[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
  static constexpr float outputs[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
};
struct Taps5 {
  static constexpr int taps = 5, products = 7;
  static constexpr float inputs[7][6] = {{1, 0, -1, 0, 0, 0}, {0, 1, 1, 0, 0, 0}, {0, -1, 1, 0, 0, 0}, {0, 1, 0, -1, 0, 0},
                                         {0, 0, 0, 1, -1, 0}, {0, 0, 0, 0, 1, 0}, {0, 0, 0, 0, 1, -1}};
  static constexpr float weights[7][5] = {{1, 0, 0, 0, 0}, {.5, .5, .5, 0, 0}, {.5, -.5, .5, 0, 0}, {0, 0, 1, 0, 0},
                                          {0, 0, 0, 1, 0}, {0, 0, 0, 1, 1},    {0, 0, 0, 0, 1}};
  static constexpr float outputs[2][7] = {{1, 1, 1, 0, 1, 1, 0}, {0, 1, -1, -1, 0, 1, -1}};
};

// Maps of an axis: `to` sums of `from` values, with the coefficients at(i, j).
template <class A>
struct OfInputs {
  static constexpr int from = A::taps + 1, to = A::products;
  static constexpr float at(int i, int j) { return A::inputs[i][j]; }
};
template <class A>
struct OfWeights {
  static constexpr int from = A::taps, to = A::products;
  static constexpr float at(int i, int j) { return A::weights[i][j]; }
};
template <class A>
struct OfOutputs {
  static constexpr int from = A::products, to = 2;
  static constexpr float at(int i, int j) { return A::outputs[i][j]; }
};
template <class M, int I>
struct Only {
  static constexpr int from = M::from, to = 1;
  static constexpr float at(int, int j) { return M::at(I, j); }
};
template <class M>
struct Transposed {
  static constexpr int from = M::to, to = M::from;
  static constexpr float at(int i, int j) { return M::at(j, i); }
};

// The sum of terms J and following to what is `begun`: those without a coefficient are left out, as they might be infinite.
template <class M, int I, int J, bool BEGUN, class V>
[[gnu::always_inline]] inline V sum_of(const V* from, V sum) {
  if constexpr (J == M::from) {
    return sum;
  } else {
    constexpr float c = M::at(I, J);
    if constexpr (c == 0) return sum_of<M, I, J + 1, BEGUN>(from, sum);
    else if constexpr (!BEGUN) return sum_of<M, I, J + 1, true>(from, c == 1 ? from[J] : c == -1 ? -from[J] : from[J] * c);
    else return sum_of<M, I, J + 1, true>(from, c == 1 ? sum + from[J] : c == -1 ? sum - from[J] : sum + from[J] * c);
  }
}

template <class M, int I = 0, class V>
[[gnu::always_inline]] inline void map_axis(const V* from, V* to) {
  if constexpr (I < M::to) {
    to[I] = sum_of<M, I, 0, false>(from, V{});
    map_axis<M, I + 1>(from, to);
  }
}

template <class V, class T>
struct Access {
  [[gnu::always_inline]] static inline V load(const T* p) { return Simd<T>::load(p); }
  [[gnu::always_inline]] static inline void store(T* p, V v) { Simd<T>::store(p, v); }
};
template <class T>
struct Access<T, T> {
  [[gnu::always_inline]] static inline T load(const T* p) { return *p; }
  [[gnu::always_inline]] static inline void store(T* p, T v) { *p = v; }
};

// One vector of channels: Y maps lines, X then columns.
template <class Y, class X, class V, class T>
[[gnu::always_inline]] inline void map_grid(Grid<const T> from, Grid<T> to) {
  V lines[Y::to][X::from];
#pragma GCC unroll 8
  for (int x = 0; x < X::from; x++) {
    V in[Y::from], out[Y::to];
#pragma GCC unroll 8
    for (int y = 0; y < Y::from; y++) in[y] = Access<V, T>::load(from.p + y * from.line + x * from.column);
    map_axis<Y>(in, out);
#pragma GCC unroll 8
    for (int y = 0; y < Y::to; y++) lines[y][x] = out[y];
  }
#pragma GCC unroll 8
  for (int y = 0; y < Y::to; y++) {
    V out[X::to];
    map_axis<X>(lines[y], out);
#pragma GCC unroll 8
    for (int x = 0; x < X::to; x++) Access<V, T>::store(to.p + y * to.line + x * to.column, out[x]);
  }
}

template <class Y, class X, class T>
void map_tiles(int64_t tiles, int64_t n, Grid<const T> from, Grid<T> to) {
  using S = Simd<T>;
  for (int64_t tile = 0; tile < tiles; tile++, from.p += from.tile, to.p += to.tile) {
    int64_t i = 0;
    for (; i + S::lanes <= n; i += S::lanes)
      map_grid<Y, X, typename S::V, T>({from.p + i, from.line, from.column}, {to.p + i, to.line, to.column});
    for (; i < n; i++) map_grid<Y, X, T, T>({from.p + i, from.line, from.column}, {to.p + i, to.line, to.column});
  }
}

// Taps += what lines of right factors give them, from I on; n: whole vectors.
template <class A, int I, int LINES, class T>
void add_to_taps(int64_t, int64_t n, Grid<const T> from, Grid<T> to) {
  using S = Simd<T>;
  for (int64_t i = 0; i < n; i += S::lanes) {
    typename S::V lines[LINES][A::taps];
#pragma GCC unroll 8
    for (int y = 0; y < LINES; y++) {
      typename S::V in[A::products];
#pragma GCC unroll 8
      for (int x = 0; x < A::products; x++) in[x] = S::load(from.p + i + y * from.line + x * from.column);
      map_axis<Transposed<OfWeights<A>>>(in, lines[y]);
    }
#pragma GCC unroll 8
    for (int tap = 0; tap < A::taps; tap++) {
      bool any = false;
      for (int y = 0; y < LINES; y++) any = any || A::weights[I + y][tap] != 0;
      if (!any) continue;
#pragma GCC unroll 8
      for (int x = 0; x < A::taps; x++) {
        T* const out = to.p + i + tap * to.line + x * to.column;
        typename S::V sum = S::load(out);
#pragma GCC unroll 8
        for (int y = 0; y < LINES; y++)
          if (A::weights[I + y][tap] != 0) sum += lines[y][x] * A::weights[I + y][tap];
        S::store(out, sum);
      }
    }
  }
}

template <class A, class T>
WinogradKernels<T> of_taps() {
  using Inputs = OfInputs<A>;
  using Weights = OfWeights<A>;
  using Outputs = OfOutputs<A>;
  using Gradients = Transposed<Outputs>;
  WinogradKernels<T> found{map_tiles<Inputs, Inputs, T>, map_tiles<Weights, Weights, T>,
                           {map_tiles<Only<Outputs, 0>, Outputs, T>, map_tiles<Only<Outputs, 1>, Outputs, T>}, 1, {}};
  if constexpr (A::taps == 3) {
    found.part[0] = {found.inputs, map_tiles<Gradients, Gradients, T>, add_to_taps<A, 0, A::products, T>};
  } else {
    found.parts = A::products;
    [&]<int... I>(std::integer_sequence<int, I...>) {
      ((found.part[I] = {map_tiles<Only<Inputs, I>, Inputs, T>, map_tiles<Only<Gradients, I>, Gradients, T>,
                         add_to_taps<A, I, 1, T>}), ...);
    }(std::make_integer_sequence<int, A::products>{});
  }
  return found;
}

}  // namespace

template <class T>
WinogradKernels<T> winograd(int64_t taps) {
  return taps == 3 ? of_taps<Taps3, T>() : of_taps<Taps5, T>();
}
template WinogradKernels<float> winograd<float>(int64_t);
template WinogradKernels<double> winograd<double>(int64_t);

}  // namespace fastlstm::ISA
