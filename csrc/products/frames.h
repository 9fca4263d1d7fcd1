// Images in frames of zeros, of which convolutions are products.
#pragma once
#include "products/taps.h"

namespace fastlstm {

constexpr int64_t kFrameRows = 96;   // of a product at once
constexpr int64_t kPartTerms = 128;  // of a sum over taps at once, at most

// Elements of a pixel. Sums over pixels read some channels of each: at a distance of 512 bytes, those would share few cache sets.
template <class T>
int64_t frame_row(int64_t channels) {
  return (channels * sizeof(T)) % 512 == 0 && channels > 0 ? channels + 64 / static_cast<int64_t>(sizeof(T)) : channels;
}

// Values V of pixels in frames, one for each image of a chunk or of a batch.
template <class S, class V = compute_t<S>>
class Frames {
 public:
  using T = V;

  // Those that a convolution reads, of `rows` rows at most.
  Frames(const Context<S>& context, const Convolution& conv, int64_t channels, int64_t rows)
      : Frames(context, conv, frame_of_inputs(conv, frame_row<T>(channels)), rows) {}
  Frames(const Context<S>& context, const Convolution& conv, const Frame& f, int64_t rows)
      : frame(f), o(context), image_{conv.axes[0].in, conv.axes[1].in, conv.axes[2].in},
        pixels_(rows ? pixels_of(image_, frame) : std::vector<int64_t>{}),
        images_((rows + o.seq.pixels - 1) / o.seq.pixels), p_(images_ * frame.elements()) {}

  const Frame frame;

  // This thread's share of all frames, or of `images` from `first` on.
  void clear(const Thread& thread) const { clear(thread, 0, images_); }
  void clear(const Thread& thread, int64_t first, int64_t images) const {
    const Range mine = thread.mine(images * frame.size[0] * frame.size[1]);
    std::fill_n(at(first) + mine.begin * frame.pitch(1), mine.size() * frame.pitch(1), T(0));
  }

  T* at(int64_t image) const { return p_ + image * frame.elements(); }
  // Pixel `row` of all images.
  T* pixel(int64_t row) const {
    const int64_t pixels = pixels_.size();
    return at(row / pixels) + pixels_[row % pixels];
  }

  // Of `rows` pixels of all images, from `row` on, calls f(m, n, pixel) for runs of n that lie side by side, pixel being the first.
  template <class F>
  void for_runs(int64_t row, int64_t rows, const F& f) const {
    const int64_t line = image_[2];
    for (int64_t m = 0, n; m < rows; m += n) {
      n = std::min(rows - m, line - (row + m) % line);
      f(m, n, pixel(row + m));
    }
  }

  // Panel p of `n` channels of `rows` pixels of all images, from `row` on.
  template <class From>
  void put_panel(int64_t row, int64_t rows, int64_t p, int64_t n, Block<const From> from) const {
    const int64_t units = units_of(n, p);
    for_runs(row, rows, [&](int64_t m, int64_t count, V* pixel) {
      const Block<const From> values{from.p + m * from.row, from.row};
      const Block<V> to{pixel + p * kPanel, frame.row};
      if constexpr (!std::is_same_v<V, From>) o.store(count, units, values, to);
      else if (units == kPanel) o.micro.copy(count, kPanel, values, to);
      else convert<From, V>(count, units, values, to);
    });
  }

  // Images = the inputs of the first `n` sequences in step t: this thread's lines of them. Pixels that no tap meets may lie outside.
  void put_inputs(const Thread& thread, int64_t image, int64_t t, int64_t n) const {
    const int64_t lines = inside(0) * inside(1);
    const Range mine = thread.mine(o.I > 0 ? n * lines : 0);
    for (int64_t line = mine.begin; line < mine.end; line++)
      put_line(image + line / lines, line % lines / inside(1), line % lines % inside(1),
               o.x.p + t * o.images->x_t + line / lines * o.images->x_b);
  }
  void put_line(int64_t image, int64_t z, int64_t y, const S* from) const {
    const int64_t width = inside(2), channels = o.I, stride_c = o.images->x_c;
    const std::array<int64_t, kAxes>& strides = o.images->x_pixel;
    const std::array<int64_t, kAxes> pixel{z + frame.before[0], y + frame.before[1], frame.before[2]};
    T* const to = at(image) + pixel[0] * frame.pitch(0) + pixel[1] * frame.pitch(1) + pixel[2] * frame.row;
    const S* const line = from + z * strides[0] + y * strides[1];
    if (stride_c == 1) convert<S, T>(width, channels, {line, strides[2]}, {to, frame.row});
    else if (strides[2] == 1) transpose<S, T>(channels, width, {line, stride_c}, {to, frame.row});
    else
      for (int64_t x = 0; x < width; x++)
        for (int64_t i = 0; i < channels; i++) to[x * frame.row + i] = static_cast<T>(line[x * strides[2] + i * stride_c]);
  }

  // The sum over taps, for rows [row, row + rows) of the pixels that `taps` writes; `g` says where to. All rows take a part of the
  // sum before the next part: its weights stay in the cache.
  void product(const Taps& taps, int64_t row, int64_t rows, Gemm<T> g) const {
    int64_t at[kFrameRows];
    find_rows(taps.rows, frame.elements(), row, rows, at);
    const int64_t run = taps.end - taps.begin, segments = taps.segments.size(), parts = (run + kPartTerms - 1) / kPartTerms;
    const int64_t group = std::max<int64_t>(1, kPartTerms / std::max<int64_t>(run, 1));
    g.m = rows, g.a_rows = at, g.b_rows = taps.terms();
    if (g.b_rows == 0) g.k = 0, g.batch = 0, o.gemm(g);
    for (int64_t first = 0; first < segments; first += group)
      for (int64_t part = 0; part < parts; part++) {
        const int64_t k = run * part / parts;
        g.k = run * (part + 1) / parts - k, g.batch = std::min(group, segments - first);
        g.a = p_ + taps.begin + k, g.a_offsets = taps.segments.data() + first, g.b_first = first * run + k;
        o.gemm(g);
        g.init = nullptr, g.accumulate = true;
      }
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
