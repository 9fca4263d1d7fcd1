// The backward's products of float32 by parts of bfloat16.
#pragma once
#include "products/backward.h"
#include "products/split.h"

namespace fastlstm {

class SplitBackward final : public BackwardProducts<float> {
  static constexpr int64_t kWeightRows = 64;  // rows of a weight gradient per job
  static constexpr int64_t kNearJobs = 8;     // jobs whose left factors stay in the cache while they are done for all panels
  static constexpr int64_t kBiasBlock = 16;   // terms of a bias' gradient at a time
  static constexpr int64_t kRows = 128;       // of a gradient of inputs or of a state at a time, at most

 public:
  // Of a tile for rows of an input gradient, or for a panel's dG of a chunk.
  static int64_t tile_size(const Context<float>& o) { return std::max(kRows * kMaxBlock, o.split->pairs(o.chunk_rows) * o.gate_width); }

  SplitBackward(const Context<float>& context, const BackwardCall<float>& call)
      : BackwardProducts(context, call), dw_panel_(o.I * ih.width() + o.R * hh.width() + o.gate_width),
        packed_hh_(terms_of(hh) * o.r_panels * kPanel), dx_panels_(panels_of(f.dx_columns())),
        packed_ih_(f.dx ? terms_of(ih) * dx_panels_ * kPanel : 0), packed_step_(terms_of(ih) * panels_of(f.stepwise_columns) * kPanel),
        dg_hh_(o.chunk_rows * row_of(hh)), dg_ih_(o.v.joint() ? 0 : o.chunk_rows * row_of(ih)),
        split_hh_(o.chunk_rows * split_row_of(hh)), split_ih_(o.v.joint() ? 0 : o.chunk_rows * split_row_of(ih)) {
    if (!f.need_dw) return;
    xh_ = Buffer<float>(o.chunk_rows * xh_row_);
    left_ = Buffer<Bf16Pair>((o.I + o.R) * left_row_);
    dw_ = Buffer<float>(o.n_panels * dw_panel_);
  }

  void pack(const Thread&, int64_t p) override {
    if (f.dx) pack_blocks(o.w.ih, ih, o.I, p, {0, dx_panels_}, packed_ih_, f.dx_columns());
    const int64_t groups = o.team->plan.unit_groups, step_panels = panels_of(f.stepwise_columns);
    for (int64_t group = 0; group < groups; group++) {
      pack_blocks(o.w.hh, hh, o.R, p, share(o.r_panels, group, groups), packed_hh_, o.R);
      pack_blocks(o.w.ih + f.stepwise_begin, ih, o.I, p, share(step_panels, group, groups), packed_step_, f.stepwise_columns);
    }
    if (!f.need_dw) return;
    if (o.seq.T == 0) std::fill_n(dw_ + p * dw_panel_, dw_panel_, 0.0f);
    std::fill_n(db(p), o.gate_width, 0.0);
  }

  void set_up(const Thread& thread) override {
    const Range rows = thread.mine(o.chunk_rows);
    for_maps([&](const GateMap& map) {
      clear_split_ends(*o.split, rows.size(), o.n_panels * map.width(), {split_of(map, rows.begin), split_row_of(map)});
    });
  }

  void keep(const Tile& tile, const float* records) override {
    for_maps([&](const GateMap& map) {
      const Block<const float> from{records + map.offset(), o.record.backward()};
      o.micro.copy(tile.rows, map.width(), from, dgates_of(map, tile.p, tile.row));
      o.split->split(tile.rows, map.width(), from, tile.p * map.width(), {split_of(map, tile.row), split_row_of(map)});
    });
  }

  Block<const float> dgates(int64_t p, int64_t slot) const override {
    const GateMap& map = slot >= hh.first && slot < hh.first + hh.gates ? hh : ih;
    return constant(dgates_of(map, p, 0, (slot - map.first) * kPanel));
  }

  void state_gradient(const Thread& thread, int64_t t, int64_t row, const States<float>& dh) const override {
    const Range mine = thread.of_unit_group(o.r_panels);
    for_column_blocks(mine.begin, mine.end, t % 2 == 1, [&](int64_t panel, int64_t count) {
      const int64_t next = t % 2 == 1 ? panel - 4 : panel + 4;
      const Bf16Pair* ask = next >= mine.begin && next + count <= mine.end ? block_of(hh, packed_hh_, next) : nullptr;
      thread.for_tiles(o.seq.size[t], kRows, [&](int64_t b, int64_t rows) {
        const Block<float> to = dh.at(panel, b);
        multiply(hh, row + b, rows, packed_hh_, panel, count, to, std::exchange(ask, nullptr));
        o.apply_reset(t, b, rows, count * kPanel, to);
      });
    });
  }

  void step_input_gradient(const Thread& thread, int64_t t, int64_t row, const States<float>& dx) const override {
    const Range mine = thread.of_unit_group(panels_of(f.stepwise_columns));
    for_column_blocks(mine.begin, mine.end, [&](int64_t panel, int64_t count) {
      thread.for_tiles(o.seq.size[t], [&](int64_t b, int64_t rows) {
        multiply(ih, row + b, rows, packed_step_, panel, count, dx.at(panel, b));
      });
    });
  }

  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    BackwardProducts::concat_xh<float>(thread, t, row, {xh_, o.chunk_rows, xh_row_}, o.I);
  }

  // dw.T[p] += [x, h_prev].T @ dG[p], cut into jobs of some rows of dw.T each; and the biases'.
  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    const int64_t rows = chunk.rows, columns = o.I + o.R;
    const Range panels = thread.mine(panels_of(columns));
    for (int64_t first = panels.begin * kPanel; first < std::min(columns, panels.end * kPanel); first += kPanel)
      split_transposed(*o.split, rows, std::min(kPanel, columns - first), {xh_ + first, xh_row_}, {left_ + first * left_row_, left_row_});
    thread.barrier_all();
    const int64_t of_x = jobs(o.I), of_h = jobs(o.R), per_panel = of_x + of_h + 1;
    const Range mine = thread.mine(o.n_panels * per_panel);
    for (int64_t first = 0; first < per_panel; first += kNearJobs)
      for (int64_t p = mine.begin / per_panel; p * per_panel < mine.end; p++) {
        const int64_t begin = std::max(first, mine.begin - p * per_panel);
        const int64_t end = std::min({first + kNearJobs, per_panel, mine.end - p * per_panel});
        if (begin >= end) continue;
        Bf16Pair* const dg = reinterpret_cast<Bf16Pair*>(o.tile_of(thread));
        for_maps([&](const GateMap& map) {
          split_row_pairs(*o.split, rows, map.width(), constant(dgates_of(map, p, 0)), {dg + map.offset(), o.gate_width});
        });
        for (int64_t k = begin; k < end; k++)
          if (k < of_x) add_product(ih, dg, chunk, 0, o.I, k, dw_ih(p));
          else if (k < of_x + of_h) add_product(hh, dg, chunk, o.I, o.R, k - of_x, dw_hh(p));
          else add_bias_product(p, rows);
      }
  }

  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    float* const dx = o.tile_of(thread);
    const Range mine = thread.mine(chunk.rows);
    for_column_blocks(0, dx_panels_, [&](int64_t panel, int64_t count) {
      const int64_t n = std::min(count * kPanel, f.dx_columns() - panel * kPanel);
      for (int64_t row = mine.begin; row < mine.end; row += kRows) {
        const int64_t rows = std::min(kRows, mine.end - row);
        const Bf16Pair* const ask = row == mine.begin && panel + 4 + count <= dx_panels_ ? block_of(ih, packed_ih_, panel + 4) : nullptr;
        multiply(ih, row, rows, packed_ih_, panel, count, {dx, kMaxBlock}, ask);
        scatter(chunk, row, rows, [&](int64_t i, int64_t m, int64_t to) {
          convert<float, float>(m, n, {dx + i * kMaxBlock, kMaxBlock}, {f.dx + to * f.dx_columns() + panel * kPanel, f.dx_columns()});
        });
      }
    });
  }

  void release() override {
    packed_ih_ = {}, packed_hh_ = {}, packed_step_ = {}, dg_hh_ = {}, dg_ih_ = {}, split_hh_ = {}, split_ih_ = {}, xh_ = {}, left_ = {};
  }

  void write(int64_t p, const WeightGradients<float>& to) const override {
    write_transposed(ih, dw_ih(p), o.I, p, to.ih);
    write_transposed(hh, dw_hh(p), o.R, p, to.hh);
    write_biases(p, to);
  }

 private:
  static int64_t jobs(int64_t columns) { return (columns + kWeightRows - 1) / kWeightRows; }
  // Rows of the right factor of dG @ w, in elements.
  int64_t terms_of(const GateMap& map) const { return o.split->pairs(o.n_panels * map.width()); }
  // A block of columns is a matrix of its own: all panels' rows of it.
  Bf16Pair* block_of(const GateMap& map, Bf16Pair* packed, int64_t panel) const { return packed + terms_of(map) * kPanel * panel; }

  // The first `columns` of w, whose rows are `size` long.
  void pack_blocks(const float* w, const GateMap& map, int64_t size, int64_t p, Range panels, Bf16Pair* packed, int64_t columns) const {
    for_column_blocks(panels.begin, panels.end, [&](int64_t panel, int64_t count) {
      const Packed layout{terms_of(map), count * kPanel, 2 * kPanel};
      Bf16Pair* const to = block_of(map, packed, panel);
      pack_split_columns(*o.split, w, size, map, o.H, columns, p, panel * kPanel, layout, to);
      if (p == o.n_panels - 1) clear_split_rows(*o.split, o.n_panels * map.width(), layout, to);
    });
  }

  // to = dG @ `count` panels of the packed weights, for rows [row, row + rows) of the chunk. `next`: as many that are taken next.
  void multiply(const GateMap& map, int64_t row, int64_t rows, Bf16Pair* packed, int64_t panel, int64_t count, Block<float> to,
                const Bf16Pair* next = nullptr) const {
    o.split->gemm({.m = rows, .n = count * kPanel, .k = terms_of(map), .a = split_of(map, row), .a_m = split_row_of(map),
                   .b = block_of(map, packed, panel), .next = next, .c = to.p, .c_m = to.row});
  }

  // The k-th kWeightRows rows of a panel's dw.T, of which there are `depth`, += columns of [x, h_prev] from `column` on, times dG.
  void add_product(const GateMap& map, const Bf16Pair* dg, const Chunk& chunk, int64_t column, int64_t depth, int64_t k, float* to) const {
    const int64_t first = k * kWeightRows;
    o.split->gemm({.m = std::min(kWeightRows, depth - first), .n = map.width(), .k = o.split->pairs(chunk.rows),
                   .a = left_ + (column + first) * left_row_, .a_m = left_row_, .b = dg + map.offset(), .b_k = o.gate_width,
                   .c = to + first * map.width(), .c_m = map.width(), .accumulate = chunk.begin > 0});
  }

  void add_bias_product(int64_t p, int64_t rows) const {
    static constexpr float kOne = 1;
    float* const of_chunk = dw_hh(p) + o.R * hh.width();
    for_maps([&](const GateMap& map) {
      const Block<float> dg = dgates_of(map, p, 0);
      o.gemm(Gemm<float>{.m = 1, .n = map.width(), .k = rows, .a = &kOne, .a_m = 0, .a_k = 0, .b = dg.p, .b_k = dg.row,
                         .c = of_chunk + map.offset(), .c_m = o.gate_width, .block = kBiasBlock});
    });
    for (int64_t i = 0; i < o.gate_width; i++) db(p)[i] += of_chunk[i];
  }

  // Panel p of a gradient (gates * H, depth) from its transpose.
  void write_transposed(const GateMap& map, const float* from, int64_t depth, int64_t p, float* to) const {
    for (int64_t i = 0; i < map.gates; i++)
      o.micro.transpose(depth, units_of(o.H, p), {from + i * kPanel, map.width()}, {to + (map.gate[i] * o.H + p * kPanel) * depth, depth});
  }

  // What is multiplied with each of the weights: the same dG, or some slots of it each.
  template <class F>
  void for_maps(const F& f) const {
    f(hh);
    if (!o.v.joint()) f(ih);
  }
  bool as_hh(const GateMap& map) const { return &map == &hh || o.v.joint(); }
  // dG of a map's slots, of all panels side by side: as it is, and in parts.
  int64_t row_of(const GateMap& map) const { return padded_row<float>(o.n_panels * map.width()); }
  Block<float> dgates_of(const GateMap& map, int64_t p, int64_t row, int64_t column = 0) const {
    return {(as_hh(map) ? dg_hh_ : dg_ih_) + row * row_of(map) + p * map.width() + column, row_of(map)};
  }
  int64_t split_row_of(const GateMap& map) const { return split_row(*o.split, o.n_panels * map.width()); }
  Bf16Pair* split_of(const GateMap& map, int64_t row) const { return (as_hh(map) ? split_hh_ : split_ih_) + row * split_row_of(map); }
  float* dw_ih(int64_t p) const { return dw_ + p * dw_panel_; }
  float* dw_hh(int64_t p) const { return dw_ih(p) + o.I * ih.width(); }

  const GateMap &ih = o.v.ih, &hh = o.v.hh;
  const int64_t xh_row_ = padded_row<float>(o.I + o.R), left_row_ = split_row(*o.split, o.chunk_rows);
  const int64_t dw_panel_;  // of accumulators: dw_ih.T (I, width), dw_hh.T (R, width), and a chunk's biases in one row of all slots
  Buffer<Bf16Pair> packed_hh_;
  const int64_t dx_panels_;
  Buffer<Bf16Pair> packed_ih_, packed_step_;  // packed_step_: of the stepwise columns
  Buffer<float> dg_hh_, dg_ih_;
  Buffer<Bf16Pair> split_hh_, split_ih_;
  Buffer<float> xh_, dw_;
  Buffer<Bf16Pair> left_;  // the transpose of xh_
};

}  // namespace fastlstm
