// Pre-activations of pixels in bfloat16, where the CPU multiplies whole registers of it: all that a pixel's taps meet is copied into one
// row, of x and then of h, some pixels at a time. Their products are those of plain matrices, whatever the kernel, stride or channels.
#pragma once
#include "products/image_forward.h"
#include "products/unfolded.h"

namespace fastlstm {

template <class S>
class UnfoldedForward final : public ImageForward<S, S> {
  using Base = ImageForward<S, S>;
  using Base::o, Base::bias_of, Base::x_, Base::h_, Base::multiplies_h;

 public:
  using typename Base::T;

  explicit UnfoldedForward(const Context<S>& context)
      : Base(context, frame_of_inputs(context.images->ih, context.I), frame_of_inputs(context.images->hh, context.R)),
        of_x_(taps_of_outputs(o.images->ih, x_.frame, o.I)), of_h_(taps_of_outputs(o.images->hh, h_[0].frame, o.R)),
        x_terms_(whole_terms(of_x_.terms())), terms_(x_terms_ + (multiplies_h() ? whole_terms(of_h_.terms()) : 0)),
        row_(padded_row<S>(terms_)), packed_(o.n_panels * panel()), rows_(o.team->workers * span_rows() * row_), spans_(o.team->workers) {}

  void pack(const Thread& thread, int64_t p) override {
    Base::pack(thread, p);
    if (o.I > 0) pack_weights(o.w.ih, o.v.ih, of_x_, o.I, p, 0, rows_of(thread));
    if (multiplies_h()) pack_weights(o.w.hh, o.v.hh, of_h_, o.R, p, x_terms_, rows_of(thread));
  }

  void set_up(const Thread& thread) override {
    std::fill_n(rows_of(thread), span_rows() * row_, S(0));  // the ends of rows stay so
    Base::set_up(thread);
  }

  bool takes_spans() const override { return true; }

  bool next_span(const Thread& thread, int64_t s, int64_t row, Range& span) override {
    const Range mine = thread.of_plan(o.seq.size[o.seq.step(s)]);
    span.begin = span.end ? span.end : mine.begin;
    span.end = std::min(mine.end, span.begin + span_rows());
    if (span.size() <= 0) return false;
    spans_[thread.worker] = span;
    if (o.I > 0) unfold(x_, of_x_, all_segments(of_x_), row + span.begin, span.size(), {rows_of(thread), row_});
    if (!o.fresh_step(s)) unfold(h_[s % 2], of_h_, all_segments(of_h_), span.begin, span.size(), {rows_of(thread) + x_terms_, row_});
    return true;
  }

  void into_tile(const Thread& thread, const Tile& tile, T* records) const override {
    const S* const rows = rows_of(thread) + (tile.b - spans_[thread.worker].begin) * row_;
    o.gemm(Gemm<T, Bf16Pair>{.m = tile.rows, .n = o.v.ih.width(), .k = (o.fresh_step(tile.s) ? x_terms_ : terms_) / 2,
                             .a = factors<Bf16Pair>(rows), .a_m = row_ / 2, .b = packed_ + tile.p * panel(), .b_rows = terms_ / 2,
                             .init = bias_of(tile.p), .c = records, .c_m = o.record.forward()});
  }

 private:
  static constexpr int64_t kSpanBytes = 1 << 20;

  int64_t span_rows() const {
    const int64_t of_cache = kSpanBytes / (std::max<int64_t>(row_, 1) * 2) / kWideTileRows * kWideTileRows;
    return std::clamp(of_cache, kWideTileRows, kMostUnfolded);
  }
  int64_t panel() const { return terms_ / 2 * o.v.ih.width(); }
  S* rows_of(const Thread& thread) const { return rows_ + thread.worker * span_rows() * row_; }

  // Panel p of w, those that are met, with taps before channels, as rows from the term `first` on; `units`: room for those of a slot.
  void pack_weights(const S* w, const GateMap& map, const Taps& of, int64_t channels, int64_t p, int64_t first, S* units) {
    const int64_t taps = of.taps.size(), all = taps * channels, terms = whole_terms(of.terms()), met = of.end - of.begin;
    const Packed packed{terms_ / 2, map.width(), o.micro.width};
    std::fill_n(units, kPanel * terms, S(0));
    for (int64_t i = 0; i < map.gates; i++) {
      for (int64_t u = 0; u < units_of(o.H, p); u++) {
        const S* const from = w + (map.gate[i] * o.H + p * kPanel + u) * all;
        if (o.images->taps_inside) transpose<S, S>(channels, taps, {from, taps}, {units + u * terms, channels});
        else
          for (size_t k = 0; k < of.segments.size(); k++) std::copy_n(from + k * of.run + of.begin, met, units + u * terms + k * met);
      }
      // pairs of terms, as numbers of as many bytes
      o.micro.transpose(kPanel, terms / 2, {reinterpret_cast<const T*>(units), terms / 2},
                        {reinterpret_cast<T*>(packed_ + p * panel() + packed.at(first / 2, i * kPanel)), packed.row(i * kPanel)});
    }
  }

  const Taps of_x_, of_h_;
  const int64_t x_terms_, terms_, row_;  // terms of x, of both, and the length of a row
  Buffer<Bf16Pair> packed_;
  Buffer<S> rows_;            // of each worker
  std::vector<Range> spans_;  // the rows that each worker is at
};

}  // namespace fastlstm
