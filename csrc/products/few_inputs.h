// Gradients of inputs that have few channels. Column by column of the inputs, a panel of columns would be all but empty: here columns
// are taps times channels. The products of a pixel's dG with all of them are then added up where they belong.
#pragma once
#include "products/frames.h"

namespace fastlstm {

template <class S>
class FewInputs {
 public:
  using T = compute_t<S>;

  static bool suit(int64_t channels) { return 0 < channels && channels <= kPanel / 2; }

  // `dg`: frames of dG, `width` of each pixel.
  FewInputs(const Context<S>& context, const Frames<S>& dg, int64_t width)
      : o(context), ih_(o.images->ih), dg_(dg), width_(width), columns_(ih_.taps() * o.I), panels_(panels_of(columns_)),
        tap_(o.images->taps_inside ? 1 : o.I), channel_(o.images->taps_inside ? ih_.taps() : 1),
        packed_(width * panels_ * kPanel), products_(o.chunk_rows * panels_ * kPanel), sums_(o.team->workers * line()) {
    pixels_.rows = pixels_of({ih_.axes[0].out, ih_.axes[1].out, ih_.axes[2].out}, dg.frame);
    pixels_.segments = {0}, pixels_.run = pixels_.end = width;
  }

  void pack(int64_t p) {
    for_column_blocks(0, panels_, [&](int64_t panel, int64_t count) {
      pack_gate_columns(o.w.ih, columns_, o.v.ih, o.H, columns_, p, panel * kPanel, {width_, count * kPanel, o.micro.width},
                        packed_ + panel * kPanel * width_);
    });
  }

  // Of the first `rows` pixels of a chunk: to(image) is where an image's gradient goes.
  template <class F>
  void run(const Thread& thread, int64_t rows, const F& to) const {
    multiply(thread, rows);
    thread.barrier_all();
    const int64_t lines = ih_.axes[0].in * ih_.axes[1].in;
    const Range mine = thread.mine(rows / o.seq.pixels * lines);
    T* const sums = sums_ + thread.worker * line();
    for (int64_t line = mine.begin; line < mine.end; line++) {
      add_up(line / lines, line % lines, sums);
      convert<T, S>(1, this->line(), {sums, 0}, {to(line / lines) + line % lines * this->line(), 0});
    }
  }

  void release() { packed_ = {}, products_ = {}, sums_ = {}; }

 private:
  void multiply(const Thread& thread, int64_t rows) const {
    const Range mine = thread.mine(rows);
    for (int64_t row = mine.begin; row < mine.end; row += kFrameRows)
      for_column_blocks(0, panels_, [&](int64_t panel, int64_t count) {
        dg_.product(pixels_, row, std::min(kFrameRows, mine.end - row),
                    {.n = count * kPanel, .b = packed_ + panel * kPanel * width_, .c = products_of(row) + panel * kPanel,
                     .c_m = panels_ * kPanel});
      });
  }
  int64_t line() const { return ih_.axes[2].in * o.I; }
  T* products_of(int64_t row) const { return products_ + row * panels_ * kPanel; }

  // The output that tap k of an axis meets at pixel u of the input, or -1.
  static int64_t met(const Axis& axis, int64_t u, int64_t k) {
    const int64_t at = u + axis.before - k * axis.dilation;
    return at < 0 || at % axis.stride || at / axis.stride >= axis.out ? -1 : at / axis.stride;
  }

  // A line of an image's inputs, tap by tap.
  void add_up(int64_t image, int64_t line, T* sums) const {
    const auto& [a, b, axis] = ih_.axes;
    std::fill_n(sums, axis.in * o.I, T(0));
    for (int64_t i = 0; i < a.kernel; i++)
      for (int64_t j = 0; j < b.kernel; j++) {
        const int64_t z = met(a, line / b.in, i), y = met(b, line % b.in, j);
        if (z < 0 || y < 0) continue;
        const T* const from = products_of(((image * a.out + z) * b.out + y) * axis.out);
        for (int64_t k = 0; k < axis.kernel; k++) {
          const int64_t shift = k * axis.dilation - axis.before, tap = (i * b.kernel + j) * axis.kernel + k;
          const int64_t first = shift < 0 ? (-shift + axis.stride - 1) / axis.stride : 0;
          const int64_t end = std::min(axis.out, (axis.in - shift + axis.stride - 1) / axis.stride);
          for (int64_t x = first; x < end; x++)
            for (int64_t c = 0; c < o.I; c++)
              sums[(x * axis.stride + shift) * o.I + c] += from[x * panels_ * kPanel + tap * tap_ + c * channel_];
        }
      }
  }

  const Context<S>& o;
  const Convolution& ih_;
  const Frames<S>& dg_;
  const int64_t width_, columns_, panels_;
  const int64_t tap_, channel_;  // distances of columns, which are in the order of the weights
  Taps pixels_;
  Buffer<T> packed_, products_;  // right factors; of a chunk's pixels
  Buffer<T> sums_;               // of a line of inputs, of each worker
};

}  // namespace fastlstm
