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
  // Whether it is to be done, which fastlstm/ops/conv_lstm.py knows as well: what is saved depends on it.
  static bool suit(const Sizes& size, const Images& images) {
    const Axis &x = images.ih.axes[2], &h = images.hh.axes[2];
    return 2 * size.H <= kPanel && x.in % 2 == 0 && h.out % 2 == 0 && x.stride == 1 && x.dilation == 1 && x.before < x.kernel;
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

  // Where gradients go, until `add_up` makes those of the single pixels, `to`, from them; those of pixels' peepholes are written there.
  template <class S, class T>
  WeightGradients<S> gradients(const WeightGradients<S>& to, WeightGradients<T>& sums) {
    sums = {keep<T>(elements(ih_, C_)), keep<T>(elements(hh_, H_)), keep<T>(2 * gates_ * H_), nullptr, nullptr,
            of_pixels_ || !peepholes_ ? nullptr : keep<T>(2 * peepholes_ * H_)};
    return {nullptr, nullptr, nullptr, nullptr, nullptr, of_pixels_ ? to.peephole : nullptr, &sums};
  }
  template <class T, class S>
  void add_up(const WeightGradients<T>& from, const WeightGradients<S>& to, bool taps_inside) const {
    const auto add_taps = [&](const Convolution& conv, int64_t channels, const T* wide, S* narrow) {
      each_tap(conv, channels, taps_inside, [&](int64_t first, int64_t second, int64_t one) {
        narrow[one] = static_cast<S>(wide[first] + wide[second]);
      });
    };
    add_taps(ih_, C_, from.ih, to.ih);
    add_taps(hh_, H_, from.hh, to.hh);
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

  // Calls f(first, second, one) for each weight of a pixel: where it is among those of pairs, of which the first or the second pixel is
  // written, and among its own. `taps_inside`: of the latter.
  template <class F>
  void each_tap(const Convolution& conv, int64_t channels, bool taps_inside, const F& f) const {
    const Axis &axis = conv.axes[2], pair = paired(axis);
    const int64_t lines = lines_of_taps(conv), taps = lines * axis.kernel;
    const int64_t second = (H_ * lines * pair.kernel * 2 + 1) * channels;  // after the first
    for (int64_t row = 0; row < gates_ * H_; row++)
      for (int64_t line = 0; line < lines; line++)
        for (int64_t tap = 0; tap < axis.kernel; tap++) {
          const int64_t at = tap - axis.before + 2 * pair.before;  // among the pixels of the pairs that are met
          const int64_t wide = (row / H_ * 2 * H_ + row % H_) * lines + line, k = line * axis.kernel + tap;
          for (int64_t c = 0; c < channels; c++) {
            const int64_t first = (wide * pair.kernel * 2 + at) * channels + c;
            f(first, first + second, taps_inside ? (row * channels + c) * taps + k : (row * taps + k) * channels + c);
          }
        }
  }

  template <class T>
  const T* spread(const T* w, const Convolution& conv, int64_t channels) {
    const int64_t n = elements(conv, channels);
    T* const to = keep<T>(n);
    std::fill_n(to, n, T(0));
    each_tap(conv, channels, false, [&](int64_t first, int64_t second, int64_t one) { to[first] = to[second] = w[one]; });
    return to;
  }
  template <class T>
  const T* repeat(const T* from, int64_t groups) {
    if (!from) return nullptr;
    T* const to = keep<T>(2 * groups * H_);
    for (int64_t i = 0; i < 2 * groups * H_; i++) to[i] = from[i / (2 * H_) * H_ + i % H_];
    return to;
  }
  template <class T, class S>
  void add_halves(const T* from, int64_t groups, S* to) const {
    for (int64_t i = 0; i < groups * H_; i++)
      to[i] = static_cast<S>(from[i / H_ * 2 * H_ + i % H_] + from[(i / H_ * 2 + 1) * H_ + i % H_]);
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
