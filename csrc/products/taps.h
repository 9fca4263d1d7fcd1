// A convolution as a sum over taps, which the micro-kernels take as a batch: images lie in frames of zeros, a row of the left
// factor is a pixel's channels, and a tap is the same rows at some distance.
#pragma once
#include <algorithm>
#include <vector>

#include "loop/image.h"
#include "products/pack.h"

namespace fastlstm {

// An image in memory, its channels side by side, with zeros around it.
struct Frame {
  std::array<int64_t, kAxes> size{}, before{};  // pixels, borders included; and those before the first of the image
  int64_t row = 0;                              // elements of a pixel

  int64_t pitch(int axis) const { return axis == 2 ? row : axis == 1 ? size[2] * row : size[1] * size[2] * row; }
  int64_t elements() const { return size[0] * pitch(0); }
};

// Which pixels along an axis are written, which taps meet them, and where: the tap's pixel is at[i] + shift[k] of the frame.
struct AxisTaps {
  std::vector<int64_t> pixel, at;
  std::vector<int64_t> tap, shift;
};

// All axes together.
struct Taps {
  std::vector<int64_t> pixels;    // those that are written, of the image
  std::vector<int64_t> rows;      // where in the frame the rows of each begin
  std::vector<int64_t> taps;      // in the order of the sum
  std::vector<int64_t> segments;  // the distance of taps, or of runs of them that lie side by side
  int64_t run = 0;                // elements of a segment
  int64_t begin = 0, end = 0;     // those of a segment that weights meet

  int64_t terms() const { return static_cast<int64_t>(segments.size()) * (end - begin); }
};

// The outputs of a convolution, from the frame that it reads.
inline AxisTaps outputs(const Axis& axis) {
  AxisTaps found;
  for (int64_t q = 0; q < axis.out; q++) found.pixel.push_back(q), found.at.push_back(q * axis.stride);
  for (int64_t k = 0; k < axis.kernel; k++) found.tap.push_back(k), found.shift.push_back(k * axis.dilation);
  return found;
}

// Gradients of a convolution's inputs, from those of its outputs: pixels that are `stride` apart are met by the same taps. The
// positions are those of an image without borders.
inline AxisTaps inputs(const Axis& axis, int64_t phase) {
  AxisTaps found;
  for (int64_t u = 0; u < axis.in; u++)
    if ((u + axis.before) % axis.stride == phase) found.pixel.push_back(u), found.at.push_back((u + axis.before) / axis.stride);
  for (int64_t k = axis.kernel - 1; k >= 0; k--)  // so that they follow one another in memory
    if (k * axis.dilation % axis.stride == phase) found.tap.push_back(k), found.shift.push_back(-(k * axis.dilation / axis.stride));
  return found;
}

// The phases that have a pixel.
inline std::vector<int64_t> phases(const Axis& axis) {
  std::vector<int64_t> found;
  for (int64_t u = 0; u < std::min(axis.in, axis.stride); u++) found.push_back((u + axis.before) % axis.stride);
  return found;
}

// The frame that a convolution reads: as far as its taps reach.
inline Frame frame_of_inputs(const Convolution& conv, int64_t row) {
  Frame frame{.row = row};
  for (int d = 0; d < kAxes; d++) {
    const Axis& axis = conv.axes[d];
    frame.size[d] = std::max<int64_t>(axis.out - 1, 0) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
    frame.before[d] = axis.before;
  }
  return frame;
}

// Makes the borders of a frame of outputs so wide that all the taps of the inputs' gradients are in it.
inline void widen(Frame& frame, const Convolution& conv) {
  for (int d = 0; d < kAxes; d++) {
    const Axis& axis = conv.axes[d];
    int64_t first = 0, last = axis.out - 1;
    for (const int64_t phase : phases(axis)) {
      const AxisTaps taps = inputs(axis, phase);
      if (taps.tap.empty()) continue;
      first = std::min(first, taps.at.front() + taps.shift.front());
      last = std::max(last, taps.at.back() + taps.shift.back());
    }
    const int64_t after = std::max(frame.size[d] - frame.before[d] - axis.out, last - (axis.out - 1));
    frame.before[d] = std::max(frame.before[d], -first);
    frame.size[d] = frame.before[d] + axis.out + after;
  }
}

inline Taps combine(const std::array<AxisTaps, kAxes>& axes, const Frame& frame, int64_t channels, const std::array<int64_t, 2>& image,
                    const std::array<int64_t, 2>& kernel) {
  Taps found;
  const size_t pixels = axes[0].at.size() * axes[1].at.size() * axes[2].at.size();
  found.pixels.reserve(pixels), found.rows.reserve(pixels);
  for (size_t z = 0; z < axes[0].at.size(); z++)
    for (size_t y = 0; y < axes[1].at.size(); y++)
      for (size_t x = 0; x < axes[2].at.size(); x++) {
        found.pixels.push_back((axes[0].pixel[z] * image[0] + axes[1].pixel[y]) * image[1] + axes[2].pixel[x]);
        found.rows.push_back(axes[0].at[z] * frame.pitch(0) + axes[1].at[y] * frame.pitch(1) + axes[2].at[x] * frame.pitch(2));
      }
  const AxisTaps& last = axes[2];
  bool joined = frame.row == channels;
  for (size_t k = 1; k < last.shift.size(); k++) joined = joined && last.shift[k] == last.shift[k - 1] + 1;
  found.run = found.end = joined ? channels * static_cast<int64_t>(last.tap.size()) : channels;
  for (size_t z = 0; z < axes[0].tap.size(); z++)
    for (size_t y = 0; y < axes[1].tap.size(); y++)
      for (size_t x = 0; x < last.tap.size(); x++) {
        found.taps.push_back((axes[0].tap[z] * kernel[0] + axes[1].tap[y]) * kernel[1] + last.tap[x]);
        if (x == 0 || !joined)
          found.segments.push_back(axes[0].shift[z] * frame.pitch(0) + axes[1].shift[y] * frame.pitch(1) +
                                   last.shift[x] * frame.pitch(2));
      }
  return found;
}

inline Taps taps_of_outputs(const Convolution& conv, const Frame& frame, int64_t channels) {
  const auto& a = conv.axes;
  Taps found = combine({outputs(a[0]), outputs(a[1]), outputs(a[2])}, frame, channels, {a[1].out, a[2].out}, {a[1].kernel, a[2].kernel});
  if (found.run == channels * a[2].kernel) found.begin += a[2].unmet_first * channels / 2, found.end -= a[2].unmet_last * channels / 2;
  return found;
}

// One for each phase of the strides: together they write every pixel of the inputs once.
inline std::vector<Taps> taps_of_inputs(const Convolution& conv, const Frame& frame, int64_t channels) {
  const auto& a = conv.axes;
  const auto of_axis = [&](int d, int64_t phase) {
    AxisTaps found = inputs(a[d], phase);
    for (int64_t& at : found.at) at += frame.before[d];
    return found;
  };
  std::vector<Taps> found;
  for (const int64_t z : phases(a[0]))
    for (const int64_t y : phases(a[1]))
      for (const int64_t x : phases(a[2]))
        found.push_back(combine({of_axis(0, z), of_axis(1, y), of_axis(2, x)}, frame, channels, {a[1].in, a[2].in},
                                {a[1].kernel, a[2].kernel}));
  return found;
}

// Where the pixels of an image without borders are in its frame.
inline std::vector<int64_t> pixels_of(const std::array<int64_t, kAxes>& image, const Frame& frame) {
  std::vector<int64_t> found;
  found.reserve(image[0] * image[1] * image[2]);
  for (int64_t z = 0; z < image[0]; z++)
    for (int64_t y = 0; y < image[1]; y++)
      for (int64_t x = 0; x < image[2]; x++)
        found.push_back((z + frame.before[0]) * frame.pitch(0) + (y + frame.before[1]) * frame.pitch(1) +
                        (x + frame.before[2]) * frame.pitch(2));
  return found;
}

// Where `rows` rows of a batch of frames are, from row `first` on; `of_image` holds those of one.
inline void find_rows(const std::vector<int64_t>& of_image, int64_t elements, int64_t first, int64_t rows, int64_t* at) {
  const int64_t pixels = of_image.size();
  int64_t image = first / pixels, pixel = first % pixels;
  for (int64_t m = 0; m < rows; m++) {
    at[m] = image * elements + of_image[pixel];
    if (++pixel == pixels) image++, pixel = 0;
  }
}

}  // namespace fastlstm
