// Products of the forward: pre-activations of a tile from the inputs and h. One class per way to take them.
#pragma once
#include <memory>

#include "products/factors.h"

namespace fastlstm {

// Terms of a sum at a time, where its result is fed back: PyTorch's products of a single step's rows round as seldom.
constexpr int64_t kStepwiseBlock = 128;

template <class S>
class ForwardProducts {
 public:
  using T = compute_t<S>;

  explicit ForwardProducts(const Context<S>& context) : o(context), bias_(o.n_panels * o.gate_width) {}
  virtual ~ForwardProducts() = default;

  // What is made of panel p of the weights before the first step. (No thread allocates: none may throw while others wait for it.)
  virtual void pack(const Thread&, int64_t p) {
    T* const bias = bias_of(p);
    std::fill(bias, bias + o.gate_width, T(0));
    add_bias(o.w.b_ih, o.v.ih, o.H, p, bias);
    add_bias(o.w.b_hh, o.v.hh, o.H, p, bias);
  }
  // This thread's share of what else there is to do before the states are set.
  virtual void set_up(const Thread&) {}
  // Before and after the steps of a chunk.
  virtual void begin_chunk(const Thread&, const Chunk&) {}
  virtual void end_chunk(const Thread&) {}
  // Before a step whose inputs were not there when its chunk began.
  virtual void begin_step(const Thread&, [[maybe_unused]] int64_t s) {}
  // Before the tiles of a panel in a step, by the thread that runs them.
  virtual void begin_panel(const Thread&, [[maybe_unused]] int64_t s, [[maybe_unused]] int64_t p) {}
  // Where products are taken for more rows than a tile has: the next of this thread's rows of a step, after those given (which
  // end at 0 at first); false where none are left. `row` is the step's first one within the chunk. The products of a
  // panel are taken for all of them, then its tiles are asked for.
  virtual bool takes_spans() const { return false; }
  virtual bool next_span(const Thread&, [[maybe_unused]] int64_t s, [[maybe_unused]] int64_t row, Range&) { return false; }
  virtual void multiply_span(const Thread&, [[maybe_unused]] int64_t s, [[maybe_unused]] int64_t p) {}
  // The pre-activations of a tile into the slots of its records.
  virtual void into_tile(const Thread&, const Tile&, T* records) const = 0;
  // The states of some sequences that steps begin with: zero where one is cut off before the first.
  virtual void init_h(Range rows, const State<S>& h0) = 0;
  // New values of h: what the tile's step gives to the next.
  virtual void set_h(const Tile&, Block<const T> from) = 0;
  // Of a stream, before and after some steps: how they are run, and that the next ones go on from the last.
  virtual void plan(const Plan&) {}
  virtual void go_on(int64_t) {}

 protected:
  T* bias_of(int64_t p) const { return bias_ + p * o.gate_width; }
  // Calls f(t, rows, row) for this thread's rows of each step of a chunk, the first of which is the chunk's `row`.
  template <class F>
  void for_steps(const Thread& thread, const Chunk& chunk, const F& f) const {
    int64_t row = 0;
    for (int64_t s = chunk.begin; s < chunk.end; s++) {
      const int64_t t = o.seq.step(s);
      const Range rows = thread.mine(o.seq.size[t]);
      f(t, rows, row + rows.begin);
      row += o.seq.size[t];
    }
  }

  const Context<S>& o;

 private:
  Buffer<T> bias_;  // both biases, of the slots that they feed
};

// With h kept in V, read from one copy and written to the other in turn.
template <class S, class V>
class ForwardProductsOf : public ForwardProducts<S> {
 public:
  using typename ForwardProducts<S>::T;

  // `units`: of h in a row, with the zeros behind them.
  ForwardProductsOf(const Context<S>& context, int64_t units)
      : ForwardProducts<S>(context),
        h_{States<V>::by_rows(o.seq.B, panels_of(units)), States<V>::by_rows(o.seq.B, panels_of(units))} {}

  void init_h(Range rows, const State<S>& h0) override {
    for (int64_t b = rows.begin; b < rows.end; b++)
      for (const States<V>& h : h_) h.put(b, o.R, o.cut_at_start(b) ? nullptr : h0.p + b * o.R);
  }

  void set_h(const Tile& tile, Block<const T> from) override {
    const Block<V> to = h(tile.s + 1).at(tile.p, tile.b);
    if constexpr (std::is_same_v<V, T>) o.micro.copy(tile.rows, kPanel, from, to);
    else o.store(tile.rows, kPanel, from, to);
    if (tile.s + 1 < o.seq.T) o.apply_reset(o.seq.step(tile.s + 1), tile.b, tile.rows, kPanel, to);
  }

  void go_on(int64_t steps) override {
    if (steps % 2) std::swap(h_[0], h_[1]);
  }

 protected:
  using ForwardProducts<S>::o;
  // What the s-th step begins with.
  const States<V>& h(int64_t s) const { return h_[s % 2]; }

 private:
  States<V> h_[2];
};

}  // namespace fastlstm
