// Pre-activations of pixels: convolutions of the inputs and of h.
#pragma once
#include "products/forward.h"
#include "products/frames.h"

namespace fastlstm {

template <class S>
class ConvForward final : public ForwardProducts<S> {
  using Base = ForwardProducts<S>;
  using Base::o, Base::bias_of;

 public:
  using typename Base::T;

  ConvForward(const Context<S>& context)
      : Base(context), x_(o, o.images->ih, o.I, o.chunk_rows), h_{{o, o.images->hh, o.R, o.seq.B}, {o, o.images->hh, o.R, o.seq.T > 1 ? o.seq.B : 0}},
        of_x_(taps_of_outputs(o.images->ih, x_.frame, o.I)), of_h_(taps_of_outputs(o.images->hh, h_[0].frame, o.R)),
        packed_(o.n_panels * panel()) {}

  void pack(int64_t p) override {
    Base::pack(p);
    const int64_t x = o.k_input(), h = o.k_recurrent(), n = o.v.ih.width();
    pack_gates(o.w.ih, o.v.ih, o.H, x, p, {x, n, o.micro.width}, 0, packed_ih(p));
    if (multiplies_h()) pack_gates(o.w.hh, o.v.hh, o.H, h, p, {h, n, o.micro.width}, 0, packed_hh(p));
  }

  void set_up(const Thread& thread) override {
    x_.clear(thread);
    for (const Frames<S>& h : h_) h.clear(thread);
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

  void into_tile(const Tile& tile, T* records) const override {
    const int64_t c_m = o.record.forward(), n = o.v.ih.width();
    const T* const bias = bias_of(tile.p);
    if (o.I > 0) x_.product(of_x_, tile.row, tile.rows, {.n = n, .b = packed_ih(tile.p), .init = bias, .c = records, .c_m = c_m});
    else o.micro.copy(tile.rows, n, {bias, 0}, {records, c_m});
    if (tile.s == 0 && o.fresh()) return;
    h_[tile.s % 2].product(of_h_, tile.b, tile.rows, {.n = n, .b = packed_hh(tile.p), .c = records, .c_m = c_m, .accumulate = true});
  }

  void init_h(int64_t b, const S* h0, bool cut) override {
    // sequences of different lengths may begin at any step
    const int64_t copies = o.seq.T < 2 || o.seq.size.front() == o.seq.size.back() ? 1 : 2;
    for (int64_t k = 0; k < copies; k++) {
      T* const to = h_[k].pixel(b);
      if (cut) std::fill_n(to, o.R, T(0));
      else convert<S, T>(1, o.R, {h0, 0}, {to, 0});
    }
  }

  void set_h(const Tile& tile, Block<const T> from) override {
    if (tile.s + 1 == o.seq.T) return;
    const int64_t next = o.seq.step(tile.s + 1), units = units_of(o.R, tile.p);
    h_[(tile.s + 1) % 2].for_pixels(tile.b, tile.rows, [&](int64_t m, T* pixel) {
      T* const to = pixel + tile.p * kPanel;
      const bool cut = o.seq.reset && tile.b + m < o.seq.size[next] && o.seq.resets_before(next, tile.b + m);
      if (cut) std::fill_n(to, units, T(0));
      else if (units == kPanel) std::copy_n(from.p + m * from.row, kPanel, to);
      else std::copy_n(from.p + m * from.row, units, to);
    });
  }

 private:
  bool multiplies_h() const { return !o.fresh() || o.seq.T > 1; }
  int64_t panel() const { return (o.k_input() + (multiplies_h() ? o.k_recurrent() : 0)) * o.v.ih.width(); }
  T* packed_ih(int64_t p) const { return packed_ + p * panel(); }
  T* packed_hh(int64_t p) const { return packed_ih(p) + o.k_input() * o.v.ih.width(); }

  const Frames<S> x_, h_[2];  // x: of a chunk's steps; h: what a step begins with, and what it makes, in turn
  const Taps of_x_, of_h_;
  Buffer<T> packed_;
};

}  // namespace fastlstm
