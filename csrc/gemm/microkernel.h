// The micro-kernels behind gemm.h, written once over GCC's vector extension. Included by one source file per instruction set,
// which defines ISA, VECTOR_BYTES, MAX_ROWS and MAX_VECTORS (rows x vectors of accumulators that fit the registers), and WIDE_ROWS:
// how many rows there may be in a tile that is twice as wide (0: there is none).
// Nothing but gemm.h, tile.h, limit.h, moves.h and unpacked.h may be included here: inline functions compiled for a wider instruction set
// must not leak to the linker.
#include "gemm/tile.h"

namespace fastlstm::ISA {
namespace {

template <class T, class A>
using Tile = void (*)(const Gemm<T, A>&, const Place<T, A>&, int64_t m0, const A* ahead, int64_t ahead_step);

static_assert(MAX_ROWS >= 4 && MAX_ROWS <= 12 && WIDE_ROWS <= 6 && (MAX_VECTORS == 2 || MAX_VECTORS == 4),
              "the tiles that are chosen from below");

template <class T, class A, bool SPREAD, int VECTORS, int PER, int ROWS>
Tile<T, A> tile_of_rows(int64_t rows) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return tile_of_rows<T, A, SPREAD, VECTORS, PER, ROWS - 1>(rows);
  return tile<T, A, SPREAD, ROWS, VECTORS, PER>;
}
// Of tiles that ask for what comes later, which have at least kFetchRows rows.
constexpr int64_t kFetchRows = 4;
template <class T, class A, bool SPREAD, int VECTORS, int PER, int ROWS>
Tile<T, A> fetching_tile(int64_t rows) {
  if constexpr (ROWS > kFetchRows)
    if (rows < ROWS) return fetching_tile<T, A, SPREAD, VECTORS, PER, ROWS - 1>(rows);
  return tile<T, A, SPREAD, ROWS, VECTORS, PER, 1>;
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
  bool fetch = false;  // whether its tiles may ask for what a later pass reads
};

// Sums of at least so many terms are taken in the tallest tiles, if nobody asks for what comes next: their matrix comes from afar, and
// these read it less often.
constexpr int64_t kLongSum = 512;
// With more rows, or more terms of a matrix that is followed by another, it is taken in parts.
constexpr int64_t kManyRows = 2 * MAX_ROWS, kManyTerms = 2048;
constexpr int64_t kLeastPart = 128;          // terms of a part, at least, and at least a block
constexpr int64_t kAhead = 2048;             // bytes

template <class T, class A>
Pass next_pass(const Gemm<T, A>& g, int64_t left) {
  constexpr int64_t n = kAtOnce<T>;
  if constexpr (kThree<T>)
    if (left == 3 * kPanel) return {3, left, kThreeRows, true};
  if constexpr (kWidth<T> == n && WIDE_ROWS > 0) {
    // A few rows, in tiles wide enough for sums that don't wait for each other
    if (g.m == 1 && left >= 4 * n && !g.a_rows) return {4 * MAX_VECTORS, 4 * n, 1};
    if (n == kPanel && g.m <= 2 && left == 3 * n && !g.a_rows) return {3 * MAX_VECTORS, 3 * n, 2};
    const bool near = g.b_k || (MAX_ROWS > 6 && g.next) || g.m > kManyRows || g.batch * g.k + g.k2 < kLongSum;
    const bool wide = g.m <= WIDE_ROWS || (near && (MAX_ROWS > 6 ? g.m > MAX_ROWS : g.m > MAX_ROWS && g.m <= 3 * WIDE_ROWS));
    if (left >= 2 * n && wide) return {2 * MAX_VECTORS, 2 * n, WIDE_ROWS, WIDE_ROWS >= kFetchRows};
  }
  if (left >= n) return {MAX_VECTORS, n, MAX_ROWS, MAX_ROWS <= 6};
  return {1, Simd<T>::lanes, MAX_ROWS};
}

template <class T, class A, bool SPREAD>
Tile<T, A> choose_tile(const Pass& pass, int64_t rows, bool fetch) {
  if constexpr (kThree<T>) {
    if (pass.vectors == 3 && fetch) return fetching_tile<T, A, SPREAD, 3, 3, kThreeRows>(rows);
    if (pass.vectors == 3) return tile_of_rows<T, A, SPREAD, 3, 3, kThreeRows>(rows);
  }
  if constexpr (kWidth<T> == kAtOnce<T> && WIDE_ROWS > 0) {
    if (!SPREAD && pass.vectors == 4 * MAX_VECTORS) return tile<T, A, false, 1, 4 * MAX_VECTORS, MAX_VECTORS>;
    if (!SPREAD && pass.vectors == 3 * MAX_VECTORS) return tile_of_rows<T, A, false, 3 * MAX_VECTORS, MAX_VECTORS, 2>(rows);
    if constexpr (WIDE_ROWS >= kFetchRows)
      if (pass.vectors == 2 * MAX_VECTORS && fetch) return fetching_tile<T, A, SPREAD, 2 * MAX_VECTORS, MAX_VECTORS, WIDE_ROWS>(rows);
    if (pass.vectors == 2 * MAX_VECTORS) return tile_of_rows<T, A, SPREAD, 2 * MAX_VECTORS, MAX_VECTORS, WIDE_ROWS>(rows);
  }
  // Columns come in panels: where the widest tile divides a panel, there is no narrow one
  if constexpr (kPanel % kAtOnce<T> != 0)
    if (pass.vectors == 1) return tile_of_rows<T, A, SPREAD, 1, 1, MAX_ROWS>(rows);
  if constexpr (MAX_ROWS <= 6)
    if (fetch) return fetching_tile<T, A, SPREAD, MAX_VECTORS, MAX_VECTORS, MAX_ROWS>(rows);
  return tile_of_rows<T, A, SPREAD, MAX_VECTORS, MAX_VECTORS, MAX_ROWS>(rows);
}

// Tiles of all rows, for the columns of a pass and for some terms. The first of them ask for what a later pass reads, a line with each
// term: blocks that lie as those of b do, from `next` on.
template <class T, class A>
void run_tiles(const Gemm<T, A>& g, const Pass& pass, const Place<T, A>& at, const A* next) {
  constexpr int64_t line = 64 / sizeof(A);
  const int64_t tiles = (g.m + pass.rows - 1) / pass.rows, terms = at.terms + g.k2;
  const int64_t of_block = terms * at.b_k / line, lines = next && pass.columns % at.b_k == 0 ? terms * pass.columns / line : 0;
  for (int64_t i = 0, m0 = 0, end; i < tiles; i++, m0 = end) {
    end = g.m * (i + 1) / tiles;
    const int64_t rows = end - m0, asked = i * terms;
    const bool fetch = pass.fetch && asked < lines && rows >= kFetchRows;
    const Tile<T, A> tile = g.a_rows ? choose_tile<T, A, true>(pass, rows, fetch) : choose_tile<T, A, false>(pass, rows, fetch);
    if (fetch) tile(g, at, m0, next + asked / of_block * at.b_block + asked % of_block * line, line);
    else tile(g, at, m0, at.b + kAhead / sizeof(A), at.b_k);
  }
}

// Tiles of all rows and columns, for at.terms terms from row `first` of b on. Where `ask` is set, what is read after the columns of a pass
// is asked for: those that follow, and in the end those at `next`, if any.
template <class T, class A>
void run_passes(const Gemm<T, A>& g, Place<T, A> at, int64_t first, bool ask, const A* next) {
  const Packed packed{g.b_rows ? g.b_rows : g.batch * g.k + g.k2, g.n, kWidth<T>};
  const T* const init = at.init;
  for (int64_t n0 = 0, end; n0 < g.n; n0 = end) {
    const Pass pass = next_pass(g, g.n - n0);
    end = n0 + pass.columns;
    at.b = g.b + (g.b_k ? first * g.b_k + n0 : packed.at(g.b_first + first, n0));
    at.b_k = g.b_k ? g.b_k : packed.row(n0);
    at.b_block = g.b_k ? kWidth<T> : kWidth<T> * packed.rows;
    at.init = init ? init + n0 : nullptr;
    at.c = g.c + n0;
    run_tiles(g, pass, at, !ask ? nullptr : end < g.n ? g.b + packed.at(g.b_first + first, end) : next);
  }
}

// How many terms are taken of all rows: some blocks.
template <class T, class A>
int64_t part_terms(const Gemm<T, A>& g) {
  return g.block < kLeastPart ? kLeastPart / g.block * g.block : g.block;
}

// For rows of several tiles, some terms at a time: the matrix' part of it is near for all of them, and rows' parts for all columns;
// the first tiles ask for the next part meanwhile. Sums are those of one tile after another.
template <class T, class A>
void by_blocks(const Gemm<T, A>& g, Place<T, A> at, int64_t first, const A* next) {
  const Packed packed{g.b_rows, g.n, kWidth<T>};
  for (int64_t done = 0, all = g.batch * g.k; done < all; done += at.terms) {
    at.terms = part_terms(g) < all - done ? part_terms(g) : all - done;
    at.s = done / g.k, at.k = done % g.k;
    const int64_t after = first + done + at.terms;
    run_passes(g, at, first + done, g.b_k == 0, done + at.terms < all ? g.b + packed.at(g.b_first + after, 0) : next);
    at.init = nullptr, at.begun = true;
  }
}

template <class T, class A = T>
void gemm(const Gemm<T, A>& g) {
  const int64_t terms = g.batch * g.k;
  const A* const next = g.next ? g.next + Packed{g.b_rows ? g.b_rows : terms + g.k2, g.n, kWidth<T>}.at(g.b_first, 0) : nullptr;
  Place<T, A> at{.a = g.a, .init = g.init, .begun = g.accumulate, .terms = terms};
  const bool parts = g.m > kManyRows || (g.next && g.m > MAX_ROWS && terms >= kManyTerms);
  if (!parts || terms == 0 || terms + g.k2 <= part_terms(g)) return run_passes(g, at, 0, g.next != nullptr, next);
  Gemm<T, A> part = g;
  part.b_rows = g.b_rows ? g.b_rows : terms + g.k2, part.k2 = 0;
  by_blocks(part, at, 0, g.k2 ? nullptr : next);
  if (!g.k2) return;
  part.a_m = g.a2_m, part.a_k = 1, part.a_offsets = nullptr, part.a_rows = nullptr;
  part.batch = 1, part.k = g.k2, part.init = g.c, part.init_m = g.c_m;  // what there is by now is `init`, as in a tile
  at.a = g.a2, at.init = g.c, at.begun = false;
  by_blocks(part, at, terms, next);
}

}  // namespace
}  // namespace fastlstm::ISA

#include "gemm/limit.h"
#include "gemm/moves.h"
#include "gemm/unpacked.h"

namespace fastlstm::ISA {

#ifndef PAIRS
template <class T>
MicroKernels<T> path() {
  return {kWidth<T>, gemm<T>, gemm_unpacked_t<T>, gemm_in_order<T>, gemm_unpacked<T>, move<T, false>, move<T, true>, transpose<T>,
          dots<T>, multiply_adds<T>};
}
template MicroKernels<float> path<float>();
template MicroKernels<double> path<double>();
#endif

}  // namespace fastlstm::ISA
