// The forward's products with weights packed in panels.
#pragma once
#include "products/forward.h"

namespace fastlstm {

// Weights packed in panels, by elements A. The inputs' products are taken with the recurrent ones, or before for a chunk of steps.
template <class S, class A>
class PackedForward final : public ForwardProductsOf<S, kept_t<S, A>> {
  using Base = ForwardProductsOf<S, kept_t<S, A>>;
  using typename Base::T;
  using Base::o, Base::h, Base::bias_of;
  using V = kept_t<S, A>;
  static constexpr int64_t kLyingRows = 4;  // of all steps
  static constexpr bool kReadsX = std::is_same_v<S, V>;  // inputs are factors as they are, but for zeros behind them

 public:
  // `kept`: other steps follow in later calls. `block`: how many terms are summed up before they join the total. `stepwise`: of a
  // call whose inputs are not there before a step.
  PackedForward(const Context<S>& context, bool precompute_input, bool kept = false, int64_t block = Gemm<T, A>{}.block,
                bool stepwise = false)
      : Base(context, summed_terms<A>(context, context.R)), block_(block), stepwise_(stepwise),
        apart_(!o.v.joint() || (precompute_input && !kPaired<A> && !kept)),
        ih_by_panel_(!kept && kReadsX && o.team->plan.row_groups == 1 && o.seq.rows() <= o.chunk_rows &&
                     (precompute_input ? !kPaired<A> : o.seq.T == 1)),
        hh_by_panel_(ih_by_panel_ && o.team->plan.few_steps),
        ih_lies_(ih_by_panel_ && precompute_input && o.seq.rows() <= kLyingRows), hh_lies_(ih_lies_ && hh_by_panel_),
        narrow_(o.v, o.H, o.I + o.R, !kPaired<A> && !ih_lies_), narrow_bias_(ih.width()),
        packed_ih_(panels(ih_by_panel_) * (apart_ ? ih_size() : ih_size() + hh_size())),
        packed_hh_(apart_ ? panels(hh_by_panel_) * hh_size() : 0) {
    precompute(precompute_input);
  }

  void plan(const Plan& plan) override { precompute(plan.precompute_input); }

  void pack(const Thread& thread, int64_t p) override {
    Base::pack(thread, p);
    if (narrow_.is(p)) narrow_.close_up<T>(1, ih, {bias_of(p) + ih.offset(), 0}, {narrow_bias_, 0});
    if (!ih_by_panel_) pack_ih(p);
    if (!hh_by_panel_ && o.multiplies_h()) pack_hh(p);
  }
  void begin_panel(const Thread&, int64_t s, int64_t p) override {
    if (ih_by_panel_ && !precompute_) pack_ih(p);
    if (hh_by_panel_ && !hh_lies_ && !o.fresh_step(s)) pack_hh(p);
  }

  // Each worker has a copy of its own of all rows that it multiplies: none waits for another.
  void begin_step(const Thread& thread, int64_t s) override {
    if (!copies()) return;
    thread.for_tiles(o.seq.size[o.seq.step(s)], [&](int64_t b, int64_t rows) { put_inputs(o.seq.step(s), b, rows, own_row(thread, b)); });
  }

  // products[p] = bias + x @ w_ih.T for the rows of all steps of the chunk, in running order.
  void begin_chunk(const Thread& thread, const Chunk& chunk) override {
    if (!copies()) return;
    this->for_steps(thread, chunk, [&](int64_t t, Range rows, int64_t row) {
      put_inputs(t, rows.begin, rows.size(), inputs_ + row * inputs_row_);
    });
    thread.barrier_all();
    if constexpr (!kPaired<A>) {
      if (thread.in_plan()) {
        const Range panels = thread.of_unit_group(o.n_panels), rows = thread.of_row_group(chunk.rows);
        for (int64_t p = panels.begin; p < panels.end; p++) {
          if (ih_lies_) {
            multiply(o.w.ih, ih, o.I, p, rows.size(), {inputs_ + rows.begin * inputs_row_, inputs_row_}, {bias_of(p) + ih.offset(), 0},
                     {product(p, rows.begin), ih.width()});
            continue;
          }
          if (ih_by_panel_) pack_ih(p);
          const bool next = p + 1 < panels.end && !ih_by_panel_;
          const int64_t n = narrow_.columns(ih, p);
          o.gemm(Gemm<T>{.m = rows.size(), .n = n, .k = o.I, .a = inputs_ + rows.begin * inputs_row_, .a_m = inputs_row_,
                         .b = packed_ih(p), .b_rows = packed(ih, p).rows, .next = next ? packed_ih(p + 1) : nullptr,
                         .init = bias_of_x(p), .c = product(p, rows.begin), .c_m = n});
        }
      }
    }
    if (precompute_ && o.team->plan.row_groups > 1) thread.barrier_all();
  }
  void end_chunk(const Thread& thread) override {
    if (copies()) thread.barrier_all();
  }

  void into_tile(const Thread& thread, const Tile& tile, T* records) const override {
    const Block<const V> h_rows = constant(h(tile.s).at(0, tile.b));
    const A* const h_factors = factors<A>(h_rows.p);
    const A *next_ih = nullptr, *next_hh = nullptr;
    if (tile.next >= 0 && !ih_by_panel_) next_ih = packed_ih(tile.next);
    if (tile.next >= 0 && !hh_by_panel_) next_hh = packed_hh(tile.next);
    const int64_t h_m = h_rows.row / kTerms<A>, k = x_terms_ / kTerms<A>, c_m = o.record.forward();
    const int64_t k2 = o.fresh_step(tile.s) ? 0 : h_terms_ / kTerms<A>;
    const int64_t x_n = narrow_.columns(ih, tile.p), h_n = narrow_.columns(hh, tile.p);
    T closed_up[kWideTileRows * kMaxBlock];  // sums of a narrow panel
    const auto sums_of = [&](T* slots, int64_t n) { return narrow_.is(tile.p) ? Block<T>{closed_up, n} : Block<T>{slots, c_m}; };
    const auto put = [&](const GateMap& map, Block<const T> sums) {
      if (narrow_.is(tile.p)) narrow_.spread(tile.rows, map, sums, {records + map.offset(), c_m});
    };
    if (o.v.joint()) {
      if (hh_lies_ && k2 > 0)
        return multiply(o.w.hh, hh, o.R, tile.p, tile.rows, h_rows, {product(tile.p, tile.row), ih.width()}, {records, c_m});
      const Block<T> sums = sums_of(records, h_n);
      if (precompute_)
        o.gemm(Gemm<T, A>{.m = tile.rows, .n = h_n, .k = k2, .a = h_factors, .a_m = h_m, .b = packed_hh(tile.p),
                          .b_rows = packed(hh, tile.p).rows, .b_first = first_hh(), .next = next_hh, .init = product(tile.p, tile.row),
                          .init_m = x_n, .c = sums.p, .c_m = sums.row, .block = block_});
      else if constexpr (kReadsX)
        o.gemm(Gemm<T, A>{.m = tile.rows, .n = x_n, .k = k, .a = x_factors(thread, tile), .a_m = x_m(), .a2 = h_factors, .a2_m = h_m,
                          .k2 = k2, .b = packed_ih(tile.p), .b_rows = packed(ih, tile.p).rows, .next = next_ih, .init = bias_of_x(tile.p),
                          .c = sums.p, .c_m = sums.row, .block = block_});
      return put(hh, constant(sums));
    }
    // Some slots are fed by x alone, others by h alone
    T *const of_x = records + ih.offset(), *const of_h = records + hh.offset();
    o.micro.copy(tile.rows, o.gate_width, {bias_of(tile.p), 0}, {records, c_m});
    if (precompute_ && narrow_.is(tile.p)) {
      put(ih, {product(tile.p, tile.row), x_n});
    } else if (precompute_) {
      o.micro.copy(tile.rows, x_n, {product(tile.p, tile.row), x_n}, {of_x, c_m});
    } else if constexpr (kReadsX) {
      const Block<T> sums = sums_of(of_x, x_n);
      o.gemm(Gemm<T, A>{.m = tile.rows, .n = x_n, .k = k, .a = x_factors(thread, tile), .a_m = x_m(), .b = packed_ih(tile.p),
                        .next = next_ih, .init = bias_of_x(tile.p), .c = sums.p, .c_m = sums.row});
      put(ih, constant(sums));
    }
    if (k2 == 0) return;
    if (hh_lies_) return multiply(o.w.hh, hh, o.R, tile.p, tile.rows, h_rows, {of_h, c_m}, {of_h, c_m});
    const Block<T> sums = sums_of(of_h, h_n);
    if (narrow_.is(tile.p)) narrow_.close_up<T>(tile.rows, hh, {of_h, c_m}, sums);
    o.gemm(Gemm<T, A>{.m = tile.rows, .n = h_n, .k = k2, .a = h_factors, .a_m = h_m, .b = packed_hh(tile.p), .next = next_hh,
                      .init = sums.p, .init_m = sums.row, .c = sums.p, .c_m = sums.row});
    put(hh, constant(sums));
  }

 private:
  void pack_ih(int64_t p) { pack(o.w.ih, ih, o.I, x_terms_, p, 0, packed_ih(p)); }
  void pack_hh(int64_t p) { pack(o.w.hh, hh, o.R, h_terms_, p, first_hh(), packed_hh(p)); }
  void pack(const S* w, const GateMap& map, int64_t k, int64_t terms, int64_t p, int64_t first, A* to) {
    const Packed layout = packed(map, p);
    if constexpr (kPaired<A>) pack_gates(w, map, o.H, k, terms, p, layout, first, to);
    else if (narrow_.is(p)) narrow_.pack(w, map, k, layout, first, to);
    else pack_gates(w, map, o.H, k, p, layout, first, to);
  }
  // c = init + panel p of a @ w.T: w as it lies, with the sums that packed weights give.
  void multiply(const S* w, const GateMap& map, int64_t k, int64_t p, int64_t rows, Block<const V> a, Block<const T> init,
                Block<T> c) const {
    if constexpr (std::is_same_v<S, A>)
      for (int64_t i = 0; i < map.gates; i++)
        o.micro.gemm_in_order({.m = rows, .n = units_of(o.H, p), .k = k, .a = a.p, .a_m = a.row,
                               .w = w + (map.gate[i] * o.H + p * kPanel) * k, .w_n = k, .init = init.p + i * kPanel,
                               .init_m = init.row, .c = c.p + i * kPanel, .c_m = c.row});
  }
  // Whether inputs' products are taken for many steps at once, from now on.
  void precompute(bool wanted) {
    precompute_ = !kReadsX || (wanted && !kPaired<A>);
    if (copies() && !inputs_) inputs_ = Buffer<V>((stepwise_ ? o.team->workers * o.seq.B : o.chunk_rows) * inputs_row_);
    if (precompute_ && !products_) products_ = Buffer<T>(o.chunk_rows * o.n_panels * ih.width());
  }

  // Whether inputs are not read where they are.
  bool copies() const { return precompute_ || x_terms_ > o.I; }
  void put_inputs(int64_t t, int64_t b, int64_t rows, V* to) const {
    convert<S, V>(rows, o.I, {o.x.at(o.seq, t, b), o.x.b_stride}, {to, inputs_row_});
    fill_rows(rows, x_terms_ - o.I, V(0), {to + o.I, inputs_row_});
  }
  V* own_row(const Thread& thread, int64_t b) const { return inputs_ + (thread.worker * o.seq.B + b) * inputs_row_; }
  const A* x_factors(const Thread& thread, const Tile& tile) const {
    if (!copies()) return factors<A>(o.x.at(o.seq, tile.t, tile.b));
    return factors<A>(stepwise_ ? own_row(thread, tile.b) : inputs_ + tile.row * inputs_row_);
  }
  int64_t x_m() const { return (copies() ? inputs_row_ : o.x.b_stride) / kTerms<A>; }
  // Of a panel: x's rows and then h's in one matrix where they feed the same slots and are multiplied together, else two matrices.
  int64_t ih_size() const { return x_terms_ * ih.width() / kTerms<A>; }
  int64_t hh_size() const { return h_terms_ * hh.width() / kTerms<A>; }
  // Of weights that are packed by panel, each unit group has one at a time: it stays in the cache from packing to use.
  int64_t panels(bool by_panel) const { return by_panel ? o.team->plan.unit_groups : o.n_panels; }
  int64_t place(bool by_panel, int64_t p) const { return by_panel ? ((p + 1) * o.team->plan.unit_groups - 1) / o.n_panels : p; }
  A* packed_ih(int64_t p) const { return packed_ih_ + place(ih_by_panel_, p) * (apart_ ? ih_size() : ih_size() + hh_size()); }
  A* packed_hh(int64_t p) const { return apart_ ? packed_hh_ + place(hh_by_panel_, p) * hh_size() : packed_ih(p); }
  int64_t first_hh() const { return apart_ ? 0 : x_terms_ / kTerms<A>; }
  Packed packed(const GateMap& map, int64_t p) const {
    const int64_t rows = !apart_ ? x_terms_ + h_terms_ : &map == &ih ? x_terms_ : h_terms_;
    return {rows / kTerms<A>, narrow_.columns(map, p), o.micro.width};
  }
  T* product(int64_t p, int64_t row) const { return products_ + p * o.chunk_rows * ih.width() + row * narrow_.columns(ih, p); }
  const T* bias_of_x(int64_t p) const { return narrow_.is(p) ? narrow_bias_ : bias_of(p) + ih.offset(); }

  const GateMap &ih = o.v.ih, &hh = o.v.hh;
  const int64_t x_terms_ = summed_terms<A>(o, o.I), h_terms_ = summed_terms<A>(o, o.R);
  const int64_t block_, inputs_row_ = padded_row<V>(x_terms_);
  const bool stepwise_, apart_;
  const bool ih_by_panel_, hh_by_panel_;  // packed just before they are used: in the one chunk that there is, and in each step
  const bool ih_lies_, hh_lies_;          // of so few rows of several steps that they are not packed at all
  const NarrowPanel narrow_;
  bool precompute_ = false;
  Buffer<T> narrow_bias_;
  Buffer<A> packed_ih_, packed_hh_;
  Buffer<V> inputs_;  // of a chunk's rows, or of a step's for each worker
  Buffer<T> products_;
};

}  // namespace fastlstm
