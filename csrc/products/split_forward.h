// The forward's products of float32 by parts of bfloat16, where less than their precision is asked for and there are rows enough.
#pragma once
#include "products/forward.h"
#include "products/split.h"

namespace fastlstm {

class SplitForward final : public ForwardProducts<float> {
 public:
  // `precompute_input`, `stepwise`: as PackedForward has them.
  SplitForward(const Context<float>& context, bool precompute_input, bool stepwise)
      : ForwardProducts(context), stepwise_(stepwise), h_{Buffer<Bf16Pair>(o.seq.B * h_row_), Buffer<Bf16Pair>(o.seq.B * h_row_)},
        inputs_((stepwise ? o.team->workers * o.seq.B : o.chunk_rows) * x_row_), packed_(o.n_panels * panel_size_) {
    precompute(precompute_input);
  }

  void plan(const Plan& plan) override { precompute(plan.precompute_input); }

  void pack(const Thread& thread, int64_t p) override {
    ForwardProducts::pack(thread, p);
    pack_split_gates(*o.split, o.w.ih, ih, o.H, o.I, p, packed(ih), 0, packed_ih(p));
    pack_split_gates(*o.split, o.w.hh, hh, o.H, o.R, p, packed(hh), first_hh(), packed_hh(p));
  }

  void set_up(const Thread& thread) override {
    const Range rows = thread.mine(stepwise_ ? thread.workers * o.seq.B : o.chunk_rows);
    clear_split_ends(*o.split, rows.size(), o.I, {inputs_ + rows.begin * x_row_, x_row_});
  }

  void begin_step(const Thread& thread, int64_t s) override {
    const int64_t t = o.seq.step(s);
    thread.for_tiles(o.seq.size[t], [&](int64_t b, int64_t rows) { put_inputs(t, b, rows, own_row(thread, b)); });
  }

  void begin_chunk(const Thread& thread, const Chunk& chunk) override {
    this->for_steps(thread, chunk, [&](int64_t t, Range rows, int64_t row) {
      put_inputs(t, rows.begin, rows.size(), inputs_ + row * x_row_);
    });
    thread.barrier_all();
    if (!precompute_) return;
    if (thread.in_plan()) {
      const Range panels = thread.of_unit_group(o.n_panels), rows = thread.of_row_group(chunk.rows);
      for (int64_t p = panels.begin; p < panels.end; p++)
        o.split->gemm({.m = rows.size(), .n = ih.width(), .k = x_pairs_, .a = inputs_ + rows.begin * x_row_, .a_m = x_row_,
                       .b = packed_ih(p), .b_rows = packed(ih).rows, .next = p + 1 < panels.end ? packed_ih(p + 1) : nullptr,
                       .init = bias_of(p) + ih.offset(), .c = product(p, rows.begin), .c_m = ih.width()});
    }
    if (o.team->plan.row_groups > 1) thread.barrier_all();
  }
  void end_chunk(const Thread& thread) override { thread.barrier_all(); }

  void into_tile(const Thread& thread, const Tile& tile, float* records) const override {
    const Bf16Pair* const h = this->h(tile.s, tile.b);
    const Bf16Pair* const x = stepwise_ ? own_row(thread, tile.b) : inputs_ + tile.row * x_row_;
    const bool ask = tile.next >= 0;
    const int64_t c_m = o.record.forward();
    if (o.v.joint()) {
      if (precompute_)
        return o.split->gemm({.m = tile.rows, .n = hh.width(), .k = h_pairs_, .a = h, .a_m = h_row_, .b = packed_hh(tile.p),
                              .b_rows = packed(hh).rows, .b_first = first_hh(), .next = ask ? packed_hh(tile.next) : nullptr,
                              .init = product(tile.p, tile.row), .init_m = ih.width(), .c = records, .c_m = c_m});
      return o.split->gemm({.m = tile.rows, .n = ih.width(), .k = x_pairs_, .a = x, .a_m = x_row_, .a2 = h, .a2_m = h_row_,
                            .k2 = h_pairs_, .b = packed_ih(tile.p), .next = ask ? packed_ih(tile.next) : nullptr,
                            .init = bias_of(tile.p), .c = records, .c_m = c_m});
    }
    // Some slots are fed by x alone, others by h alone
    float* const of_h = records + hh.offset();
    o.micro.copy(tile.rows, o.gate_width, {bias_of(tile.p), 0}, {records, c_m});
    if (precompute_)
      o.micro.copy(tile.rows, ih.width(), {product(tile.p, tile.row), ih.width()}, {records + ih.offset(), c_m});
    else
      o.split->gemm({.m = tile.rows, .n = ih.width(), .k = x_pairs_, .a = x, .a_m = x_row_, .b = packed_ih(tile.p),
                     .next = ask ? packed_ih(tile.next) : nullptr, .init = bias_of(tile.p) + ih.offset(),
                     .c = records + ih.offset(), .c_m = c_m});
    alignas(64) float begun[kWideTileRows * kMaxBlock];  // where a sum can be taken once more
    o.micro.copy(tile.rows, hh.width(), {of_h, c_m}, {begun, kMaxBlock});
    o.split->gemm({.m = tile.rows, .n = hh.width(), .k = h_pairs_, .a = h, .a_m = h_row_, .b = packed_hh(tile.p),
                   .next = ask ? packed_hh(tile.next) : nullptr, .init = begun, .init_m = kMaxBlock, .c = of_h, .c_m = c_m});
  }

  void init_h(Range rows, const State<float>& h0) override {
    for (int64_t b = rows.begin; b < rows.end; b++)
      for (int64_t s : {0, 1}) {
        std::fill_n(h(s, b), h_pairs_, Bf16Pair{});
        if (h0.p && !o.cut_at_start(b)) o.split->split(1, o.R, {h0.p + b * o.R, o.R}, 0, {h(s, b), h_row_});
      }
  }

  void set_h(const Tile& tile, Block<const float> from) override {
    Bf16Pair* const to = h(tile.s + 1, tile.b);
    o.split->split(tile.rows, kPanel, from, tile.p * kPanel, {to, h_row_});
    if (tile.s + 1 == o.seq.T || !o.seq.reset) return;
    const int64_t t = o.seq.step(tile.s + 1);
    alignas(64) static constexpr float kNone[kPanel] = {};
    for (int64_t m = 0; m < std::min(tile.rows, o.seq.size[t] - tile.b); m++)
      if (o.seq.resets_before(t, tile.b + m)) o.split->split(1, kPanel, {kNone, 0}, tile.p * kPanel, {to + m * h_row_, h_row_});
  }

  void go_on(int64_t steps) override {
    if (steps % 2) std::swap(h_[0], h_[1]);
  }

 private:
  void precompute(bool wanted) {
    precompute_ = wanted && !stepwise_;
    if (precompute_ && !products_) products_ = Buffer<float>(o.chunk_rows * o.n_panels * ih.width());
  }
  void put_inputs(int64_t t, int64_t b, int64_t rows, Bf16Pair* to) const {
    o.split->split(rows, o.I, {o.x.at(o.seq, t, b), o.x.b_stride}, 0, {to, x_row_});
  }
  Bf16Pair* own_row(const Thread& thread, int64_t b) const { return inputs_ + (thread.worker * o.seq.B + b) * x_row_; }
  Bf16Pair* h(int64_t s, int64_t b) const { return h_[s % 2] + b * h_row_; }

  // Of a panel: x's rows and then h's in one matrix where they feed the same slots, else two matrices.
  int64_t first_hh() const { return o.v.joint() ? x_pairs_ : 0; }
  Bf16Pair* packed_ih(int64_t p) const { return packed_ + p * panel_size_; }
  Bf16Pair* packed_hh(int64_t p) const { return packed_ih(p) + (o.v.joint() ? 0 : x_pairs_ * ih.width()); }
  Packed packed(const GateMap& map) const {
    return {o.v.joint() ? x_pairs_ + h_pairs_ : &map == &ih ? x_pairs_ : h_pairs_, map.width(), 2 * kPanel};
  }
  float* product(int64_t p, int64_t row) const { return products_ + (p * o.chunk_rows + row) * ih.width(); }

  const GateMap &ih = o.v.ih, &hh = o.v.hh;
  const int64_t x_pairs_ = o.split->pairs(o.I), h_pairs_ = o.split->pairs(o.R);
  const int64_t x_row_ = split_row(*o.split, o.I), h_row_ = split_row(*o.split, o.R);
  const int64_t panel_size_ = x_pairs_ * ih.width() + h_pairs_ * hh.width();
  const bool stepwise_;
  bool precompute_ = false;
  Buffer<Bf16Pair> h_[2];   // read from one copy and written to the other in turn
  Buffer<Bf16Pair> inputs_;  // of a chunk's rows, or of a step's for each worker
  Buffer<Bf16Pair> packed_;
  Buffer<float> products_;
};

}  // namespace fastlstm
