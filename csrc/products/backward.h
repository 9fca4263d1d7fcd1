// Products of the backward: gradients of states, inputs and weights from the gradients dG of pre-activations. One class per way
// to take them. dG is kept for a chunk of steps, so that what is summed over rows is taken while dG is still in the cache.
#pragma once
#include <memory>

#include "products/factors.h"

namespace fastlstm {

// A matrix in strips of `width` columns, the rows of each side by side: so they are near to one another for sums over rows.
template <class V>
struct Strips {
  V* p;
  int64_t rows, width;

  Block<V> at(int64_t row, int64_t column) const { return {p + column / width * rows * width + row * width + column % width, width}; }
  // Calls f(i, n, block) for the parts of n columns from `column` on that lie in one strip, the i-th of them and following.
  template <class F>
  void for_parts(int64_t row, int64_t column, int64_t n, const F& f) const {
    for (int64_t i = 0; i < n; i += width) f(i, std::min(width, n - i), at(row, column + i));
  }
};

template <class S>
class BackwardProducts {
 public:
  using T = compute_t<S>;

  BackwardProducts(const Context<S>& context, const BackwardCall<S>& call)
      : o(context), f(call), hidden_(makes_hidden() ? o.v.kernel(Pass::hidden, sizeof(T) == 8) : nullptr),
        db_(f.need_dw ? o.n_panels * o.gate_width : 0) {}
  virtual ~BackwardProducts() = default;

  // What is made of panel p of the weights before the first step. (No thread allocates: none may throw while others wait for it.)
  virtual void pack(const Thread&, int64_t p) = 0;
  // This thread's share of what else there is to do before the first step.
  virtual void set_up(const Thread&) {}
  // Keeps the dG of a tile, from its records.
  virtual void keep(const Tile&, const T* records) = 0;
  // dG of a slot of panel p, for all rows of the chunk, where it is kept in T.
  virtual Block<const T> dgates(int64_t p, int64_t slot) const = 0;
  // dh = dG @ w_hh for this thread's units of a step, whose first row is `row` of the chunk; it crosses no cut.
  virtual void state_gradient(const Thread&, int64_t t, int64_t row, const States<T>& dh) const = 0;
  // dx = dG @ w_ih for this thread's units of a step's stepwise columns. (Only where a call has such.)
  virtual void step_input_gradient(const Thread&, [[maybe_unused]] int64_t t, [[maybe_unused]] int64_t row, const States<T>&) const {}
  // This thread's rows [x, h_prev] of a step, side by side: the left factor of the weight gradients.
  virtual void concat_xh(const Thread&, int64_t t, int64_t row) = 0;
  // After the steps of a chunk.
  virtual void weight_gradients(const Thread&, const Chunk&) = 0;
  virtual void input_gradients(const Thread&, const Chunk&) const = 0;
  // Memory that is as large as gradients of weights, and not needed any more.
  virtual void release() = 0;
  // Panel p of the gradients of weights and biases.
  virtual void write(int64_t p, const WeightGradients<S>& to) const = 0;

  // h of `rows` sequences from b on after step t, from what is saved: put(row, n, p, h) gets panel p of n of them, from `row` on.
  template <class F>
  void hidden(const Thread& thread, int64_t t, int64_t b, int64_t rows, const F& put) const {
    const int64_t most = o.team->plan.tile_rows;
    T* const tile = o.tile_of(thread);
    for (int64_t row = 0; row < rows; row += most)
      for (int64_t p = 0; p < o.n_panels; p++) {
        const int64_t n = std::min(most, rows - row);
        const T* const record = f.saved + o.saved_at(t, p, b + row);
        if (!o.v.cell) {
          put(row, n, p, Block<const T>{record + o.record.c(), o.record.saved()});
          continue;
        }
        o.micro.copy(n, kPanel, {record + o.record.c(), o.record.saved()}, {tile, kPanel});
        o.micro.copy(n, kPanel, {record + o.record.o(), o.record.saved()}, {tile + n * kPanel, kPanel});
        hidden_(tile, n);
        put(row, n, p, Block<const T>{tile, kPanel});
      }
  }

 protected:
  // Columns of h begin with `h_column`, where a strip begins or all are in one.
  template <class J>
  void concat_xh(const Thread& thread, int64_t t, int64_t row, const Strips<J>& xh, int64_t h_column) const {
    const Range rows = thread.mine(o.seq.size[t], o.seq.together);
    if (rows.size() == 0) return;
    row += rows.begin;
    bool put = false;
    if constexpr (std::is_same_v<S, J>)
      if (f.inputs) f.inputs(t, rows.begin, rows.size(), xh.at(row, 0)), put = true;
    const S* const x = o.x.at(o.seq, t, rows.begin);
    const auto put_x = [&](int64_t i, int64_t n, Block<J> to) { convert<S, J>(rows.size(), n, {x + i, o.x.b_stride}, to); };
    if (!put) xh.for_parts(row, 0, o.I, put_x);
    const auto put_h = [&](int64_t first, int64_t count, const S* h) {
      xh.for_parts(row + first, h_column, o.R, [&](int64_t i, int64_t n, Block<J> to) { convert<S, J>(count, n, {h + i, o.R}, to); });
    };
    const int64_t known = std::clamp<int64_t>(o.seq.size_before(t) - rows.begin, 0, rows.size());
    if (known > 0 && f.h)
      put_h(0, known, f.h + (o.seq.first[o.seq.before(t)] + rows.begin) * o.R);
    else if (known > 0)
      hidden(thread, o.seq.before(t), rows.begin, known, [&](int64_t first, int64_t n, int64_t p, Block<const T> h) {
        round_to(n, units_of(o.R, p), h, xh.at(row + first, h_column + p * kPanel));
      });
    put_h(known, rows.size() - known, f.h0.p + (rows.begin + known) * o.R);
    xh.for_parts(row, h_column, o.R, [&](int64_t, int64_t n, Block<J> to) { o.apply_reset(t, rows.begin, rows.size(), n, to); });
  }

  // Some units of a panel, rounded as the outputs were.
  template <class J>
  void round_to(int64_t rows, int64_t n, Block<const T> from, Block<J> to) const {
    if constexpr (std::is_same_v<J, S>) return o.store(rows, n, from, to);
    for (int64_t m = 0; m < rows; m++)
      for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] = static_cast<J>(static_cast<S>(from.p[m * from.row + i]));
  }

  // Of the chunk's rows, those whose h is not zero all over: the last ones are those of the step that was run first.
  int64_t rows_of_h(const Chunk& chunk) const {
    return chunk.rows - (o.fresh() && chunk.end == o.seq.T ? o.seq.size[o.seq.step(0)] : 0);
  }

  // Calls put(i, m, to) for runs of m rows, of the chunk's rows [row, row + rows), that belong to one step: the i-th and
  // following are rows `to` and following of tensors such as y.
  template <class F>
  void scatter(const Chunk& chunk, int64_t row, int64_t rows, const F& put) const {
    int64_t first = 0;
    for (int64_t s = chunk.begin; s < chunk.end && first < row + rows; s++) {
      const int64_t t = o.seq.step(o.seq.T - 1 - s), n = o.seq.size[t];
      const int64_t begin = std::max(first, row), end = std::min(first + n, row + rows);
      if (begin < end) put(begin - row, end - begin, o.seq.first[t] + begin - first);
      first += n;
    }
  }

  template <class V>
  void write_biases(int64_t p, const WeightGradients<V>& to) const {
    write_bias(o.v.ih, p, to.b_ih);
    if (to.b_hh) write_bias(o.v.hh, p, to.b_hh);
  }

  double* db(int64_t p) const { return db_ + p * o.gate_width; }

  const Context<S>& o;
  const BackwardCall<S>& f;

 private:
  template <class V>
  void write_bias(const GateMap& map, int64_t p, V* to) const {
    for (int64_t i = 0; i < map.gates; i++)
      convert<double, V>(1, units_of(o.H, p), {db(p) + map.offset() + i * kPanel, 0}, {to + map.gate[i] * o.H + p * kPanel, 0});
  }

  bool makes_hidden() const { return o.v.cell && !f.h && (f.gives_hidden || (f.need_dw && o.seq.T > 1)); }

  const GateKernel hidden_;
  // Sums over all rows, of either sign and any size, to little in the end: by chunks, and over chunks in float64
  Buffer<double> db_;
};

}  // namespace fastlstm
