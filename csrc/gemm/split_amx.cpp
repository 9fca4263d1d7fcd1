// Parts of float32 in bfloat16, for products by AMX.
#if defined(__x86_64__) && defined(__linux__)
#include <cstdint>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,fma")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says so of its own intrinsics
#endif
#include <immintrin.h>

#include "gemm/gemm.h"

namespace fastlstm::amx {
namespace {

constexpr int64_t kLanes = 16, kBlock = 2 * kLanes;  // pairs of a block of two parts

// The nearest bfloat16 to a number, which is taken from x.
[[gnu::always_inline]] inline __m256i take_nearest(__m512& x, __m512 to) {
  const __m256i part = (__m256i)_mm512_cvtneps_pbh(to);
  x = _mm512_sub_ps(x, (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16));
  return part;
}
// The next part of x. The first is finite where x is: what is nearest to infinity is cut off.
[[gnu::always_inline]] inline __m256i take_part(int part, __m512& x) {
  if (part > 0) return take_nearest(x, x);
  const __m512i bits = (__m512i)x, size = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __mmask16 largest = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(size, _mm512_set1_epi32(0x7f7f8000)), _mm512_set1_epi32(0x8000));
  return take_nearest(x, (__m512)_mm512_mask_and_epi32(bits, largest, bits, _mm512_set1_epi32(-65536)));
}

[[gnu::always_inline]] inline __mmask16 lanes(int64_t left) { return left < kLanes ? (1u << left) - 1 : 0xffff; }

template <int PARTS>
void split(int64_t rows, int64_t n, Block<const float> from, int64_t first, Block<Bf16Pair> to) {
  for (int64_t m = 0; m < rows; m++) {
    uint16_t* const row = reinterpret_cast<uint16_t*>(to.p + m * to.row);
    for (int64_t i = 0, term = first; i < n; i += kLanes, term += kLanes) {
      __m512 x = _mm512_maskz_loadu_ps(lanes(n - i), from.p + m * from.row + i);
      uint16_t* const out = row + term / kSplitTerms * kSplitTerms * PARTS + term % kSplitTerms;
#pragma GCC unroll 2
      for (int part = 0; part < PARTS; part++) _mm256_mask_storeu_epi16(out + part * kSplitTerms, lanes(n - i), take_part(part, x));
    }
  }
}

template <int PARTS>
void split_columns(int64_t n, const float* one, const float* two, Block<Bf16Pair> to) {
  for (int64_t i = 0; i < n; i += kLanes) {
    __m512 x = _mm512_maskz_loadu_ps(lanes(n - i), one + i), y = _mm512_maskz_loadu_ps(lanes(n - i), two + i);
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; part++) {
      const __m512i low = _mm512_cvtepu16_epi32(take_part(part, x));
      const __m512i high = _mm512_cvtepu16_epi32(take_part(part, y));
      _mm512_mask_storeu_epi32(to.p + part * kLanes * to.row + i, lanes(n - i), _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

// What sums go over: f(a, row, pairs) for each left factor of row m, whose terms begin with a row of the right factor.
template <class F>
[[gnu::always_inline]] inline void for_factors(const Gemm<float, Bf16Pair>& g, int64_t m, const F& f) {
  int64_t row = 0;
  for (int64_t s = 0; s < g.batch; s++, row += g.k) f(g.a + m * g.a_m + (g.a_offsets ? g.a_offsets[s] : 0), row, g.k);
  if (g.k2) f(g.a2 + m * g.a2_m, row, g.k2);
}

// Of 16 columns of the right factor: rows `row` and following.
struct Columns {
  const Bf16Pair* p;
  int64_t row;
};
Columns columns_of(const Gemm<float, Bf16Pair>& g, int64_t n) {
  const Packed packed{g.b_rows ? g.b_rows : g.batch * g.k + g.k2, g.n, 2 * kLanes};
  return g.b_k ? Columns{g.b + n, g.b_k} : Columns{g.b + packed.at(g.b_first, n), packed.row(n)};
}

// First parts that are infinite, and that are no number: a bit for each of 32.
struct Found {
  __mmask32 infinite = 0, nan = 0;
  void look_at(const void* p) {
    const __m512i size = _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi16(0x7fff)), infinity = _mm512_set1_epi16(0x7f80);
    infinite |= _mm512_cmpeq_epi16_mask(size, infinity);
    nan |= _mm512_cmpgt_epi16_mask(size, infinity);
  }
};

// A number from its parts; one that is not finite is its first.
[[gnu::always_inline]] inline __m512 number(const __m512 (&part)[2]) {
  const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_sub_ps(part[0], part[0]), _mm512_setzero_ps(), _CMP_EQ_OQ);
  return _mm512_mask_add_ps(part[0], finite, part[0], part[1]);
}

// Sums of row m for 16 columns from n on, of whole numbers.
__m512 sums_of(const Gemm<float, Bf16Pair>& g, int64_t m, int64_t n) {
  __m512 sum = g.init ? _mm512_loadu_ps(g.init + m * g.init_m + n) : _mm512_setzero_ps();
  const Columns right = columns_of(g, n);
  for_factors(g, m, [&](const Bf16Pair* a, int64_t first, int64_t pairs) {
    for (int64_t block = 0; block < pairs; block += kBlock)
      for (int64_t term = 0; term < kSplitTerms; term++) {
        __m512 one[2], other[2];
        for (int part = 0; part < 2; part++) {
          const int64_t pair = block + part * kLanes + term / 2;
          const Bf16Pair& left = a[pair];
          one[part] = (__m512)_mm512_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(term % 2 ? left.second : left.first) << 16));
          const __m512i both = _mm512_loadu_si512(right.p + (first + pair) * right.row);
          other[part] = (__m512)(term % 2 ? _mm512_and_si512(both, _mm512_set1_epi32(-65536)) : _mm512_slli_epi32(both, 16));
        }
        sum = _mm512_fmadd_ps(number(one), number(other), sum);
      }
  });
  return sum;
}

// Infinity is its own first part, and its other is no number: sums with it are taken once more. (Those with what is no number are none.)
void mend(const Gemm<float, Bf16Pair>& g) {
  for (int64_t n = 0; n < g.n; n += kLanes) {
    const Columns right = columns_of(g, n);
    Found of_columns;  // two bits each
    for_factors(g, 0, [&](const Bf16Pair*, int64_t first, int64_t pairs) {
      for (int64_t i = 0; i < pairs; i++)
        if (i % kBlock < kLanes) of_columns.look_at(right.p + (first + i) * right.row);
    });
    for (int64_t m = 0; m < g.m; m++) {
      const __m512 c = _mm512_loadu_ps(g.c + m * g.c_m + n);
      const __mmask16 nans = _mm512_cmp_ps_mask(c, c, _CMP_UNORD_Q);
      if (!nans) continue;
      Found of_row;
      for_factors(g, m, [&](const Bf16Pair* a, int64_t, int64_t pairs) {
        for (int64_t i = 0; i < pairs; i += kBlock) of_row.look_at(a + i);
      });
      if (of_row.nan || !(of_row.infinite | of_columns.infinite)) continue;
      _mm512_mask_storeu_ps(g.c + m * g.c_m + n, nans, sums_of(g, m, n));
    }
  }
}

bool has_nan(const Gemm<float, Bf16Pair>& g) {
  __mmask16 found = 0;
  for (int64_t m = 0; m < g.m; m++)
    for (int64_t n = 0; n < g.n; n += kLanes) {
      const __m512 c = _mm512_loadu_ps(g.c + m * g.c_m + n);
      found |= _mm512_cmp_ps_mask(c, c, _CMP_UNORD_Q);
    }
  return found;
}

// What is added to has lost what it was: there, it stays no number.
template <int PARTS>
void gemm(const Gemm<float, Bf16Pair>& g) {
  multiply_parts(g, PARTS);
  if (PARTS == 2 && !g.accumulate && has_nan(g)) mend(g);
}

template <int PARTS>
SplitKernels kernels() {
  return {PARTS, gemm<PARTS>, split<PARTS>, split_columns<PARTS>};
}

}  // namespace

SplitKernels split_kernels(int64_t parts) { return parts == 1 ? kernels<1>() : kernels<2>(); }

}  // namespace fastlstm::amx
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
