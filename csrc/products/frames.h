// Images in frames of zeros, of which convolutions are products.
#pragma once
#include "products/taps.h"

namespace fastlstm {

// Values of pixels in frames, one for each image of a chunk or of a batch.
template <class S>
class Frames {
 public:
  using T = compute_t<S>;

  // Those that a convolution reads, of `rows` rows at most.
  Frames(const Context<S>& context, const Convolution& conv, int64_t channels, int64_t rows)
      : Frames(context, conv, frame_of_inputs(conv, padded_row<T>(channels)), rows) {}
  Frames(const Context<S>& context, const Convolution& conv, const Frame& f, int64_t rows)
      : frame(f), o(context), image_{conv.axes[0].in, conv.axes[1].in, conv.axes[2].in}, pixels_(pixels_of(image_, frame)),
        images_((rows + o.seq.pixels - 1) / o.seq.pixels), p_(images_ * frame.elements()) {}

  const Frame frame;

  void clear(const Thread& thread) const {
    const Range mine = thread.mine(images_ * frame.size[0]);
    std::fill(p_ + mine.begin * frame.pitch(0), p_ + mine.end * frame.pitch(0), T(0));
  }

  T* at(int64_t image) const { return p_ + image * frame.elements(); }
  // Pixel `row` of all images.
  T* pixel(int64_t row) const {
    const int64_t pixels = pixels_.size();
    return at(row / pixels) + pixels_[row % pixels];
  }

  // Image = the inputs of sequence b in step t. Pixels that no tap meets may lie outside.
  void put_input(int64_t image, int64_t t, int64_t b) const {
    const Images& images = *o.images;
    put(image, o.x.p + t * images.x_t + b * images.x_b, images.x_pixel, images.x_c);
  }
  void put(int64_t image, const S* from, const std::array<int64_t, kAxes>& strides, int64_t stride_c) const {
    const int64_t width = inside(2), channels = o.I;
    for (int64_t z = 0; z < inside(0); z++)
      for (int64_t y = 0; y < inside(1); y++) {
        T* const to = at(image) + (z + frame.before[0]) * frame.pitch(0) + (y + frame.before[1]) * frame.pitch(1) + frame.before[2] * frame.row;
        const S* const line = from + z * strides[0] + y * strides[1];
        if (stride_c == 1) convert<S, T>(width, channels, {line, strides[2]}, {to, frame.row});
        else if (strides[2] == 1) transpose<S, T>(channels, width, {line, stride_c}, {to, frame.row});
        else
          for (int64_t x = 0; x < width; x++)
            for (int64_t i = 0; i < channels; i++) to[x * frame.row + i] = static_cast<T>(line[x * strides[2] + i * stride_c]);
      }
  }

  // The sum over taps, for rows [row, row + rows) of the pixels that `taps` writes; `g` says where to.
  void product(const Taps& taps, int64_t row, int64_t rows, Gemm<T> g) const {
    int64_t at[kTileRows];
    find_rows(taps.rows, frame.elements(), row, rows, at);
    g.m = rows, g.k = taps.run, g.batch = taps.segments.size(), g.a = p_, g.a_rows = at, g.a_offsets = taps.segments.data();
    o.gemm(g);
  }

 private:
  // Pixels along an axis that are within the frame.
  int64_t inside(int axis) const { return std::clamp<int64_t>(frame.size[axis] - frame.before[axis], 0, image_[axis]); }

  const Context<S>& o;
  const std::array<int64_t, kAxes> image_;
  const std::vector<int64_t> pixels_;
  const int64_t images_;
  Buffer<T> p_;
};

}  // namespace fastlstm
