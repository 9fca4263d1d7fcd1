// The backward's products with weights, and gradients of weights, as they stand in memory: for few rows, or a single step.
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
      : Base(context, call), gradients_(gradients), xh_row_(padded_row<S>(o.I + o.R)),
        dgates_(o.chunk_rows * o.n_panels * o.gate_width), xh_(f.need_dw ? o.chunk_rows * xh_row_ : 0), offsets_(o.n_panels) {
    for (int64_t p = 0; p < o.n_panels; p++) offsets_[p] = p * o.chunk_rows * o.gate_width;
  }

  void pack(int64_t) override {}

  void keep(const Tile& tile, const S* records) override {
    o.micro.copy(tile.rows, o.gate_width, {records, o.record.backward()}, {dgates_of(tile.p, tile.row), o.gate_width});
  }

  Block<const S> dgates(int64_t p, int64_t slot) const override { return {dgates_of(p, 0) + slot * kPanel, o.gate_width}; }

  void state_gradient(const Thread& thread, int64_t t, int64_t row, const States<S>& dh) const override {
    const Range mine = thread.of_unit_group(o.r_panels);
    const Range columns{mine.begin * kPanel, std::min(o.R, mine.end * kPanel)};
    thread.for_tiles(o.seq.size[t], [&](int64_t b, int64_t rows) {
      const Block<S> to = dh.at(0, b);
      combine(o.v.hh, row + b, rows, o.w.hh, o.R, columns, to);
      o.apply_reset(t, b, rows, columns.size(), Block<S>{to.p + columns.begin, to.row});
    });
  }

  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    Base::template concat_xh<S>(thread, t, row, {xh_, o.chunk_rows, xh_row_}, o.I);
  }

  // The gradients of weights and biases from the few rows that there are, as they are to be returned.
  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    const int64_t rows = chunk.rows;
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      write_product(o.v.ih, p, rows, xh_, o.I, gradients_.ih);
      write_product(o.v.hh, p, rows, xh_ + o.I, o.R, gradients_.hh);
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

  void write_product(const GateMap& map, int64_t p, int64_t rows, const S* right, int64_t width, S* to) const {
    for (int64_t i = 0; i < map.gates; i++)
      multiply({.m = units_of(o.H, p), .n = width, .k = rows, .a = dgates_of(p, 0) + map.offset() + i * kPanel, .a_m = 1,
                .a_k = o.gate_width, .w = right, .w_k = xh_row_, .c = to + (map.gate[i] * o.H + p * kPanel) * width, .c_m = width,
                .accumulate = false});
  }

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

  const WeightGradients<S> gradients_;
  const int64_t xh_row_;
  Buffer<S> dgates_, xh_;
  std::vector<int64_t> offsets_;  // of each panel's dG
};

}  // namespace fastlstm
