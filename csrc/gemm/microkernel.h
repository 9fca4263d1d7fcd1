// The micro-kernels behind gemm.h, written once over GCC's vector extension. Included by one source file per instruction set,
// which defines ISA, VECTOR_BYTES, MAX_ROWS and MAX_VECTORS (rows x vectors of accumulators that fit the registers), and WIDE_ROWS:
// how many rows there may be in a tile that is twice as wide (0: there is none).
// Nothing but gemm.h, limit.h and unpacked.h may be included here: inline functions compiled for a wider instruction set must not leak to
// the linker.
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

#ifdef PAIRS
[[gnu::always_inline]] inline Simd<float>::V multiply_add(Simd<float>::V acc, Bf16Pair x, Simd<float>::V row) {
  int32_t both;
  __builtin_memcpy(&both, &x, sizeof(both));
  return (Simd<float>::V)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(both), (__m512bh)row);
}
#endif

// ROWS x (VECTORS * lanes) elements of c. Terms are summed in registers, and a block of them then joins what c holds.
// Every loop over `acc` is unrolled: it would lie in memory if any index were no constant.
template <class T, int ROWS, int VECTORS>
struct Sum {
  using S = Simd<T>;
  // The tallest tiles have time to fetch what comes next: hardware does not look beyond a page
  static constexpr bool kTall = MAX_ROWS > 6 && ROWS > WIDE_ROWS;
  static constexpr int kAhead = 2048;  // bytes
  typename S::V acc[ROWS][VECTORS];
  T* c;
  int64_t c_m, block, left;
  bool begun;  // c holds a part of the sum

  // Adds the sum over k of a[m][k] * b[k]; returns where b ends. A row of b is PER vectors in each of some blocks.
  template <int PER, class A>
  [[gnu::always_inline]] inline const A* add(int64_t k, const A* a, const int64_t (&rows)[ROWS], int64_t a_k, const A* b, int64_t n,
                                             int64_t b_block) {
    while (k > 0) {
      if (left == 0) {
        put();
        clear();
        begun = true;
        left = block;
      }
      const int64_t terms = k < left ? k : left;
      for (int64_t i = 0; i < terms; i++) {
        if constexpr (ROWS < 4) {
#pragma GCC unroll 8
          for (int v = 0; v < VECTORS; v++) {
            typename S::V row = S::load(b + v / PER * b_block + v % PER * S::lanes);
            if (ROWS > 1) hold(row);
#pragma GCC unroll 4
            for (int m = 0; m < ROWS; m++) acc[m][v] = multiply_add(acc[m][v], a[rows[m]], row);
          }
        } else {
          typename S::V row[VECTORS];
#pragma GCC unroll 8
          for (int v = 0; v < VECTORS; v++) row[v] = S::load(b + v / PER * b_block + v % PER * S::lanes);
          if constexpr (kTall) {
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) __builtin_prefetch(b + v * S::lanes + kAhead / sizeof(A), 0, 2);
          }
#pragma GCC unroll 12
          for (int m = 0; m < ROWS; m++) {
            const A x = a[rows[m]];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) acc[m][v] = multiply_add(acc[m][v], x, row[v]);
          }
        }
        a += a_k;
        b += n;
      }
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

// Where a tile reads and writes.
template <class T, class A>
struct Place {
  const A *a, *a2, *b;
  const int64_t* a_rows;
  int64_t b_k, b_block;  // distances between rows of b, and between its blocks
  const T* init;
  T* c;
};

// ROWS x (VECTORS * lanes) elements of c, from one or more blocks of PER vectors; SPREAD: rows of a are where a_rows says.
template <class T, class A, bool SPREAD, int ROWS, int VECTORS, int PER = VECTORS>
void tile(const Gemm<T, A>& g, const Place<T, A>& at) {
  Sum<T, ROWS, VECTORS> sum{.c = at.c, .c_m = g.c_m, .block = g.block, .left = g.block, .begun = g.accumulate};
  const A* b = at.b;
  int64_t rows[ROWS];
#pragma GCC unroll 12
  for (int m = 0; m < ROWS; m++) rows[m] = SPREAD ? at.a_rows[m] : m * g.a_m;
  at.init ? sum.load(at.init, g.init_m, false) : sum.clear();
  for (int64_t s = 0; s < g.batch; s++) {
    if (s + 1 < g.batch && g.a_k == 1)  // short runs, far apart: hardware does not foresee the next
      for (int m = 0; m < ROWS; m++)
        for (int64_t k = 0; k < g.k; k += 64 / sizeof(A)) __builtin_prefetch(at.a + g.a_offsets[s + 1] + rows[m] + k);
    b = sum.template add<PER>(g.k, g.a_offsets ? at.a + g.a_offsets[s] : at.a, rows, g.a_k, b, at.b_k, at.b_block);
  }
  if (g.k2) {  // rounded as if the first product had been taken before, and were `init` here
    if (sum.begun) sum.load(at.c, g.c_m, true);
    sum.begun = false;
    sum.left = g.block;
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++) rows[m] = m * g.a2_m;
    sum.template add<PER>(g.k2, at.a2, rows, 1, b, at.b_k, at.b_block);
  }
  sum.put();
}

template <class T, class A>
using Tile = void (*)(const Gemm<T, A>&, const Place<T, A>&);

static_assert(MAX_ROWS >= 4 && MAX_ROWS <= 12 && WIDE_ROWS <= 6 && (MAX_VECTORS == 2 || MAX_VECTORS == 4), "the tiles that are chosen from below");

template <class T, class A, bool SPREAD, int VECTORS, int PER, int ROWS>
Tile<T, A> tile_of_rows(int64_t rows) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return tile_of_rows<T, A, SPREAD, VECTORS, PER, ROWS - 1>(rows);
  return tile<T, A, SPREAD, ROWS, VECTORS, PER>;
}

template <class T>
constexpr int64_t kAtOnce = MAX_VECTORS * Simd<T>::lanes;
template <class T>
constexpr int64_t kWidth = kAtOnce<T> < kPanel ? kPanel : kAtOnce<T>;
// Three vectors that are three panels: of a product with so many columns, one block
template <class T>
constexpr bool kThree = MAX_VECTORS == 2 && WIDE_ROWS == 6 && Simd<T>::lanes == kPanel;
constexpr int64_t kThreeRows = 8;

// How columns are taken: so many vectors at a time, from one block or more, and of at most so many rows.
struct Pass {
  int64_t vectors, columns, rows;
};

// Sums of at least so many terms are taken in the tallest tiles: their matrix comes from afar, and these read it less often.
constexpr int64_t kLongSum = 512;

template <class T, class A>
Pass next_pass(const Gemm<T, A>& g, int64_t left) {
  constexpr int64_t n = kAtOnce<T>;
  if constexpr (kThree<T>)
    if (left == 3 * kPanel) return {3, left, kThreeRows};
  if constexpr (kWidth<T> == n && WIDE_ROWS > 0) {
    // A few rows, in tiles wide enough for sums that don't wait for each other
    if (g.m == 1 && left >= 4 * n && !g.a_rows) return {4 * MAX_VECTORS, 4 * n, 1};
    if (n == kPanel && g.m <= 2 && left == 3 * n && !g.a_rows) return {3 * MAX_VECTORS, 3 * n, 2};
    const bool near = g.b_k || g.batch * g.k + g.k2 < kLongSum;
    const bool wide = g.m <= WIDE_ROWS || (near && (MAX_ROWS > 6 ? g.m > MAX_ROWS : g.m > MAX_ROWS && g.m <= 3 * WIDE_ROWS));
    if (left >= 2 * n && wide) return {2 * MAX_VECTORS, 2 * n, WIDE_ROWS};
  }
  if (left >= n) return {MAX_VECTORS, n, MAX_ROWS};
  return {1, Simd<T>::lanes, MAX_ROWS};
}

template <class T, class A, bool SPREAD>
Tile<T, A> choose_tile(const Pass& pass, int64_t rows) {
  if constexpr (kThree<T>)
    if (pass.vectors == 3) return tile_of_rows<T, A, SPREAD, 3, 3, kThreeRows>(rows);
  if constexpr (kWidth<T> == kAtOnce<T> && WIDE_ROWS > 0) {
    if (!SPREAD && pass.vectors == 4 * MAX_VECTORS) return tile<T, A, false, 1, 4 * MAX_VECTORS, MAX_VECTORS>;
    if (!SPREAD && pass.vectors == 3 * MAX_VECTORS) return tile_of_rows<T, A, false, 3 * MAX_VECTORS, MAX_VECTORS, 2>(rows);
    if (pass.vectors == 2 * MAX_VECTORS) return tile_of_rows<T, A, SPREAD, 2 * MAX_VECTORS, MAX_VECTORS, WIDE_ROWS>(rows);
  }
  // Columns come in panels: where the widest tile divides a panel, there is no narrow one
  if constexpr (kPanel % kAtOnce<T> != 0)
    if (pass.vectors == 1) return tile_of_rows<T, A, SPREAD, 1, 1, MAX_ROWS>(rows);
  return tile_of_rows<T, A, SPREAD, MAX_VECTORS, MAX_VECTORS, MAX_ROWS>(rows);
}

template <class T, class A = T>
void gemm(const Gemm<T, A>& g) {
  const Packed packed{g.b_rows ? g.b_rows : g.batch * g.k + g.k2, g.n, kWidth<T>};
  for (int64_t n0 = 0; n0 < g.n;) {
    const Pass pass = next_pass(g, g.n - n0);
    const Place<T, A> first{g.a, g.a2, g.b_k ? g.b + n0 : g.b + packed.at(g.b_first, n0), g.a_rows, g.b_k ? g.b_k : packed.row(n0),
                            g.b_k ? kWidth<T> : kWidth<T> * packed.rows, g.init ? g.init + n0 : nullptr, g.c + n0};
    const int64_t blocks = (g.m + pass.rows - 1) / pass.rows;
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t m0 = g.m * block / blocks, rows = g.m * (block + 1) / blocks - m0;
      Place<T, A> at = first;
      if (g.a_rows) at.a_rows += m0;
      else at.a += m0 * g.a_m;
      at.a2 += m0 * g.a2_m, at.c += m0 * g.c_m;
      if (at.init) at.init += m0 * g.init_m;
      (g.a_rows ? choose_tile<T, A, true>(pass, rows) : choose_tile<T, A, false>(pass, rows))(g, at);
    }
    n0 += pass.columns;
  }
}

template <class T, bool ADD>
void move(int64_t rows, int64_t n, Block<const T> from, Block<T> to) {
  using S = Simd<T>;
  for (int64_t m = 0; m < rows; m++)
    for (int64_t i = 0; i < n; i += S::lanes) {
      const typename S::V v = S::load(from.p + m * from.row + i);
      T* out = to.p + m * to.row + i;
      S::store(out, ADD ? S::load(out) + v : v);
    }
}

// A square block of `lanes` rows: rows j and j + lanes / 2 are zipped, over and over.
template <class T>
[[gnu::always_inline]] inline void transpose_block(Block<const T> from, Block<T> to) {
  using S = Simd<T>;
  constexpr int n = S::lanes;
  typename S::V v[n], w[n];
#pragma GCC unroll 16
  for (int j = 0; j < n; j++) v[j] = S::load(from.p + j * from.row);
#if !defined(__clang__)
  typename S::I low, high;
  for (int i = 0; i < n; i++) {
    low[i] = i / 2 + (i % 2) * n;
    high[i] = low[i] + n / 2;
  }
#pragma GCC unroll 4
  for (int stage = 1; stage < n; stage *= 2) {
#pragma GCC unroll 16
    for (int j = 0; j < n / 2; j++) {
      w[2 * j] = __builtin_shuffle(v[j], v[j + n / 2], low);
      w[2 * j + 1] = __builtin_shuffle(v[j], v[j + n / 2], high);
    }
#pragma GCC unroll 16
    for (int j = 0; j < n; j++) v[j] = w[j];
  }
#else
  for (int j = 0; j < n; j++)
    for (int i = 0; i < n; i++) w[j][i] = v[i][j];
  for (int j = 0; j < n; j++) v[j] = w[j];
#endif
#pragma GCC unroll 16
  for (int j = 0; j < n; j++) S::store(to.p + j * to.row, v[j]);
}

template <class T>
void transpose(int64_t rows, int64_t columns, Block<const T> from, Block<T> to) {
  constexpr int64_t n = Simd<T>::lanes;
  const int64_t whole_rows = rows / n * n, whole_columns = columns / n * n;
  for (int64_t i = 0; i < whole_rows; i += n)
    for (int64_t j = 0; j < whole_columns; j += n)
      transpose_block<T>({from.p + i * from.row + j, from.row}, {to.p + j * to.row + i, to.row});
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; j++) to.p[j * to.row + i] = from.p[i * from.row + j];
}

template <class T>
void dots(int64_t rows, Block<const T> a, Block<const T> b, T* sum) {
  using S = Simd<T>;
  for (int64_t i = 0; i < kPanel; i += S::lanes) {
    typename S::V total = S::load(sum + i);
    for (int64_t m0 = 0; m0 < rows; m0 += 16) {
      typename S::V part{};
      for (int64_t m = m0; m < rows && m < m0 + 16; m++) part += S::load(a.p + m * a.row + i) * S::load(b.p + m * b.row + i);
      total += part;
    }
    S::store(sum + i, total);
  }
}

}  // namespace
}  // namespace fastlstm::ISA

#include "gemm/limit.h"
#include "gemm/unpacked.h"

namespace fastlstm::ISA {

#ifndef PAIRS
template <class T>
MicroKernels<T> path() {
  return {kWidth<T>, gemm<T>, gemm_unpacked_t<T>, gemm_unpacked<T>, move<T, false>, move<T, true>, transpose<T>, dots<T>,
          multiply_adds<T>};
}
template MicroKernels<float> path<float>();
template MicroKernels<double> path<double>();
#endif

}  // namespace fastlstm::ISA
