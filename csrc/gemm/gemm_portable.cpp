// gemm.h for any CPU: vectors of 16 bytes, which every 64-bit architecture has.
#define ISA portable
#define VECTOR_BYTES 16
#if defined(__aarch64__)
// 32 registers: 20 accumulators, 4 of b, the rest for a. With 6 rows the compiler keeps an accumulator on the stack
#define MAX_ROWS 5
#define MAX_VECTORS 4
#else
#define MAX_ROWS 4
#define MAX_VECTORS 2
#endif
#define WIDE_ROWS 0
#include "gemm/microkernel.h"
#include "gemm/winograd_kernels.h"
