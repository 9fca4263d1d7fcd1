// The backward's products with weights, and gradients of weights, as they stand in memory: for few rows, or a single step. Gradients
// are written where they are returned. Of a step of many rows, some columns of the weights are packed at a time.
#pragma once
#include "products/backward.h"

namespace fastlstm {

template <class S>
class UnpackedBackward final : public BackwardProducts<S> {
  using Base = BackwardProducts<S>;
  using Base::o, Base::f, Base::db;

 public:
  // With no more rows than this in all, or in a single step, packing weights and gradients would not pay
  static constexpr int64_t kRows = 8;

  UnpackedBackward(const Context<S>& context, const BackwardCall<S>& call, const WeightGradients<S>& gradients)
      : Base(context, call), gradients_(gradients), many_(o.seq.rows() >= (o.micro.width > kPanel ? 128 : 48)),
        xh_row_(many_ ? o.micro.width : padded_row<S>(o.I + o.R)), h_column_(many_ ? round_up(o.I) : o.I),
        dgates_(o.chunk_rows * o.n_panels * o.gate_width),
        xh_(!f.need_dw ? 0 : o.chunk_rows * (many_ ? h_column_ + round_up(o.R) : xh_row_)), offsets_(o.n_panels),
        block_(o.n_panels * std::max(o.v.ih.width(), o.v.hh.width()) * kMaxBlock), blocks_(many_ ? o.team->workers * block_ : 0) {
    for (int64_t p = 0; p < o.n_panels; p++) offsets_[p] = p * o.chunk_rows * o.gate_width;
  }

  void pack(const Thread&, int64_t) override {}

  void keep(const Tile& tile, const S* records) override {
    o.micro.copy(tile.rows, o.gate_width, {records, o.record.backward()}, {dgates_of(tile.p, tile.row), o.gate_width});
  }

  Block<const S> dgates(int64_t p, int64_t slot) const override { return {dgates_of(p, 0) + slot * kPanel, o.gate_width}; }

  void state_gradient(const Thread& thread, int64_t t, int64_t row, const States<S>& dh) const override {
    const Range mine = thread.of_unit_group(o.r_panels);
    const Range columns{mine.begin * kPanel, std::min(o.R, mine.end * kPanel)};
    if (many_)
      return for_column_blocks(mine.begin, mine.end, [&](int64_t panel, int64_t count) {
        pack(o.v.hh, o.w.hh, o.R, panel, count, block_of(thread));
        thread.for_tiles(o.seq.size[t], kManyTile, [&](int64_t b, int64_t rows) {
          const Block<S> to = dh.at(panel, b);
          multiply_block(o.v.hh, row + b, rows, count, block_of(thread), to);
          o.apply_reset(t, b, rows, count * kPanel, to);
        });
      });
    thread.for_tiles(o.seq.size[t], [&](int64_t b, int64_t rows) {
      const Block<S> to = dh.at(0, b);
      combine(o.v.hh, row + b, rows, o.w.hh, o.R, columns, to);
      o.apply_reset(t, b, rows, columns.size(), Block<S>{to.p + columns.begin, to.row});
    });
  }

  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    Base::template concat_xh<S>(thread, t, row, {xh_, o.chunk_rows, xh_row_}, h_column_);
  }

  // The gradients of weights and biases from the few rows that there are, as they are to be returned.
  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    const int64_t rows = chunk.rows;
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      write_product(o.v.ih, p, rows, 0, o.I, gradients_.ih);
      write_product(o.v.hh, p, rows, h_column_, o.R, gradients_.hh);
      std::fill_n(db(p), o.gate_width, 0.0);
      for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < o.gate_width; i++) db(p)[i] += dgates_of(p, row)[i];
      this->write_biases(p, gradients_);
    }
  }

  // dx = dG @ w_ih over this worker's share of the columns, step by step.
  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    const Range mine = thread.mine(o.i_panels);
    const Range columns{mine.begin * kPanel, std::min(o.I, mine.end * kPanel)};
    if (many_)
      return for_column_blocks(mine.begin, mine.end, [&](int64_t panel, int64_t count) {
        pack(o.v.ih, o.w.ih, o.I, panel, count, block_of(thread));
        S* const dx = o.tile_of(thread);
        const int64_t n = std::min(count * kPanel, o.I - panel * kPanel);
        for (int64_t row = 0; row < chunk.rows; row += kManyTile) {
          const int64_t rows = std::min(kManyTile, chunk.rows - row);
          multiply_block(o.v.ih, row, rows, count, block_of(thread), {dx, kMaxBlock});
          this->scatter(chunk, row, rows, [&](int64_t i, int64_t m, int64_t to) {
            o.store(m, n, {dx + i * kMaxBlock, kMaxBlock}, {f.dx + to * o.I + panel * kPanel, o.I});
          });
        }
      });
    if (columns.size() > 0)
      this->scatter(chunk, 0, chunk.rows, [&](int64_t i, int64_t m, int64_t to) {
        combine(o.v.ih, i, m, o.w.ih, o.I, columns, {f.dx + to * o.I, o.I});
      });
  }

  void release() override {}
  void write(int64_t, const WeightGradients<S>&) const override {}

 private:
  bool skinny() const { return o.seq.rows() <= 4; }  // not of a tile: results may not depend on how rows were split
  S* dgates_of(int64_t p, int64_t row) const { return dgates_ + (p * o.chunk_rows + row) * o.gate_width; }

  // Of the gates of panel p, from `width` columns of [x, h_prev].
  void write_product(const GateMap& map, int64_t p, int64_t rows, int64_t column, int64_t width, S* to) const {
    const int64_t most = many_ ? kMaxBlock : width;
    for (int64_t n = 0, end; n < width; n = end) {
      end = width - n >= most ? n + most : std::min(width, n + xh_row_);
      const S* const right = Strips<S>{xh_, o.chunk_rows, xh_row_}.at(0, column + n).p;
      for (int64_t i = 0; i < map.gates; i++) {
        const S* const left = dgates_of(p, 0) + map.offset() + i * kPanel;
        S* const out = to + (map.gate[i] * o.H + p * kPanel) * width + n;
        if (many_ && end - n == kMaxBlock)
          o.micro.gemm({.m = units_of(o.H, p), .n = kMaxBlock, .k = rows, .a = left, .a_m = 1, .a_k = o.gate_width, .b = right,
                        .b_rows = o.chunk_rows, .c = out, .c_m = width});
        else
          multiply({.m = units_of(o.H, p), .n = end - n, .k = rows, .a = left, .a_m = 1, .a_k = o.gate_width, .w = right,
                    .w_k = xh_row_, .c = out, .c_m = width, .accumulate = false});
      }
    }
  }

  // `count` panels of the columns of w (gates * H, size), packed: a block that is in the cache where it is used next.
  void pack(const GateMap& map, const S* w, int64_t size, int64_t panel, int64_t count, S* to) const {
    const Packed layout{o.n_panels * map.width(), count * kPanel, o.micro.width};
    const int64_t first = panel * kPanel;
    for (int64_t p = 0; p < o.n_panels; p++) {
      if (first + layout.n > size || units_of(o.H, p) < kPanel) {
        pack_gate_columns(w, size, map, o.H, size, p, first, layout, to);
        continue;
      }
      for (int64_t i = 0; i < layout.n; i += layout.row(i))
        for (int64_t slot = 0; slot < map.gates; slot++)
          o.micro.copy(kPanel, layout.row(i), {w + (map.gate[slot] * o.H + p * kPanel) * size + first + i, size},
                       {to + layout.at((p * map.gates + slot) * kPanel, i), layout.row(i)});
    }
  }

  // to = dG @ a packed block, for rows [row, row + rows) of the chunk.
  void multiply_block(const GateMap& map, int64_t row, int64_t rows, int64_t count, const S* block, Block<S> to) const {
    o.micro.gemm({.m = rows, .n = count * kPanel, .k = map.width(), .batch = o.n_panels, .a = dgates_of(0, row) + map.offset(),
                  .a_m = o.gate_width, .a_offsets = offsets_.data(), .b = block, .c = to.p, .c_m = to.row});
  }

  int64_t round_up(int64_t columns) const { return (columns + o.micro.width - 1) / o.micro.width * o.micro.width; }
  S* block_of(const Thread& thread) const { return blocks_ + thread.worker * block_; }

  // to = dG @ w, in the given columns of w (gates * H, size), for rows [row, row + rows) of the chunk.
  void combine(const GateMap& map, int64_t row, int64_t rows, const S* w, int64_t size, Range columns, Block<S> to) const {
    // Whole panels of a gate are one product over a batch where there are rows enough; else, and the last, one by one
    const int64_t n = columns.size(), batch = skinny() ? 0 : o.H / kPanel, whole = batch ? n / kPanel * kPanel : 0;
    for (int64_t i = 0; i < map.gates; i++) {
      const S* const dg = dgates_of(0, row) + map.offset() + i * kPanel;
      const S* const of_gate = w + map.gate[i] * o.H * size + columns.begin;
      for (int64_t at = 0; at < whole; at += kMaxBlock)
        o.micro.gemm({.m = rows, .n = std::min(kMaxBlock, whole - at), .k = kPanel, .batch = batch, .a = dg, .a_m = o.gate_width,
                      .a_offsets = offsets_.data(), .b = of_gate + at, .b_k = size, .c = to.p + columns.begin + at, .c_m = to.row,
                      .accumulate = i > 0});
      for (int64_t p = 0; p < o.n_panels; p++) {
        const int64_t done = p < batch ? whole : 0;
        if (done < n)
          multiply({.m = rows, .n = n - done, .k = units_of(o.H, p), .a = dg + offsets_[p], .a_m = o.gate_width, .a_k = 1,
                    .w = of_gate + p * kPanel * size + done, .w_k = size, .c = to.p + columns.begin + done, .c_m = to.row,
                    .accumulate = i > 0 || p > 0});
      }
    }
  }

  // Whole blocks of columns by the packed products' kernels where there are rows and terms enough to use a block in registers well.
  void multiply(const GemmUnpacked<S>& product) const {
    GemmUnpacked<S> rest = product;
    const int64_t whole = !skinny() && product.k > 4 ? product.n / kPanel * kPanel : 0;
    for (int64_t n = 0; n < whole; n += kMaxBlock)
      o.micro.gemm({.m = product.m, .n = std::min(kMaxBlock, whole - n), .k = product.k, .a = product.a, .a_m = product.a_m,
                    .a_k = product.a_k, .b = product.w + n, .b_k = product.w_k, .c = product.c + n, .c_m = product.c_m,
                    .accumulate = product.accumulate});
    rest.n -= whole, rest.w += whole, rest.c += whole;
    if (rest.n > 0) o.micro.gemm_unpacked(rest);
  }

  static constexpr int64_t kManyTile = 120;  // rows of a product with a packed block; tiles are made for more

  const WeightGradients<S> gradients_;
  // Of so many rows a block of columns of the weights is packed before its product, and [x, h_prev] lie in strips of columns
  const bool many_;
  const int64_t xh_row_, h_column_;  // columns of a strip, and where h begins
  Buffer<S> dgates_, xh_;
  std::vector<int64_t> offsets_;  // of each panel's dG
  const int64_t block_;
  Buffer<S> blocks_;  // one of each worker
};

}  // namespace fastlstm
