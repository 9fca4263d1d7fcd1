// gemm.h for any CPU: vectors of 16 bytes, which every 64-bit architecture has.
#define ISA portable
#define VECTOR_BYTES 16
#define MAX_ROWS 4
#define MAX_VECTORS 2
#include "microkernel.h"
