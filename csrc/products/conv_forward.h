// Pre-activations of pixels: convolutions of the inputs and of h.
#pragma once
#include "products/image_forward.h"

namespace fastlstm {

template <class S>
class ConvForward final : public ImageForward<S> {
  using Base = ImageForward<S>;
  using Base::o, Base::bias_of, Base::x_, Base::h_, Base::multiplies_h;

 public:
  using typename Base::T;

  explicit ConvForward(const Context<S>& context)
      : Base(context, frame_of_inputs(context.images->ih, frame_row<T>(context.I)),
             frame_of_inputs(context.images->hh, frame_row<T>(context.R))),
        of_x_(taps_of_outputs(o.images->ih, x_.frame, o.I)), of_h_(taps_of_outputs(o.images->hh, h_[0].frame, o.R)),
        packed_(o.n_panels * panel()) {}

  void pack(const Thread& thread, int64_t p) override {
    Base::pack(thread, p);
    pack_met(o.w.ih, o.v.ih, of_x_, o.k_input(), p, packed_ih(p));
    if (multiplies_h()) pack_met(o.w.hh, o.v.hh, of_h_, o.k_recurrent(), p, packed_hh(p));
  }

  void into_tile(const Thread&, const Tile& tile, T* records) const override {
    const int64_t c_m = o.record.forward(), n = o.v.ih.width();
    const T* const bias = bias_of(tile.p);
    if (o.I > 0) x_.product(of_x_, tile.row, tile.rows, {.n = n, .b = packed_ih(tile.p), .init = bias, .c = records, .c_m = c_m});
    else o.micro.copy(tile.rows, n, {bias, 0}, {records, c_m});
    if (o.fresh_step(tile.s)) return;
    h_[tile.s % 2].product(of_h_, tile.b, tile.rows, {.n = n, .b = packed_hh(tile.p), .c = records, .c_m = c_m, .accumulate = true});
  }

 private:
  // Panel p of weights of K terms: the rows that are met.
  void pack_met(const S* w, const GateMap& map, const Taps& taps, int64_t K, int64_t p, T* to) const {
    const int64_t run = taps.end - taps.begin;
    const Packed met{taps.terms(), map.width(), o.micro.width};
    if (met.rows == K) return pack_gates(w, map, o.H, K, p, met, 0, to);
    for (int64_t k = 0; k * run < met.rows; k++) pack_gates(w + k * taps.run + taps.begin, map, o.H, K, p, met, k * run, to, run);
  }
  int64_t panel() const { return (of_x_.terms() + (multiplies_h() ? of_h_.terms() : 0)) * o.v.ih.width(); }
  T* packed_ih(int64_t p) const { return packed_ + p * panel(); }
  T* packed_hh(int64_t p) const { return packed_ih(p) + of_x_.terms() * o.v.ih.width(); }

  const Taps of_x_, of_h_;
  Buffer<T> packed_;
};

}  // namespace fastlstm
