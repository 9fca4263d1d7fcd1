// The backward's products of pixels in bfloat16, where the CPU multiplies whole registers of it: gradients of states and inputs are
// products of unfolded pixels of dG with weights, gradients of weights those of dG with unfolded pixels of x and h.
#pragma once
#include <utility>

#include "products/image_backward.h"
#include "products/unfolded.h"

namespace fastlstm {

template <class S>
class UnfoldedBackward final : public ImageBackward<S, S> {
  using Base = ImageBackward<S, S>;
  using Base::o, Base::f, Base::ih, Base::hh, Base::width_, Base::dg_, Base::x_, Base::h_, Base::db;
  using Pair = Bf16Pair;

 public:
  using typename Base::T;

  UnfoldedBackward(const Context<S>& context, const BackwardCall<S>& call)
      : Base(context, call, frame_of_gates(context, call), frame_of_inputs(context.images->ih, context.I),
             frame_of_inputs(context.images->hh, context.R), 0, !context.v.peepholes.empty()),
        of_dh_(taps_of_inputs(hh, dg_.frame, width_)),
        of_dx_(f.dx ? taps_of_inputs(ih, dg_.frame, width_) : std::vector<Taps>{}), left_row_(left_row()),
        left_(o.team->workers * kFrameRows * left_row_), dx_(f.dx ? o.team->workers * kFrameRows * o.i_panels * kPanel : 0),
        packed_hh_(packed_size(hh.taps(), o.R)), packed_ih_(f.dx ? packed_size(ih.taps(), o.I) : 0),
        of_x_(taps_of_outputs(ih, x_.frame, o.I)), of_h_(taps_of_outputs(hh, h_.frame, o.R)), x_terms_(of_x_.terms()),
        one_(x_terms_ + of_h_.terms()), terms_(whole_terms(one_ + 1)), blocks_((terms_ + kMaxBlock - 1) / kMaxBlock),
        pixels_(pixels_at_once()), dg_row_(padded_row<Pair>(pixels_ / 2)) {
    if (!f.need_dw) return;
    rows_ = Buffer<S>(o.team->workers * 2 * blocks_ * kMaxBlock);
    xh_ = Buffer<Pair>(blocks_ * kMaxBlock * pixels_ / 2);
    dg_pairs_ = Buffer<Pair>(o.team->workers * kPanel * o.gate_width);
    dg_terms_ = Buffer<Pair>(width_ * dg_row_);
    dw_ = Buffer<T>(width_ * terms_);
  }

  void pack(const Thread& thread, int64_t p) override {
    Base::pack(thread, p);
    pack_taps(of_dh_, o.w.hh, hh.taps(), o.R, p, packed_hh_);
    pack_taps(of_dx_, o.w.ih, ih.taps(), o.I, p, packed_ih_);
    if (f.need_dw) std::fill_n(dw_of(p, 0), o.gate_width * terms_, T(0));
  }

  void set_up(const Thread& thread) override {
    if (f.need_dw) {  // what is behind x and h stays so: one, and zeros
      std::fill_n(rows_of(thread), 2 * blocks_ * kMaxBlock, S(0));
      for (const int64_t row : {0, 1}) rows_of(thread)[row * blocks_ * kMaxBlock + one_] = S(1);
    }
    Base::set_up(thread);
  }

  void state_gradient(const Thread& thread, int64_t t, int64_t row, const States<T>& dh) const override {
    const bool of_states = !o.fresh() || t != o.seq.step(0);
    if (!of_states && !joined_) return;
    const Range mine = thread.of_plan(o.seq.size[t]);
    for (int64_t b = mine.begin; b < mine.end; b += kFrameRows) {
      const int64_t rows = std::min(kFrameRows, mine.end - b);
      const Block<T> to = dh.at(0, b), dx = dx_tile(thread);
      multiply(thread, of_dh_[0], row + b, rows, {packed_hh_, of_states ? o.r_panels : 0, to}, {packed_ih_, joined_ ? o.i_panels : 0, dx});
      if (of_states) o.apply_reset(t, b, rows, o.r_panels * kPanel, to);
      if (joined_) o.store(rows, o.I, constant(dx), {f.dx + o.inputs_before(o.seq.first[t]) + b * o.I, o.I});
    }
    thread.barrier_group();  // rows are others' than those of the gates
  }

  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    Base::concat_xh(thread, t, row);
    if (o.fresh() && t == o.seq.step(0)) h_.clear(thread, row / o.seq.pixels, o.seq.size[t] / o.seq.pixels);
  }

  // dw[p] += dG[p].T @ [x, h, 1], unfolded, some pixels at a time: pairs of them are terms.
  void weight_gradients(const Thread& thread, const Chunk& chunk) override {
    const Range jobs = thread.mine(blocks_ * o.n_panels);
    for (int64_t first = 0; first < chunk.rows; first += pixels_) {
      const int64_t pixels = std::min(pixels_, chunk.rows - first), pairs = whole_terms(pixels) / 2;
      pair_inputs(thread, first, pixels, pairs);
      pair_gates(thread, first, pixels, pairs);
      thread.barrier_all();
      for (int64_t job = jobs.begin; job < jobs.end; job++) {
        const int64_t block = job / o.n_panels, p = job % o.n_panels;
        o.gemm(Gemm<T, Pair>{.m = o.gate_width, .n = std::min(kMaxBlock, terms_ - block * kMaxBlock), .k = pairs,
                             .a = dg_terms_ + p * o.gate_width * dg_row_, .a_m = dg_row_, .b = xh_of(block, 0), .b_k = kMaxBlock,
                             .c = dw_of(p, block * kMaxBlock), .c_m = terms_, .accumulate = true});
      }
      thread.barrier_all();
    }
    // a bias' sum is the chunk's alone: those of all join in float64
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++)
      for (int64_t column = 0; column < o.gate_width; column++)
        db(p)[column] += std::exchange(dw_of(p, one_)[column * terms_], T(0));
  }

  // dx: each phase of the strides writes pixels of its own.
  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    if (joined_) return;
    const Block<T> dx = dx_tile(thread);
    const Pair* packed = packed_ih_;
    for (const Taps& taps : of_dx_) {
      const int64_t pixels = taps.pixels.size();
      const Range mine = thread.mine(chunk.rows / o.seq.pixels * pixels);
      for (int64_t row = mine.begin; row < mine.end; row += kFrameRows) {
        const int64_t rows = std::min(kFrameRows, mine.end - row);
        multiply(thread, taps, row, rows, {packed, o.i_panels, dx});
        S* image = nullptr;
        for (int64_t m = 0; m < rows; m++) {
          const int64_t pixel = (row + m) % pixels;
          if (m == 0 || pixel == 0) image = this->dx_of(chunk, (row + m) / pixels);
          o.store(1, o.I, {dx.p + m * dx.row, 0}, {image + taps.pixels[pixel] * o.I, 0});
        }
      }
      packed += packed_size(taps.taps.size(), o.I);
    }
  }

  void release() override {
    packed_ih_ = {}, packed_hh_ = {}, left_ = {}, dx_ = {}, xh_ = {}, dg_terms_ = {};
    Base::release();
  }

  void write(int64_t p, const WeightGradients<S>& to) const override {
    to.visit([&](const auto& any) {
      for (int64_t i = 0; i < o.v.ih.gates; i++)
        for (int64_t u = 0; u < units_of(o.H, p); u++) {
          const int64_t column = i * kPanel + u, row = o.v.ih.gate[i] * o.H + p * kPanel + u;
          const T* const from = dw_of(p, 0) + column * terms_;
          write_row(from, of_x_, o.I, any.ih + row * o.k_input());
          write_row(from + x_terms_, of_h_, o.R, any.hh + row * o.k_recurrent());
        }
      this->write_biases(p, any);
    });
  }

 private:
  static constexpr int64_t kLeftBytes = 1 << 19;  // of a worker's unfolded dG
  static constexpr int64_t kPartBytes = 1 << 23, kLeastPixels = 256, kMostPixels = 1024;  // of what weights' gradients take at a time

  // One that holds the taps of both convolutions' inputs.
  static Frame frame_of_gates(const Context<S>& o, const BackwardCall<S>& f) {
    Frame frame{.row = o.n_panels * o.gate_width};
    for (int d = 0; d < kAxes; d++) frame.size[d] = o.images->hh.axes[d].out;
    widen(frame, o.images->hh);
    if (f.dx) widen(frame, o.images->ih);
    return frame;
  }

  int64_t pixels_at_once() const {
    const int64_t of_part = kPartBytes / (terms_ * static_cast<int64_t>(sizeof(S))) / kWholeTerms * kWholeTerms;
    return std::min(whole_terms(o.chunk_rows), std::clamp(of_part, kLeastPixels, kMostPixels));
  }
  int64_t packed_size(int64_t taps, int64_t channels) const { return taps * width_ / 2 * panels_of(channels) * kPanel; }

  // A row of the gradients of weights, in the order of taps and then channels; those that are not met are left as they are.
  template <class To>
  void write_row(const T* from, const Taps& of, int64_t channels, To* to) const {
    const int64_t taps = of.taps.size(), terms = of.terms(), met = of.end - of.begin;
    const auto put = [&](int64_t n, const T* some, To* at) {
      if constexpr (std::is_same_v<To, S>) o.store(1, n, {some, 0}, {at, 0});
      else std::copy_n(some, n, at);
    };
    if (!o.images->gradients_inside) {
      for (size_t k = 0; k < of.segments.size(); k++) put(met, from + k * met, to + k * of.run + of.begin);
      return;
    }
    constexpr int64_t kTerms = 1024;
    T part[kTerms];
    for (int64_t first = 0, n; first < terms; first += n) {
      n = std::min(kTerms, terms - first);
      for (int64_t i = 0, at = first; i < n; i++, at++) part[i] = from[at % taps * channels + at / taps];
      put(n, part, to + first);
    }
  }

  // Blocks of columns, each with its rows in the order of taps: phase by phase.
  void pack_taps(const std::vector<Taps>& phases, const S* w, int64_t taps, int64_t channels, int64_t p, Pair* packed) const {
    const int64_t tap = o.images->taps_inside ? 1 : channels, channel = o.images->taps_inside ? taps : 1;
    for (const Taps& phase : phases) {
      const int64_t all = static_cast<int64_t>(phase.taps.size()) * width_ / 2;
      for_column_blocks(0, panels_of(channels), [&](int64_t panel, int64_t count) {
        for (size_t k = 0; k < phase.taps.size(); k++)
          pack_gate_columns(w + phase.taps[k] * tap, taps * channels, o.v.hh, o.H, channels, p, panel * kPanel,
                            {all, count * kPanel, o.micro.width}, packed + panel * kPanel * all, static_cast<int64_t>(k) * width_ / 2,
                            channel);
      });
      packed += packed_size(phase.taps.size(), channels);
    }
  }

  // Segments of dG that are unfolded at once.
  int64_t segments_at_once(const Taps& taps) const {
    const int64_t most = kLeftBytes / (kFrameRows * static_cast<int64_t>(sizeof(S)) * std::max<int64_t>(taps.run, 1));
    return std::clamp<int64_t>(most, 1, std::max<int64_t>(1, taps.segments.size()));
  }
  int64_t left_row() const {
    int64_t most = 0;
    for (const std::vector<Taps>* phases : {&of_dh_, &of_dx_})
      for (const Taps& taps : *phases) most = std::max(most, segments_at_once(taps) * taps.run);
    return padded_row<S>(whole_terms(most));
  }

  // What dG is multiplied with, and where to: some panels of columns.
  struct Factor {
    const Pair* packed = nullptr;
    int64_t panels = 0;
    Block<T> to{};
  };

  // Sums over taps of dG @ w, for rows [row, row + rows) of the pixels that `taps` writes.
  void multiply(const Thread& thread, const Taps& taps, int64_t row, int64_t rows, const Factor& one, const Factor& two = {}) const {
    const int64_t segments = taps.segments.size(), group = segments_at_once(taps), all = segments * taps.run / 2;
    const Block<S> left{left_ + thread.worker * kFrameRows * left_row_, left_row_};
    if (segments == 0) fill_rows(rows, one.panels * kPanel, T(0), one.to);
    for (int64_t first = 0; first < segments; first += group) {
      const Range some{first, std::min(segments, first + group)};
      unfold(dg_, taps, some, row, rows, left);
      for (const Factor* factor : {&one, &two})
        for_column_blocks(0, factor->panels, [&](int64_t panel, int64_t count) {
          o.gemm(Gemm<T, Pair>{.m = rows, .n = count * kPanel, .k = some.size() * taps.run / 2, .a = factors<Pair>(left.p),
                               .a_m = left.row / 2, .b = factor->packed + panel * kPanel * all, .b_rows = all,
                               .b_first = first * taps.run / 2, .c = factor->to.p + panel * kPanel, .c_m = factor->to.row,
                               .accumulate = first > 0});
        });
    }
  }

  // Unfolded pixels of x and h in pairs, and zeros to whole registers: blocks of columns, one after the other.
  void pair_inputs(const Thread& thread, int64_t first, int64_t pixels, int64_t pairs) const {
    const Range mine = thread.mine(pairs);
    S* const rows = rows_of(thread);
    const int64_t row = blocks_ * kMaxBlock, of_image = o.seq.pixels;
    for (int64_t j = mine.begin; j < mine.end; j++) {
      for (int64_t i = 0; i < 2; i++) {
        S* const to = rows + i * row;
        const int64_t pixel = first + 2 * j + i, image = pixel / of_image, at = pixel % of_image;
        if (2 * j + i >= pixels) {
          std::fill_n(to, one_, S(0));
          continue;
        }
        S* const behind = unfold_pixel(x_.at(image) + 0, of_x_.rows[at], of_x_, all_segments(of_x_), to);
        unfold_pixel(h_.at(image) + 0, of_h_.rows[at], of_h_, all_segments(of_h_), behind);
      }
      for (int64_t block = 0; block < blocks_; block++)
        o.bf16->interleave(kMaxBlock, bits(rows + block * kMaxBlock), bits(rows + row + block * kMaxBlock), xh_of(block, j));
    }
  }

  // dG transposed, panel by panel, with pairs of pixels side by side, and zeros to whole registers.
  void pair_gates(const Thread& thread, int64_t first, int64_t pixels, int64_t pairs) const {
    const int64_t parts = pairs / kPanel, n = o.gate_width;
    const Range mine = thread.mine(o.n_panels * parts);
    Pair* const rows = dg_pairs_ + thread.worker * kPanel * n;
    for (int64_t job = mine.begin; job < mine.end; job++) {
      const int64_t p = job / parts, part = job % parts * kPanel;
      for (int64_t j = 0; j < kPanel; j++) {
        const int64_t pixel = 2 * (part + j);
        const S *one = kZeros, *two = kZeros;
        if (pixel < pixels) one = dg_.pixel(first + pixel) + p * n;
        if (pixel + 1 < pixels) two = dg_.pixel(first + pixel + 1) + p * n;
        o.bf16->interleave(n, bits(one), bits(two), rows + j * n);
      }
      // as numbers of as many bytes
      o.micro.transpose(kPanel, n, {reinterpret_cast<const T*>(rows), n},
                        {reinterpret_cast<T*>(dg_terms_ + p * n * dg_row_ + part), dg_row_});
    }
  }

  // Whether both convolutions' inputs have the same pixels and taps: dG is then unfolded once, and dx taken with dh.
  bool joins() const {
    const auto alike = [](const Taps& a, const Taps& b) {
      return a.rows == b.rows && a.pixels == b.pixels && a.segments == b.segments && a.taps == b.taps;
    };
    return of_dx_.size() == 1 && alike(of_dx_[0], of_dh_[0]);
  }
  Block<T> dx_tile(const Thread& thread) const { return {dx_ + thread.worker * kFrameRows * o.i_panels * kPanel, o.i_panels * kPanel}; }

  S* rows_of(const Thread& thread) const { return rows_ + thread.worker * 2 * blocks_ * kMaxBlock; }
  Pair* xh_of(int64_t block, int64_t pair) const { return xh_ + (block * pixels_ / 2 + pair) * kMaxBlock; }
  T* dw_of(int64_t p, int64_t column) const { return dw_ + p * o.gate_width * terms_ + column; }

  static inline const S kZeros[4 * kMaxBlock] = {};

  const std::vector<Taps> of_dh_, of_dx_;
  const bool joined_ = joins();
  const int64_t left_row_;
  Buffer<S> left_;  // of each worker: unfolded dG
  Buffer<T> dx_;
  Buffer<Pair> packed_hh_, packed_ih_;
  const Taps of_x_, of_h_;
  const int64_t x_terms_, one_, terms_;  // of a row: those of x, of x and h, behind which is a one, and all
  const int64_t blocks_, pixels_;        // of kMaxBlock columns; that weights' gradients take at a time
  const int64_t dg_row_;
  Buffer<S> rows_;                  // of each worker, of two pixels: x and h, and one
  Buffer<Pair> xh_, dg_pairs_;      // with pixels in pairs; dg_pairs_: of each worker, some of a panel
  Buffer<Pair> dg_terms_;           // transposed
  Buffer<T> dw_;  // rows of dG by unfolded columns
};

}  // namespace fastlstm
