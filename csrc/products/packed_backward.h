// The backward's products with weights packed in panels, by elements A; dG is kept in V, in rows as the inputs are.
#pragma once
#include "products/backward.h"
#include "products/row_pairs.h"

namespace fastlstm {

template <class S, class A>
class PackedBackward final : public BackwardProducts<S> {
  using Base = BackwardProducts<S>;
  using typename Base::T;
  using V = kept_t<S, A>;
  using Base::o, Base::f, Base::db;
  static constexpr int64_t kWeightRows = 48;  // rows of a weight gradient per job, and columns of [x, h_prev] that lie side by side
  static constexpr int64_t kNearJobs = 20;    // jobs whose left factors stay in the cache while they are done for all panels
  static constexpr int64_t kBiasBlock = 16;   // terms of a bias' gradient at a time
  static constexpr int64_t kRows = 144;       // of a gradient of inputs or of a state at a time, at most
  static constexpr int64_t kBlock = 256 / kTerms<A>;
  // From so many sequences on, gradients of inputs that are a single block of terms are summed up where they are returned.
  static constexpr int64_t kDirectRows = 12;

 public:
  // Of a tile for rows of an input gradient, or for a panel's dG of a chunk.
  static int64_t tile_size(const Context<S>& o) { return std::max(kRows * kMaxBlock, o.chunk_rows * o.gate_width); }

  PackedBackward(const Context<S>& context, const BackwardCall<S>& call)
      : Base(context, call), in_strips_(!kPaired<A> && !f.inputs), xh_row_(in_strips_ ? kWeightRows : padded_row<T>(o.I + o.R)),
        h_column_(in_strips_ ? round_up(o.I) : o.I), dw_panel_(o.I * ih.width() + o.R * hh.width() + o.gate_width),
        packed_hh_(o.n_panels * hh.width() / kTerms<A> * o.r_panels * kPanel),
        dx_panels_(panels_of(f.dx_columns())),
        packed_ih_(f.dx ? o.n_panels * ih.width() / kTerms<A> * dx_panels_ * kPanel : 0),
        packed_step_(o.n_panels * ih.width() / kTerms<A> * panels_of(f.stepwise_columns) * kPanel),
        of_panel_{o.chunk_rows, o.gate_width, o.micro.width == kPanel ? kPanel : o.gate_width},
        dg_hh_(o.chunk_rows * row_of(hh)), dg_ih_(o.v.joint() ? 0 : o.chunk_rows * row_of(ih)) {
    if (!f.need_dw) return;
    xh_ = Buffer<V>(o.chunk_rows * (in_strips_ ? h_column_ + round_up(o.R) : xh_row_));
    dw_ = Buffer<T>(o.n_panels * dw_panel_);
    if constexpr (kPaired<A>) {
      if (!o.v.peepholes.empty()) dgates_ = Buffer<T>(o.n_panels * o.chunk_rows * o.gate_width);
      dgate_pairs_ = Buffer<A>(terms(o.chunk_rows) * o.n_panels * o.gate_width);
      xh_pairs_ = RowPairs<V>(o, o.chunk_rows, o.I + o.R);
    }
  }

  void pack(const Thread&, int64_t p) override {
    if (f.dx) pack_blocks(o.w.ih, ih, o.I, p, {0, dx_panels_}, packed_ih_);
    const int64_t groups = o.team->plan.unit_groups, step_panels = panels_of(f.stepwise_columns);
    for (int64_t group = 0; group < groups; group++) {
      pack_blocks(o.w.hh, hh, o.R, p, share(o.r_panels, group, groups), packed_hh_);
      pack_blocks(o.w.ih + f.stepwise_begin, ih, o.I, p, share(step_panels, group, groups), packed_step_, f.stepwise_columns);
    }
    if (!f.need_dw) return;
    if (o.seq.T == 0) std::fill_n(dw_ + p * dw_panel_, dw_panel_, T(0));
    std::fill_n(db(p), o.gate_width, 0.0);
  }

  void keep(const Tile& tile, const T* records) override {
    for_maps([&](const GateMap& map) {
      const Block<const T> from{records + map.offset(), o.record.backward()};
      const Block<V> to = dgates_of(map, tile.p, tile.row);
      if constexpr (kPaired<A>) o.bf16->narrow(tile.rows, map.width(), from, {bits(to.p), to.row});
      else if (narrow_.is(tile.p)) narrow_.close_up(tile.rows, map, from, to);
      else o.micro.copy(tile.rows, map.width(), from, to);
    });
    if (dgates_) o.micro.copy(tile.rows, o.gate_width, {records, o.record.backward()}, {exact(tile.p, tile.row), o.gate_width});
  }

  Block<const T> dgates(int64_t p, int64_t slot) const override {
    const GateMap& map = map_of(slot);
    if constexpr (kPaired<A>) return {exact(p, 0) + slot * kPanel, o.gate_width};
    else return constant(dgates_of(map, p, 0, (slot - map.first) * narrow_.units(p)));
  }

  void state_gradient(const Thread& thread, int64_t t, int64_t row, const States<T>& dh) const override {
    const Range mine = thread.of_unit_group(o.r_panels);
    for_column_blocks(mine.begin, mine.end, t % 2 == 1, [&](int64_t panel, int64_t count) {
      const int64_t next = t % 2 == 1 ? panel - 4 : panel + 4;
      const A* ask = next >= mine.begin && next + count <= mine.end ? block_of(hh, packed_hh_, next) : nullptr;
      thread.for_tiles(o.seq.size[t], kRows, [&](int64_t b, int64_t rows) {
        const Block<T> to = dh.at(panel, b);
        multiply(hh, row + b, rows, packed_hh_, panel, count, to, std::exchange(ask, nullptr));
        o.apply_reset(t, b, rows, count * kPanel, to);
      });
    });
  }

  void step_input_gradient(const Thread& thread, int64_t t, int64_t row, const States<T>& dx) const override {
    const Range mine = thread.of_unit_group(panels_of(f.stepwise_columns));
    for_column_blocks(mine.begin, mine.end, [&](int64_t panel, int64_t count) {
      thread.for_tiles(o.seq.size[t], [&](int64_t b, int64_t rows) {
        multiply(ih, row + b, rows, packed_step_, panel, count, dx.at(panel, b));
      });
    });
  }

  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    Base::template concat_xh<V>(thread, t, row, {xh_, o.chunk_rows, xh_row_}, h_column_);
  }

  // dw.T[p] += [x, h_prev, 1].T @ dG[p], the ones being the biases' input; cut into jobs of some rows of dw.T each.
  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    const int64_t rows = chunk.rows;
    if constexpr (kPaired<A>) {
      pair_all(thread, rows);
      thread.barrier_all();
    }
    const int64_t of_x = (o.I + kWeightRows - 1) / kWeightRows, of_h = (o.R + kWeightRows - 1) / kWeightRows, per_panel = of_x + of_h + 1;
    const Range jobs = thread.mine(o.n_panels * per_panel);
    for (int64_t first = 0; first < per_panel; first += kNearJobs)
      for (int64_t p = jobs.begin / per_panel; p * per_panel < jobs.end; p++) {
        const int64_t begin = std::max(first, jobs.begin - p * per_panel);
        const int64_t end = std::min({first + kNearJobs, per_panel, jobs.end - p * per_panel});
        if (begin >= end) continue;
        const A* const dg = right(thread, p, rows);
        for (int64_t k = begin; k < end; k++)
          if (k < of_x) add_product(ih, p, dg, chunk, rows, 0, o.I, k, dw_ih(p));
          else if (k < of_x + of_h) add_product(hh, p, dg, chunk, this->rows_of_h(chunk), h_column_, o.R, k - of_x, dw_hh(p));
          else add_bias_product(p, dg, rows);
      }
  }

  // dx = dG @ w_ih, over this worker's share of the chunk's rows.
  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    T* const dx = o.tile_of(thread);
    const Range mine = thread.mine(chunk.rows);
    const int64_t parts = (mine.size() + kRows - 1) / kRows;
    for_column_blocks(0, dx_panels_, [&](int64_t panel, int64_t count) {
      const int64_t n = std::min(count * kPanel, f.dx_columns() - panel * kPanel);
      for (int64_t part = 0; part < parts; part++) {
        const Range of_part = share(mine.size(), part, parts);
        const int64_t row = mine.begin + of_part.begin, rows = of_part.size();
        const A* ask = part == 0 && panel + 4 + count <= dx_panels_ ? block_of(ih, packed_ih_, panel + 4) : nullptr;
        if constexpr (std::is_same_v<S, T>)
          if (n == count * kPanel && o.seq.B >= kDirectRows && values(ih) <= kBlock) {
            this->scatter(chunk, row, rows, [&](int64_t i, int64_t m, int64_t to) {
              multiply(ih, row + i, m, packed_ih_, panel, count, {f.dx + to * f.dx_columns() + panel * kPanel, f.dx_columns()},
                       std::exchange(ask, nullptr));
            });
            continue;
          }
        multiply(ih, row, rows, packed_ih_, panel, count, {dx, kMaxBlock}, ask);
        this->scatter(chunk, row, rows, [&](int64_t i, int64_t m, int64_t to) {
          const Block<const T> from{dx + i * kMaxBlock, kMaxBlock};
          const Block<S> out{f.dx + to * f.dx_columns() + panel * kPanel, f.dx_columns()};
          if constexpr (kPaired<A>) o.bf16->narrow(m, n, from, {bits(out.p), out.row});
          else convert<T, S>(m, n, from, out);
        });
      }
    });
  }

  void release() override {
    packed_ih_ = {}, packed_hh_ = {}, packed_step_ = {}, dg_hh_ = {}, dg_ih_ = {}, xh_ = {};
    dgates_ = {}, dgate_pairs_ = {}, xh_pairs_ = {};
  }

  void write(int64_t p, const WeightGradients<S>& to) const override {
    write_transposed(ih, dw_ih(p), o.I, p, to.ih);
    write_transposed(hh, dw_hh(p), o.R, p, to.hh);
    this->write_biases(p, to);
  }

 private:
  // Values of a row of dG, which sums of gradients of inputs and states are over.
  int64_t values(const GateMap& map) const { return (o.n_panels - 1) * map.width() + map.gates * narrow_.units(o.n_panels - 1); }

  const GateMap& map_of(int64_t slot) const { return slot >= hh.first && slot < hh.first + hh.gates ? hh : ih; }

  // A block of columns is a matrix of its own: all panels' rows of it.
  A* block_of(const GateMap& map, A* packed, int64_t panel) const { return packed + values(map) * kPanel * panel / kTerms<A>; }

  // Of w, whose rows are `size` long; `columns` of them, where not all.
  void pack_blocks(const S* w, const GateMap& map, int64_t size, int64_t p, Range panels, A* packed, int64_t columns = -1) const {
    for_column_blocks(panels.begin, panels.end, [&](int64_t panel, int64_t count) {
      const Packed layout{values(map) / kTerms<A>, count * kPanel, o.micro.width};
      const auto pack = [&](auto... units) {
        pack_gate_columns(w, size, map, o.H, columns < 0 ? size : columns, p, panel * kPanel, layout, block_of(map, packed, panel), 0, 1,
                          units...);
      };
      if constexpr (kPaired<A>) pack();
      else pack(narrow_.units(p));
    });
  }

  // to = dG @ `count` panels of the packed weights, for rows [row, row + rows) of the chunk. `next`: as many that are taken next.
  void multiply(const GateMap& map, int64_t row, int64_t rows, A* packed, int64_t panel, int64_t count, Block<T> to,
                const A* next = nullptr) const {
    const Block<const V> dg = constant(dgates_of(map, 0, row));
    o.gemm(Gemm<T, A>{.m = rows, .n = count * kPanel, .k = values(map) / kTerms<A>, .a = factors<A>(dg.p),
                      .a_m = dg.row / kTerms<A>, .b = block_of(map, packed, panel), .next = next, .c = to.p, .c_m = to.row});
  }

  // The k-th kWeightRows rows of a panel's dw.T, of which there are `depth`, += columns of [x, h_prev] from `column` on, times dG.
  void add_product(const GateMap& map, int64_t p, const A* dg, const Chunk& chunk, int64_t rows, int64_t column, int64_t depth, int64_t k,
                   T* to) const {
    const int64_t first = k * kWeightRows, n = narrow_.columns(map, p);
    o.gemm(Gemm<T, A>{.m = std::min(kWeightRows, depth - first), .n = n, .k = terms(rows), .a = left(column + first),
                      .a_m = kPaired<A> ? xh_pairs_.m() : 1, .a_k = kPaired<A> ? xh_pairs_.k() : xh_row_,
                      .b = dg + of_panel_.at(0, right_column(map, p)), .b_k = b_k(), .b_rows = o.chunk_rows, .c = to + first * n,
                      .c_m = n, .accumulate = chunk.begin > 0, .block = kBlock});
  }
  // Where a map's dG begins in what `right` makes: slots that both maps feed are there once, but in a narrow panel.
  int64_t right_column(const GateMap& map, int64_t p) const {
    return !narrow_.is(p) ? map.offset() : o.v.joint() || &map == &ih ? 0 : narrow_.columns(ih, p);
  }

  void add_bias_product(int64_t p, const A* dg, int64_t rows) const {
    T* const of_chunk = dw_hh(p) + o.R * hh.width();
    const int64_t n = narrow_.is(p) ? right_column(hh, p) + narrow_.columns(hh, p) : o.gate_width;
    o.gemm(Gemm<T, A>{.m = 1, .n = n, .k = terms(rows), .a = &kOnes, .a_m = 0, .a_k = 0, .b = dg, .b_k = b_k(), .b_rows = o.chunk_rows,
                      .c = of_chunk, .c_m = n, .block = kBiasBlock / kTerms<A>});
    for (int64_t slot = 0; slot < o.v.slots; slot++) {
      const GateMap& map = map_of(slot);
      const T* const from = of_chunk + right_column(map, p) + (slot - map.first) * narrow_.units(p);
      for (int64_t u = 0; u < narrow_.units(p); u++) db(p)[slot * kPanel + u] += from[u];
    }
  }

  // Rows of [x, h_prev] and of dG in pairs.
  void pair_all(const Thread& thread, int64_t rows) {
    const int64_t count = terms(rows);
    xh_pairs_.pair(thread, rows, {xh_, xh_row_});
    const Range mine = thread.mine(o.n_panels * count);
    for (int64_t i = mine.begin; i < mine.end; i++)
      for_maps([&](const GateMap& map) {
        pair_rows(*o.bf16, constant(dgates_of(map, i / count, 0)), rows, map.width(), i % count,
                  pairs_of(i / count) + i % count * o.gate_width + map.offset());
      });
  }

  // Panel p of a gradient (gates * H, depth) from its transpose.
  void write_transposed(const GateMap& map, const T* from, int64_t depth, int64_t p, S* to) const {
    const int64_t units = units_of(o.H, p), of_slot = narrow_.units(p), width = narrow_.columns(map, p);
    for (int64_t i = 0; i < map.gates; i++) {
      S* const rows = to + (map.gate[i] * o.H + p * kPanel) * depth;
      if constexpr (std::is_same_v<S, T>) {
        o.micro.transpose(depth, units, {from + i * of_slot, width}, {rows, depth});
      } else {
        T block[kPanel * kMaxBlock];
        for (int64_t k = 0; k < depth; k += kMaxBlock) {
          const int64_t n = std::min(kMaxBlock, depth - k);
          o.micro.transpose(n, units, {from + k * width + i * of_slot, width}, {block, kMaxBlock});
          o.store(units, n, {block, kMaxBlock}, {rows + k, depth});
        }
      }
    }
  }

  int64_t terms(int64_t rows) const {
    if constexpr (kPaired<A>) return row_pairs(*o.bf16, rows);
    else return rows;
  }
  // The transpose of [x, h_prev] from a column on.
  const A* left(int64_t column) const {
    if constexpr (kPaired<A>) return xh_pairs_.at(column);
    else return Strips<V>{xh_, o.chunk_rows, xh_row_}.at(0, column).p;
  }
  static int64_t round_up(int64_t columns) { return (columns + kWeightRows - 1) / kWeightRows * kWeightRows; }
  // dG of panel p of all slots, for sums over rows: side by side, by this thread alone.
  const A* right(const Thread& thread, int64_t p, int64_t rows) const {
    if constexpr (kPaired<A>) {
      return pairs_of(p);
    } else {
      T* const to = o.tile_of(thread);
      for_maps([&](const GateMap& map) {
        const int64_t begin = right_column(map, p), width = narrow_.columns(map, p), n = std::min(of_panel_.width, width);
        for (int64_t column = 0; column < width; column += n)
          o.micro.copy(rows, n, constant(dgates_of(map, p, 0, column)),
                       {to + of_panel_.at(0, begin + column), of_panel_.row(begin + column)});
      });
      return to;
    }
  }
  int64_t b_k() const { return of_panel_.width < o.gate_width ? 0 : o.gate_width; }
  A* pairs_of(int64_t p) const { return dgate_pairs_ + p * terms(o.chunk_rows) * o.gate_width; }

  // What is multiplied with each of the weights: the same dG, or some slots of it each.
  template <class F>
  void for_maps(const F& f) const {
    f(hh);
    if (!o.v.joint()) f(ih);
  }
  int64_t row_of(const GateMap& map) const { return padded_row<V>(o.n_panels * map.width()); }
  // dG of a map's slots, of all panels side by side.
  Block<V> dgates_of(const GateMap& map, int64_t p, int64_t row, int64_t column = 0) const {
    V* const dg = &map == &hh || o.v.joint() ? dg_hh_ : dg_ih_;
    return {dg + row * row_of(map) + p * map.width() + column, row_of(map)};
  }
  // dG of panel p as it was before it was rounded, from a row of the chunk on.
  T* exact(int64_t p, int64_t row) const { return dgates_ + (p * o.chunk_rows + row) * o.gate_width; }
  T* dw_ih(int64_t p) const { return dw_ + p * dw_panel_; }
  T* dw_hh(int64_t p) const { return dw_ih(p) + o.I * ih.width(); }

  static A ones() {
    if constexpr (kPaired<A>) return {0x3f80, 0x3f80};
    else return 1;
  }
  static inline const A kOnes = ones();

  const GateMap &ih = o.v.ih, &hh = o.v.hh;
  const NarrowPanel narrow_{o.v, o.H, o.I + o.R, !kPaired<A>};
  const bool in_strips_;  // rows of [x, h_prev] are cut into strips, or whole where others write or pair them
  const int64_t xh_row_, h_column_;  // columns of a strip, and where h begins
  const int64_t dw_panel_;  // of accumulators: dw_ih.T (I, width), dw_hh.T (R, width), and a chunk's biases in one row of all slots
  Buffer<A> packed_hh_;
  const int64_t dx_panels_;
  Buffer<A> packed_ih_, packed_step_;  // packed_step_: of the stepwise columns
  const Packed of_panel_;  // of a panel's dG of a chunk's rows, for sums over them: by slots where products take single panels of columns
  Buffer<V> dg_hh_, dg_ih_, xh_;
  Buffer<T> dw_;
  Buffer<T> dgates_;  // what peepholes' gradients are made of, where the products' dG is rounded
  Buffer<A> dgate_pairs_;  // with rows in pairs
  RowPairs<V> xh_pairs_;
};

}  // namespace fastlstm
