// gemm.h for bfloat16 on CPUs with AMX, whose registers hold 16 x 16 sums, or 16 rows of up to 16 pairs of terms each. Where a
// product suits none of them, it is taken by vectors. And for float32 of which one or two parts in bfloat16 are multiplied.
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gemm/gemm.h"

namespace fastlstm::amx {
namespace {

constexpr int64_t kSide = 16;      // rows and columns of a register's sums, and the most pairs of terms
constexpr int64_t kFewPairs = 8;   // with fewer at once, vectors are as fast
constexpr int kLeft = 4;           // the first register of left factors; sums are before it, right factors behind

// What the registers hold, as the instruction reads it.
struct alignas(64) Config {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

[[gnu::always_inline]] inline void configure(const Config& config) { asm volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
[[gnu::always_inline]] inline void read_config(Config& config) { asm volatile("sttilecfg %0" : "=m"(config)); }
[[gnu::always_inline]] inline void release() { asm volatile("tilerelease" ::: "memory"); }

template <int TILE>
[[gnu::always_inline]] inline void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int TILE>
[[gnu::always_inline]] inline void load(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(TILE) : "memory");
}
template <int TILE>
[[gnu::always_inline]] inline void store(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(TILE) : "memory");
}
template <int SUM, int LEFT, int RIGHT>
[[gnu::always_inline]] inline void multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
}

// Calls f with each of 0 to N - 1 as a type: the number of a register is part of an instruction.
template <int I>
struct Constant { static constexpr int value = I; };
template <int N, int I = 0, class F>
[[gnu::always_inline]] inline void each(const F& f) {
  if constexpr (I < N) {
    f(Constant<I>{});
    each<N, I + 1>(f);
  }
}

using Product = Gemm<float, Bf16Pair>;

// How many pairs of terms are taken at once: as many as divide both sums. 0 where they are few.
int64_t pairs_at_once(const Product& g) {
  const auto k = static_cast<uint32_t>(g.k), k2 = static_cast<uint32_t>(g.k2);
  for (uint32_t n = kSide; n >= kFewPairs; n--)
    if (k % n == 0 && k2 % n == 0) return n;
  return 0;
}

// Columns of the right factor: the first element and the distance between rows, in elements.
struct Right {
  const Bf16Pair* p;
  int64_t row;
};

// ROWS x COLUMNS registers of sums from row m0 and column n0 on, as many rows as they are configured for. Of factors in PARTS, blocks
// of the largest part and of the next lie side by side; the product of both next ones is left out.
template <int ROWS, int COLUMNS, int PARTS>
void tile(const Product& g, int64_t m0, int64_t n0, const Right* right, const Right* next, int64_t pairs) {
  static_assert(ROWS <= 2 && PARTS <= 2 && ROWS * COLUMNS <= kLeft);
  constexpr int kRight = kLeft + (ROWS > PARTS ? ROWS : PARTS), kRights = 8 - kRight, kOfRows = kLeft / ROWS;
  float* const c = g.c + m0 * g.c_m + n0;
  const float* const from = g.accumulate ? c : g.init ? g.init + m0 * g.init_m + n0 : nullptr;
  const int64_t from_m = g.accumulate ? g.c_m : g.init_m;
  each<ROWS * COLUMNS>([&](auto i) {
    constexpr int R = decltype(i)::value / COLUMNS, N = decltype(i)::value % COLUMNS;
    if (from) load<R * kOfRows + N>(from + R * kSide * from_m + N * kSide, from_m * 4);
    else zero<R * kOfRows + N>();
  });
  const auto load_left = [&](auto first, const Bf16Pair* a, int64_t a_m) {
    each<ROWS>([&](auto r) { load<decltype(first)::value + decltype(r)::value>(a + decltype(r)::value * kSide * a_m, a_m * 4); });
  };
  const auto load_right = [&](auto n, int64_t row) {
    constexpr int N = decltype(n)::value;
    load<kRight + N % kRights>(right[N].p + row * right[N].row, right[N].row * 4);
    if (next)
      for (int64_t j = 0; j < pairs; j++) __builtin_prefetch(next[N].p + (row + j) * next[N].row, 0, 2);
  };
  const auto multiply = [&](auto n, auto first) {
    constexpr int N = decltype(n)::value;
    each<ROWS>([&](auto r) {
      constexpr int R = decltype(r)::value;
      multiply_add<R * kOfRows + N, decltype(first)::value + R, kRight + N % kRights>();
    });
  };
  constexpr Constant<kLeft> kOne;
  constexpr Constant<kLeft + 1> kOther;  // where one row of registers leaves room for it
  int64_t row = 0;  // of the right factor
  const auto sum = [&](const Bf16Pair* a, int64_t a_m, int64_t k) {
    for (int64_t i = 0; i < k; i += PARTS * pairs, row += PARTS * pairs) {
      load_left(kOne, a + i, a_m);
      if constexpr (PARTS == 1) {
        each<COLUMNS>([&](auto n) { load_right(n, row), multiply(n, kOne); });
      } else if constexpr (ROWS == 1) {
        load_left(kOther, a + i + pairs, a_m);
        each<COLUMNS>([&](auto n) { load_right(n, row + pairs), multiply(n, kOne); });
        each<COLUMNS>([&](auto n) { load_right(n, row), multiply(n, kOne), multiply(n, kOther); });
      } else {
        each<COLUMNS>([&](auto n) { load_right(n, row + pairs), multiply(n, kOne); });
        each<COLUMNS>([&](auto n) { load_right(n, row), multiply(n, kOne); });
        load_left(kOne, a + i + pairs, a_m);
        each<COLUMNS>([&](auto n) { multiply(n, kOne); });
      }
    }
  };
  for (int64_t s = 0; s < g.batch; s++) sum(g.a + m0 * g.a_m + (g.a_offsets ? g.a_offsets[s] : 0), g.a_m, g.k);
  if (g.k2) sum(g.a2 + m0 * g.a2_m, g.a2_m, g.k2);
  each<ROWS * COLUMNS>([&](auto i) {
    constexpr int R = decltype(i)::value / COLUMNS, N = decltype(i)::value % COLUMNS;
    store<R * kOfRows + N>(c + R * kSide * g.c_m + N * kSide, g.c_m * 4);
  });
}

using Tile = void (*)(const Product&, int64_t m0, int64_t n0, const Right*, const Right*, int64_t pairs);
// Two registers of rows and up to two of columns, or one and up to four: sums that don't wait for each other.
template <int PARTS>
constexpr Tile kTall[] = {tile<2, 1, PARTS>, tile<2, 2, PARTS>};
template <int PARTS>
constexpr Tile kWide[] = {tile<1, 1, PARTS>, tile<1, 2, PARTS>, tile<1, 3, PARTS>, tile<1, 4, PARTS>};

// `lefts`: registers of left factors of a row of registers.
Config config_for(int64_t rows, int64_t pairs, int lefts) {
  const int tall = rows > kSide;
  const auto rows_of = [&](int part) { return static_cast<uint8_t>(part ? rows - kSide : tall ? kSide : rows); };
  Config config;
  for (int i = 0; i < 8; i++) {
    const bool sums = i < kLeft, left = !sums && i < kLeft + (tall ? 2 : lefts);
    config.row_bytes[i] = static_cast<uint16_t>(left ? pairs * 4 : kSide * 4);
    config.rows[i] = sums || left ? rows_of(!tall ? 0 : sums ? i >= 2 : i > kLeft) : static_cast<uint8_t>(pairs);
  }
  return config;
}

// Every element of c is one sum in the order of its terms, whatever the rows of a tile.
template <int PARTS>
void gemm(const Product& g) {
  if (g.m == 0) return;
  const int64_t pairs = PARTS > 1 ? kSide : g.a_k == 1 && !g.a_rows ? pairs_at_once(g) : 0;
  if (!pairs) return avx512_bf16::bf16_kernels().gemm(g);
  Config before;
  read_config(before);
  const Packed packed{g.b_rows ? g.b_rows : g.batch * g.k + g.k2, g.n, 2 * kSide};
  const auto columns_of = [&](const Bf16Pair* b, int64_t n) {
    return g.b_k ? Right{b + n, g.b_k} : Right{b + packed.at(g.b_first, n), packed.row(n)};
  };
  const int64_t whole = g.m / (2 * kSide) * (2 * kSide), left = g.m - whole;
  const bool wide = g.m <= kSide;
  if (whole) configure(config_for(2 * kSide, pairs, PARTS));
  else configure(config_for(left, pairs, PARTS));
  const auto rows_of = [&](int64_t begin, int64_t end) {
    for (int64_t n0 = 0, count; n0 < g.n; n0 += count * kSide) {
      const int64_t columns = (g.n - n0) / kSide;
      // One column after two: its sums, two registers, would wait for each other; three in one row of registers don't
      const bool three = PARTS > 1 && columns == 3 && end == whole;
      const int64_t at_once = wide ? 4 : three ? 3 : 2, rows = three ? kSide : 2 * kSide;
      count = columns < at_once ? columns : at_once;
      Right right[4], next[4];
      for (int64_t i = 0; i < count; i++) {
        right[i] = columns_of(g.b, n0 + i * kSide);
        if (g.next) next[i] = columns_of(g.next, n0 + i * kSide);
      }
      for (int64_t m0 = begin; m0 < end; m0 += rows) {
        const bool tall = !three && end - m0 > kSide;
        (tall ? kTall<PARTS> : kWide<PARTS>)[count - 1](g, m0, n0, right, g.next && m0 == 0 ? next : nullptr, pairs);
      }
    }
  };
  rows_of(0, whole);
  if (left) {
    if (whole) configure(config_for(left, pairs, PARTS));
    rows_of(whole, g.m);
  }
  // Others may count on what they found
  if (before.palette) configure(before);
  else release();
}

constexpr unsigned kConfigState = 17, kTileState = 18;  // parts of what the system keeps of a thread

}  // namespace

bool supported() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kState = 1u << kConfigState | 1u << kTileState, kTiles = 1u << 24, kBf16 = 1u << 22;
  if ((low & kState) != kState || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kTiles) || !(d & kBf16)) return false;
  constexpr long kWhatThereIs = 0x1021;
  uint64_t states = 0;
  return syscall(SYS_arch_prctl, kWhatThereIs, &states) == 0 && (states >> kTileState & 1);
}

// Linux keeps the registers of processes that have asked for them, whose signal stacks are to have room for them from then on.
bool permitted() {
  constexpr long kAsk = 0x1023;
  return syscall(SYS_arch_prctl, kAsk, static_cast<long>(kTileState)) == 0;
}

Bf16Kernels bf16_kernels() {
  Bf16Kernels kernels = avx512_bf16::bf16_kernels();
  kernels.gemm = gemm<1>;
  kernels.terms_together = true;
  return kernels;
}

void multiply_parts(const Product& g, int64_t parts) { parts == 1 ? gemm<1>(g) : gemm<2>(g); }

}  // namespace fastlstm::amx
#endif
