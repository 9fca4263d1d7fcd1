// The backward's products with weights, and gradients of weights, as they stand in memory: for few rows, or few steps. dG lies as
// the weights' rows do, gate after gate, and gradients are written where they are returned.
#pragma once
#include "products/backward.h"

namespace fastlstm {

template <class S>
class UnpackedBackward final : public BackwardProducts<S> {
  using Base = BackwardProducts<S>;
  using Base::o, Base::f, Base::db;

 public:
  // Packing weights and gradients would not pay: of a single step, and where there are few rows in all, or few steps whose weights are
  // larger than what is done for each tile.
  static bool suits(const Context<S>& o) {
    const int64_t T = o.seq.T, rows = o.seq.rows();
    return T == 1 || (T > 1 && (rows <= kRows || (T <= kSteps && rows <= kRowsOfSteps && o.H >= kMaxBlock)));
  }

  UnpackedBackward(const Context<S>& context, const BackwardCall<S>& call, const WeightGradients<S>& gradients)
      : Base(context, call), gradients_(gradients), in_strips_(o.seq.rows() > kRows),
        xh_row_(in_strips_ ? o.micro.width : padded_row<S>(o.I + o.R)), h_column_(in_strips_ ? round_up(o.I) : o.I),
        slot_(o.n_panels * kPanel), row_(padded_row<S>(o.v.slots * slot_)), dgates_(o.chunk_rows * row_),
        xh_(!f.need_dw ? 0 : o.chunk_rows * (in_strips_ ? h_column_ + round_up(o.R) : xh_row_)) {}

  void pack(const Thread&, int64_t) override {}
  // What pads strips is multiplied too: zeros, as numbers that are not normal would take long.
  void set_up(const Thread& thread) override {
    if (!xh_ || !in_strips_) return;
    const Range rows = thread.mine(o.chunk_rows), of_x{o.I, h_column_}, of_h{h_column_ + o.R, h_column_ + round_up(o.R)};
    for (const Range& padding : {of_x, of_h})
      fill_rows(rows.size(), padding.size(), S(0), Strips<S>{xh_, o.chunk_rows, xh_row_}.at(rows.begin, padding.begin));
  }

  void keep(const Tile& tile, const S* records) override {
    for (int64_t slot = 0; slot < o.v.slots; slot++)
      o.micro.copy(tile.rows, kPanel, {records + slot * kPanel, o.record.backward()}, {dgates_of(slot, tile.p, tile.row), row_});
  }

  Block<const S> dgates(int64_t p, int64_t slot) const override { return {dgates_of(slot, p, 0), row_}; }

  void state_gradient(const Thread& thread, int64_t t, int64_t row, const States<S>& dh) const override {
    const Range columns = columns_of(thread.of_unit_group(o.r_panels), o.R);
    thread.for_tiles(o.seq.size[t], o.seq.B, [&](int64_t b, int64_t rows) {
      const Block<S> all = dh.at(0, b), to{all.p + columns.begin, all.row};
      combine(o.v.hh, row + b, rows, o.w.hh, o.R, columns, to);
      o.apply_reset(t, b, rows, columns.size(), to);
    });
  }

  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    Base::template concat_xh<S>(thread, t, row, {xh_, o.chunk_rows, xh_row_}, h_column_);
  }

  // The gradients of weights and biases from the rows that there are, as they are to be returned.
  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    const Range panels = thread.mine(o.n_panels);
    write_product(thread, o.v.ih, panels, chunk.rows, 0, o.I, gradients_.ih);
    write_product(thread, o.v.hh, panels, this->rows_of_h(chunk), h_column_, o.R, gradients_.hh);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      std::fill_n(db(p), o.gate_width, 0.0);
      for (int64_t slot = 0; slot < o.v.slots; slot++)
        for (int64_t row = 0; row < chunk.rows; row++)
          for (int64_t u = 0; u < kPanel; u++) db(p)[slot * kPanel + u] += dgates_of(slot, p, row)[u];
      this->write_biases(p, gradients_);
    }
  }

  // dx = dG @ w_ih, step by step: this worker's share of the columns, or of the rows where there are few panels of columns.
  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    const bool by_columns = o.i_panels >= thread.workers;
    const Range columns = by_columns ? columns_of(thread.mine(o.i_panels), o.I) : Range{0, o.I};
    const Range rows = by_columns ? Range{0, chunk.rows} : thread.mine(chunk.rows, o.seq.together);
    this->scatter(chunk, rows.begin, rows.size(), [&](int64_t i, int64_t m, int64_t to) {
      combine(o.v.ih, rows.begin + i, m, o.w.ih, o.I, columns, {f.dx + to * o.I + columns.begin, o.I});
    });
  }

  void release() override {}
  void write(int64_t, const WeightGradients<S>&) const override {}

 private:
  static constexpr int64_t kRows = 8, kSteps = 8, kRowsOfSteps = 128;
  static constexpr int64_t kFewTerms = 8;  // a sum of no more is added row by row
  static_assert(kRows < kChunkRows && kRowsOfSteps < kChunkRows, "several chunks would each write all of the gradients");

  bool skinny() const { return o.seq.rows() <= 4; }  // not of a tile: results may not depend on how rows were split
  S* dgates_of(int64_t slot, int64_t p, int64_t row) const { return dgates_ + row * row_ + slot * slot_ + p * kPanel; }
  static Range columns_of(Range panels, int64_t n) { return {panels.begin * kPanel, std::min(n, panels.end * kPanel)}; }

  // Of the gates of some panels, from `width` columns of [x, h_prev].
  void write_product(const Thread& thread, const GateMap& map, Range panels, int64_t rows, int64_t column, int64_t width, S* to) const {
    const Range units = columns_of(panels, o.H);
    for (int64_t i = 0; i < map.gates; i++)
      for (int64_t unit = units.begin, n; unit < units.end; unit += n) {
        n = std::min(in_strips_ ? o.gate_width : kPanel, units.end - unit);
        Block<const S> left{dgates_of(map.first + i, 0, 0) + unit, row_};
        if (in_strips_) {  // rows of dG are far apart: what all columns need is near, as the tile's memory
          const Block<S> near{o.tile_of(thread), panels_of(n) * kPanel};
          o.micro.copy(rows, near.row, left, near);
          left = constant(near);
        }
        S* const out = to + (map.gate[i] * o.H + unit) * width;
        for (int64_t from = 0, end; from < width; from = end) {
          const S* const right = Strips<S>{xh_, o.chunk_rows, xh_row_}.at(0, column + from).p;
          end = std::min(width, from + (in_strips_ && width - from >= kMaxBlock ? kMaxBlock : xh_row_));
          const GemmUnpacked<S> product{.m = n, .n = end - from, .k = rows, .a = left.p, .a_m = 1, .a_k = left.row, .w = right,
                                        .w_k = xh_row_, .c = out + from, .c_m = width, .accumulate = false};
          if (!in_strips_) o.micro.gemm_unpacked(product);  // of few terms: row by row, each from end to end
          else if (product.n < kMaxBlock) multiply(product, 0);
          else
            o.micro.gemm({.m = n, .n = kMaxBlock, .k = rows, .a = left.p, .a_m = 1, .a_k = left.row, .b = right, .b_rows = o.chunk_rows,
                          .c = out + from, .c_m = width});
        }
      }
  }

  // to = dG @ w, in the given columns of w (gates * H, size), for rows [row, row + rows) of the chunk: some rows of w at a time, which
  // are near for all of those; a copy with zeros beside them, if they are narrower than a panel.
  void combine(const GateMap& map, int64_t row, int64_t rows, const S* w, int64_t size, Range columns, Block<S> to) const {
    if (columns.size() == 0) return;
    alignas(64) S padded[kUnits * kPanel];
    const int64_t left = columns.size() % kPanel, others = left && size > kPanel ? kPanel - left : 0;
    for (int64_t i = 0; i < map.gates; i++)
      for (int64_t unit = 0, n; unit < o.H; unit += n) {
        n = std::min(kUnits, o.H - unit);
        Block<const S> right{w + (map.gate[i] * o.H + unit) * size + columns.begin, size};
        if (size < kPanel) {
          fill_rows(n, kPanel, S(0), {padded, kPanel});
          convert<S, S>(n, size, right, {padded, kPanel});
          right = {padded, kPanel};
        }
        const GemmUnpacked<S> product{.m = rows, .n = columns.size(), .k = n, .a = dgates_of(map.first + i, 0, row) + unit, .a_m = row_,
                                      .a_k = 1, .w = right.p, .w_k = right.row, .c = to.p, .c_m = to.row,
                                      .accumulate = i > 0 || unit > 0};
        skinny() || n <= kFewTerms ? o.micro.gemm_unpacked(product) : multiply(product, others);
      }
  }

  // By the packed products' kernels. Last columns that are no panel are taken as one, aside: with `others` before them, or with what pads
  // w behind them where there are none.
  void multiply(const GemmUnpacked<S>& product, int64_t others) const {
    Gemm<S> g{.m = product.m, .n = product.n / kPanel * kPanel, .k = product.k, .a = product.a, .a_m = product.a_m, .a_k = product.a_k,
              .b = product.w, .b_k = product.w_k, .c = product.c, .c_m = product.c_m, .accumulate = product.accumulate};
    if (g.n > 0) o.micro.gemm(g);
    const int64_t left = product.n - g.n;
    if (left == 0) return;
    alignas(64) S panel[kMaxBlock * kPanel] = {};
    const Block<S> to{product.c + g.n, product.c_m}, last{panel + others, kPanel};
    g.b += g.n - others, g.n = kPanel, g.c = panel, g.c_m = kPanel;
    for (int64_t row = 0; row < product.m; row += g.m, g.a += g.m * g.a_m) {
      g.m = std::min(kMaxBlock, product.m - row);
      if (g.accumulate) convert<S, S>(g.m, left, {to.p + row * to.row, to.row}, last);
      o.micro.gemm(g);
      convert<S, S>(g.m, left, constant(last), {to.p + row * to.row, to.row});
    }
  }

  int64_t round_up(int64_t columns) const { return (columns + o.micro.width - 1) / o.micro.width * o.micro.width; }

  static constexpr int64_t kUnits = 256;  // of a gate at once, that gradients of inputs and states are sums over

  const WeightGradients<S> gradients_;
  const bool in_strips_;  // of more rows, [x, h_prev] lie in strips of columns, as a pass of the products takes them
  const int64_t xh_row_, h_column_, slot_, row_;  // values of a row of [x, h_prev], before h, of a slot of dG, and of a row of it
  Buffer<S> dgates_, xh_;
};

}  // namespace fastlstm
