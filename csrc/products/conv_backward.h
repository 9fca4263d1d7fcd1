// The backward's products of pixels: transposed convolutions of dG, and gradients of weights tap by tap.
#pragma once
#include "products/image_backward.h"

namespace fastlstm {

template <class S>
class ConvBackward final : public ImageBackward<S> {
  using Base = ImageBackward<S>;
  using Base::o, Base::f, Base::ih, Base::hh, Base::width_, Base::dg_, Base::x_, Base::h_, Base::dw, Base::b_k, Base::dgates_of,
      Base::wants_columns;
  static constexpr int64_t kWeightRows = 48;   // rows of a weight gradient per job
  static constexpr int64_t kPixels = 128;      // of dG, at least, which jobs go through before the next ones: it stays in the cache
  static constexpr int64_t kBlock = 256;

 public:
  using typename Base::T;

  ConvBackward(const Context<S>& context, const BackwardCall<S>& call)
      : Base(context, call, frame_of_gates(context, call), frame_of_inputs(context.images->ih, frame_row<T>(context.I)),
             frame_of_inputs(context.images->hh, frame_row<T>(context.R)), context.k_input() + context.k_recurrent(), true),
        of_dh_(taps_of_inputs(hh, dg_.frame, width_)),
        of_dx_(wants_columns() ? taps_of_inputs(ih, dg_.frame, width_) : std::vector<Taps>{}),
        of_x_(taps_of_outputs(ih, x_.frame, o.I)), of_h_(taps_of_outputs(hh, h_.frame, o.R)), x_jobs_(jobs(of_x_)), h_jobs_(jobs(of_h_)),
        packed_hh_(hh.taps() * width_ * o.r_panels * kPanel), packed_ih_(wants_columns() ? ih.taps() * width_ * o.i_panels * kPanel : 0) {}

  void pack(const Thread& thread, int64_t p) override {
    Base::pack(thread, p);
    for (int64_t group = 0; group < o.team->plan.unit_groups; group++)
      pack_taps(of_dh_, hh.taps(), o.w.hh, o.R, p, share(o.r_panels, group, o.team->plan.unit_groups), packed_hh_);
    pack_taps(of_dx_, ih.taps(), o.w.ih, o.I, p, {0, o.i_panels}, packed_ih_);
  }

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

  // dw.T[p] += [x, h_prev, 1].T @ dG[p] tap by tap, the ones being the biases' input.
  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    const int64_t rows = chunk.rows, of_h = this->rows_of_h(chunk);
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
      if (job % per_panel == nx + nh) this->add_bias_product(job / per_panel, rows);
  }

  // dx: each phase of the strides writes pixels of its own.
  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    if (!wants_columns()) return Base::input_gradients(thread, chunk);
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
            S* const image = this->dx_of(chunk, (row + m) / pixels);
            convert<T, S>(1, n, {tile + m * kMaxBlock, 0}, {image + taps.pixels[(row + m) % pixels] * o.I + panel * kPanel, 0});
          }
        }
      });
      first += taps.taps.size();
    }
  }

  void release() override { packed_ih_ = {}, packed_hh_ = {}, Base::release(); }

  void write(int64_t p, const WeightGradients<S>& to) const override {
    to.visit([&](const auto& any) {
      this->write_weights(dw(p), ih.taps(), o.I, p, any.ih);
      this->write_weights(dw_hh(p), hh.taps(), o.R, p, any.hh);
      this->write_biases(p, any);
    });
  }

 private:
  // One that holds the taps of both convolutions' inputs.
  static Frame frame_of_gates(const Context<S>& o, const BackwardCall<S>& f) {
    Frame frame{.row = frame_row<T>(o.n_panels * o.gate_width)};
    for (int d = 0; d < kAxes; d++) frame.size[d] = o.images->hh.axes[d].out;
    widen(frame, o.images->hh);
    if (Base::wants_columns(o, f)) widen(frame, o.images->ih);
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

  // Rows of a weight gradient, in the order of taps and channels, that are one product each.
  static std::vector<Range> jobs(const Taps& taps) {
    std::vector<Range> found;
    for (int64_t first = 0, all = taps.segments.size() * taps.run; first < all; first += taps.run)
      for (int64_t i = taps.begin; i < taps.end; i += kWeightRows)
        found.push_back({first + i, first + std::min(i + kWeightRows, taps.end)});
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

  int64_t line_pixels() const { return hh.axes[2].out; }
  T* dw_hh(int64_t p) const { return dw(p) + o.k_input() * o.gate_width; }

  const std::vector<Taps> of_dh_, of_dx_;
  const Taps of_x_, of_h_;
  const std::vector<Range> x_jobs_, h_jobs_;
  Buffer<T> packed_hh_, packed_ih_;
};

}  // namespace fastlstm
