// A ConvLSTM of few channels: two neighbouring pixels of a line are taken as one of twice as many, so that records and vectors, which
// have 16 units, are not half empty. Maps lie in memory as they did; weights get zeros where a pixel of a pair is no neighbour.
#pragma once
#include <algorithm>
#include <vector>

#include "loop/call.h"
#include "memory/memory.h"

namespace fastlstm {

class PixelPairs {
 public:
  // Whether it is to be done, which fastlstm/ops/conv_lstm.py knows as well: what is saved depends on it. (For half precision it is not:
  // gradients of weights are sums of two that are rounded.)
  static bool suit(const Sizes& size, const Images& images, bool rounds) {
    const Axis &x = images.ih.axes[2], &h = images.hh.axes[2];
    return 2 * size.H <= kPanel && !rounds && x.in % 2 == 0 && h.out % 2 == 0 && x.stride == 1 && x.dilation == 1 && x.before < x.kernel;
  }

  // `pixels`: whether each pixel has peepholes of its own. Everything becomes that of pairs.
  PixelPairs(int64_t gates, int64_t peepholes, bool of_pixels, Sequence& seq, Sizes& size, Images& images)
      : gates_(gates), peepholes_(peepholes), of_pixels_(of_pixels), C_(size.I), H_(size.H), ih_(images.ih), hh_(images.hh) {
    for (Convolution* conv : {&images.ih, &images.hh}) conv->axes[2] = paired(conv->axes[2]);
    images.x_c = C_ == 1 ? images.x_pixel[2] : images.x_c;
    images.x_pixel[2] *= 2;
    images.paired = true;
    size = {2 * C_, 2 * H_, 2 * H_, false, of_pixels ? size.peephole_rows / 2 : 1};
    seq.B /= 2, seq.pixels /= 2;
    for (int64_t& n : seq.size) n /= 2;
    for (int64_t& n : seq.first) n /= 2;
  }

  // Whether the channels of two neighbours follow one another in the inputs.
  static bool lie_together(int64_t channels, const Images& images) {
    return channels < 2 || images.x_pixel[2] == channels * images.x_c;
  }

  template <class T>
  Weights<T> weights(const Weights<T>& w) {
    Weights<T> found = w;
    found.ih = spread(w.ih, ih_, C_), found.hh = spread(w.hh, hh_, H_);
    found.b_ih = repeat(w.b_ih, gates_), found.b_hh = repeat(w.b_hh, gates_);
    if (!of_pixels_) found.peephole = repeat(w.peephole, peepholes_);
    return found;
  }

  // Where gradients go, until `add_up` makes those of the single pixels from them.
  template <class T>
  WeightGradients<T> gradients(const WeightGradients<T>& to) {
    const auto make = [&](int64_t n) { return keep<T>(n); };
    return {make(elements(ih_, C_)), make(elements(hh_, H_)), make(2 * gates_ * H_), nullptr, nullptr,
            of_pixels_ || !peepholes_ ? to.peephole : make(2 * peepholes_ * H_)};
  }
  template <class T>
  void add_up(const WeightGradients<T>& from, const WeightGradients<T>& to, bool taps_inside) const {
    each_tap(ih_, C_, taps_inside, [&](int64_t wide, int64_t narrow, bool first) {
      to.ih[narrow] = from.ih[wide] + (first ? T(0) : to.ih[narrow]);
    });
    each_tap(hh_, H_, taps_inside, [&](int64_t wide, int64_t narrow, bool first) {
      to.hh[narrow] = from.hh[wide] + (first ? T(0) : to.hh[narrow]);
    });
    add_halves(from.b_ih, gates_, to.b_ih);
    if (!of_pixels_ && peepholes_) add_halves(from.peephole, peepholes_, to.peephole);
  }

 private:
  // Pairs meet those pairs that any of their pixels meets.
  static Axis paired(const Axis& axis) {
    const int64_t before = (axis.before + 1) / 2, after = (axis.kernel - axis.before) / 2;
    return {.in = axis.in / 2, .out = axis.out / 2, .kernel = after + before + 1, .before = before,
            .unmet_first = 2 * before - axis.before, .unmet_last = 2 * after + 1 - (axis.kernel - axis.before)};
  }
  static int64_t lines_of_taps(const Convolution& conv) { return conv.axes[0].kernel * conv.axes[1].kernel; }
  int64_t elements(const Convolution& conv, int64_t channels) const {
    return 2 * gates_ * H_ * lines_of_taps(conv) * paired(conv.axes[2]).kernel * 2 * channels;
  }

  // Calls f(wide, narrow, first) for each weight of a pair's that stands for one of a pixel's, of which it is the first or the second.
  // `taps_inside`: of the latter.
  template <class F>
  void each_tap(const Convolution& conv, int64_t channels, bool taps_inside, const F& f) const {
    const Axis &axis = conv.axes[2], pair = paired(axis);
    const int64_t lines = lines_of_taps(conv), taps = lines * axis.kernel;
    for (int64_t e = 0; e < 2; e++)  // the pixel of a pair that is written
      for (int64_t row = 0; row < gates_ * H_; row++)
        for (int64_t line = 0; line < lines; line++)
          for (int64_t tap = 0; tap < axis.kernel; tap++) {
            const int64_t at = tap + e - axis.before + 2 * pair.before;  // among the pixels of the pairs that are met
            const int64_t wide = ((row / H_ * 2 + e) * H_ + row % H_) * lines + line, k = line * axis.kernel + tap;
            for (int64_t c = 0; c < channels; c++) {
              const int64_t one = taps_inside ? (row * channels + c) * taps + k : (row * taps + k) * channels + c;
              f((wide * pair.kernel * 2 + at) * channels + c, one, e == 0);
            }
          }
  }

  template <class T>
  const T* spread(const T* w, const Convolution& conv, int64_t channels) {
    const int64_t n = elements(conv, channels);
    T* const to = keep<T>(n);
    std::fill_n(to, n, T(0));
    each_tap(conv, channels, false, [&](int64_t wide, int64_t narrow, bool) { to[wide] = w[narrow]; });
    return to;
  }
  template <class T>
  const T* repeat(const T* from, int64_t groups) {
    if (!from) return nullptr;
    T* const to = keep<T>(2 * groups * H_);
    for (int64_t i = 0; i < 2 * groups * H_; i++) to[i] = from[i / (2 * H_) * H_ + i % H_];
    return to;
  }
  template <class T>
  void add_halves(const T* from, int64_t groups, T* to) const {
    for (int64_t i = 0; i < groups * H_; i++) to[i] = from[i / H_ * 2 * H_ + i % H_] + from[(i / H_ * 2 + 1) * H_ + i % H_];
  }
  template <class T>
  T* keep(int64_t n) {
    kept_.emplace_back((n * sizeof(T) + sizeof(double) - 1) / sizeof(double));
    return reinterpret_cast<T*>(kept_.back() + 0);
  }

  const int64_t gates_, peepholes_;
  const bool of_pixels_;
  const int64_t C_, H_;
  const Convolution ih_, hh_;  // of single pixels
  std::vector<Buffer<double>> kept_;
};

}  // namespace fastlstm
