// The backward's products of pixels by Winograd's convolutions, and gradients of weights as those of their products' right factors.
#pragma once
#include "products/image_backward.h"
#include "products/winograd.h"

namespace fastlstm {

template <class S>
class WinogradBackward final : public ImageBackward<S> {
  using Base = ImageBackward<S>;
  using Base::o, Base::f, Base::ih, Base::hh, Base::width_, Base::dg_, Base::x_, Base::h_, Base::dw, Base::wants_columns;

 public:
  using typename Base::T;

  WinogradBackward(const Context<S>& context, const BackwardCall<S>& call)
      : Base(context, call, frame_of_gates(context, call), Winograd<S>::frame_of_inputs(context.images->ih, frame_row<T>(context.I)),
             Winograd<S>::frame_of_inputs(context.images->hh, frame_row<T>(context.R)), context.k_input() + context.k_recurrent(),
             !context.v.peepholes.empty()),
        winograd_(o, hh.axes[2].kernel), of_outputs_{hh.axes[1].out, hh.axes[2].out}, of_inputs_{ih.axes[1].in, ih.axes[2].in},
        part_(winograd_.products / winograd_.kernels.parts), K_(o.I + o.R),
        columns_(std::max(o.r_panels, wants_columns() ? o.i_panels : 0) * kPanel), lines_(lines_of(of_outputs_)),
        input_lines_(lines_of(of_inputs_)), sum_lines_(lines_of_sums()), gates_m_(of_lines(o.gate_width)), result_m_(of_lines(columns_)),
        dg_m_(TileMatrices::of<T>(sum_lines_ * of_outputs_.columns(), o.gate_width)),
        xh_m_(TileMatrices::of<T>(sum_lines_ * of_outputs_.columns(), K_)),
        in_turn_(wants_columns() && next_chunk(o.seq, 0, true).end == o.seq.T),
        packed_hh_(factors(in_turn_ ? std::max(o.r_panels, o.i_panels) : o.r_panels)),
        packed_ih_(wants_columns() && !in_turn_ ? factors(o.i_panels) : 0),
        of_worker_(std::max({winograd_.products * gates_m_.matrix, f.need_dw ? part_ * (dg_m_.matrix + K_ * o.gate_width) : 0,
                             hh.taps() * o.gate_width * kMaxBlock})),
        dg_factors_(o.team->workers * of_worker_),
        shared_(std::max(o.team->workers * winograd_.products * result_m_.matrix, f.need_dw ? part_ * xh_m_.matrix : 0)) {}

  void pack(const Thread& thread, int64_t p) override {
    Base::pack(thread, p);
    pack_flipped(thread, o.w.hh, o.R, p, packed_hh_);
    if (packed_ih_) pack_flipped(thread, o.w.ih, o.I, p, packed_ih_);
  }

  void state_gradient(const Thread& thread, int64_t t, int64_t row, const States<T>& dh) const override {
    if (o.fresh() && t == o.seq.step(0)) return;
    const int64_t first = row / o.seq.pixels * of_outputs_.lines();
    const Range mine = thread.of_plan(o.seq.size[t] / o.seq.pixels * of_outputs_.lines());
    for (int64_t line = mine.begin; line < mine.end; line += lines_) {
      const Range lines{line, std::min(mine.end, line + lines_)}, rows{of_outputs_.row(lines.begin), of_outputs_.row(lines.end)};
      multiply_gates(thread, hh, of_outputs_, {first + lines.begin, first + lines.end}, packed_hh_, o.r_panels);
      for_column_blocks(0, o.r_panels, [&](int64_t panel, int64_t count) {
        const Block<T> to = dh.at(panel, rows.begin);
        winograd_.to_pixels(of_outputs_, lines.begin, rows.begin, rows.size(), count * kPanel, result_m_, results_of(thread, panel), to);
        o.apply_reset(t, rows.begin, rows.size(), count * kPanel, to);
      });
    }
    thread.barrier_group();  // rows are others' than those of the gates
  }

  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    Base::concat_xh(thread, t, row);
    if (!o.fresh() || t != o.seq.step(0)) return;
    h_.clear(thread, row / o.seq.pixels, o.seq.size[t] / o.seq.pixels);
  }

  // Sums over tiles, a part of the products after the other, so that factors stay in the cache: all threads make those of x and h, then
  // each takes panels of dG, or where there are not enough, some of a panel's channels.
  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    const int64_t all = chunk.rows / o.seq.pixels * of_outputs_.lines(), columns = of_outputs_.columns();
    const int64_t parts = (o.team->workers + o.n_panels - 1) / o.n_panels;
    const Range jobs = thread.mine(o.n_panels * parts);
    T* const dg = dg_factors_of(thread);
    for (int64_t line = 0; line < all; line += sum_lines_) {
      const Range lines{line, std::min(all, line + sum_lines_)}, of_mine = thread.mine(lines.size());
      const Range mine{lines.begin + of_mine.begin, lines.begin + of_mine.end};
      T* const xh = shared_ + of_mine.begin * columns * xh_m_.row;
      for (int i = 0; i < winograd_.kernels.parts; i++) {
        const auto& maps = winograd_.kernels.part[i];
        winograd_.from_frames(maps.inputs, x_, 0, of_outputs_, mine, o.I, xh_m_, xh);
        winograd_.from_frames(maps.inputs, h_, 0, of_outputs_, mine, o.R, xh_m_, xh + o.I);
        thread.barrier_all();
        for (int64_t job = jobs.begin; job < jobs.end; job++) {
          const int64_t p = job / parts;
          if (job == jobs.begin || job % parts == 0)
            winograd_.from_frames(maps.output_gradients, dg_, Winograd<S>::first_pixel(dg_.frame) + p * o.gate_width, of_outputs_, lines,
                                  o.gate_width, dg_m_, dg);
          add_part(maps.weight_gradients, p, share(K_, job % parts, parts), lines.size() * columns, dg);
        }
        thread.barrier_all();
      }
    }
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) this->add_bias_product(p, chunk.rows);
  }

  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    if (!wants_columns()) return Base::input_gradients(thread, chunk);
    if (in_turn_) {
      const Range panels = thread.mine(o.n_panels);
      for (int64_t p = panels.begin; p < panels.end; p++) pack_flipped(thread, o.w.ih, o.I, p, packed_hh_);
      thread.barrier_all();
    }
    T* const tile = o.tile_of(thread);
    const Range mine = thread.mine(chunk.rows / o.seq.pixels * of_inputs_.lines());
    for (int64_t line = mine.begin; line < mine.end; line += input_lines_) {
      const Range lines{line, std::min(mine.end, line + input_lines_)};
      multiply_gates(thread, ih, of_inputs_, lines, in_turn_ ? packed_hh_ : packed_ih_, o.i_panels);
      for_column_blocks(0, o.i_panels, [&](int64_t panel, int64_t count) {
        const int64_t n = std::min(count * kPanel, o.I - panel * kPanel), end = of_inputs_.row(lines.end);
        for (int64_t row = of_inputs_.row(lines.begin), rows; row < end; row += rows) {
          const int64_t pixel = row % of_inputs_.pixels();
          rows = std::min({kFrameRows, end - row, of_inputs_.pixels() - pixel});
          winograd_.to_pixels(of_inputs_, lines.begin, row, rows, count * kPanel, result_m_, results_of(thread, panel),
                              {tile, kMaxBlock});
          S* const image = this->dx_of(chunk, row / of_inputs_.pixels());
          convert<T, S>(rows, n, {tile, kMaxBlock}, {image + pixel * o.I + panel * kPanel, o.I});
        }
      });
    }
  }

  void release() override { packed_ih_ = {}, packed_hh_ = {}, dg_factors_ = {}, shared_ = {}, Base::release(); }

  void write(int64_t p, const WeightGradients<S>& to) const override {
    this->write_weights(dw(p), ih.taps(), o.I, p, to.ih);
    this->write_weights(dw_hh(p), hh.taps(), o.R, p, to.hh);
    this->write_biases(p, to);
  }

 private:
  static constexpr int64_t kSumBytes = 3 << 19, kLeastSumTiles = 64, kMostSumTiles = 256;

  static Frame frame_of_gates(const Context<S>& o, const BackwardCall<S>& f) {
    Frame frame{.row = frame_row<T>(o.n_panels * o.gate_width)};
    for (int d = 0; d < kAxes; d++) frame.size[d] = o.images->hh.axes[d].out;
    Winograd<S>::widen(frame, o.images->hh);
    if (Base::wants_columns(o, f)) Winograd<S>::widen(frame, o.images->ih);
    return frame;
  }
  // So many lines of tiles that a panel of dG's factors and all results stay in the cache; no more than a worker has.
  int64_t lines_of(const TileGrid& grid) const {
    const int64_t workers = o.team->workers, most = (lines_of_chunk(grid) + workers - 1) / workers;
    return std::min(most, winograd_.lines_at_once(grid, (o.gate_width + columns_) / 2));
  }
  // And that a part of the products' factors of a panel and of x and h do: it depends on shapes alone, as the order of sums does.
  int64_t lines_of_sums() const {
    const int64_t of_tile = part_ * (K_ + o.gate_width) * static_cast<int64_t>(sizeof(T));
    const int64_t tiles = std::clamp<int64_t>(kSumBytes / of_tile, kLeastSumTiles, kMostSumTiles);
    return std::clamp<int64_t>(tiles / of_outputs_.columns(), 1, std::max<int64_t>(1, lines_of_chunk(of_outputs_)));
  }
  int64_t lines_of_chunk(const TileGrid& grid) const { return o.chunk_rows / o.seq.pixels * grid.lines(); }
  TileMatrices of_lines(int64_t channels) const {
    const int64_t of_dh = lines_ * of_outputs_.columns(), of_dx = input_lines_ * of_inputs_.columns();
    return TileMatrices::of<T>(std::max(of_dh, wants_columns() ? of_dx : 0), channels);
  }
  int64_t factors(int64_t panels) const { return winograd_.products * width_ * panels * kPanel; }

  // w (gates * H, taps, channels) with its taps in reverse order, in blocks of columns: panel p's rows of the right factors.
  void pack_flipped(const Thread& thread, const S* w, int64_t channels, int64_t p, T* packed) const {
    const int64_t taps = hh.taps(), panels = panels_of(channels);
    T* const weights = dg_factors_of(thread);
    for_column_blocks(0, panels, [&](int64_t panel, int64_t count) {
      const int64_t n = count * kPanel, tap = o.images->taps_inside ? 1 : channels, channel = o.images->taps_inside ? taps : 1;
      for (int64_t k = 0; k < taps; k++)
        pack_gate_columns(w + (taps - 1 - k) * tap, taps * channels, o.v.hh, o.H, channels, p, panel * kPanel,
                          Packed{taps * o.gate_width, n, o.micro.width}, weights, (k - p) * o.gate_width, channel);
      winograd_.pack(weights, o.gate_width, n, p * o.gate_width, width_, packed + factors(panel));
    });
  }

  // Products of dG's tiles in some lines, counted through the chunk, with the right factors of some panels of columns: a sum over one
  // panel of dG after the other, whose factors are all that there is at a time.
  void multiply_gates(const Thread& thread, const Convolution& conv, const TileGrid& grid, Range lines, const T* packed,
                      int64_t panels) const {
    T* const dg = dg_factors_of(thread);
    for (int64_t p = 0; p < o.n_panels; p++) {
      winograd_.from_frames(winograd_.kernels.inputs, dg_, Winograd<S>::first_tap(dg_.frame, conv) + p * o.gate_width, grid, lines,
                            o.gate_width, gates_m_, dg);
      for (int64_t i = 0; i < winograd_.products; i++)
        for_column_blocks(0, panels, [&](int64_t panel, int64_t count) {
          const int64_t product = width_ * count * kPanel;
          const T* const b = packed + factors(panel) + i * product;
          o.gemm(Gemm<T>{.m = lines.size() * grid.columns(), .n = count * kPanel, .k = o.gate_width, .a = dg + i * gates_m_.matrix,
                         .a_m = gates_m_.row, .b = b, .b_rows = width_, .b_first = p * o.gate_width,
                         .next = i + 1 < winograd_.products ? b + product : nullptr, .c = results_of(thread, panel) + i * result_m_.matrix,
                         .c_m = result_m_.row, .accumulate = p > 0, .block = Winograd<S>::kBlock});
        });
    }
  }
  T* dg_factors_of(const Thread& thread) const { return dg_factors_ + thread.worker * of_worker_; }
  T* results_of(const Thread& thread, int64_t panel) const {
    return shared_ + thread.worker * winograd_.products * result_m_.matrix + panel * kPanel;
  }

  // Some channels of a part of a panel's products, of as many tiles, which `map` adds to the gradients of taps.
  void add_part(typename Winograd<S>::Map map, int64_t p, Range channels, int64_t tiles, T* dg) {
    const int64_t n = o.gate_width, taps = winograd_.taps;
    T* const sums = dg + part_ * dg_m_.matrix;
    for (int64_t j = 0; j < part_; j++)
      o.gemm(Gemm<T>{.m = channels.size(), .n = n, .k = tiles, .a = shared_ + j * xh_m_.matrix + channels.begin, .a_m = 1,
                     .a_k = xh_m_.row, .b = dg + j * dg_m_.matrix, .b_k = dg_m_.row, .c = sums + j * channels.size() * n, .c_m = n,
                     .block = Winograd<S>::kBlock});
    const auto add = [&](Range some, int64_t all, T* to) {
      const int64_t product = channels.size() * n;
      if (some.size() > 0)
        map(1, some.size() * n, {sums + (some.begin - channels.begin) * n, winograd_.side * product, product},
            {to, taps * all * n, all * n});
    };
    const Range x{channels.begin, std::min(channels.end, o.I)}, h{std::max(channels.begin, o.I), channels.end};
    add(x, o.I, dw(p) + x.begin * n);
    add(h, o.R, dw_hh(p) + (h.begin - o.I) * n);
  }
  T* dw_hh(int64_t p) const { return dw(p) + o.k_input() * o.gate_width; }

  const Winograd<S> winograd_;
  const TileGrid of_outputs_, of_inputs_;
  const int64_t part_;         // products whose gradients of weights are taken at once
  const int64_t K_, columns_;  // channels of x and h; columns of the results
  const int64_t lines_, input_lines_, sum_lines_;  // lines of tiles at once, of the three sums
  const TileMatrices gates_m_, result_m_, dg_m_, xh_m_;  // of dG; of dh and dx; and for sums over tiles, of dG; of x and h
  const bool in_turn_;               // in a chunk that is all there is, dx comes when dh is done with
  Buffer<T> packed_hh_, packed_ih_;  // right factors; in turn: both in the first
  const int64_t of_worker_;
  Buffer<T> dg_factors_;             // of each worker: left factors, and a part's sums of a panel; before, a block of its weights is there
  Buffer<T> shared_;                 // products of each worker; and in turn, for gradients of weights, the factors of x and h of all
};

}  // namespace fastlstm
