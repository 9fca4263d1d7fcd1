// Convolutions by fewer multiplications (Winograd's): along an axis, two neighbouring outputs of 3 taps take 4 products instead of 6;
// those of 5 taps take 7 instead of 10, as sums of 3 taps and of 2. Along two axes: 16 instead of 36, 49 instead of 100. Factors and
// results are sums of a few pixels or taps with coefficients of 1, -1 and 1/2, so little is lost to rounding. One product of the
// algorithm, over all channels and many tiles of 2 x 2 pixels, is a matrix product.
#pragma once
#include "gemm/gemm.h"

namespace fastlstm {

// Values of pixels, taps or products, `n` channels of each side by side: strides of lines and columns, and of tiles, in elements.
template <class T>
struct Grid {
  T* p;
  int64_t line, column, tile = 0;
};

// How many products there are along an axis; 0 for other numbers of taps.
constexpr int64_t winograd_products(int64_t taps) { return taps == 3 ? 4 : taps == 5 ? 7 : 0; }

template <class T>
struct WinogradKernels {
  using Map = void (*)(int64_t tiles, int64_t n, Grid<const T> from, Grid<T> to);

  Map inputs;      // (taps + 1)^2 pixels to the left factors of the products
  Map weights;     // taps^2 to the right factors
  Map outputs[2];  // products to two pixels of a line of outputs: a tile's first line, or its second
  // Gradients of weights take a part of the products at a time: all of 3 taps, a line of 5.
  int parts;
  struct Part {
    Map inputs;            // pixels to its left factors
    Map output_gradients;  // 2 x 2 pixels to the gradients of its products
    Map weight_gradients;  // gradients of its right factors, added to those of the taps they are made from
  } part[winograd_products(5)];
};

// The implementation for the instruction set in use, of 3 or of 5 taps.
template <class T>
const WinogradKernels<T>& winograd_kernels(int64_t taps);

namespace avx512 { template <class T> WinogradKernels<T> winograd(int64_t taps); }
namespace avx2 { template <class T> WinogradKernels<T> winograd(int64_t taps); }
namespace portable { template <class T> WinogradKernels<T> winograd(int64_t taps); }

}  // namespace fastlstm
