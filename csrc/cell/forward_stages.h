// The stages of a step of the forward: gates, and the projection of what they give.
#pragma once
#include "cell/peepholes.h"
#include "products/forward.h"

namespace fastlstm {

// Where hidden values of a tile go.
template <class S>
class HiddenTaker {
 public:
  virtual ~HiddenTaker() = default;
  virtual void put(const Tile& tile, Block<const compute_t<S>> hidden) const = 0;
  // Asks for the memory where they will go, before they are computed.
  virtual void ask(const Tile&) const {}
};

// New values of h: to the next step, to the outputs, and to the final states of sequences that end.
template <class S>
class HiddenSink final : public HiddenTaker<S> {
 public:
  using T = compute_t<S>;

  HiddenSink(const Context<S>& context, const ForwardCall<S>& call, ForwardProducts<S>& products)
      : o(context), f(call), products_(products) {}

  void put(const Tile& tile, Block<const T> h) const override {
    products_.set_h(tile, h);
    if (f.y) o.put_rows(o.seq.first[tile.t] + tile.b, tile.rows, o.R, tile.p, h, f.y, o.moved());
    put_final(tile, h, o.R, f.h_n);
  }

  void ask(const Tile& tile) const override {
    if (!f.y || o.moved()) return;
    const S* row = f.y + (o.seq.first[tile.t] + tile.b) * o.R + tile.p * kPanel;
    constexpr int64_t line = 64 / sizeof(S);
    const bool parted = o.R % line != 0;  // rows begin within lines
    for (int64_t m = 0; m < tile.rows; m++, row += o.R) {
      for (int64_t i = 0; i < kPanel; i += line) __builtin_prefetch(row + i, 1);
      if (parted) __builtin_prefetch(row + kPanel - 1, 1);
    }
  }

  // The rows of sequences that end with the tile's step, into state_n (B, n).
  void put_final(const Tile& tile, Block<const T> from, int64_t n, S* state_n) const {
    const int64_t ended = std::max(tile.b, o.seq.size_after(tile.t));
    if (ended >= tile.b + tile.rows) return;
    const Block<const T> values{from.p + (ended - tile.b) * from.row, from.row};
    o.put_rows(ended, tile.b + tile.rows - ended, n, tile.p, values, state_n, o.finals_moved());
  }

 private:
  const Context<S>& o;
  const ForwardCall<S>& f;
  ForwardProducts<S>& products_;
};

// Per panel of units and tile of rows: the products, then the gate kernel on the tile, then its results to where they are kept.
template <class S>
class GateForward final : public Stage {
 public:
  using T = compute_t<S>;

  // `hidden`: takes the hidden values, a projection if it makes h of them; else they are h.
  GateForward(const Context<S>& context, const ForwardCall<S>& call, ForwardProducts<S>& products, const HiddenSink<S>& sink,
              const HiddenTaker<S>& hidden)
      : o(context), f(call), products_(products), sink_(sink), hidden_(hidden), kernel_(o.v.kernel(Pass::forward, sizeof(T) == 8)),
        c_(States<T>::by_panels(o.seq.B, o.n_panels)), peepholes_(o) {}

  void set_up(const Thread& thread) override {
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) peepholes_.pack(p);
  }

  void init_state(Range rows) override {
    for (int64_t p = 0; p < o.n_panels; p++) {
      o.take_rows(f.c0, rows.begin, rows.size(), o.H, p, c_.at(p, rows.begin));
      if (o.seq.T > 0) o.apply_reset(o.seq.step(0), rows.begin, rows.size(), kPanel, c_.at(p, rows.begin));
    }
  }

  void run(const Thread& thread, int64_t s, int64_t row) override {
    const int64_t t = o.seq.step(s), n = o.seq.size[t];
    const Range panels = thread.of_unit_group(o.n_panels);
    T* const records = o.tile_of(thread);
    const auto run = [&](int64_t p, int64_t b, int64_t rows, int64_t next = -1) {
      run_tile(thread, {s, t, b, rows, row + b, p, next}, records);
    };
    if (products_.takes_spans()) {
      for (Range span{0, 0}; products_.next_span(thread, s, row, span);)
        for (int64_t p = 0; p < o.n_panels; p++) {
          products_.multiply_span(thread, s, p);
          for (int64_t b = span.begin; b < span.end; b += o.team->plan.tile_rows) run(p, b, std::min(o.team->plan.tile_rows, span.end - b));
        }
      return thread.barrier_group();
    }
    for (int64_t i = 0; i < panels.size(); i++) {
      const int64_t p = s % 2 ? panels.end - 1 - i : panels.begin + i;  // to and fro: the cache still has the weights of the last panels
      int64_t next = i + 1 < panels.size() ? p + (s % 2 ? -1 : 1) : -1;
      products_.begin_panel(thread, s, p);
      thread.for_tiles(n, [&](int64_t b, int64_t rows) { run(p, b, rows, std::exchange(next, -1)); });
    }
    thread.barrier_group();
  }

 private:
  void run_tile(const Thread& thread, const Tile& tile, T* records) const {
    const auto [s, t, b, rows, row, p, next] = tile;
    const int64_t record = o.record.forward(), saved_width = o.record.saved();
    T* const saved = f.saved ? f.saved + o.saved_at(t, p, b) : nullptr;
    if (saved) prefetch<true>(saved, rows * saved_width);
    hidden_.ask(tile);
    products_.into_tile(thread, tile, records);
    if (p == o.n_panels - 1) clear_absent_units(rows, records);
    const Block<T> c = c_.at(p, b);
    o.micro.copy(rows, kPanel, constant(c), {records + o.record.c(), record});
    peepholes_.copy(p, b, rows, {records + o.record.forward_peepholes(), record});
    kernel_(records, rows);
    const Block<const T> new_c{records + o.record.c(), record}, new_m{records + o.record.m(), record};
    o.micro.copy(rows, kPanel, new_c, c);
    if (s + 1 < o.seq.T) o.apply_reset(o.seq.step(s + 1), b, rows, kPanel, c);
    if (saved) o.micro.copy(rows, saved_width, {records, record}, {saved, saved_width});
    if (f.cells) o.put_rows(o.seq.first[t] + b, rows, o.H, p, new_c, f.cells, o.moved());
    if (f.c_n) sink_.put_final(tile, new_c, o.H, f.c_n);
    hidden_.put(tile, new_m);
  }

  // Units that pad the last panel stay zero also where inputs are infinite, and infinity times a padded weight is NaN.
  void clear_absent_units(int64_t rows, T* records) const {
    for (int64_t row = 0; row < rows; row++)
      for (int64_t slot = 0; slot < o.v.slots; slot++)
        for (int64_t u = units_of(o.H, o.n_panels - 1); u < kPanel; u++)
          records[row * o.record.forward() + slot * kPanel + u] = T(0);
  }

  const Context<S>& o;
  const ForwardCall<S>& f;
  ForwardProducts<S>& products_;
  const HiddenSink<S>& sink_;
  const HiddenTaker<S>& hidden_;
  const GateKernel kernel_;
  States<T> c_;
  const Peepholes<S> peepholes_;
};

// h = W_hr m.
template <class S>
class ProjectionForward : public Stage, public HiddenTaker<S> {};

// By elements A.
template <class S, class A>
class ProjectionForwardBy final : public ProjectionForward<S> {
 public:
  using T = compute_t<S>;

  // `kept`: later calls, of other plans, find the weights as they are packed.
  ProjectionForwardBy(const Context<S>& context, const HiddenSink<S>& sink, bool kept)
      : o(context), m_(States<V>::by_rows(o.seq.B, panels_of(terms_))), sink_(sink), together_(kept ? kMaxBlock / kPanel : 1),
        packed_hr_(o.r_panels * kPanel * k_) {}

  void set_up(const Thread& thread) override {
    if (!thread.in_plan() || thread.row_group() > 0) return;
    for_blocks(thread, [&](int64_t p, int64_t count) {
      const Packed layout{k_, count * kPanel, o.micro.width};
      A* const to = packed_hr_ + p * kPanel * k_;
      if constexpr (kPaired<A>)
        for (int64_t i = 0; i < count; i++)
          pack_pairs(o.w.hr + (p + i) * kPanel * o.H, units_of(o.R, p + i), o.H, terms_,
                     {to + layout.at(0, i * kPanel), layout.row(i * kPanel)});
      else pack_columns<true>(o.w.hr, o.H, o.R, p * kPanel, layout, to);
    });
  }

  void init_state(Range rows) override {
    for (int64_t p = o.n_panels; p < panels_of(terms_); p++) fill_rows(rows.size(), kPanel, V(0), m_.at(p, rows.begin));
  }

  void put(const Tile& tile, Block<const T> m) const override {
    if constexpr (kPaired<A>) o.store(tile.rows, kPanel, m, m_.at(tile.p, tile.b));
    else o.micro.copy(tile.rows, kPanel, m, m_.at(tile.p, tile.b));
  }

  void run(const Thread& thread, int64_t s, int64_t row) override {
    const int64_t t = o.seq.step(s);
    T* const h = o.tile_of(thread);
    for_blocks(thread, [&](int64_t p, int64_t count) {
      thread.for_tiles(o.seq.size[t], [&](int64_t b, int64_t rows) {
        const Block<V> m = m_.at(0, b);
        o.gemm(Gemm<T, A>{.m = rows, .n = count * kPanel, .k = k_, .a = factors<A>(m.p), .a_m = m.row / kTerms<A>,
                          .b = packed_hr_ + p * kPanel * k_, .c = h, .c_m = kMaxBlock});
        for (int64_t i = 0; i < count; i++) sink_.put({s, t, b, rows, row + b, p + i}, {h + i * kPanel, kMaxBlock});
      });
    });
    thread.barrier_group();
  }

 private:
  using V = kept_t<S, A>;

  // The unit group's blocks of columns, as they are packed.
  template <class F>
  void for_blocks(const Thread& thread, const F& f) const {
    const Range mine = thread.of_unit_group((o.r_panels + together_ - 1) / together_);
    for_column_blocks(mine.begin * together_, std::min(mine.end * together_, o.r_panels), f);
  }

  const Context<S>& o;
  const int64_t terms_ = summed_terms<A>(o, o.H), k_ = terms_ / kTerms<A>;
  const States<V> m_;
  const HiddenSink<S>& sink_;
  const int64_t together_;  // panels that unit groups don't part
  Buffer<A> packed_hr_;
};

}  // namespace fastlstm
