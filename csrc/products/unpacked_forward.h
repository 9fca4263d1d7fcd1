// The forward's products with weights as they stand in memory.
#pragma once
#include "products/forward.h"

namespace fastlstm {

// Weights as they are: for so few rows that packing them would not pay.
template <class S>
class UnpackedForward final : public ForwardProductsOf<S, S> {
  using Base = ForwardProductsOf<S, S>;
  using typename Base::T;
  using Base::o, Base::h, Base::bias_of;
  using A = std::conditional_t<std::is_same_v<S, T>, S, uint16_t>;  // bfloat16's bits

 public:
  explicit UnpackedForward(const Context<S>& context) : Base(context, context.R) {}

  void into_tile(const Thread&, const Tile& tile, T* records) const override {
    o.micro.copy(tile.rows, o.gate_width, {bias_of(tile.p), 0}, {records, o.record.forward()});
    add(o.v.ih, tile, o.I, {o.x.at(o.seq, tile.t, tile.b), o.x.b_stride}, o.w.ih, records);
    if (!o.fresh()) add(o.v.hh, tile, o.R, constant(h(tile.s).at(0, tile.b)), o.w.hh, records);
  }

 private:
  void add(const GateMap& map, const Tile& tile, int64_t k, Block<const S> a, const S* w, T* records) const {
    for (int64_t i = 0; i < map.gates; i++) {
      T* const to = records + map.offset() + i * kPanel;
      const GemmUnpackedT<T, A> product{.m = tile.rows, .n = units_of(o.H, tile.p), .k = k, .a = factors<A>(a.p), .a_m = a.row,
                                        .w = factors<A>(w + (map.gate[i] * o.H + tile.p * kPanel) * k), .w_n = k, .init = to,
                                        .init_m = o.record.forward(), .c = to, .c_m = o.record.forward()};
      if constexpr (std::is_same_v<S, T>) o.micro.gemm_unpacked_t(product);
      else o.bf16->gemm_unpacked_t(product);
    }
  }
};

}  // namespace fastlstm
