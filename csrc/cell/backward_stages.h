// The stages of a step of the backward: the projection's output gradient, gates, and the gradient of the state before.
#pragma once
#include "cell/peepholes.h"
#include "products/backward.h"
#include "products/row_pairs.h"

namespace fastlstm {

// With what is summed over all rows of a chunk, after its steps: this thread's share.
template <class S>
class BackwardStage : public Stage {
 public:
  virtual void weight_gradients(const Thread&, [[maybe_unused]] int64_t rows) {}
  virtual void write([[maybe_unused]] int64_t p, [[maybe_unused]] const WeightGradients<S>& to) const {}
};

// h = W_hr m: dm from dh and dy, and the gradient of W_hr.
template <class S>
class ProjectionBackward : public BackwardStage<S> {
 public:
  // dm of a tile; `m` as the forward saved it is kept for the gradient of W_hr.
  virtual void into_dm(const Tile& tile, Block<const compute_t<S>> m, Block<compute_t<S>> to) const = 0;
};

// By elements A.
template <class S, class A>
class ProjectionBackwardBy final : public ProjectionBackward<S> {
 public:
  using T = compute_t<S>;

  ProjectionBackwardBy(const Context<S>& context, const BackwardCall<S>& call, const States<T>& dh)
      : o(context), f(call), dh_(dh), packed_hr_(o.n_panels * k_ * kPanel), dy_(o.chunk_rows * dy_row_),
        m_(o.n_panels * o.chunk_rows * kPanel), dw_hr_(o.n_panels * o.R * kPanel) {
    if constexpr (kPaired<A>) {
      dy_pairs_ = RowPairs<V>(o, o.chunk_rows, o.R);
      m_pairs_ = Buffer<A>(o.n_panels * row_pairs(*o.bf16, o.chunk_rows) * kPanel);
    }
  }

  void set_up(const Thread& thread) override {
    const Range panels = thread.mine(o.n_panels), rows = thread.mine(o.chunk_rows);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      if constexpr (kPaired<A>) pack_panel(o.w.hr, o.R, terms_, o.H, p, packed_hr_ + p * k_ * kPanel);
      else pack_panel(o.w.hr, o.R, o.H, p, packed_hr_ + p * k_ * kPanel);
      std::fill_n(dw_hr_ + p * o.R * kPanel, o.R * kPanel, T(0));
    }
    const int64_t written = o.r_panels * kPanel;
    if (terms_ > written) fill_rows(rows.size(), terms_ - written, V(0), {dy_ + rows.begin * dy_row_ + written, dy_row_});
  }

  // The gradient of the output, all of it, before any panel needs it.
  void run(const Thread& thread, int64_t s, int64_t row) override {
    const int64_t t = o.seq.step(s);
    const Range mine = thread.of_unit_group(o.r_panels);
    for (int64_t p = mine.begin; p < mine.end; p++)
      thread.for_tiles(o.seq.size[t], [&](int64_t b, int64_t rows) {
        const Block<V> to{dy_ + (row + b) * dy_row_ + p * kPanel, dy_row_};
        Block<T> sum{o.tile_of(thread), kPanel};
        if constexpr (!kPaired<A>) sum = to;
        o.micro.copy(rows, kPanel, constant(dh_.at(p, b)), sum);
        o.add_given(f.dy, o.R, {s, t, b, rows, row + b, p}, sum);
        if constexpr (kPaired<A>) {
          o.store(rows, kPanel, constant(sum), to);
          const int64_t units = units_of(o.R, p);  // an infinite dG times the zeros of those that don't exist is none
          fill_rows(rows, kPanel - units, V(0), {to.p + units, to.row});
        }
      });
    thread.barrier_group();
  }

  void into_dm(const Tile& tile, Block<const T> m, Block<T> to) const override {
    o.gemm(Gemm<T, A>{.m = tile.rows, .n = kPanel, .k = k_, .a = factors<A>(dy_ + tile.row * dy_row_), .a_m = dy_row_ / kTerms<A>,
                      .b = packed_hr_ + tile.p * k_ * kPanel, .c = to.p, .c_m = to.row});
    const Block<V> kept{m_of(tile.p, tile.row), kPanel};
    if constexpr (kPaired<A>) o.store(tile.rows, kPanel, m, kept);
    else o.micro.copy(tile.rows, kPanel, m, kept);
  }

  void weight_gradients(const Thread& thread, int64_t rows) override {
    if constexpr (kPaired<A>) {
      dy_pairs_.pair(thread, rows, {dy_, dy_row_});
      thread.barrier_all();
    }
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      Gemm<T, A> g{.m = o.R, .n = kPanel, .k = rows, .a = nullptr, .b = nullptr, .c = dw_hr_ + p * o.R * kPanel, .c_m = kPanel,
                   .accumulate = true};
      if constexpr (kPaired<A>) {
        g.k = row_pairs(*o.bf16, rows);
        A* const pairs = m_pairs_ + p * row_pairs(*o.bf16, o.chunk_rows) * kPanel;
        for (int64_t i = 0; i < g.k; i++) pair_rows(*o.bf16, Block<const V>{m_of(p, 0), kPanel}, rows, kPanel, i, pairs + i * kPanel);
        g.a = dy_pairs_.at(0), g.a_m = dy_pairs_.m(), g.a_k = dy_pairs_.k(), g.b = pairs;
      } else {
        g.a = dy_, g.a_m = 1, g.a_k = dy_row_, g.b = m_of(p, 0);
      }
      o.gemm(g);
    }
  }
  void write(int64_t p, const WeightGradients<S>& to) const override {
    convert<T, S>(o.R, units_of(o.H, p), {dw_hr_ + p * o.R * kPanel, kPanel}, {to.hr + p * kPanel, o.H});
  }

 private:
  using V = kept_t<S, A>;

  V* m_of(int64_t p, int64_t row) const { return m_ + (p * o.chunk_rows + row) * kPanel; }

  const Context<S>& o;
  const BackwardCall<S>& f;
  const States<T>& dh_;
  const int64_t terms_ = summed_terms<A>(o, o.R), k_ = terms_ / kTerms<A>, dy_row_ = std::max(terms_, o.r_panels * kPanel);
  Buffer<A> packed_hr_;
  Buffer<V> dy_, m_;  // of the chunk's rows
  Buffer<T> dw_hr_;
  RowPairs<V> dy_pairs_;
  Buffer<Bf16Pair> m_pairs_;
};

// Per panel of units and tile of rows: what the forward saved and the gradients that came, then the gate kernel, whose dG is kept.
template <class S>
class GateBackward final : public BackwardStage<S> {
 public:
  using T = compute_t<S>;

  GateBackward(const Context<S>& context, const BackwardCall<S>& call, BackwardProducts<S>& products, const States<T>& dh,
               const ProjectionBackward<S>* projection)
      : o(context), f(call), products_(products), dh_(dh), projection_(projection),
        kernel_(o.v.kernel(Pass::backward, sizeof(T) == 8)), dc_(States<T>::by_panels(o.seq.B, o.n_panels)),
        c0_(States<T>::by_panels(o.seq.B, o.n_panels)), peepholes_(o),
        dpeepholes_(o.n_panels * o.size.peephole_rows * o.v.peephole_width()) {
    if (!o.v.peepholes.empty() && f.need_dw) seen_cells_ = Buffer<T>(o.n_panels * o.chunk_rows * 2 * kPanel);
  }

  void set_up(const Thread& thread) override {
    const Range panels = thread.mine(o.n_panels), rows = thread.mine(o.seq.B);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      peepholes_.pack(p);
      std::fill_n(dpeepholes_of(p), o.size.peephole_rows * o.v.peephole_width(), 0.0);
    }
    for (int64_t p = 0; p < o.n_panels; p++) {
      o.take_rows(f.dc_n, rows.begin, rows.size(), o.H, p, dc_.at(p, rows.begin));
      o.take_rows(f.c0, rows.begin, rows.size(), o.H, p, c0_.at(p, rows.begin));
    }
  }

  void run(const Thread& thread, int64_t s, int64_t row) override {
    const int64_t t = o.seq.step(s);
    const Range panels = thread.of_unit_group(o.n_panels);
    T* const records = o.tile_of(thread);
    for (int64_t p = panels.begin; p < panels.end; p++)
      thread.for_tiles(o.seq.size[t], [&](int64_t b, int64_t rows) {
        if (p + 1 < panels.end) prefetch_saved(t, p + 1, b, rows);
        const Tile tile{s, t, b, rows, row + b, p};
        fill(tile, records);
        kernel_(records, rows);
        products_.keep(tile, records);
        const Block<T> dc = dc_.at(p, b);
        o.micro.copy(rows, kPanel, {records + o.record.dc(), o.record.backward()}, dc);
        o.apply_reset(t, b, rows, kPanel, dc);
      });
    thread.barrier_group();
  }

  const States<T>& dc() const { return dc_; }

  void weight_gradients(const Thread& thread, int64_t rows) override {
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) peephole_gradients(p, rows);
  }
  void write(int64_t p, const WeightGradients<S>& to) const override {
    if (o.v.peepholes.empty()) return;
    to.peephole ? write_peepholes(p, to.peephole) : write_peepholes(p, to.sums->peephole);
  }

 private:
  template <class V>
  void write_peepholes(int64_t p, V* to) const {
    const int64_t pixels = o.size.peephole_rows;
    for (int64_t pixel = 0; pixel < pixels; pixel++)
      convert<double, V>(o.v.peepholes.size(), units_of(o.H, p), {dpeepholes_of(p) + pixel * o.v.peephole_width(), kPanel},
                         {to + pixel * o.H + p * kPanel, pixels * o.H});
  }
  double* dpeepholes_of(int64_t p) const { return dpeepholes_ + p * o.size.peephole_rows * o.v.peephole_width(); }
  const T* saved_of(int64_t t, int64_t p, int64_t b) const { return f.saved + o.saved_at(t, p, b); }

  void peephole_gradients(int64_t p, int64_t rows) {
    for (size_t k = 0; k < o.v.peepholes.size(); k++) {
      const auto [slot, sees_new] = o.v.peepholes[k];
      const Block<const T> seen{seen_cells_ + p * o.chunk_rows * 2 * kPanel + (sees_new ? 0 : kPanel), 2 * kPanel};
      const Block<const T> dgates = products_.dgates(p, slot);
      double* const sum = dpeepholes_of(p) + k * kPanel;
      if (const int64_t pixels = o.size.peephole_rows; pixels > 1) {
        for (int64_t row = 0; row < rows; row++)
          for (int64_t i = 0; i < kPanel; i++)
            sum[row % pixels * o.v.peephole_width() + i] += dgates.p[row * dgates.row + i] * seen.p[row * seen.row + i];
        continue;
      }
      for (int64_t row = 0; row < rows; row += kChunkRows) {
        T of_run[kPanel] = {};
        o.micro.dots(std::min(kChunkRows, rows - row), {dgates.p + row * dgates.row, dgates.row},
                     {seen.p + row * seen.row, seen.row}, of_run);
        for (int64_t i = 0; i < kPanel; i++) sum[i] += of_run[i];
      }
    }
  }

  // All of a step, and of the step before what h and c come from.
  void prefetch_saved(int64_t t, int64_t p, int64_t b, int64_t rows) const {
    const int64_t width = o.record.saved(), known = std::min(b + rows, o.seq.size_before(t));
    prefetch<false>(saved_of(t, p, b), rows * width);
    if (known <= b) return;
    const T* const before = saved_of(o.seq.before(t), p, b);
    for (int64_t row = 0; row < known - b; row++) prefetch<false>(before + row * width + o.record.o(), 2 * kPanel);
  }

  void fill(const Tile& tile, T* records) const {
    const auto [s, t, b, rows, row, p, next] = tile;
    const int64_t record = o.record.backward(), saved_width = o.record.saved();
    const T* const saved = saved_of(t, p, b);
    o.micro.copy(rows, o.gate_width + kPanel, {saved, saved_width}, {records, record});
    const int64_t known = std::clamp<int64_t>(o.seq.size_before(t) - b, 0, rows);  // rows whose previous cell state is not the initial one
    const Block<T> c_prev{records + o.record.c_prev(), record};
    if (known > 0) o.micro.copy(known, kPanel, {saved_of(o.seq.before(t), p, b) + o.record.c(), saved_width}, c_prev);
    o.micro.copy(rows - known, kPanel, constant(c0_.at(p, b + known)), {c_prev.p + known * record, record});
    o.apply_reset(t, b, rows, kPanel, c_prev);
    const Block<T> dm{records + o.record.dh(), record}, dc{records + o.record.dc(), record};
    if (projection_) {
      projection_->into_dm(tile, {saved + o.record.m(), saved_width}, dm);
    } else {
      o.micro.copy(rows, kPanel, constant(dh_.at(p, b)), dm);
      o.add_given(f.dy, o.R, tile, dm);
      o.add_given(f.given, o.R, tile, dm);
    }
    o.micro.copy(rows, kPanel, constant(dc_.at(p, b)), dc);
    o.add_given(f.dcells, o.H, tile, dc);
    peepholes_.copy(p, b, rows, {records + o.record.backward_peepholes(), record});
    if (seen_cells_)  // c and c_prev, side by side as in the record
      o.micro.copy(rows, 2 * kPanel, {records + o.record.c(), record}, {seen_cells_ + (p * o.chunk_rows + row) * 2 * kPanel, 2 * kPanel});
  }

  const Context<S>& o;
  const BackwardCall<S>& f;
  BackwardProducts<S>& products_;
  const States<T>& dh_;
  const ProjectionBackward<S>* const projection_;
  const GateKernel kernel_;
  States<T> dc_, c0_;
  const Peepholes<S> peepholes_;
  Buffer<T> seen_cells_;
  Buffer<double> dpeepholes_;  // summed as the biases' gradients are
};

// dh of the step before, or of the initial state, if it is wanted. (Images' products know themselves, and do more.) No barrier follows: a
// thread computes those units that its own gates need next.
template <class S>
class StateBackward final : public BackwardStage<S> {
 public:
  StateBackward(const Context<S>& context, const BackwardCall<S>& call, const BackwardProducts<S>& products, const States<compute_t<S>>& dh)
      : o(context), f(call), products_(products), dh_(dh) {}

  void run(const Thread& thread, int64_t s, int64_t row) override {
    if (s > 0 || f.dh0 || o.images) products_.state_gradient(thread, o.seq.step(s), row, dh_);
  }

 private:
  const Context<S>& o;
  const BackwardCall<S>& f;
  const BackwardProducts<S>& products_;
  const States<compute_t<S>>& dh_;
};

}  // namespace fastlstm
