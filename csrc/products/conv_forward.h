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

  void pack(int64_t p) override {
    Base::pack(p);
    const int64_t x = o.k_input(), h = o.k_recurrent(), n = o.v.ih.width();
    pack_gates(o.w.ih, o.v.ih, o.H, x, p, {x, n, o.micro.width}, 0, packed_ih(p));
    if (multiplies_h()) pack_gates(o.w.hh, o.v.hh, o.H, h, p, {h, n, o.micro.width}, 0, packed_hh(p));
  }

  void into_tile(const Thread&, const Tile& tile, T* records) const override {
    const int64_t c_m = o.record.forward(), n = o.v.ih.width();
    const T* const bias = bias_of(tile.p);
    if (o.I > 0) x_.product(of_x_, tile.row, tile.rows, {.n = n, .b = packed_ih(tile.p), .init = bias, .c = records, .c_m = c_m});
    else o.micro.copy(tile.rows, n, {bias, 0}, {records, c_m});
    if (tile.s == 0 && o.fresh()) return;
    h_[tile.s % 2].product(of_h_, tile.b, tile.rows, {.n = n, .b = packed_hh(tile.p), .c = records, .c_m = c_m, .accumulate = true});
  }

 private:
  int64_t panel() const { return (o.k_input() + (multiplies_h() ? o.k_recurrent() : 0)) * o.v.ih.width(); }
  T* packed_ih(int64_t p) const { return packed_ + p * panel(); }
  T* packed_hh(int64_t p) const { return packed_ih(p) + o.k_input() * o.v.ih.width(); }

  const Taps of_x_, of_h_;
  Buffer<T> packed_;
};

}  // namespace fastlstm
