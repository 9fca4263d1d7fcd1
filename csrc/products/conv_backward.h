// The backward's products of pixels: transposed convolutions of dG, and gradients of weights tap by tap.
#pragma once
#include "products/backward.h"
#include "products/frames.h"

namespace fastlstm {

template <class S>
class ConvBackward final : public BackwardProducts<S> {
  using Base = BackwardProducts<S>;
  using Base::o, Base::f, Base::db;
  static constexpr int64_t kWeightRows = 48;   // rows of a weight gradient per job
  static constexpr int64_t kPixels = 128;      // of dG, at least, which jobs go through before the next ones: it stays in the cache
  static constexpr int64_t kBlock = 256, kBiasBlock = 16;

 public:
  using typename Base::T;
  static constexpr int64_t kTileSize = kFrameRows * kMaxBlock;

  ConvBackward(const Context<S>& context, const BackwardCall<S>& call)
      : Base(context, call), ih(o.images->ih), hh(o.images->hh), width_(o.n_panels * o.gate_width), frame_(frame_of_gates()),
        dg_(o, hh, frame_, o.chunk_rows), x_(o, ih, f.need_dw ? o.I : 0, o.chunk_rows), h_(o, hh, f.need_dw ? o.R : 0, o.chunk_rows),
        of_dh_(taps_of_inputs(hh, frame_, width_)), of_dx_(f.dx ? taps_of_inputs(ih, frame_, width_) : std::vector<Taps>{}),
        of_x_(taps_of_outputs(ih, x_.frame, o.I)), of_h_(taps_of_outputs(hh, h_.frame, o.R)),
        x_jobs_(jobs(of_x_)), h_jobs_(jobs(of_h_)),
        packed_hh_(hh.taps() * width_ * o.r_panels * kPanel), packed_ih_(f.dx ? ih.taps() * width_ * o.i_panels * kPanel : 0),
        kept_{o.chunk_rows, o.gate_width, o.micro.width == kPanel ? kPanel : o.gate_width}, dgates_(o.chunk_rows * width_),
        dw_panel_((o.k_input() + o.k_recurrent() + 1) * o.gate_width), dw_(f.need_dw ? o.n_panels * dw_panel_ : 0) {}

  void pack(int64_t p) override {
    for (int64_t group = 0; group < o.team->plan.unit_groups; group++)
      pack_taps(of_dh_, hh.taps(), o.w.hh, o.R, p, share(o.r_panels, group, o.team->plan.unit_groups), packed_hh_);
    pack_taps(of_dx_, ih.taps(), o.w.ih, o.I, p, {0, o.i_panels}, packed_ih_);
    if (!f.need_dw) return;
    std::fill_n(dw(p), dw_panel_, T(0));
    std::fill_n(db(p), o.gate_width, 0.0);
  }

  void set_up(const Thread& thread) override {
    dg_.clear(thread), x_.clear(thread), h_.clear(thread);
    thread.barrier_all();
  }

  // Twice: as factors of sums over taps, and of sums over pixels.
  void keep(const Tile& tile, const T* records) override {
    const int64_t record = o.record.backward();
    for (int64_t column = 0; column < o.gate_width; column += kept_.width)
      o.micro.copy(tile.rows, kept_.width, {records + column, record}, dgates_of(tile.p, tile.row, column));
    dg_.for_pixels(tile.row, tile.rows, [&](int64_t m, T* pixel) {
      std::copy_n(records + m * record, o.gate_width, pixel + tile.p * o.gate_width);
    });
  }

  Block<const T> dgates(int64_t p, int64_t slot) const override { return constant(dgates_of(p, 0, slot * kPanel)); }

  void state_gradient(const Thread& thread, int64_t t, int64_t row, const States<T>& dh) const override {
    if (o.fresh() && t == o.seq.step(0)) return;
    const Range mine = thread.of_unit_group(o.r_panels);
    for_column_blocks(mine.begin, mine.end, [&](int64_t panel, int64_t count) {
      thread.for_tiles(o.seq.size[t], kFrameRows, [&](int64_t b, int64_t rows) {
        const Block<T> to = dh.at(panel, b);
        multiply(of_dh_[0], 0, hh.taps(), row + b, rows, packed_hh_, panel, count, to);
        o.apply_reset(t, b, rows, count * kPanel, to);
      });
    });
  }

  // The inputs and states that a step began with, in frames.
  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    const int64_t pixels = o.seq.pixels, first = row / pixels;
    const Range images = thread.mine(o.seq.size[t] / pixels);
    for (int64_t b = images.begin; b < images.end && o.I > 0; b++) x_.put_input(first + b, t, b);
    if (o.fresh() && t == o.seq.step(0)) return;
    const int64_t begin = images.begin * pixels, end = images.end * pixels;
    const int64_t known = std::clamp<int64_t>(o.seq.size_before(t) - begin, 0, end - begin);
    if (known > 0)
      this->hidden(thread, o.seq.before(t), begin, known, [&](int64_t first, int64_t n, int64_t p, Block<const T> h) {
        h_.for_pixels(row + begin + first, n, [&](int64_t m, T* pixel) {
          this->round_to(1, units_of(o.R, p), {h.p + m * h.row, 0}, Block<T>{pixel + p * kPanel, 0});
        });
      });
    for (int64_t b = begin; b < end; b++) {
      if (o.seq.resets_before(t, b)) std::fill_n(h_.pixel(row + b), o.R, T(0));
      else if (b >= begin + known) convert<S, T>(1, o.R, {f.h0 + b * o.R, 0}, {h_.pixel(row + b), 0});
    }
  }

  // dw.T[p] += [x, h_prev, 1].T @ dG[p] tap by tap, the ones being the biases' input.
  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    // of the chunk's rows; the last are those of the step that is run first, and h is zero there
    const int64_t rows = chunk.rows, of_h = rows - (o.fresh() && chunk.end == o.seq.T ? o.seq.size[o.seq.step(0)] : 0);
    const int64_t nx = x_jobs_.size(), nh = h_jobs_.size(), per_panel = nx + nh + 1;
    const Range mine = thread.mine(o.n_panels * per_panel);
    for (int64_t line = 0, lines = rows / line_pixels(); line < lines;) {
      const int64_t end = std::min(lines, line + (kPixels + line_pixels() - 1) / line_pixels());
      for (int64_t job = mine.begin; job < mine.end; job++) {
        const int64_t p = job / per_panel, k = job % per_panel;
        const Range of_x{line, end}, until_h{line, std::min(end, of_h / line_pixels())};
        if (k < nx) add_product(ih, of_x_, x_, p, of_x, x_jobs_[k], dw(p));
        else if (k < nx + nh) add_product(hh, of_h_, h_, p, until_h, h_jobs_[k - nx], dw_hh(p));
      }
      line = end;
    }
    for (int64_t job = mine.begin; job < mine.end; job++)
      if (job % per_panel == nx + nh) add_bias_product(job / per_panel, rows);
  }

  // dx: each phase of the strides writes pixels of its own.
  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    T* const tile = o.tile_of(thread);
    int64_t first = 0;
    for (const Taps& taps : of_dx_) {
      const int64_t pixels = taps.pixels.size();
      const Range mine = thread.mine(chunk.rows / o.seq.pixels * pixels);
      for_column_blocks(0, o.i_panels, [&](int64_t panel, int64_t count) {
        const int64_t n = std::min(count * kPanel, o.I - panel * kPanel);
        for (int64_t row = mine.begin; row < mine.end; row += kFrameRows) {
          const int64_t rows = std::min(kFrameRows, mine.end - row);
          multiply(taps, first, ih.taps(), row, rows, packed_ih_, panel, count, {tile, kMaxBlock});
          for (int64_t m = 0; m < rows; m++) {
            S* const image = dx_of(chunk, (row + m) / pixels);
            convert<T, S>(1, n, {tile + m * kMaxBlock, 0}, {image + taps.pixels[(row + m) % pixels] * o.I + panel * kPanel, 0});
          }
        }
      });
      first += taps.taps.size();
    }
  }

  void release() override { packed_ih_ = {}, packed_hh_ = {}, dgates_ = {}; }

  void write(int64_t p, const WeightGradients<S>& to) const override {
    write_transposed(dw(p), o.k_input(), p, to.ih);
    write_transposed(dw_hh(p), o.k_recurrent(), p, to.hh);
    this->write_biases(p, to);
  }

 private:
  // One that holds the taps of both convolutions' inputs.
  Frame frame_of_gates() const {
    Frame frame{.row = frame_row<T>(width_)};
    for (int d = 0; d < kAxes; d++) frame.size[d] = hh.axes[d].out;
    widen(frame, hh);
    if (f.dx) widen(frame, ih);
    return frame;
  }

  // Blocks of columns as in gemm.h, each with its rows in the order of taps: phase by phase.
  void pack_taps(const std::vector<Taps>& phases, int64_t taps, const S* w, int64_t channels, int64_t p, Range panels, T* packed) const {
    for_column_blocks(panels.begin, panels.end, [&](int64_t panel, int64_t count) {
      int64_t first = 0;
      for (const Taps& phase : phases) {
        const Packed layout{static_cast<int64_t>(phase.taps.size()) * width_, count * kPanel, o.micro.width};
        for (size_t k = 0; k < phase.taps.size(); k++)
          pack_gate_columns(w + phase.taps[k] * channels, taps * channels, o.v.hh, o.H, channels, p, panel * kPanel, layout,
                            block_of(packed, first, taps, panel, count), static_cast<int64_t>(k) * width_);
        first += phase.taps.size();
      }
    });
  }
  // Where the rows of a phase that comes after `first` taps are, in the block of `count` panels from `panel` on.
  T* block_of(T* packed, int64_t first, int64_t taps, int64_t panel, int64_t count) const {
    return packed + (taps * panel + first * count) * width_ * kPanel;
  }

  // to = a sum over taps of dG @ w, in `count` panels of columns, for rows [row, row + rows) of the pixels that `taps` writes.
  void multiply(const Taps& taps, int64_t first, int64_t all, int64_t row, int64_t rows, T* packed, int64_t panel, int64_t count,
                Block<T> to) const {
    dg_.product(taps, row, rows, {.n = count * kPanel, .b = block_of(packed, first, all, panel, count), .c = to.p, .c_m = to.row});
  }

  // Where the gradient of an image's inputs goes, by its place in the chunk.
  S* dx_of(const Chunk& chunk, int64_t image) const {
    for (int64_t s = chunk.begin;; s++) {
      const int64_t t = o.seq.step(o.seq.T - 1 - s), images = o.seq.size[t] / o.seq.pixels;
      if (image < images) return f.dx + o.inputs_before(o.seq.first[t]) + image * ih.in() * o.I;
      image -= images;
    }
  }

  // Rows of a weight gradient, in the order of taps and channels, that are one product each.
  static std::vector<Range> jobs(const Taps& taps) {
    std::vector<Range> found;
    for (int64_t first = 0, all = taps.segments.size() * taps.run; first < all; first += taps.run)
      for (int64_t i = 0; i < taps.run; i += kWeightRows)
        found.push_back({first + i, first + std::min(i + kWeightRows, taps.run)});
    return found;
  }

  // Some rows of a panel's dw.T += values[...].T @ dG over lines of pixels, counted through the chunk.
  void add_product(const Convolution& conv, const Taps& taps, const Frames<S>& values, int64_t p, Range lines, Range job, T* to) const {
    if (lines.size() <= 0) return;
    const int64_t pixels = line_pixels(), of_image = o.seq.pixels / pixels;
    int64_t at[kPixels];
    for (int64_t line = lines.begin; line < lines.end; line++)
      at[line - lines.begin] = line / of_image * values.frame.elements() + taps.rows[line % of_image * pixels];
    o.gemm(Gemm<T>{.m = job.size(), .n = o.gate_width, .k = pixels, .batch = lines.size(),
                   .a = values.at(0) + taps.segments[job.begin / taps.run] + job.begin % taps.run, .a_m = 1,
                   .a_k = conv.axes[2].stride * values.frame.row, .a_offsets = at,
                   .b = dgates_of(p, b_k() ? lines.begin * pixels : 0, 0).p, .b_k = b_k(), .b_rows = o.chunk_rows,
                   .b_first = lines.begin * pixels, .c = to + job.begin * o.gate_width, .c_m = o.gate_width,
                   .accumulate = true, .block = kBlock});
  }

  void add_bias_product(int64_t p, int64_t rows) const {
    T* const of_run = dw_hh(p) + o.k_recurrent() * o.gate_width;
    static const T kOne = 1;
    for (int64_t row = 0; row < rows; row += kChunkRows) {
      o.gemm(Gemm<T>{.m = 1, .n = o.gate_width, .k = std::min(kChunkRows, rows - row), .a = &kOne, .a_m = 0, .a_k = 0,
                     .b = dgates_of(p, b_k() ? row : 0, 0).p, .b_k = b_k(), .b_rows = o.chunk_rows, .b_first = row, .c = of_run,
                     .c_m = o.gate_width, .block = kBiasBlock});
      for (int64_t i = 0; i < o.gate_width; i++) db(p)[i] += of_run[i];
    }
  }

  void write_transposed(const T* from, int64_t depth, int64_t p, S* to) const {
    for (int64_t i = 0; i < o.v.ih.gates && depth > 0; i++)
      transpose<T, S>(depth, units_of(o.H, p), {from + i * kPanel, o.gate_width},
                      {to + (o.v.ih.gate[i] * o.H + p * kPanel) * depth, depth});
  }

  int64_t line_pixels() const { return hh.axes[2].out; }
  T* dw(int64_t p) const { return dw_ + p * dw_panel_; }
  T* dw_hh(int64_t p) const { return dw(p) + o.k_input() * o.gate_width; }
  int64_t b_k() const { return kept_.width < o.gate_width ? 0 : o.gate_width; }
  Block<T> dgates_of(int64_t p, int64_t row, int64_t column) const {
    return {dgates_ + p * o.chunk_rows * o.gate_width + kept_.at(row, column), kept_.row(column)};
  }

  const Convolution &ih, &hh;
  const int64_t width_;  // of dG, of all panels
  const Frame frame_;
  const Frames<S> dg_, x_, h_;
  const std::vector<Taps> of_dh_, of_dx_;
  const Taps of_x_, of_h_;
  const std::vector<Range> x_jobs_, h_jobs_;
  Buffer<T> packed_hh_, packed_ih_;
  const Packed kept_;  // where a panel's dG of a chunk's rows is: slot by slot where products take single panels of columns
  Buffer<T> dgates_;
  const int64_t dw_panel_;  // of accumulators: dw_ih.T, dw_hh.T, and the biases of some rows in one
  Buffer<T> dw_;
};

}  // namespace fastlstm
