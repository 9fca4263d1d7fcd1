// Matrix products over small tiles, for the loops over time: one interface, one implementation per instruction set.
//
// `gemm` sums every element in the order of k, in blocks of fixed length, whatever the tile, the instruction set or the number of
// threads; `dot` and `combine` in orders of their own that depend on k alone. So results don't depend on how work was split.
#pragma once
#include <cstdint>

namespace fastlstm {

constexpr int64_t kLanes = 16;  // hidden units of a panel; every column count is a multiple of it

// c[m][n] = init[m][n] + sum over segments s and k of a[s][m][k] * b[s][k][n] + sum over k of a2[m][k] * b2[k][n], added to c
// where `accumulate` is set.
// A are the factors' elements where they are not those of the sum.
template <class T, class A = T>
struct Gemm {
  int64_t m, n, k;               // n: a multiple of kLanes, at most 4 * kLanes
  int64_t segments = 1;          // the sum over k may run over several matrices a; b is one block of segments * k rows
  const A* a;
  int64_t a_m, a_k = 1, a_segment = 0;  // strides of a, in elements
  const A* a2 = nullptr;         // a second left factor, of k2 columns
  int64_t a2_m = 0, k2 = 0;
  const A* b;                    // (segments * k + k2, n)
  int64_t b_k = 0;               // its stride, in elements; 0: rows are side by side
  const T* init = nullptr;       // zero where null
  int64_t init_m = 0;            // 0 repeats one row
  T* c;
  int64_t c_m;
  bool accumulate = false;       // not with a2
  int64_t block = 256;           // terms summed up before they join the total: one long sum would round too often
};

// c[m][n] = init[m][n] + sum over k of a[m][k] * w[n][k]: for so few rows that packing `w` would cost more than it saves.
template <class T>
struct Dot {
  int64_t m, n, k;
  const T* a;
  int64_t a_m;
  const T* w;
  int64_t w_n;
  const T* init;
  int64_t init_m;
  T* c;
  int64_t c_m;
};

// c[m][n] = sum over k of a[m][k] * w[k][n], added to c where `accumulate` is set: for so few rows m, or terms k, that packing `w`
// would cost more than it saves. n may be any number.
template <class T>
struct Combine {
  int64_t m, n, k;
  const T* a;
  int64_t a_m, a_k;
  const T* w;
  int64_t w_k;
  T* c;
  int64_t c_m;
  bool accumulate;
};

// A block of rows in memory.
template <class T>
struct Block {
  T* p;
  int64_t row;  // stride, in elements
};

template <class T>
struct GemmPath {
  void (*gemm)(const Gemm<T>&);
  void (*dot)(const Dot<T>&);
  void (*combine)(const Combine<T>&);
  // to = from and to += from, over `rows` rows of `n` elements, n a multiple of kLanes.
  void (*copy)(int64_t rows, int64_t n, Block<const T> from, Block<T> to);
  void (*add)(int64_t rows, int64_t n, Block<const T> from, Block<T> to);
  // to[j][i] = from[i][j], for any number of rows and columns.
  void (*transpose)(int64_t rows, int64_t columns, Block<const T> from, Block<T> to);
  // sum[i] += sum over `rows` of a[m][i] * b[m][i], for i < kLanes, in blocks of 16 rows.
  void (*dots)(int64_t rows, Block<const T> a, Block<const T> b, T* sum);
};

// Two bfloat16, which the CPU multiplies and adds up at once: k counts pairs of terms.
struct Pair {
  uint16_t first, second;
};

// What there is for bfloat16 where the CPU has instructions for it.
struct HalfPath {
  void (*gemm)(const Gemm<float, Pair>&);
  // to = from, rounded, over `rows` rows of `n` elements, any n.
  void (*narrow)(int64_t rows, int64_t n, Block<const float> from, Block<uint16_t> to);
  // to[i] = (first[i], second[i]).
  void (*interleave)(int64_t n, const uint16_t* first, const uint16_t* second, Pair* to);
};

// Null where the CPU has none.
const HalfPath* half_path();

// The implementation for the instruction set in use: see isa.h.
template <class T>
const GemmPath<T>& gemm_path();

namespace avx512_bf16 { HalfPath half_path(); }
namespace avx512 { template <class T> GemmPath<T> path(); }
namespace avx2 { template <class T> GemmPath<T> path(); }
namespace portable { template <class T> GemmPath<T> path(); }

}  // namespace fastlstm
