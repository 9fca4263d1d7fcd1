// Pre-activations of pixels by Winograd's convolutions: of the inputs and h at once, side by side as channels. Inputs of few channels
// are convolved tap by tap: so short a sum rounds less than the algorithm would.
#pragma once
#include "products/image_forward.h"
#include "products/winograd.h"

namespace fastlstm {

template <class S>
class WinogradForward final : public ImageForward<S> {
  using Base = ImageForward<S>;
  using Base::o, Base::bias_of, Base::x_, Base::h_, Base::multiplies_h;

 public:
  using typename Base::T;

  explicit WinogradForward(const Context<S>& context)
      : Base(context, Winograd<S>::frame_of_inputs(context.images->ih, frame_row<T>(context.I)),
             Winograd<S>::frame_of_inputs(context.images->hh, frame_row<T>(context.R))),
        winograd_(o, o.images->hh.axes[2].kernel), grid_{o.images->hh.axes[1].out, o.images->hh.axes[2].out},
        of_x_(joins() ? Taps{} : taps_of_outputs(o.images->ih, x_.frame, o.I)), x_rows_(joins() ? o.I : 0),
        K_(x_rows_ + (multiplies_h() ? o.R : 0)), n_(o.v.ih.width()), lines_(lines()),
        left_(TileMatrices::of<T>(lines_ * grid_.columns(), K_)), right_(TileMatrices::of<T>(lines_ * grid_.columns(), n_)),
        of_worker_(std::max(winograd_.products * left_.matrix, o.images->hh.taps() * std::max(o.I, o.R) * n_)),
        packed_(o.n_panels * panel()), packed_taps_(joins() ? 0 : o.n_panels * o.k_input() * n_),
        factors_(o.team->workers * of_worker_), results_(o.team->workers * winograd_.products * right_.matrix),
        spans_(o.team->workers) {}

  void pack(const Thread& thread, int64_t p) override {
    Base::pack(thread, p);
    const int64_t taps = o.images->hh.taps();
    T* const weights = factors_of(thread);
    pack_gates(o.w.ih, o.v.ih, o.H, taps * o.I, p, {taps * o.I, n_, o.micro.width}, 0, weights);
    if (joins()) winograd_.pack(weights, o.I, n_, 0, K_, packed_ + p * panel(), o.images->taps_inside);
    else pack_taps(weights, packed_taps_ + p * o.k_input() * n_);
    if (!multiplies_h()) return;
    pack_gates(o.w.hh, o.v.hh, o.H, taps * o.R, p, {taps * o.R, n_, o.micro.width}, 0, weights);
    winograd_.pack(weights, o.R, n_, x_rows_, K_, packed_ + p * panel(), o.images->taps_inside);
  }

  bool takes_spans() const override { return true; }

  bool next_span(const Thread& thread, int64_t s, int64_t row, Range& rows) override {
    const int64_t images = o.seq.size[o.seq.step(s)] / o.seq.pixels, of_chunk = row / o.seq.pixels * grid_.lines();
    const Range mine = thread.of_plan(images * grid_.lines());
    Range& lines = spans_[thread.worker];
    lines.begin = rows.end ? lines.end : mine.begin;
    lines.end = std::min(mine.end, lines.begin + lines_);
    if (lines.size() <= 0) return false;
    rows = {grid_.row(lines.begin), grid_.row(lines.end)};
    T* const to = factors_of(thread);
    winograd_.from_frames(winograd_.kernels.inputs, x_, 0, grid_, {of_chunk + lines.begin, of_chunk + lines.end}, x_rows_, left_, to);
    if (!o.fresh_step(s)) winograd_.from_frames(winograd_.kernels.inputs, h_[s % 2], 0, grid_, lines, o.R, left_, to + x_rows_);
    return true;
  }

  void multiply_span(const Thread& thread, int64_t s, int64_t p) override {
    winograd_.multiply(spans_[thread.worker].size() * grid_.columns(), o.fresh_step(s) ? x_rows_ : K_, K_, n_, left_, factors_of(thread),
                       packed_ + p * panel(), packed_ + (p + 1 < o.n_panels ? p + 1 : 0) * panel(), bias_of(p), right_,
                       results_of(thread));
  }

  void into_tile(const Thread& thread, const Tile& tile, T* records) const override {
    winograd_.to_pixels(grid_, spans_[thread.worker].begin, tile.b, tile.rows, n_, right_, results_of(thread),
                        {records, o.record.forward()});
    if (!joins() && o.I > 0)
      x_.product(of_x_, tile.row, tile.rows, {.n = n_, .b = packed_taps_ + tile.p * o.k_input() * n_, .c = records,
                                              .c_m = o.record.forward(), .accumulate = true});
  }

 private:
  // So many that their factors stay in the cache; no more than a worker has.
  int64_t lines() const {
    const int64_t workers = o.team->workers, most = (o.seq.B / o.seq.pixels * grid_.lines() + workers - 1) / workers;
    return std::min(most, winograd_.lines_at_once(grid_, K_));
  }
  // Rows of weights of the inputs, packed, in the order of taps and then channels.
  void pack_taps(const T* weights, T* to) const {
    const int64_t taps = o.images->ih.taps();
    const Packed packed{taps * o.I, n_, o.micro.width};
    if (!o.images->taps_inside) return void(std::copy_n(weights, packed.rows * n_, to));
    for (int64_t column = 0; column < n_; column += packed.row(column))
      for (int64_t c = 0; c < o.I; c++)
        for (int64_t k = 0; k < taps; k++)
          std::copy_n(weights + packed.at(c * taps + k, column), packed.row(column), to + packed.at(k * o.I + c, column));
  }
  bool joins() const { return o.I >= kJoinedInputs; }
  int64_t panel() const { return winograd_.products * K_ * n_; }
  T* factors_of(const Thread& thread) const { return factors_ + thread.worker * of_worker_; }
  T* results_of(const Thread& thread) const { return results_ + thread.worker * winograd_.products * right_.matrix; }

  const Winograd<S> winograd_;
  const TileGrid grid_;
  const Taps of_x_;  // where it is not joined
  const int64_t x_rows_, K_, n_, lines_;  // lines of tiles at once
  const TileMatrices left_, right_;
  const int64_t of_worker_;  // of its factors; before, a panel of the weights is there
  Buffer<T> packed_, packed_taps_, factors_, results_;
  std::vector<Range> spans_;  // the lines of tiles that each worker is at
};

}  // namespace fastlstm
