// What the backward's products of images share: gradients of gates, inputs and h in frames, and sums over pixels.
#pragma once
#include <optional>

#include "products/backward.h"
#include "products/few_inputs.h"
#include "products/frames.h"

namespace fastlstm {

// Frames hold elements V.
template <class S, class V = compute_t<S>>
class ImageBackward : public BackwardProducts<S> {
 protected:
  using BackwardProducts<S>::o, BackwardProducts<S>::f, BackwardProducts<S>::db;
  static constexpr int64_t kBiasBlock = 16;
  static constexpr bool kFew = std::is_same_v<V, compute_t<S>>;  // whether few inputs' gradients are taken in a way of their own

 public:
  using typename BackwardProducts<S>::T;
  static constexpr int64_t kTileSize = kFrameRows * kMaxBlock;

  // Frames of dG, x and h; `dw_rows`: of a panel's gradients of weights, as they are summed up; `twice`: dG is kept panel by panel as
  // well.
  ImageBackward(const Context<S>& context, const BackwardCall<S>& call, const Frame& dg, const Frame& x, const Frame& h, int64_t dw_rows,
                bool twice)
      : BackwardProducts<S>(context, call), ih(o.images->ih), hh(o.images->hh), width_(o.n_panels * o.gate_width),
        dg_(o, hh, dg, o.chunk_rows), x_(o, ih, x, f.need_dw ? o.chunk_rows : 0), h_(o, hh, h, f.need_dw ? o.chunk_rows : 0),
        kept_{o.chunk_rows, o.gate_width, o.micro.width == kPanel ? kPanel : o.gate_width},
        dgates_(twice && f.need_dw ? o.chunk_rows * width_ : 0), dw_panel_((dw_rows + 1) * o.gate_width),
        dw_(f.need_dw ? o.n_panels * dw_panel_ : 0) {
    if constexpr (kFew)
      if (f.dx && FewInputs<S>::suit(o.I)) few_.emplace(o, dg_, width_);
  }

  void pack(const Thread&, int64_t p) override {
    if (few_) few_->pack(p);
    if (!f.need_dw) return;
    std::fill_n(dw(p), dw_panel_, T(0));
    std::fill_n(db(p), o.gate_width, 0.0);
  }

  void set_up(const Thread& thread) override {
    dg_.clear(thread), x_.clear(thread), h_.clear(thread);
    thread.barrier_all();
  }

  // As factors of sums over taps, and where they are read panel by panel, of sums over pixels.
  void keep(const Tile& tile, const T* records) override {
    const int64_t record = o.record.backward();
    for (int64_t column = 0; column < o.gate_width && dgates_; column += kept_.width)
      o.micro.copy(tile.rows, kept_.width, {records + column, record}, dgates_of(tile.p, tile.row, column));
    dg_.for_runs(tile.row, tile.rows, [&](int64_t m, int64_t n, V* pixel) {
      const Block<const T> from{records + m * record, record};
      const Block<V> to{pixel + tile.p * o.gate_width, dg_.frame.row};
      if constexpr (kFew) o.micro.copy(n, o.gate_width, from, to);
      else o.store(n, o.gate_width, from, to);
    });
  }

  Block<const T> dgates(int64_t p, int64_t slot) const override { return constant(dgates_of(p, 0, slot * kPanel)); }

  // The inputs and states that a step began with, in frames.
  void concat_xh(const Thread& thread, int64_t t, int64_t row) override {
    const int64_t pixels = o.seq.pixels, first = row / pixels;
    x_.put_inputs(thread, first, t, o.seq.size[t] / pixels);
    if (o.fresh() && t == o.seq.step(0)) return;
    const Range mine = thread.mine(o.seq.size[t]);
    const int64_t known = std::clamp<int64_t>(o.seq.size_before(t) - mine.begin, 0, mine.size());
    if (known > 0)
      this->hidden(thread, o.seq.before(t), mine.begin, known, [&](int64_t first, int64_t n, int64_t p, Block<const T> h) {
        h_.for_runs(row + mine.begin + first, n, [&](int64_t m, int64_t count, V* pixel) {
          this->round_to(count, units_of(o.R, p), {h.p + m * h.row, h.row}, Block<V>{pixel + p * kPanel, h_.frame.row});
        });
      });
    o.take_rows(f.h0, mine.begin + known, mine.size() - known, o.R, [&](int64_t b, int64_t n, int64_t p, Block<const T> h) {
      h_.put_panel(row + b, n, p, o.R, h);
    });
    for (int64_t b = mine.begin; b < mine.end && o.seq.reset; b++)
      if (o.seq.resets_before(t, b)) std::fill_n(h_.pixel(row + b), o.R, V(0));
  }

  // Where inputs have few channels.
  void input_gradients(const Thread& thread, const Chunk& chunk) const override {
    few_->run(thread, chunk.rows, [&](int64_t image) { return dx_of(chunk, image); });
  }

  void release() override {
    dgates_ = {};
    if (few_) few_->release();
  }

 protected:
  // Whether inputs' gradients are to be taken column by column.
  static bool wants_columns(const Context<S>& o, const BackwardCall<S>& f) { return f.dx && !(kFew && FewInputs<S>::suit(o.I)); }
  bool wants_columns() const { return f.dx && !few_; }

  // Where the gradient of an image's inputs goes, by its place in the chunk.
  S* dx_of(const Chunk& chunk, int64_t image) const {
    for (int64_t s = chunk.begin;; s++) {
      const int64_t t = o.seq.step(o.seq.T - 1 - s), images = o.seq.size[t] / o.seq.pixels;
      if (image < images) return f.dx + o.inputs_before(o.seq.first[t]) + image * ih.in() * o.I;
      image -= images;
    }
  }

  // Line by line of the frames. There are many, and so what each sum rounds off joins the next (Kahan's).
  void add_bias_product(int64_t p, int64_t rows) const {
    T* const of_line = dw(p) + dw_panel_ - o.gate_width;
    static const T kOne = 1;
    const int64_t line = hh.axes[2].out;
    double lost[kMaxBlock] = {};
    for (int64_t row = 0; row < rows; row += line) {
      o.gemm(Gemm<T>{.m = 1, .n = o.gate_width, .k = line, .a = &kOne, .a_m = 0, .a_k = 0, .b = dg_.pixel(row) + p * o.gate_width,
                     .b_k = dg_.frame.row, .c = of_line, .c_m = o.gate_width, .block = kBiasBlock});
      for (int64_t i = 0; i < o.gate_width; i++) {
        const double sum = db(p)[i], more = of_line[i] - lost[i], next = sum + more;
        lost[i] = (next - sum) - more;
        db(p)[i] = next;
      }
    }
  }

  // Rows of a panel's gradients of weights, in the order of taps and then channels.
  template <class To>
  void write_weights(const T* from, int64_t taps, int64_t channels, int64_t p, To* to) const {
    const int64_t terms = taps * channels;
    if (!o.images->gradients_inside) return write_transposed(from, terms, p, to, terms);
    constexpr int64_t kRows = 128;
    T rows[kRows * kMaxBlock];
    for (int64_t first = 0; first < terms; first += kRows) {
      const int64_t n = std::min(kRows, terms - first);
      for (int64_t i = 0, at = first; i < n; i++, at++)
        std::copy_n(from + (at % taps * channels + at / taps) * o.gate_width, o.gate_width, rows + i * o.gate_width);
      write_transposed(rows, n, p, to + first, terms);
    }
  }

  // Into `n` columns of the gradients of weights, which have rows of `row`.
  template <class To>
  void write_transposed(const T* from, int64_t n, int64_t p, To* to, int64_t row) const {
    for (int64_t i = 0; i < o.v.ih.gates && n > 0; i++)
      transpose<T, To>(n, units_of(o.H, p), {from + i * kPanel, o.gate_width}, {to + (o.v.ih.gate[i] * o.H + p * kPanel) * row, row});
  }

  T* dw(int64_t p) const { return dw_ + p * dw_panel_; }
  int64_t b_k() const { return kept_.width < o.gate_width ? 0 : o.gate_width; }
  Block<T> dgates_of(int64_t p, int64_t row, int64_t column) const {
    return {dgates_ + p * o.chunk_rows * o.gate_width + kept_.at(row, column), kept_.row(column)};
  }

  const Convolution &ih, &hh;
  const int64_t width_;  // of dG, of all panels
  const Frames<S, V> dg_, x_, h_;
  const Packed kept_;  // where a panel's dG of a chunk's rows is: slot by slot where products take single panels of columns
  Buffer<T> dgates_;
  const int64_t dw_panel_;  // of accumulators: dw_ih.T, dw_hh.T, and the biases' of a line in one
  Buffer<T> dw_;
  std::optional<FewInputs<S>> few_;
};

}  // namespace fastlstm
