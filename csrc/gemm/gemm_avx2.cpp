// gemm.h for CPUs with AVX2.
#if defined(__x86_64__)
#include <cstdint>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>
#define ISA avx2
#define VECTOR_BYTES 32
#define MAX_ROWS 6
#define MAX_VECTORS 2
#define WIDE_ROWS 3
#include "gemm/microkernel.h"
#include "gemm/winograd_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
