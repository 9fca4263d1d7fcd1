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

void interleave(int64_t n, const uint16_t* first, const uint16_t* second, Bf16Pair* to) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = n - i < 16 ? (1u << (n - i)) - 1 : 0xffff;
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, first + i));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, second + i));
    _mm512_mask_storeu_epi32(to + i, mask, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

}  // namespace

Bf16Kernels bf16_kernels() { return {gemm<float, Bf16Pair>, narrow, interleave}; }

}  // namespace fastlstm::avx512_bf16
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
