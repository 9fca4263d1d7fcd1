// A tile of a product: what is summed up in registers. Included by microkernel.h, and compiled for its instruction set.
#include "gemm/gemm.h"

namespace fastlstm::ISA {
namespace {

// The integer as wide as a float or a double.
template <int BYTES>
struct Index { typedef int32_t type; };
template <>
struct Index<8> { typedef int64_t type; };

template <class T>
struct Simd {
  static constexpr int lanes = VECTOR_BYTES / sizeof(T);
  typedef T V __attribute__((vector_size(VECTOR_BYTES)));
  typedef typename Index<sizeof(T)>::type I __attribute__((vector_size(VECTOR_BYTES)));
  typedef T U __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
  // of T, or of as many bytes of the factors' elements
  template <class A>
  [[gnu::always_inline]] static inline V load(const A* p) { return *reinterpret_cast<const U*>(p); }
  [[gnu::always_inline]] static inline void store(T* p, V v) { *reinterpret_cast<U*>(p) = v; }
};

template <class T>
[[gnu::always_inline]] inline typename Simd<T>::V multiply_add(typename Simd<T>::V acc, T x, typename Simd<T>::V row) {
  return acc + x * row;
}

// Keeps a vector in a register: where few rows share it, GCC would read it from memory for each of them.
template <class V>
[[gnu::always_inline]] inline void hold([[maybe_unused]] V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
}
// Keeps a pointer in a register: GCC would make it anew from what it came from.
template <class A>
[[gnu::always_inline]] inline void hold_pointer([[maybe_unused]] A*& p) {
#if defined(__x86_64__)
  asm("" : "+r"(p));
#endif
}

// Elements of ROWS rows of a left factor, one of each. SPREAD: rows are where offsets say; else `stride` elements apart, and one
// pointer serves three of them, as there are few registers for more.
template <class A, int ROWS, bool SPREAD>
struct Left {
  static constexpr int kGroups = SPREAD ? 1 : (ROWS + 2) / 3;
  const A* p[kGroups];
  int64_t offset[SPREAD ? ROWS : 1];

  [[gnu::always_inline]] inline void begin(const A* from) {
    p[0] = from;
#pragma GCC unroll 4
    for (int i = 1; i < kGroups; i++) {
      p[i] = p[i - 1] + 3 * offset[0];
      hold_pointer(p[i]);
    }
  }
  [[gnu::always_inline]] inline A operator[](int m) const {
    if constexpr (SPREAD) return p[0][offset[m]];
    else return p[m / 3][m % 3 * offset[0]];
  }
  [[gnu::always_inline]] inline void advance(int64_t step) {
#pragma GCC unroll 4
    for (int i = 0; i < kGroups; i++) p[i] += step;
  }
};

#ifdef PAIRS
[[gnu::always_inline]] inline Simd<float>::V multiply_add(Simd<float>::V acc, Bf16Pair x, Simd<float>::V row) {
  int32_t both;
  __builtin_memcpy(&both, &x, sizeof(both));
  return (Simd<float>::V)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(both), (__m512bh)row);
}
#endif

// What is asked for while a sum runs: with each term the lines at p, which moves by `step` elements.
template <class A>
struct Ahead {
  const A* p;
  int64_t step;
};

// ROWS x (VECTORS * lanes) elements of c. Terms are summed in registers, and a block of them then joins what c holds.
// Every loop over `acc` is unrolled: it would lie in memory if any index were no constant.
template <class T, int ROWS, int VECTORS>
struct Sum {
  using S = Simd<T>;
  typename S::V acc[ROWS][VECTORS];
  T* c;
  int64_t c_m, block, left;
  bool begun;  // c holds a part of the sum

  // Adds the sum over k of a[m][k] * b[k]; returns where b ends. A row of b is PER vectors in each of some blocks.
  // LINES: how many are asked for with each term; one alone is of what comes later, and goes to the second-level cache.
  template <int PER, int LINES, class A, bool SPREAD>
  [[gnu::always_inline]] inline const A* add(int64_t k, Left<A, ROWS, SPREAD>& a, int64_t a_k, const A* b, int64_t n, int64_t b_block,
                                             Ahead<A>& ahead) {
    const auto add_term = [&]() __attribute__((always_inline)) {
      if constexpr (ROWS < 4) {
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
          typename S::V row = S::load(b + v / PER * b_block + v % PER * S::lanes);
          if (ROWS > 1) hold(row);
#pragma GCC unroll 4
          for (int m = 0; m < ROWS; m++) acc[m][v] = multiply_add(acc[m][v], a[m], row);
        }
      } else {
        typename S::V row[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) row[v] = S::load(b + v / PER * b_block + v % PER * S::lanes);
#pragma GCC unroll 4
        for (int i = 0; i < LINES; i++) __builtin_prefetch(ahead.p + i * (64 / sizeof(A)), 0, LINES == 1 ? 2 : 3);
        if (LINES > 0) ahead.p += ahead.step;
#pragma GCC unroll 12
        for (int m = 0; m < ROWS; m++) {
          const A x = a[m];
#pragma GCC unroll 8
          for (int v = 0; v < VECTORS; v++) acc[m][v] = multiply_add(acc[m][v], x, row[v]);
        }
      }
      a.advance(a_k);
      b += n;
    };
    while (k > 0) {
      if (left == 0) {
        put();
        clear();
        begun = true;
        left = block;
      }
      const int64_t terms = k < left ? k : left;
      int64_t i = 0;
      if constexpr (ROWS >= 4)  // two at a time: what counts and moves pointers takes the place of multiply-adds
        for (; i + 1 < terms; i += 2) {
          add_term();
          add_term();
        }
      for (; i < terms; i++) add_term();
      k -= terms;
      left -= terms;
    }
    return b;
  }

  [[gnu::always_inline]] inline void clear() {
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) acc[m][v] = typename S::V{};
  }
  [[gnu::always_inline]] inline void load(const T* from, int64_t stride, bool add) {
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) {
        const typename S::V value = S::load(from + m * stride + v * S::lanes);
        acc[m][v] = add ? value + acc[m][v] : value;
      }
  }
  [[gnu::always_inline]] inline void put() {
    if (begun) load(c, c_m, true);
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) S::store(c + m * c_m + v * S::lanes, acc[m][v]);
  }
};

// Where tiles of some columns read and write, the first row's, and which terms they sum up.
template <class T, class A>
struct Place {
  const A *a, *b;
  int64_t b_k, b_block;  // distances between rows of b, and between its blocks
  const T* init;
  T* c;
  bool begun;            // c holds the terms before
  int64_t s, k, terms;   // the first: the k-th of the s-th matrix of the batch
};

// ROWS x (VECTORS * lanes) elements of c, from one or more blocks of PER vectors; SPREAD: rows of a are where a_rows says.
// The tallest tiles ask for what they come to soon, as they have time to: hardware does not look beyond a page.
template <class T, class A, bool SPREAD, int ROWS, int VECTORS, int PER = VECTORS,
          int LINES = (MAX_ROWS > 6 && ROWS > WIDE_ROWS ? PER * VECTOR_BYTES / 64 : 0)>
void tile(const Gemm<T, A>& g, const Place<T, A>& at, int64_t m0, const A* ahead_p, int64_t ahead_step) {
  T* const c = at.c + m0 * g.c_m;
  Sum<T, ROWS, VECTORS> sum{.c = c, .c_m = g.c_m, .block = g.block, .left = g.block, .begun = at.begun};
  const A *const a = SPREAD ? at.a : at.a + m0 * g.a_m, *b = at.b;
  Left<A, ROWS, SPREAD> left_rows;
  if constexpr (SPREAD) {
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++) left_rows.offset[m] = g.a_rows[m0 + m];
  } else {
    left_rows.offset[0] = g.a_m;
  }
  at.init ? sum.load(at.init + m0 * g.init_m, g.init_m, false) : sum.clear();
  if (at.begun)  // what the sum will join may be in no cache
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) __builtin_prefetch(c + m * g.c_m + v * Simd<T>::lanes, 1, 3);
  Ahead<A> ahead{ahead_p, ahead_step};
  for (int64_t s = at.s, k = at.k, left = at.terms; left > 0; s++, k = 0) {
    const int64_t terms = left < g.k - k ? left : g.k - k;
    left -= terms;
    if (left > 0 && g.a_k == 1)  // short runs, far apart: hardware does not foresee the next
      for (int m = 0; m < ROWS; m++)
        for (int64_t i = 0; i < g.k; i += 64 / sizeof(A))
          __builtin_prefetch(a + g.a_offsets[s + 1] + (SPREAD ? g.a_rows[m0 + m] : m * g.a_m) + i);
    left_rows.begin((g.a_offsets ? a + g.a_offsets[s] : a) + k * g.a_k);
    b = sum.template add<PER, LINES>(terms, left_rows, g.a_k, b, at.b_k, at.b_block, ahead);
  }
  if (g.k2) {  // rounded as if the first product had been taken before, and were `init` here
    if (sum.begun) sum.load(c, g.c_m, true);
    sum.begun = false;
    sum.left = g.block;
    Left<A, ROWS, false> second;
    second.offset[0] = g.a2_m;
    second.begin(g.a2 + m0 * g.a2_m);
    sum.template add<PER, LINES>(g.k2, second, 1, b, at.b_k, at.b_block, ahead);
  }
  sum.put();
}

}  // namespace
}  // namespace fastlstm::ISA
