// Matrix products over small tiles, for the loops over time: one interface, one implementation per instruction set.
//
// `gemm` sums every element in the order of k, in blocks of fixed length, whatever the tile, the instruction set or the number of
// threads (by AMX in one chain, in which even and odd terms of 32 are apart), as does `gemm_in_order`; the other unpacked products in an
// order of their own, of k and the vectors' length. So results don't depend on how work was split.
#pragma once
#include <cstdint>
#include <string>

namespace fastlstm {

constexpr int64_t kPanel = 16;  // hidden units of a panel; every column count is a multiple of it

// A packed matrix of `rows` x `n` lies in blocks of `width` columns, each contiguous, one after the other: a pass of the micro-kernels
// over its rows reads memory from end to end. `width` is a micro-kernel's. What is left of n joins the last block, or is the only one.
struct Packed {
  int64_t rows, n, width;

  // The first column of the block that has a column, and the distance between rows of that block.
  [[gnu::always_inline]] int64_t begin(int64_t column) const {
    const int64_t block = column / width * width;
    return block && n - block < width ? block - width : block;
  }
  [[gnu::always_inline]] int64_t row(int64_t column) const {
    const int64_t left = n - begin(column);
    return left < 2 * width ? left : width;
  }
  [[gnu::always_inline]] int64_t at(int64_t r, int64_t column) const {
    return begin(column) * rows + r * row(column) + column - begin(column);
  }
};

// c[m][n] = init[m][n] + sum over the batch s and k of a[s][m][k] * b[s][k][n] + sum over k of a2[m][k] * b2[k][n], added to c
// where `accumulate` is set.
// A are the factors' elements where they are not those of the sum.
template <class T, class A = T>
struct Gemm {
  int64_t m, n, k;               // n: a multiple of kPanel; of a packed b, at most 4 * kPanel
  int64_t batch = 1;             // the sum over k may run over several matrices a; b is one block of batch * k rows
  const A* a;
  int64_t a_m, a_k = 1;          // strides of a, in elements
  const int64_t* a_rows = nullptr;     // where each row of a is, in elements, if not a_m apart
  const int64_t* a_offsets = nullptr;  // of each matrix a of the batch, in elements; null: of one, at 0
  const A* a2 = nullptr;         // a second left factor, of k2 columns
  int64_t a2_m = 0, k2 = 0;
  const A* b;                    // (batch * k + k2, n): rows b_k elements apart, or packed where b_k is 0
  int64_t b_k = 0;
  int64_t b_rows = 0, b_first = 0;  // of a packed matrix: all its rows, where there are more, and the first that takes part
  const A* next = nullptr;       // what is read after b and lies as b does, packed: asked for meanwhile
  const T* init = nullptr;       // zero where null
  int64_t init_m = 0;            // 0 repeats one row
  T* c;
  int64_t c_m;
  bool accumulate = false;       // not with a2
  int64_t block = 256;           // terms summed up before they join the total: one long sum would round too often
};

// c[m][n] = init[m][n] + sum over k of a[m][k] * w[n][k]: for so few rows that packing `w` would cost more than it saves.
template <class T, class A = T>
struct GemmUnpackedT {
  int64_t m, n, k;
  const A* a;
  int64_t a_m;
  const A* w;
  int64_t w_n;
  const T* init;
  int64_t init_m;
  T* c;
  int64_t c_m;
};

// c[m][n] = sum over k of a[m][k] * w[k][n], added to c where `accumulate` is set: for so few rows m, or terms k, that packing `w`
// would cost more than it saves. n may be any number.
template <class T>
struct GemmUnpacked {
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
struct MicroKernels {
  int64_t width;  // of the blocks of packed matrices: what is taken at once, and whole panels
  void (*gemm)(const Gemm<T>&);
  void (*gemm_unpacked_t)(const GemmUnpackedT<T>&);
  // The same with the sums of `gemm`, in blocks of so many terms as it has. c and `init` have whole panels: beyond n, c is `init`.
  void (*gemm_in_order)(const GemmUnpackedT<T>&);
  void (*gemm_unpacked)(const GemmUnpacked<T>&);
  // to = from and to += from, over `rows` rows of `n` elements, n a multiple of kPanel.
  void (*copy)(int64_t rows, int64_t n, Block<const T> from, Block<T> to);
  void (*add)(int64_t rows, int64_t n, Block<const T> from, Block<T> to);
  // to[j][i] = from[i][j], for any number of rows and columns.
  void (*transpose)(int64_t rows, int64_t columns, Block<const T> from, Block<T> to);
  // sum[i] += sum over `rows` of a[m][i] * b[m][i], for i < kPanel, in blocks of 16 rows.
  void (*dots)(int64_t rows, Block<const T> a, Block<const T> b, T* sum);
  // Nothing but multiply-adds: what a core can do at most. Returns how many there were; *sum is theirs.
  int64_t (*multiply_adds)(int64_t times, T factor, T* sum);
};

// Two bfloat16, which the CPU multiplies and adds up at once: k counts pairs of terms.
struct Bf16Pair {
  uint16_t first, second;
};

// What there is for bfloat16 where the CPU has instructions for it.
struct Bf16Kernels {
  void (*gemm)(const Gemm<float, Bf16Pair>&);
  // to = from, rounded, over `rows` rows of `n` elements, any n.
  void (*narrow)(int64_t rows, int64_t n, Block<const float> from, Block<uint16_t> to);
  // to = from, of which only `n` values of a row exist; zeros up to `width`, a multiple of kPanel.
  void (*widen)(int64_t rows, int64_t n, int64_t width, Block<const uint16_t> from, Block<float> to);
  // to[i] = (first[i], second[i]).
  void (*interleave)(int64_t n, const uint16_t* first, const uint16_t* second, Bf16Pair* to);
  void (*gemm_unpacked_t)(const GemmUnpackedT<float, uint16_t>&);
  // Whether left factors are to have their terms side by side, and sums so many terms that whole registers are full.
  bool terms_together = false;
};

// Null where the CPU has none.
const Bf16Kernels* bf16_kernels();

// Products of float32 by what multiplies bfloat16, each number as its nearest bfloat16, or as the sum of that and of the nearest to
// what it leaves: of 8 bits, or of 16. A block of kSplitTerms terms is 16 pairs of their first parts, and 16 of the others. (Products of
// two second parts are left out: they are as small as what is lost.)
constexpr int64_t kSplitTerms = 32;
struct SplitKernels {
  int64_t parts;
  void (*gemm)(const Gemm<float, Bf16Pair>&);  // `init` is not `c`
  // Parts of `rows` rows of n numbers, any n; the first is term `first`, a multiple of 16.
  void (*split)(int64_t rows, int64_t n, Block<const float> from, int64_t first, Block<Bf16Pair> to);
  // Parts of one[i] and two[i], as a pair of terms in column i: the first at `to`.
  void (*split_columns)(int64_t n, const float* one, const float* two, Block<Bf16Pair> to);

  // Pairs of a block, of some terms in whole blocks, and before that of a term.
  int64_t block() const { return kSplitTerms / 2 * parts; }
  int64_t pairs(int64_t terms) const { return (terms + kSplitTerms - 1) / kSplitTerms * block(); }
  int64_t pair_of(int64_t term) const { return term / kSplitTerms * block() + term % kSplitTerms / 2; }
};

// How precise products of float32 are to be: "highest", "high" (16 bits of each factor) or "medium" (8 bits), where the CPU has what
// takes such products faster. Throws std::invalid_argument for other names.
void set_float32_precision(const std::string& name);
const char* float32_precision();
// Null where products of float32 are taken as they are.
const SplitKernels* split_kernels();

// The implementation for the instruction set in use: see isa.h.
template <class T>
const MicroKernels<T>& micro_kernels();

namespace avx512_bf16 { Bf16Kernels bf16_kernels(); }
namespace amx {
bool supported();  // by the CPU and the system
bool permitted();  // by the system to this process, which asks for it
Bf16Kernels bf16_kernels();
void multiply_parts(const Gemm<float, Bf16Pair>&, int64_t parts);
SplitKernels split_kernels(int64_t parts);
}
namespace avx512 { template <class T> MicroKernels<T> path(); }
namespace avx2 { template <class T> MicroKernels<T> path(); }
namespace portable { template <class T> MicroKernels<T> path(); }

}  // namespace fastlstm
