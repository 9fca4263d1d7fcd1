// What a row of the batch is where steps are images: a pixel. A convolution of up to three dimensions stands for each product.
#pragma once
#include <array>
#include <cstdint>

namespace fastlstm {

constexpr int kAxes = 3;  // an image that has fewer is one pixel deep in the first ones

// A convolution along one axis.
struct Axis {
  int64_t in = 1, out = 1;  // pixels
  int64_t kernel = 1, stride = 1, dilation = 1;
  int64_t before = 0;  // zeros before the first pixel; those after the last are as many as `out` needs
  int64_t unmet_first = 0, unmet_last = 0;  // of pairs: how many pixels of the first tap, and of the last, no weight meets
};

struct Convolution {
  std::array<Axis, kAxes> axes;

  template <class F>
  int64_t product(const F& of_axis) const {
    int64_t n = 1;
    for (const Axis& axis : axes) n *= of_axis(axis);
    return n;
  }
  int64_t in() const { return product([](const Axis& axis) { return axis.in; }); }
  int64_t out() const { return product([](const Axis& axis) { return axis.out; }); }
  int64_t taps() const { return product([](const Axis& axis) { return axis.kernel; }); }
};

// A call over images. A sequence has ih.out() rows in each step; weights are (gates * H, taps, channels), or (gates * H, channels,
// taps) where `taps_inside`.
struct Images {
  Convolution ih, hh;
  int64_t x_t, x_b, x_c;                 // strides of the inputs: of steps, sequences and channels
  std::array<int64_t, kAxes> x_pixel;  // and of pixels along each axis
  bool taps_inside = false;
  bool gradients_inside = false;  // and so do gradients of weights
  bool paired = false;  // a pixel is two of the image: ops/pixel_pairs.h
  bool moved = false;   // in outputs, channels come before the pixels of an image
  bool finals_moved = false;  // and in final states
  bool fresh;  // initial states are zeros, and get no gradient
};

}  // namespace fastlstm
