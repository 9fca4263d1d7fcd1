// Convolutions of 3 x 3 and 5 x 5 taps by fewer multiplications (gemm/winograd.h): pixels go through in tiles of 2 x 2, some lines of
// tiles at a time. Their frames become the left factors of 16 or 49 products, each a matrix of tiles by channels, and the products
// become pixels. Sums run over channels in a fixed order, whatever tiles go together.
#pragma once
#include "gemm/winograd.h"
#include "products/frames.h"

namespace fastlstm {

// Whether a step's convolutions are taken so: where both have such taps, and it is less work. It depends on shapes alone.
inline bool suits_winograd(const Images& images, int64_t R) {
  const auto &x = images.ih.axes, &h = images.hh.axes;
  const int64_t taps = h[2].kernel, products = winograd_products(taps);
  // of pairs half the weights are zeros, which take part in what is rounded
  if (!products || R < 2 * kPanel || images.paired) return false;
  if (x[0].in != 1 || x[0].out != 1 || x[0].before != 0 || x[0].kernel != 1 || h[0].kernel != 1) return false;
  for (int d = 1; d < kAxes; d++)
    if (h[d].kernel != taps || x[d].kernel != taps || x[d].stride != 1 || x[d].dilation != 1) return false;
  const int64_t tiles = (h[1].out + 1) / 2 * ((h[2].out + 1) / 2);
  return 5 * products * products * tiles < 4 * taps * taps * h[1].out * h[2].out;
}

// Inputs of so many channels are taken with h, in the forward. The sum of fewer rounds less tap by tap, which shows where they are large.
constexpr int64_t kJoinedInputs = 64;

// The tiles of images. Lines of tiles are counted through all images, as rows are.
struct TileGrid {
  int64_t height, width;  // pixels of an image

  int64_t lines() const { return (height + 1) / 2; }  // of an image
  int64_t columns() const { return (width + 1) / 2; }
  int64_t pixels() const { return height * width; }
  int64_t row(int64_t line) const { return line / lines() * pixels() + line % lines() * 2 * width; }  // the first of a line
};

// A matrix for each product, of a row for each tile.
struct TileMatrices {
  int64_t row, matrix;  // distances between rows, and between matrices

  // No two matrices begin in the same set of the cache.
  template <class T>
  static TileMatrices of(int64_t tiles, int64_t channels) {
    const int64_t row = padded_row<T>(channels), line = 64 / static_cast<int64_t>(sizeof(T));
    return {row, (tiles * row + line - 1) / line * line + line};
  }
};

template <class S>
class Winograd {
 public:
  using T = compute_t<S>;
  using Map = typename WinogradKernels<T>::Map;
  static constexpr int64_t kBlock = 64;  // terms of a sum at a time: what rounding there is comes from here, not from the maps

  Winograd(const Context<S>& context, int64_t taps_along)
      : taps(taps_along), side(winograd_products(taps)), products(side * side), kernels(winograd_kernels<T>(taps)), o(context) {}

  const int64_t taps, side, products;
  const WinogradKernels<T>& kernels;

  // So many lines of tiles that their factors, of `channels`, stay in the cache, and enough for the weights to be read seldom.
  int64_t lines_at_once(const TileGrid& grid, int64_t channels) const {
    const int64_t of_tile = products * std::max<int64_t>(channels, 1) * static_cast<int64_t>(sizeof(T));
    return std::max<int64_t>(1, std::clamp<int64_t>(kFactorBytes / of_tile, kLeastTiles, kMostTiles) / grid.columns());
  }

  // Makes a frame so wide that it has all the pixels of the tiles of a convolution's outputs.
  static Frame frame_of_inputs(const Convolution& conv, int64_t row) {
    Frame frame = fastlstm::frame_of_inputs(conv, row);
    for (int d = 1; d < kAxes; d++) frame.size[d] += conv.axes[d].out % 2;
    return frame;
  }
  // The same for the tiles of its inputs' gradients, from those of its outputs.
  static void widen(Frame& frame, const Convolution& conv) {
    for (int d = 1; d < kAxes; d++) {
      const Axis& axis = conv.axes[d];
      const int64_t before = std::max(frame.before[d], axis.kernel - 1 - axis.before);
      const int64_t end = std::max(frame.size[d] - frame.before[d], std::max((axis.in + 1) / 2 * 2 + axis.before, (axis.out + 1) / 2 * 2));
      frame.before[d] = before, frame.size[d] = before + end;
    }
  }
  // Where the taps of the first of these gradients begin.
  static int64_t first_tap(const Frame& frame, const Convolution& conv) {
    int64_t at = 0;
    for (int d = 1; d < kAxes; d++) at += (frame.before[d] + conv.axes[d].before - (conv.axes[d].kernel - 1)) * frame.pitch(d);
    return at;
  }
  static int64_t first_pixel(const Frame& frame) { return frame.before[1] * frame.pitch(1) + frame.before[2] * frame.pitch(2); }

  // Weights (taps^2 * channels, n), packed, become rows [first, first + channels) of the right factors, each packed (K, n). Where
  // `taps_inside`, they are (channels * taps^2, n).
  void pack(const T* weights, int64_t channels, int64_t n, int64_t first, int64_t K, T* to, bool taps_inside = false) const {
    const Packed from{taps * taps * channels, n, o.micro.width}, factor{K, n, o.micro.width};
    for (int64_t column = 0; column < n; column += factor.row(column)) {
      const int64_t width = factor.row(column), tap = (taps_inside ? 1 : channels) * width;
      const int64_t at_once = taps_inside ? 1 : channels;
      kernels.weights(channels / at_once, at_once * width, {weights + from.at(0, column), taps * tap, tap, taps * taps * width},
                      {to + factor.at(first, column), side * K * n, K * n, width});
    }
  }

  // `n` channels of the tiles of some lines, which begin at `origin` of each frame, into columns of matrices; `to`: of the first.
  void from_frames(Map map, const Frames<S>& frames, int64_t origin, const TileGrid& grid, Range lines, int64_t n,
                   const TileMatrices& m, T* to) const {
    const Frame& frame = frames.frame;
    for (int64_t line = lines.begin; line < lines.end && n > 0; line++, to += grid.columns() * m.row) {
      const T* const from = frames.at(line / grid.lines()) + origin + line % grid.lines() * 2 * frame.pitch(1);
      map(grid.columns(), n, {from, frame.pitch(1), frame.row, 2 * frame.row}, {to, side * m.matrix, m.matrix, m.row});
    }
  }

  // The products of tiles with K channels, or with the first `k`, and right factors of n columns, after which those at `next` are read;
  // `bias` is added to all pixels.
  void multiply(int64_t tiles, int64_t k, int64_t K, int64_t n, const TileMatrices& left, const T* a, const T* b, const T* next,
                const T* bias, const TileMatrices& right, T* c) const {
    for (int64_t i = 0; i < products; i++)
      o.gemm(Gemm<T>{.m = tiles, .n = n, .k = k, .a = a + i * left.matrix, .a_m = left.row, .b = b + i * K * n, .b_rows = K,
                     .next = i + 1 < products ? b + (i + 1) * K * n : next, .init = i == side + 1 ? bias : nullptr,
                     .c = c + i * right.matrix, .c_m = right.row, .block = kBlock});
  }

  // The pixels of rows [row, row + rows), n channels of each, from the products of tiles; those of line `first` come first.
  void to_pixels(const TileGrid& grid, int64_t first, int64_t row, int64_t rows, int64_t n, const TileMatrices& m, const T* from,
                 Block<T> to) const {
    for (int64_t done = 0; done < rows;) {
      const int64_t pixel = (row + done) % grid.pixels(), y = pixel / grid.width, x = pixel % grid.width;
      const int64_t end = std::min(grid.width, x + rows - done);
      const int64_t line = (row + done) / grid.pixels() * grid.lines() + y / 2 - first;
      const T* const tiles = from + line * grid.columns() * m.row;
      const Map map = kernels.outputs[y % 2];
      for (int64_t i = x; i < end;) {
        const Grid<const T> tile{tiles + i / 2 * m.row, side * m.matrix, m.matrix, m.row};
        T* const pixels = to.p + (done + i - x) * to.row;
        if (const int64_t whole = i % 2 == 0 ? (end - i) / 2 : 0) {
          map(whole, n, tile, {pixels, 0, to.row, 2 * to.row});
          i += 2 * whole;
        } else {
          T pair[2 * kMaxBlock];
          map(1, n, tile, {pair, 0, kMaxBlock});
          std::copy_n(pair + i % 2 * kMaxBlock, n, pixels);
          i++;
        }
      }
      done += end - x;
    }
  }

 private:
  static constexpr int64_t kFactorBytes = 1 << 19, kLeastTiles = 64, kMostTiles = 128;

  const Context<S>& o;
};

}  // namespace fastlstm
