// What the parts of a pass over time share: the loop, the stages of a step (cell/) and the products (products/).
#pragma once
#include <cstring>
#include <type_traits>

#include "loop/call.h"
#include "loop/maps.h"
#include "loop/states.h"
#include "loop/team.h"

namespace fastlstm {

using torch::headeronly::BFloat16;

// bfloat16 as the CPU's instructions see it.
inline uint16_t* bits(BFloat16* p) { return reinterpret_cast<uint16_t*>(p); }
inline const uint16_t* bits(const BFloat16* p) { return reinterpret_cast<const uint16_t*>(p); }

constexpr int64_t kMaxBlock = 4 * kPanel;  // columns of a product at once
// Sequences from which on products of float32 are taken by parts, where that is allowed: of several steps, and of one. And units.
constexpr int64_t kSplitRows = 16, kSplitStepRows = 64, kSplitUnits = 64;

// Values of one panel, from rows of one type to rows of another, of which only `n` <= kPanel exist.
template <class From, class To>
void convert(int64_t rows, int64_t n, Block<const From> from, Block<To> to) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] = static_cast<To>(from.p[m * from.row + i]);
}

template <class V>
Block<const V> constant(Block<V> block) {
  return {block.p, block.row};
}

// Some rows of a step, and one panel of units.
struct Tile {
  int64_t s, t;     // the s-th step to be run, which is step t
  int64_t b, rows;  // of the batch
  int64_t row;      // of the first one, among those of the chunk
  int64_t p;
  int64_t next = -1;  // the panel that this thread takes next, where it was not asked for yet
};

// How numbers of type S are multiplied, and sums rounded to them.
template <class S>
struct Arithmetic {
  using T = compute_t<S>;
  static constexpr bool kSameType = std::is_same_v<S, T>, kBf16 = std::is_same_v<S, BFloat16>;

  const MicroKernels<T>& micro = micro_kernels<T>();
  const Bf16Kernels* const bf16 = kBf16 ? bf16_kernels() : nullptr;  // where products are taken by the CPU's instructions for bfloat16

  void gemm(const Gemm<T>& g) const { micro.gemm(g); }
  void gemm(const Gemm<float, Bf16Pair>& g) const { bf16->gemm(g); }

  // to = from, rounded; any n.
  void store(int64_t rows, int64_t n, Block<const T> from, Block<S> to) const {
    if constexpr (kSameType)
      if (n == kPanel) return micro.copy(rows, n, from, to);
    if constexpr (kBf16)
      if (bf16) return bf16->narrow(rows, n, from, {bits(to.p), to.row});
    convert(rows, n, from, to);
  }
};

template <class S>
struct Context : Arithmetic<S> {
  using typename Arithmetic<S>::T;
  using Arithmetic<S>::kSameType, Arithmetic<S>::kBf16, Arithmetic<S>::micro, Arithmetic<S>::bf16, Arithmetic<S>::store;

  // From a ForwardCall or a BackwardCall
  template <class Call>
  explicit Context(const Call& call)
      : v(call.variant), seq(call.seq), size(call.size), w(call.w), x(call.x), images(call.images), I(size.I), H(size.H), R(size.R),
        n_panels(panels_of(H)), r_panels(panels_of(R)), i_panels(panels_of(I)), record(v, size), gate_width(record.gate_width()),
        maps{seq.pixels, H, images && images->paired ? 2 : 1}, split(may_split(call) ? split_kernels() : nullptr),
        fresh_(images ? images->fresh : begins_with_zeros(call)) {}

  const Variant& v;
  const Sequence& seq;
  const Sizes& size;
  const Weights<S>& w;
  const Rows<const S>& x;
  const Images* const images;
  const int64_t I, H, R, n_panels, r_panels, i_panels;  // panels of hidden units, of recurrent ones and of inputs
  const Record record;
  const int64_t gate_width;
  const Maps maps;  // of states
  const SplitKernels* const split;  // where products of float32 are taken by parts of them
  Team* team = nullptr;
  int64_t tile_size = 0, chunk_rows = 0;
  Buffer<T> tiles;  // one of each worker

  // Whether convolutions are products of unfolded pixels: by what multiplies so fast that fewer multiplications would not pay.
  bool unfolds() const { return images && bf16 && bf16->terms_together; }
  // Whether h is zero before the first step, so that no product with it is taken. (Weights of h that are not finite don't show there, nor
  // do gradients that are not, in that of those weights.)
  bool fresh() const { return fresh_; }
  bool fresh_step(int64_t s) const { return s == 0 && fresh_; }
  bool multiplies_h() const { return !fresh_ || seq.T > 1; }
  bool moved() const { return images && images->moved; }
  bool finals_moved() const { return images && images->finals_moved; }
  // Terms of a step's products for one row.
  int64_t k_input() const { return images ? images->ih.taps() * I : I; }
  int64_t k_recurrent() const { return images ? images->hh.taps() * R : R; }
  Work work() const {
    const bool wide = split || (bf16 && bf16->terms_together);
    const int64_t tile_rows = wide ? kWideTileRows : seq.pixels > 1 ? kImageTileRows : kTileRows;
    Work work{n_panels, v.hh.width(), k_input(), k_recurrent(), sizeof(T), tile_rows, 64.0 / sizeof(T), micro.width > kPanel ? 4 : 3};
    if (split) work.bytes_per_value = 2 * split->parts, work.rate = kSplitRate / (2 * split->parts - 1);
    return work;
  }

  // Elements of contiguous inputs before a row of their outputs.
  int64_t inputs_before(int64_t row) const { return images ? row / seq.pixels * images->ih.in() * I : row * I; }

  void make_tiles(int64_t size, int64_t workers) {
    tile_size = size;
    tiles = Buffer<T>(workers * tile_size);
  }
  T* tile_of(const Thread& thread) const { return tiles + thread.worker * tile_size; }

  // to = from, rounded, for panel p of rows [row, row + rows) of a tensor with a row of n for each, in order; `moved`: of maps.
  void put_rows(int64_t row, int64_t rows, int64_t n, int64_t p, Block<const T> from, S* to, bool moved = false) const {
    if (!moved) return store(rows, units_of(n, p), from, {to + row * n + p * kPanel, n});
    maps.for_images(row, rows, [&](int64_t image, int64_t first, int64_t done, int64_t count) {
      const Block<const T> part{from.p + done * from.row, from.row};
      if constexpr (kBf16) maps.put(first, count, p, part, to + image * maps.rows * n, bf16);
      else maps.put(first, count, p, part, to + image * maps.rows * n);
    });
  }
  // to = panel p of rows [row, row + rows) of states of n units; what pads the last panel is zero.
  void take_rows(const State<S>& from, int64_t row, int64_t rows, int64_t n, int64_t p, Block<T> to) const {
    const int64_t units = from.p ? units_of(n, p) : 0;
    for (int64_t m = 0; m < rows && units < kPanel; m++) std::fill_n(to.p + m * to.row + units, kPanel - units, T(0));
    if (units == 0) return;
    if (!from.moved) {
      const Block<const S> block{from.p + row * n + p * kPanel, n};
      if constexpr (kSameType)
        if (units == kPanel) return micro.copy(rows, kPanel, block, to);
      return convert<S, T>(rows, units, block, to);
    }
    maps.for_images(row, rows, [&](int64_t image, int64_t first, int64_t done, int64_t count) {
      maps.get(first, count, p, from.p + image * maps.rows * n, Block<T>{to.p + done * to.row, to.row});
    });
  }
  // Calls put(row, count, p, values) for parts of rows [row, row + rows), panel by panel.
  template <class F>
  void take_rows(const State<S>& from, int64_t row, int64_t rows, int64_t n, const F& put) const {
    T values[Maps::kMost * kPanel];
    for (int64_t end = row + rows, count; row < end; row += count) {
      count = std::min(Maps::kMost, end - row);
      for (int64_t p = 0; p < panels_of(n); p++) {
        take_rows(from, row, count, n, p, {values, kPanel});
        put(row, count, p, Block<const T>{values, kPanel});
      }
    }
  }

  // to += from; any n.
  template <class V>
  void add(int64_t rows, int64_t n, Block<const V> from, Block<T> to) const {
    if constexpr (std::is_same_v<V, T>)
      if (n == kPanel) return micro.add(rows, n, from, to);
    for (int64_t m = 0; m < rows; m++)
      for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] += static_cast<T>(from.p[m * from.row + i]);
  }

  // += panel tile.p of what came for each step, `n` wide; nothing where there is none.
  template <class V>
  void add_given(const Rows<const V>& given, int64_t n, const Tile& tile, Block<T> to) const {
    if (!given.p) return;
    if (given.moved) {
      maps.for_images(tile.b, tile.rows, [&](int64_t image, int64_t first, int64_t done, int64_t count) {
        T values[Maps::kMost * kPanel];
        maps.get(first, count, tile.p, given.p + tile.t * given.t_stride + image * given.b_stride, Block<T>{values, kPanel});
        add(count, units_of(n, tile.p), Block<const T>{values, kPanel}, {to.p + done * to.row, to.row});
      });
      return;
    }
    add(tile.rows, units_of(n, tile.p), Block<const V>{given.at(seq, tile.t, tile.b) + tile.p * kPanel, given.b_stride}, to);
  }

  // Where what is saved of row b of step t is, in panel p; the rows of a step follow one another.
  int64_t saved_at(int64_t t, int64_t p, int64_t b) const {
    return (seq.first[t] * n_panels + p * seq.size[t] + b) * record.saved();
  }

  // Whether sequence b is cut off before the first step that is run. (Those of later steps are cut as those are reached.)
  bool cut_at_start(int64_t b) const {
    if (seq.T == 0 || !seq.reset) return false;
    const int64_t t = seq.step(0);
    return b < seq.size[t] && seq.resets_before(t, b);
  }

  // By the numbers of sequences and units alone, so that parts of a sequence, and what a stream has of them, are multiplied alike, unless
  // they are a single step, which has parts made of its weights for more. Small products gain less than parts cost.
  template <class Call>
  static bool may_split(const Call& call) {
    if (!std::is_same_v<S, float> || call.images || call.size.H < kSplitUnits) return false;
    bool many_steps = call.seq.T > 1;
    if constexpr (requires { call.streams; }) many_steps = many_steps || call.streams;
    return call.seq.B / call.seq.together >= (many_steps ? kSplitRows : kSplitStepRows);
  }

  // A stream's first step is many, and a decoder's h is given.
  template <class Call>
  bool begins_with_zeros(const Call& call) const {
    if constexpr (requires { call.streams; })
      if (call.streams || call.stepwise) return false;
    const auto* const bytes = reinterpret_cast<const char*>(call.h0.p);
    const size_t n = seq.B * R * sizeof(S);
    return !bytes || n == 0 || (*bytes == 0 && std::memcmp(bytes, bytes + 1, n - 1) == 0);
  }

  // Zeroes `n` units of the rows that are cut off before step t is run.
  template <class V>
  void apply_reset(int64_t t, int64_t b, int64_t rows, int64_t n, Block<V> state) const {
    if (!seq.reset) return;
    for (int64_t m = 0; m < std::min(rows, seq.size[t] - b); m++)
      if (seq.resets_before(t, b + m)) std::fill_n(state.p + m * state.row, n, V(0));
  }

 private:
  const bool fresh_;
};

// A part of every step. It ends with a barrier where what follows reads what other threads made.
class Stage {
 public:
  virtual ~Stage() = default;
  // Once, before the first step: this thread's share of what is made of weights.
  virtual void set_up(const Thread&) {}
  // The states of some sequences that the first step begins with.
  virtual void init_state(Range) {}
  // The s-th step to be run; `row` is that of its first row within the chunk of steps.
  virtual void run(const Thread&, int64_t s, int64_t row) = 0;
};

}  // namespace fastlstm
