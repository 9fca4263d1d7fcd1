// What the forward's products of images share: inputs and h in frames.
#pragma once
#include "products/forward.h"
#include "products/frames.h"

namespace fastlstm {

// Frames hold elements V.
template <class S, class V = compute_t<S>>
class ImageForward : public ForwardProducts<S> {
 protected:
  using ForwardProducts<S>::o;

 public:
  using typename ForwardProducts<S>::T;

  ImageForward(const Context<S>& context, const Frame& x, const Frame& h)
      : ForwardProducts<S>(context), x_(o, o.images->ih, x, o.chunk_rows),
        h_{{o, o.images->hh, h, multiplies_h() ? o.seq.B : 0}, {o, o.images->hh, h, o.seq.T > 1 ? o.seq.B : 0}} {}

  void set_up(const Thread& thread) override {
    x_.clear(thread);
    for (const Frames<S, V>& h : h_) h.clear(thread);
    thread.barrier_all();
  }

  // The inputs of all steps of the chunk, in frames.
  void begin_chunk(const Thread& thread, const Chunk& chunk) override {
    int64_t image = 0;
    for (int64_t s = chunk.begin; s < chunk.end; s++) {
      const int64_t t = o.seq.step(s), n = o.seq.size[t] / o.seq.pixels;
      x_.put_inputs(thread, image, t, n);
      image += n;
    }
    thread.barrier_all();
  }
  void end_chunk(const Thread& thread) override { thread.barrier_all(); }

  void init_h(Range rows, const State<S>& h0) override {
    if (o.fresh() || o.seq.T == 0) return;  // frames are zero
    // sequences of different lengths may begin at any step
    const int64_t copies = o.seq.T < 2 || o.seq.size.front() == o.seq.size.back() ? 1 : 2;
    o.take_rows(h0, rows.begin, rows.size(), o.R, [&](int64_t row, int64_t n, int64_t p, Block<const T> values) {
      for (int64_t k = 0; k < copies; k++) put_h(h_[k], o.seq.step(0), row, n, p, values);
    });
  }

  void set_h(const Tile& tile, Block<const T> from) override {
    if (tile.s + 1 < o.seq.T) put_h(h_[(tile.s + 1) % 2], o.seq.step(tile.s + 1), tile.b, tile.rows, tile.p, from);
  }

 protected:
  bool multiplies_h() const { return o.multiplies_h(); }

  // Panel p of rows of h, as the step `next` begins with them.
  void put_h(const Frames<S, V>& frames, int64_t next, int64_t b, int64_t rows, int64_t p, Block<const T> from) const {
    frames.put_panel(b, rows, p, o.R, from);
    if (!o.seq.reset) return;
    frames.for_runs(b, rows, [&](int64_t m, int64_t n, V* pixel) {
      o.apply_reset(next, b + m, n, units_of(o.R, p), Block<V>{pixel + p * kPanel, frames.frame.row});
    });
  }

  const Frames<S, V> x_, h_[2];  // x: of a chunk's steps; h: what a step begins with, and what it makes, in turn
};

}  // namespace fastlstm
