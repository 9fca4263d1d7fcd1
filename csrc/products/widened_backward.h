// The backward's products of a single step of few rows in bfloat16: blocks of the weights are widened just before their only use, and
// multiplied in float32. Gradients of weights are written where they are returned.
#pragma once
#include "products/backward.h"

namespace fastlstm {

class WidenedBackward final : public BackwardProducts<BFloat16> {
  using S = BFloat16;

 public:
  // With more, packing weights into pairs and gradients from accumulators pays; where there are tiles (AMX), StepBackward does
  static constexpr int64_t kRows = 32, kRowsBesideTiles = 8;

  WidenedBackward(const Context<S>& context, const BackwardCall<S>& call, const WeightGradients<S>& gradients)
      : BackwardProducts(context, call), gradients_(gradients), h_column_(panels_of(o.I) * kPanel),
        xh_row_(padded_row<T>(h_column_ + panels_of(o.R) * kPanel)), dgates_(o.chunk_rows * o.n_panels * o.gate_width),
        xh_(f.need_dw ? o.chunk_rows * xh_row_ : 0) {}

  void pack(const Thread&, int64_t) override {}

  void keep(const Tile& tile, const T* records) override {
    o.micro.copy(tile.rows, o.gate_width, {records, o.record.backward()}, {dgates_of(tile.p, tile.row), o.gate_width});
  }

  Block<const T> dgates(int64_t p, int64_t slot) const override { return {dgates_of(p, 0) + slot * kPanel, o.gate_width}; }

  void state_gradient(const Thread& thread, int64_t t, int64_t row, const States<T>& dh) const override {
    const Range mine = thread.of_unit_group(o.r_panels);
    for_column_blocks(mine.begin, mine.end, [&](int64_t panel, int64_t count) {
      thread.for_tiles(o.seq.size[t], kRows, [&](int64_t b, int64_t rows) {
        multiply(thread, o.v.hh, row + b, rows, o.w.hh, o.R, panel, count, dh.at(panel, b));
        o.apply_reset(t, b, rows, count * kPanel, dh.at(panel, b));
      });
    });
  }

  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    BackwardProducts::concat_xh<T>(thread, t, row, {xh_, o.chunk_rows, xh_row_}, h_column_);
  }

  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      write_product(thread, o.v.ih, p, chunk.rows, 0, o.I, gradients_.ih);
      write_product(thread, o.v.hh, p, rows_of_h(chunk), h_column_, o.R, gradients_.hh);
      std::fill_n(db(p), o.gate_width, 0.0);
      for (int64_t row = 0; row < chunk.rows; row++)
        for (int64_t i = 0; i < o.gate_width; i++) db(p)[i] += dgates_of(p, row)[i];
      write_biases(p, gradients_);
    }
  }

  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    const Range mine = thread.mine(o.i_panels);
    const Block<T> dx{o.tile_of(thread) + kMaxBlock * kMaxBlock, kMaxBlock};
    for_column_blocks(mine.begin, mine.end, [&](int64_t panel, int64_t count) {
      multiply(thread, o.v.ih, 0, chunk.rows, o.w.ih, o.I, panel, count, dx);
      scatter(chunk, 0, chunk.rows, [&](int64_t i, int64_t m, int64_t to) {
        o.store(m, std::min(count * kPanel, o.I - panel * kPanel), {dx.p + i * dx.row, dx.row}, {f.dx + to * o.I + panel * kPanel, o.I});
      });
    });
  }

  void release() override {}
  void write(int64_t, const WeightGradients<S>&) const override {}

 private:
  T* dgates_of(int64_t p, int64_t row) const { return dgates_ + (p * o.chunk_rows + row) * o.gate_width; }

  // to = dG @ w in `count` panels of the columns of w (gates * H, size): panel by panel of dG, whose rows of w are in the nearest cache.
  void multiply(const Thread& thread, const GateMap& map, int64_t row, int64_t rows, const S* w, int64_t size, int64_t panel, int64_t count,
                Block<T> to) const {
    T* const block = o.tile_of(thread);
    const int64_t n = count * kPanel, exist = std::min(n, size - panel * kPanel);
    for (int64_t p = 0; p < o.n_panels; p++) {
      const int64_t units = units_of(o.H, p);
      for (int64_t i = 0; i < map.gates; i++) {
        const Block<T> part{block + i * kPanel * n, n};
        o.bf16->widen(units, exist, n, {bits(w) + (map.gate[i] * o.H + p * kPanel) * size + panel * kPanel, size}, part);
        fill_rows(kPanel - units, n, T(0), {part.p + units * n, n});
      }
      o.micro.gemm({.m = rows, .n = n, .k = map.width(), .a = dgates_of(p, row) + map.offset(), .a_m = o.gate_width, .b = block, .b_k = n,
                    .c = to.p, .c_m = to.row, .accumulate = p > 0});
    }
  }

  // Of the gates of panel p, from `width` columns of [x, h_prev], with what pads their last panel.
  void write_product(const Thread& thread, const GateMap& map, int64_t p, int64_t rows, int64_t column, int64_t width, S* to) const {
    T* const block = o.tile_of(thread);
    for (int64_t i = 0; i < map.gates; i++)
      for_column_blocks(0, panels_of(width), [&](int64_t panel, int64_t count) {
        const int64_t first = panel * kPanel;
        o.micro.gemm({.m = units_of(o.H, p), .n = count * kPanel, .k = rows, .a = dgates_of(p, 0) + map.offset() + i * kPanel, .a_m = 1,
                      .a_k = o.gate_width, .b = xh_ + column + first, .b_k = xh_row_, .c = block, .c_m = kMaxBlock});
        o.store(units_of(o.H, p), std::min(count * kPanel, width - first), {block, kMaxBlock},
                {to + (map.gate[i] * o.H + p * kPanel) * width + first, width});
      });
  }

  const WeightGradients<S> gradients_;
  const int64_t h_column_, xh_row_;
  Buffer<T> dgates_, xh_;
};

}  // namespace fastlstm
