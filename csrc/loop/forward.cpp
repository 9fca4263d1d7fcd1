// The forward over time.
//
// Per step, panel of units and tile of rows: the recurrent product (with the input's, unless that was taken before for a chunk
// of steps), then the gate kernel on the tile, then its results are moved to where they are kept.
#include <optional>
#include <type_traits>

#include "loop/pack.h"
#include "loop/recurrence.h"
#include "loop/team.h"

namespace fastlstm {
namespace {

constexpr int64_t kMaxBlock = 4 * kPanel;  // columns of a product at once
// With no more rows than this in all, packing the weights would not pay; in a single step it takes longer to
constexpr int64_t kUnpackedRows = 8, kUnpackedStepRows = 32;

template <class S>
class Forward {
  using T = compute_t<S>;
  static constexpr bool kSameType = std::is_same_v<S, T>, kBf16 = std::is_same_v<S, BFloat16>;

 public:
  explicit Forward(const ForwardCall<S>& call)
      : f(call), v(call.variant), seq(call.seq), record(call.variant, call.size), I(call.size.I), H(call.size.H), R(call.size.R),
        n_panels(call.size.panels()), r_panels(Sizes::blocks(R)), row_size(record.forward()), micro(micro_kernels<T>()),
        kernel(gate_kernel(v.recurrence, Pass::forward, sizeof(T) == 8)) {}

  void run() {
    const Work work{n_panels, v.hh.width(), I, R, sizeof(T)};
    run_team(
        useful_workers(seq, work, max_workers()), [&](int64_t workers) { set_up(make_plan(seq, work, workers), workers); },
        [&](int64_t worker) { loop(Thread(*team, worker)); });
  }

 private:
  void set_up(const Plan& plan, int64_t workers) {
    team.emplace(plan, workers);
    unpacked = kSameType && !f.size.project && seq.rows() <= (seq.T == 1 ? kUnpackedStepRows : kUnpackedRows);
    if constexpr (kBf16) bf16 = f.size.paired() ? bf16_kernels() : nullptr;
    precompute_input = !unpacked && !bf16 && (plan.precompute_input || !kSameType);
    bias = Buffer<T>(n_panels * record.gate_width());
    if (bf16) packed_pairs = Buffer<Bf16Pair>(n_panels * packed_panel() / 2);
    else if (!unpacked) packed = Buffer<T>(n_panels * packed_panel());
    if (v.peepholes) peepholes = Buffer<T>(n_panels * v.peepholes * kPanel);
    cell = Buffer<T>(n_panels * seq.B * kPanel);
    state_row = padded_row<T>(r_panels * kPanel);
    for (int i = 0; i < 2; i++) {
      if (bf16) bf16_state[i] = Buffer<BFloat16>(seq.B * state_row);
      else state[i] = Buffer<T>(seq.B * state_row);
    }
    if (f.size.project) {
      packed_hr = Buffer<T>(r_panels * kPanel * H);
      hidden_row = padded_row<T>(n_panels * kPanel);
      hidden = Buffer<T>(seq.B * hidden_row);
    }
    if (precompute_input) {
      chunk_rows = max_chunk_rows(seq);
      inputs = Buffer<T>(chunk_rows * I);
      products = Buffer<T>(chunk_rows * n_panels * v.ih.width());
    }
    tile_size = plan.tile_rows * std::max(row_size, kMaxBlock);
    tiles = Buffer<T>(workers * tile_size);
  }

  void loop(const Thread& thread) {
    pack(thread);
    init_states(thread);
    if (!seq.packed) clear_skipped_rows(thread);
    thread.barrier_all();
    for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
      chunk = next_chunk(seq, chunk.end, false);
      if (precompute_input) multiply_inputs(thread, chunk);
      if (thread.in_plan()) {
        int64_t row = 0;
        for (int64_t s = chunk.begin; s < chunk.end; s++) {
          step(thread, s, row);
          row += seq.size[seq.step(s)];
        }
      }
      if (precompute_input) thread.barrier_all();
    }
  }

  void pack(const Thread& thread) {
    const Range panels = thread.mine(n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      std::fill(bias_of(p), bias_of(p) + record.gate_width(), T(0));
      add_bias(f.w.b_ih, v.ih, H, p, bias_of(p));
      add_bias(f.w.b_hh, v.hh, H, p, bias_of(p));
      if (v.peepholes) pack_columns<false>(f.w.peephole, v.peepholes, H, p * kPanel, kPanel, peepholes + p * v.peepholes * kPanel);
      if (unpacked) continue;
      if constexpr (kBf16)
        if (bf16) {
          pack_gate_pairs(f.w.ih, v.ih, H, I, p, pairs_ih(p));
          pack_gate_pairs(f.w.hh, v.hh, H, R, p, pairs_hh(p));
          continue;
        }
      pack_gates(f.w.ih, v.ih, H, I, p, packed_ih(p));
      pack_gates(f.w.hh, v.hh, H, R, p, packed_hh(p));
    }
    if (!f.size.project || !thread.in_plan() || thread.row_group() > 0) return;
    const Range mine = thread.of_unit_group(r_panels);
    for_column_blocks(mine.begin, mine.end, [&](int64_t block, int64_t count) {
      pack_columns<true>(f.w.hr, H, R, block * kPanel, count * kPanel, packed_hr + block * kPanel * H);
    });
  }

  // States that no step changes are final at once: those of sequences of length zero.
  void init_states(const Thread& thread) {
    const Range rows = thread.mine(seq.B);
    for (int64_t b = rows.begin; b < rows.end; b++) {
      for (int64_t i = 0; i < R; i++) f.h_n[b * R + i] = f.h0[b * R + i];
      for (int64_t i = 0; i < H && f.c_n; i++) f.c_n[b * H + i] = f.c0[b * H + i];
      // cut off already where the first step is: the rows of later steps are cut as those are reached
      const int64_t t = seq.T ? seq.step(0) : 0;
      const bool cut = seq.T && b < seq.size[t] && seq.resets_before(t, b);
      const auto fill = [&](auto* h) {
        using V = std::remove_pointer_t<decltype(h)>;
        for (int64_t i = 0; i < r_panels * kPanel; i++) h[i] = i < R && !cut ? static_cast<V>(static_cast<T>(f.h0[b * R + i])) : V(0);
      };
      for (int i = 0; i < 2; i++)
        if (bf16) fill(bf16_state[i] + b * state_row);
        else fill(state[i] + b * state_row);
      for (int64_t i = 0; i < n_panels * kPanel; i++)
        cell[(i / kPanel * seq.B + b) * kPanel + i % kPanel] = i < H && !cut ? static_cast<T>(f.c0[b * H + i]) : T(0);
    }
  }

  void clear_skipped_rows(const Thread& thread) {
    const int64_t saved = n_panels * record.saved();
    const Range steps = thread.mine(seq.T);
    for (int64_t t = steps.begin; t < steps.end; t++) {
      const int64_t begin = seq.first[t] + seq.size[t], end = seq.first[t] + seq.B;
      std::fill(f.y + begin * R, f.y + end * R, S(0));
      if (f.cells) std::fill(f.cells + begin * H, f.cells + end * H, S(0));
      if (f.saved) std::fill(f.saved + begin * saved, f.saved + end * saved, T(0));
    }
  }

  // products[p] = bias + x @ w_ih.T for the rows of all steps of the chunk, in running order.
  void multiply_inputs(const Thread& thread, const Chunk& chunk) {
    int64_t row = 0;
    for (int64_t s = chunk.begin; s < chunk.end; s++) {
      const int64_t t = seq.step(s);
      const Range rows = thread.mine(seq.size[t]);
      convert<S, T>(rows.size(), I, {f.x.at(seq, t, rows.begin), f.x.b_stride}, {inputs + (row + rows.begin) * I, I});
      row += seq.size[t];
    }
    thread.barrier_all();
    if (thread.in_plan()) {
      const Range panels = thread.of_unit_group(n_panels), rows = thread.of_row_group(chunk.rows);
      for (int64_t p = panels.begin; p < panels.end; p++)
        micro.gemm({.m = rows.size(), .n = v.ih.width(), .k = I, .a = inputs + rows.begin * I, .a_m = I,
                   .b = packed_ih(p), .init = bias_of(p) + v.ih.offset(),
                   .c = product(p, rows.begin), .c_m = v.ih.width()});
    }
    if (team->plan.row_groups > 1) thread.barrier_all();
  }

  // `row`: of this step's first row within its chunk.
  void step(const Thread& thread, int64_t s, int64_t row) {
    const int64_t t = seq.step(s), n = seq.size[t];
    T* const tile = tiles + thread.worker * tile_size;
    const Range panels = thread.of_unit_group(n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++)
      thread.for_tiles(n, [&](int64_t b, int64_t rows) {
        T* const saved = f.saved ? f.saved + (seq.first[t] * n_panels + p * n + b) * record.saved() : nullptr;
        if (saved) prefetch<true>(saved, rows * record.saved());
        multiply(s, p, b, rows, row, tile);
        if (p == n_panels - 1) clear_absent_units(rows, tile);
        T* const c = cell + (p * seq.B + b) * kPanel;
        micro.copy(rows, kPanel, {c, kPanel}, {tile + record.c(), row_size});
        if (v.peepholes)
          micro.copy(rows, v.peepholes * kPanel, {peepholes + p * v.peepholes * kPanel, 0}, {tile + record.forward_peepholes(), row_size});
        kernel(tile, rows);
        const Block<const T> new_cell{tile + record.c(), row_size}, new_hidden{tile + record.m(), row_size};
        micro.copy(rows, kPanel, new_cell, {c, kPanel});
        apply_reset(s + 1, b, rows, Block<T>{c, kPanel});
        if (saved) micro.copy(rows, record.saved(), {tile, row_size}, {saved, record.saved()});
        if (f.cells) store(rows, std::min(kPanel, H - p * kPanel), new_cell, {f.cells + (seq.first[t] + b) * H + p * kPanel, H});
        if (f.c_n) store_final(f.c_n, H, t, p, b, rows, new_cell);
        if (f.size.project)
          micro.copy(rows, kPanel, new_hidden, {hidden + b * hidden_row + p * kPanel, hidden_row});
        else
          store_h(s, p, b, rows, new_hidden);
      });
    thread.barrier_group();
    if (!f.size.project) return;
    const Range mine = thread.of_unit_group(r_panels);
    for_column_blocks(mine.begin, mine.end, [&](int64_t block, int64_t count) {
      thread.for_tiles(n, [&](int64_t b, int64_t rows) {
        micro.gemm({.m = rows, .n = count * kPanel, .k = H, .a = hidden + b * hidden_row, .a_m = hidden_row,
                   .b = packed_hr + block * kPanel * H, .c = tile, .c_m = kMaxBlock});
        for (int64_t i = 0; i < count; i++) store_h(s, block + i, b, rows, {tile + i * kPanel, kMaxBlock});
      });
    });
    thread.barrier_group();
  }

  // Panel p of both weights, x's and then h's.
  int64_t packed_panel() const { return I * v.ih.width() + R * v.hh.width(); }
  T* packed_ih(int64_t p) const { return packed + p * packed_panel(); }
  T* packed_hh(int64_t p) const { return packed_ih(p) + I * v.ih.width(); }
  Bf16Pair* pairs_ih(int64_t p) const { return packed_pairs + p * packed_panel() / 2; }
  Bf16Pair* pairs_hh(int64_t p) const { return pairs_ih(p) + I * v.ih.width() / 2; }
  T* bias_of(int64_t p) const { return bias + p * record.gate_width(); }
  T* product(int64_t p, int64_t row) const { return products + (p * chunk_rows + row) * v.ih.width(); }

  // The pre-activations of panel p into the tile's gate slots.
  void multiply(int64_t s, int64_t p, int64_t b, int64_t rows, int64_t row, T* tile) {
    const int64_t t = seq.step(s);
    if (unpacked) return multiply_unpacked(t, p, b, rows, state[s % 2], tile);
    if (bf16) return multiply_bf16(s, p, b, rows, tile);
    const T* const h = state[s % 2] + b * state_row;
    if (v.joint()) {
      if (precompute_input)
        return micro.gemm({.m = rows, .n = v.hh.width(), .k = R, .a = h, .a_m = state_row, .b = packed_hh(p),
                          .init = product(p, row + b), .init_m = v.ih.width(), .c = tile, .c_m = row_size});
      if constexpr (kSameType)
        micro.gemm({.m = rows, .n = v.ih.width(), .k = I, .a = f.x.at(seq, t, b), .a_m = f.x.b_stride, .a2 = h, .a2_m = state_row,
                   .k2 = R, .b = packed_ih(p), .init = bias_of(p), .c = tile, .c_m = row_size});
      return;
    }
    // Some slots are fed by x alone, others by h alone
    T* const recurrent = tile + v.hh.offset();
    micro.copy(rows, record.gate_width(), {bias_of(p), 0}, {tile, row_size});
    if (precompute_input)
      micro.copy(rows, v.ih.width(), {product(p, row + b), v.ih.width()}, {tile + v.ih.offset(), row_size});
    else if constexpr (kSameType)
      micro.gemm({.m = rows, .n = v.ih.width(), .k = I, .a = f.x.at(seq, t, b), .a_m = f.x.b_stride, .b = packed_ih(p),
                 .init = bias_of(p) + v.ih.offset(), .c = tile + v.ih.offset(), .c_m = row_size});
    micro.gemm({.m = rows, .n = v.hh.width(), .k = R, .a = h, .a_m = state_row, .b = packed_hh(p), .init = recurrent,
               .init_m = row_size, .c = recurrent, .c_m = row_size});
  }

  void multiply_bf16(int64_t s, int64_t p, int64_t b, int64_t rows, T* tile) {
    if constexpr (kBf16) {
      const Bf16Pair* const x = pairs(f.x.at(seq, seq.step(s), b));
      const Bf16Pair* const h = pairs(bf16_state[s % 2] + b * state_row);
      if (v.joint())
        return bf16->gemm({.m = rows, .n = v.ih.width(), .k = I / 2, .a = x, .a_m = f.x.b_stride / 2, .a2 = h, .a2_m = state_row / 2,
                           .k2 = R / 2, .b = pairs_ih(p), .init = bias_of(p), .c = tile, .c_m = row_size});
      T* const recurrent = tile + v.hh.offset();
      micro.copy(rows, record.gate_width(), {bias_of(p), 0}, {tile, row_size});
      bf16->gemm({.m = rows, .n = v.ih.width(), .k = I / 2, .a = x, .a_m = f.x.b_stride / 2, .b = pairs_ih(p),
                  .init = bias_of(p) + v.ih.offset(), .c = tile + v.ih.offset(), .c_m = row_size});
      bf16->gemm({.m = rows, .n = v.hh.width(), .k = R / 2, .a = h, .a_m = state_row / 2, .b = pairs_hh(p), .init = recurrent,
                  .init_m = row_size, .c = recurrent, .c_m = row_size});
    }
  }

  // Units that pad the last panel stay zero also where inputs are infinite, and infinity times a padded weight is NaN.
  void clear_absent_units(int64_t rows, T* tile) const {
    for (int64_t row = 0; row < rows; row++)
      for (int64_t slot = 0; slot < v.slots; slot++)
        for (int64_t u = H - (n_panels - 1) * kPanel; u < kPanel; u++) tile[row * row_size + slot * kPanel + u] = T(0);
  }

  void multiply_unpacked(int64_t t, int64_t p, int64_t b, int64_t rows, const T* h_prev, T* tile) {
    if constexpr (kSameType) {
      micro.copy(rows, record.gate_width(), {bias_of(p), 0}, {tile, row_size});
      dot(v.ih, p, rows, I, f.x.at(seq, t, b), f.x.b_stride, f.w.ih, tile);
      dot(v.hh, p, rows, R, h_prev + b * state_row, state_row, f.w.hh, tile);
    }
  }

  void dot(const GateMap& feed, int64_t p, int64_t rows, int64_t k, const T* a, int64_t a_m, const T* w, T* tile) {
    for (int64_t i = 0; i < feed.gates; i++) {
      T* const out = tile + feed.offset() + i * kPanel;
      micro.gemm_unpacked_t({.m = rows, .n = std::min(kPanel, H - p * kPanel), .k = k, .a = a, .a_m = a_m,
                .w = w + (feed.gate[i] * H + p * kPanel) * k, .w_n = k, .init = out, .init_m = row_size, .c = out, .c_m = row_size});
    }
  }

  // New hidden values of block p: for the next step, as output, and as final state of sequences that end here.
  void store_h(int64_t s, int64_t p, int64_t b, int64_t rows, Block<const T> from) {
    const int64_t t = seq.step(s), at = b * state_row + p * kPanel;
    if (bf16) {
      const Block<BFloat16> to{bf16_state[(s + 1) % 2] + at, state_row};
      if constexpr (kBf16) store(rows, kPanel, from, to);
      apply_reset(s + 1, b, rows, to);
    } else {
      const Block<T> to{state[(s + 1) % 2] + at, state_row};
      micro.copy(rows, kPanel, from, to);
      apply_reset(s + 1, b, rows, to);
    }
    store(rows, std::min(kPanel, R - p * kPanel), from, {f.y + (seq.first[t] + b) * R + p * kPanel, R});
    store_final(f.h_n, R, t, p, b, rows, from);
  }

  // Zeroes the state of sequences that are cut before the s-th step is run.
  template <class V>
  void apply_reset(int64_t s, int64_t b, int64_t rows, Block<V> state) const {
    if (!seq.reset || s >= seq.T) return;
    const int64_t t = seq.step(s);
    for (int64_t m = 0; m < std::min(rows, seq.size[t] - b); m++)
      if (seq.resets_before(t, b + m)) std::fill_n(state.p + m * state.row, kPanel, V(0));
  }

  void store_final(S* state_n, int64_t n, int64_t t, int64_t p, int64_t b, int64_t rows, Block<const T> from) {
    const int64_t ended = std::max(b, seq.size_after(t));
    if (ended >= b + rows) return;
    store(b + rows - ended, std::min(kPanel, n - p * kPanel), {from.p + (ended - b) * from.row, from.row},
          {state_n + ended * n + p * kPanel, n});
  }

  void store(int64_t rows, int64_t n, Block<const T> from, Block<S> to) {
    if constexpr (kSameType)
      if (n == kPanel) return micro.copy(rows, n, from, to);
    if constexpr (kBf16)
      if (bf16) return bf16->narrow(rows, n, from, {bits(to.p), to.row});
    convert(rows, n, from, to);
  }

  const ForwardCall<S>& f;
  const Variant& v;
  const Sequence& seq;
  const Record record;
  const int64_t I, H, R, n_panels, r_panels;  // panels of hidden units, and of recurrent ones
  const int64_t row_size;           // of a record, in elements
  const MicroKernels<T>& micro;
  const GateKernel kernel;
  std::optional<Team> team;
  const Bf16Kernels* bf16 = nullptr;
  bool unpacked = false, precompute_input = false;
  int64_t state_row = 0, hidden_row = 0, chunk_rows = 0, tile_size = 0;
  Buffer<T> bias, packed, packed_hr, peepholes;
  Buffer<Bf16Pair> packed_pairs;
  Buffer<T> state[2];  // h, read from one and written to the other in turn
  Buffer<BFloat16> bf16_state[2];
  Buffer<T> cell, hidden, inputs, products, tiles;
};

}  // namespace

template <class S>
void ForwardCall<S>::run() {
  Forward<S>(*this).run();
}

template struct ForwardCall<float>;
template struct ForwardCall<double>;
template struct ForwardCall<torch::headeronly::BFloat16>;
template struct ForwardCall<torch::headeronly::Half>;

}  // namespace fastlstm
