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
        h_{{o, o.images->hh, h, o.seq.B}, {o, o.images->hh, h, o.seq.T > 1 ? o.seq.B : 0}} {}

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
      const Range mine = thread.mine(n);
      for (int64_t b = mine.begin; b < mine.end && o.I > 0; b++) x_.put_input(image + b, t, b);
      image += n;
    }
    thread.barrier_all();
  }
  void end_chunk(const Thread& thread) override { thread.barrier_all(); }

  void init_h(int64_t b, const S* h0, bool cut) override {
    // sequences of different lengths may begin at any step
    const int64_t copies = o.seq.T < 2 || o.seq.size.front() == o.seq.size.back() ? 1 : 2;
    for (int64_t k = 0; k < copies; k++) {
      V* const to = h_[k].pixel(b);
      if (cut) std::fill_n(to, o.R, V(0));
      else convert<S, V>(1, o.R, {h0, 0}, {to, 0});
    }
  }

  void set_h(const Tile& tile, Block<const T> from) override {
    if (tile.s + 1 == o.seq.T) return;
    const int64_t next = o.seq.step(tile.s + 1), units = units_of(o.R, tile.p);
    const Frames<S, V>& frames = h_[(tile.s + 1) % 2];
    frames.for_runs(tile.b, tile.rows, [&](int64_t m, int64_t n, V* pixel) {
      const Block<const T> values{from.p + m * from.row, from.row};
      const Block<V> to{pixel + tile.p * kPanel, frames.frame.row};
      if constexpr (!std::is_same_v<V, T>) o.store(n, units, values, to);
      else if (units == kPanel) o.micro.copy(n, kPanel, values, to);
      else convert<T, V>(n, units, values, to);
      o.apply_reset(next, tile.b + m, n, units, to);
    });
  }

 protected:
  bool multiplies_h() const { return !o.fresh() || o.seq.T > 1; }

  const Frames<S, V> x_, h_[2];  // x: of a chunk's steps; h: what a step begins with, and what it makes, in turn
};

}  // namespace fastlstm
