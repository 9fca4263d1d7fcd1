// gemm.h for bfloat16 on CPUs with AVX512_BF16.
#if defined(__x86_64__)
#include <cstdint>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,fma")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says so of its own intrinsics
#endif
#include <immintrin.h>
#define ISA avx512_bf16
#define VECTOR_BYTES 64
#define MAX_ROWS 12
#define MAX_VECTORS 2
#define WIDE_ROWS 6
#define PAIRS
#include "gemm/microkernel.h"

namespace fastlstm::avx512_bf16 {
namespace {

void narrow(int64_t rows, int64_t n, Block<const float> from, Block<uint16_t> to) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 mask = n - i < 16 ? (1u << (n - i)) - 1 : 0xffff;
      const __m512 values = _mm512_maskz_loadu_ps(mask, from.p + m * from.row + i);
      _mm256_mask_storeu_epi16(to.p + m * to.row + i, mask, (__m256i)_mm512_cvtneps_pbh(values));
    }
}

void widen(int64_t rows, int64_t n, int64_t width, Block<const uint16_t> from, Block<float> to) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t i = 0; i < width; i += 16) {
      const __mmask16 mask = n - i >= 16 ? 0xffff : n > i ? (1u << (n - i)) - 1 : 0;
      const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.p + m * from.row + i));
      _mm512_storeu_ps(to.p + m * to.row + i, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
    }
}

// One row of a against 16 rows of w, or those that exist: pairs of terms side by side, 32 terms at a time, zeros behind the last.
void gemm_unpacked_t(const GemmUnpackedT<float, uint16_t>& d) {
  for (int64_t n = 0; n < d.n; n += 16) {
    const int64_t units = d.n - n < 16 ? d.n - n : 16;
    const uint16_t* rows[16];
    for (int64_t j = 0; j < 16; j++) rows[j] = d.w + (n + (j < units ? j : 0)) * d.w_n;
    for (int64_t m = 0; m < d.m; m++) {
      Simd<float>::V acc[16] = {};
      const auto add = [&](int64_t k, __mmask32 mask) __attribute__((always_inline)) {
        const __m512bh x = (__m512bh)_mm512_maskz_loadu_epi16(mask, d.a + m * d.a_m + k);
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++)
          acc[j] = (Simd<float>::V)_mm512_dpbf16_ps((__m512)acc[j], x, (__m512bh)_mm512_maskz_loadu_epi16(mask, rows[j] + k));
      };
      int64_t k = 0;
      for (; k + 32 <= d.k; k += 32) add(k, ~0u);
      if (k < d.k) add(k, (1u << (d.k - k)) - 1);
      const __mmask16 mask = (1u << units) - 1;
      const __m512 init = _mm512_maskz_loadu_ps(mask, d.init + m * d.init_m + n);
      _mm512_mask_storeu_ps(d.c + m * d.c_m + n, mask, _mm512_add_ps(init, (__m512)horizontal_sums<float>(acc)));
    }
  }
}

void interleave(int64_t n, const uint16_t* first, const uint16_t* second, Bf16Pair* to) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = n - i < 16 ? (1u << (n - i)) - 1 : 0xffff;
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first + i));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, second + i));
    _mm512_mask_storeu_epi32(to + i, mask, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

}  // namespace

Bf16Kernels bf16_kernels() { return {gemm<float, Bf16Pair>, narrow, widen, interleave, gemm_unpacked_t}; }

}  // namespace fastlstm::avx512_bf16
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
