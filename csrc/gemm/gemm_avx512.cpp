// gemm.h for CPUs with AVX512.
#if defined(__x86_64__)
#include <cstdint>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define ISA avx512
#define VECTOR_BYTES 64
#define MAX_ROWS 12
#define MAX_VECTORS 2
#define WIDE_ROWS 6
#include "gemm/microkernel.h"
#include "gemm/winograd_kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
