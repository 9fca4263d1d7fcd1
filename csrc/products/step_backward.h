// The backward's products of a single step in bfloat16, by pairs of terms where there are tiles for them: 64 columns of the weights are
// paired just before their only use. In gradients of weights dG is the left factor: sums lie as they are returned, and are rounded there.
#pragma once
#include "products/backward.h"
#include "products/row_pairs.h"

namespace fastlstm {

class StepBackward final : public BackwardProducts<BFloat16> {
  using S = BFloat16;
  static constexpr int64_t kRows = 128;  // of a gradient of inputs at a time, at most: a worker's tile has room for them
  static constexpr int64_t kBiasBlock = 16;  // terms of a bias' gradient at a time

 public:
  StepBackward(const Context<S>& context, const BackwardCall<S>& call, const WeightGradients<S>& gradients)
      : BackwardProducts(context, call), gradients_(gradients), slot_(o.n_panels * kPanel), row_(padded_row<S>(o.v.slots * slot_)),
        h_column_(panels_of(o.I) * kPanel), xh_row_(padded_row<Bf16Pair>(h_column_ + o.r_panels * kPanel)), dgates_(o.chunk_rows * row_),
        exact_(o.v.peepholes.empty() ? 0 : o.n_panels * o.chunk_rows * o.gate_width),
        weights_(o.team->workers * std::max(o.v.ih.gates, o.v.hh.gates) * slot_ / 2 * kMaxBlock) {
    if (!f.need_dw) return;
    xh_ = Buffer<S>(o.chunk_rows * xh_row_);
    xh_pairs_ = Buffer<Bf16Pair>(row_pairs(*o.bf16, o.chunk_rows) * xh_row_);
    dgate_pairs_ = RowPairs<S>(o, o.chunk_rows, o.v.slots * slot_);
  }

  void pack(const Thread&, int64_t) override {}

  void keep(const Tile& tile, const T* records) override {
    for (int64_t slot = 0; slot < o.v.slots; slot++)
      o.store(tile.rows, kPanel, {records + slot * kPanel, o.record.backward()}, {dgates_of(slot, tile.row) + tile.p * kPanel, row_});
    if (exact_) o.micro.copy(tile.rows, o.gate_width, {records, o.record.backward()}, {exact(tile.p, tile.row), o.gate_width});
  }

  Block<const T> dgates(int64_t p, int64_t slot) const override { return {exact(p, 0) + slot * kPanel, o.gate_width}; }

  void state_gradient(const Thread& thread, int64_t t, int64_t row, const States<T>& dh) const override {
    const Range mine = thread.of_unit_group(o.r_panels);
    for_column_blocks(mine.begin, mine.end, [&](int64_t panel, int64_t count) {
      const Bf16Pair* const right = pair_weights(thread, o.v.hh, o.w.hh, o.R, panel, count);
      thread.for_tiles(o.seq.size[t], o.seq.B, [&](int64_t b, int64_t rows) {
        multiply(o.v.hh, row + b, rows, right, count, dh.at(panel, b));
        o.apply_reset(t, b, rows, count * kPanel, dh.at(panel, b));
      });
    });
  }

  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    BackwardProducts::concat_xh<S>(thread, t, row, {xh_, o.chunk_rows, xh_row_}, h_column_);
  }

  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    const int64_t pairs = row_pairs(*o.bf16, chunk.rows);
    const Range mine = thread.mine(pairs), panels = thread.mine(o.n_panels);
    for (int64_t i = mine.begin; i < mine.end; i++)
      pair_rows<S>(*o.bf16, {xh_, xh_row_}, chunk.rows, h_column_ + o.r_panels * kPanel, i, xh_pairs_ + i * xh_row_);
    dgate_pairs_.pair(thread, chunk.rows, {dgates_, row_});
    thread.barrier_all();
    write_product(thread, o.v.ih, panels, pairs, 0, o.I, gradients_.ih);
    write_product(thread, o.v.hh, panels, o.fresh() ? 0 : pairs, h_column_, o.R, gradients_.hh);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      std::fill_n(db(p), o.gate_width, 0.0);
      for (int64_t slot = 0; slot < o.v.slots; slot++)
        for (int64_t row = 0; row < chunk.rows; row += kBiasBlock) add_biases(slot, p, row, std::min(kBiasBlock, chunk.rows - row));
      write_biases(p, gradients_);
    }
  }

  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    const Range mine = thread.mine(o.i_panels);
    const Block<T> dx{o.tile_of(thread), kMaxBlock};
    for_column_blocks(mine.begin, mine.end, [&](int64_t panel, int64_t count) {
      const Bf16Pair* const right = pair_weights(thread, o.v.ih, o.w.ih, o.I, panel, count);
      const int64_t n = std::min(count * kPanel, o.I - panel * kPanel);
      for (int64_t row = 0, rows; row < chunk.rows; row += rows) {
        rows = std::min(kRows, chunk.rows - row);
        multiply(o.v.ih, row, rows, right, count, dx);
        scatter(chunk, row, rows, [&](int64_t i, int64_t m, int64_t to) {
          o.store(m, n, {dx.p + i * dx.row, dx.row}, {f.dx + to * o.I + panel * kPanel, o.I});
        });
      }
    });
  }

  void release() override {}
  void write(int64_t, const WeightGradients<S>&) const override {}

 private:
  S* dgates_of(int64_t slot, int64_t row) const { return dgates_ + row * row_ + slot * slot_; }
  T* exact(int64_t p, int64_t row) const { return exact_ + (p * o.chunk_rows + row) * o.gate_width; }

  void add_biases(int64_t slot, int64_t p, int64_t row, int64_t rows) const {
    T sums[kPanel] = {};
    for (int64_t i = row; i < row + rows; i++)
      for (int64_t u = 0; u < kPanel; u++) sums[u] += static_cast<T>(dgates_of(slot, i)[p * kPanel + u]);
    for (int64_t u = 0; u < kPanel; u++) db(p)[slot * kPanel + u] += sums[u];
  }

  // `count` panels of the columns of w (gates * H, size): rows of all units of a gate, in pairs, gate after gate.
  const Bf16Pair* pair_weights(const Thread& thread, const GateMap& map, const S* w, int64_t size, int64_t panel, int64_t count) const {
    Bf16Pair* const all = weights_ + thread.worker * std::max(o.v.ih.gates, o.v.hh.gates) * slot_ / 2 * kMaxBlock;
    const int64_t n = std::min(count * kPanel, size - panel * kPanel);
    for (int64_t gate = 0; gate < map.gates; gate++)
      for (int64_t i = 0; i < slot_ / 2; i++) {
        Bf16Pair* const to = all + (gate * slot_ / 2 + i) * kMaxBlock;
        pair_rows<const S>(*o.bf16, {w + map.gate[gate] * o.H * size + panel * kPanel, size}, o.H, n, i, to);
        std::fill_n(to + n, count * kPanel - n, Bf16Pair{});
      }
    return all;
  }

  // to = dG @ what pair_weights made, for rows [row, row + rows).
  void multiply(const GateMap& map, int64_t row, int64_t rows, const Bf16Pair* right, int64_t count, Block<T> to) const {
    o.gemm(Gemm<T, Bf16Pair>{.m = rows, .n = count * kPanel, .k = map.gates * slot_ / 2,
                             .a = factors<Bf16Pair>(dgates_of(map.first, row)), .a_m = row_ / 2, .b = right, .b_k = kMaxBlock,
                             .c = to.p, .c_m = to.row});
  }

  // Of the gates of some panels, from `width` columns of [x, h_prev].
  void write_product(const Thread& thread, const GateMap& map, Range panels, int64_t pairs, int64_t column, int64_t width, S* to) const {
    T* const sums = o.tile_of(thread);
    for (int64_t i = 0; i < map.gates; i++)
      for_column_blocks(panels.begin, panels.end, [&](int64_t p, int64_t of_units) {
        const int64_t unit = p * kPanel, units = std::min(of_units * kPanel, o.H - unit);
        for_column_blocks(0, panels_of(width), [&](int64_t panel, int64_t count) {
          const int64_t first = panel * kPanel;
          o.gemm(Gemm<T, Bf16Pair>{.m = units, .n = count * kPanel, .k = pairs, .a = dgate_pairs_.at((map.first + i) * slot_ + unit),
                                   .a_m = dgate_pairs_.m(), .a_k = dgate_pairs_.k(), .b = xh_pairs_ + column + first, .b_k = xh_row_,
                                   .c = sums, .c_m = kMaxBlock});
          o.store(units, std::min(count * kPanel, width - first), {sums, kMaxBlock},
                  {to + (map.gate[i] * o.H + unit) * width + first, width});
        });
      });
  }

  const WeightGradients<S> gradients_;
  const int64_t slot_, row_, h_column_, xh_row_;  // values of a slot of dG and of a row of it; of [x, h_prev] before h, and of a row
  Buffer<S> dgates_, xh_;
  Buffer<T> exact_;            // dG as it was before it was rounded, which peepholes' gradients are made of
  Buffer<Bf16Pair> weights_;   // of each worker
  Buffer<Bf16Pair> xh_pairs_;  // rows in pairs
  RowPairs<S> dgate_pairs_;
};

}  // namespace fastlstm
