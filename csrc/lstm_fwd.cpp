// The LSTM's forward over time.
//
// Per step, panel of units and tile of rows: the recurrent product (with the input's, unless that was taken before for a chunk
// of steps), then the gate kernel on the tile, then its results are moved to where they are kept.
#include <optional>
#include <type_traits>

#include "lstm.h"
#include "pack.h"
#include "team.h"

namespace fastlstm {
namespace {

constexpr int64_t kRecord = kForwardSlots * kLanes;
constexpr int64_t kDirectRows = 8;  // with no more rows than this in all, packing the weights would not pay

template <class S>
class Forward {
  using T = compute_t<S>;
  static constexpr bool kSameType = std::is_same_v<S, T>;

 public:
  explicit Forward(const LstmForward<S>& call)
      : f(call), seq(call.seq), I(call.size.I), H(call.size.H), R(call.size.R), P(call.size.panels()),
        units(Sizes::blocks(R)), path(gemm_path<T>()), kernel(gate_kernel(forward_kernel<T>)) {}

  void run() {
    const Work work{P, I, R, sizeof(T)};
    run_team(
        useful_workers(seq, work, max_workers()), [&](int64_t workers) { set_up(make_plan(seq, work, workers), workers); },
        [&](int64_t worker) { loop(Place(*team, worker)); });
  }

 private:
  void set_up(const Plan& plan, int64_t workers) {
    team.emplace(plan, workers);
    direct = kSameType && !f.size.project && seq.rows() <= kDirectRows;
    hoist = !direct && (plan.hoist || !kSameType);
    bias = Buffer<T>(P * kPanel);
    if (!direct) packed = Buffer<T>(P * (I + R) * kPanel);
    cell = Buffer<T>(P * seq.B * kLanes);
    state_row = padded_row<T>(units * kLanes);
    for (auto& h : state) h = Buffer<T>(seq.B * state_row);
    if (f.size.project) {
      packed_hr = Buffer<T>(units * kLanes * H);
      hidden_row = padded_row<T>(P * kLanes);
      hidden = Buffer<T>(seq.B * hidden_row);
    }
    if (hoist) {
      chunk_rows = max_chunk_rows(seq);
      inputs = Buffer<T>(chunk_rows * I);
      products = Buffer<T>(chunk_rows * P * kPanel);
    }
    tile_size = plan.tile_rows * kRecord;
    tiles = Buffer<T>(workers * tile_size);
  }

  void loop(const Place& place) {
    pack(place);
    begin_states(place);
    if (!seq.packed) clear_skipped_rows(place);
    place.meet_all();
    for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
      chunk = next_chunk(seq, chunk.end, false);
      if (hoist) multiply_inputs(place, chunk);
      if (place.in_plan()) {
        int64_t row = 0;
        for (int64_t s = chunk.begin; s < chunk.end; s++) {
          step(place, s, row);
          row += seq.size[seq.step(s)];
        }
      }
      if (hoist) place.meet_all();
    }
  }

  void pack(const Place& place) {
    const Range panels = place.mine(P);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      pack_bias(f.w.b_ih, f.w.b_hh, H, p, bias + p * kPanel);
      if (direct) continue;
      pack_gates(f.w.ih, H, I, p, packed_ih(p));
      pack_gates(f.w.hh, H, R, p, packed_hh(p));
    }
    if (!f.size.project || !place.in_plan() || place.group() > 0) return;
    const Range mine = place.of_column(units);
    for_column_blocks(mine.begin, mine.end, [&](int64_t block, int64_t count) {
      pack_columns<true>(f.w.hr, H, R, block * kLanes, count * kLanes, packed_hr + block * kLanes * H);
    });
  }

  // States that no step changes are final at once: those of sequences of length zero.
  void begin_states(const Place& place) {
    const Range rows = place.mine(seq.B);
    for (int64_t b = rows.begin; b < rows.end; b++) {
      for (int64_t i = 0; i < R; i++) f.h_n[b * R + i] = f.h0[b * R + i];
      for (int64_t i = 0; i < H; i++) f.c_n[b * H + i] = f.c0[b * H + i];
      for (T* h : {state[0] + b * state_row, state[1] + b * state_row})
        for (int64_t i = 0; i < units * kLanes; i++) h[i] = i < R ? static_cast<T>(f.h0[b * R + i]) : T(0);
      for (int64_t i = 0; i < P * kLanes; i++)
        cell[(i / kLanes * seq.B + b) * kLanes + i % kLanes] = i < H ? static_cast<T>(f.c0[b * H + i]) : T(0);
    }
  }

  void clear_skipped_rows(const Place& place) {
    const int64_t record = P * f.size.saved_row();
    const Range steps = place.mine(seq.T);
    for (int64_t t = steps.begin; t < steps.end; t++) {
      const int64_t begin = seq.first[t] + seq.size[t], end = seq.first[t] + seq.B;
      std::fill(f.y + begin * R, f.y + end * R, S(0));
      if (f.saved) std::fill(f.saved + begin * record, f.saved + end * record, T(0));
    }
  }

  // products[p] = bias + x @ w_ih.T for the rows of all steps of the chunk, in running order.
  void multiply_inputs(const Place& place, const Chunk& chunk) {
    int64_t row = 0;
    for (int64_t s = chunk.begin; s < chunk.end; s++) {
      const int64_t t = seq.step(s);
      const Range rows = place.mine(seq.size[t]);
      convert<S, T>(rows.size(), I, {f.x.at(seq, t, rows.begin), f.x.b_stride}, {inputs + (row + rows.begin) * I, I});
      row += seq.size[t];
    }
    place.meet_all();
    if (place.in_plan()) {
      const Range panels = place.of_column(P), rows = place.of_group(chunk.rows);
      for (int64_t p = panels.begin; p < panels.end; p++)
        path.gemm({.m = rows.size(), .n = kPanel, .k = I, .a = inputs + rows.begin * I, .a_m = I,
                   .b = packed_ih(p), .init = bias + p * kPanel,
                   .c = products + (p * chunk_rows + rows.begin) * kPanel, .c_m = kPanel});
    }
    if (team->plan.groups > 1) place.meet_all();
  }

  // `row`: of this step's first row within its chunk.
  void step(const Place& place, int64_t s, int64_t row) {
    const int64_t t = seq.step(s), n = seq.size[t];
    T* const tile = tiles + place.worker * tile_size;
    const T* const h_prev = state[s % 2];
    T* const h = state[(s + 1) % 2];
    const Range panels = place.of_column(P);
    for (int64_t p = panels.begin; p < panels.end; p++)
      place.for_tiles(n, [&](int64_t b, int64_t rows) {
        multiply(t, p, b, rows, row, h_prev, tile);
        if (p == P - 1) clear_absent_units(rows, tile);
        T* const c = cell + (p * seq.B + b) * kLanes;
        path.copy(rows, kLanes, {c, kLanes}, {tile + kCellSlot * kLanes, kRecord});
        kernel(tile, rows);
        path.copy(rows, kLanes, {tile + kCellSlot * kLanes, kRecord}, {c, kLanes});
        if (f.saved) {
          const int64_t saved_row = f.size.saved_row();
          path.copy(rows, saved_row, {tile, kRecord},
                    {f.saved + (seq.first[t] * P + p * n + b) * saved_row, saved_row});
        }
        keep_final(f.c_n, H, t, p, b, rows, tile + kCellSlot * kLanes);
        const Block<const T> out{tile + kHiddenSlot * kLanes, kRecord};
        if (f.size.project)
          path.copy(rows, kLanes, out, {hidden + b * hidden_row + p * kLanes, hidden_row});
        else
          emit(t, p, b, rows, out, h);
      });
    place.meet_group();
    if (!f.size.project) return;
    const Range mine = place.of_column(units);
    for_column_blocks(mine.begin, mine.end, [&](int64_t block, int64_t count) {
      place.for_tiles(n, [&](int64_t b, int64_t rows) {
        path.gemm({.m = rows, .n = count * kLanes, .k = H, .a = hidden + b * hidden_row, .a_m = hidden_row,
                   .b = packed_hr + block * kLanes * H, .c = tile, .c_m = kRecord});
        for (int64_t i = 0; i < count; i++) emit(t, block + i, b, rows, {tile + i * kLanes, kRecord}, h);
      });
    });
    place.meet_group();
  }

  // Panel p of both weights, x's and then h's: (I + R, kPanel).
  T* packed_ih(int64_t p) const { return packed + p * (I + R) * kPanel; }
  T* packed_hh(int64_t p) const { return packed_ih(p) + I * kPanel; }

  // The pre-activations of panel p into the tile's gate slots.
  void multiply(int64_t t, int64_t p, int64_t b, int64_t rows, int64_t row, const T* h_prev, T* tile) {
    if (direct) return multiply_direct(t, p, b, rows, h_prev, tile);
    const T* const h = h_prev + b * state_row;
    if (hoist)
      return path.gemm({.m = rows, .n = kPanel, .k = R, .a = h, .a_m = state_row, .b = packed_hh(p),
                        .init = products + (p * chunk_rows + row + b) * kPanel, .init_m = kPanel, .c = tile, .c_m = kRecord});
    if constexpr (kSameType)
      path.gemm({.m = rows, .n = kPanel, .k = I, .a = f.x.at(seq, t, b), .a_m = f.x.b_stride, .a2 = h, .a2_m = state_row,
                 .k2 = R, .b = packed_ih(p), .init = bias + p * kPanel, .c = tile, .c_m = kRecord});
  }

  // Units that pad the last panel stay zero also where inputs are infinite, and infinity times a padded weight is NaN.
  void clear_absent_units(int64_t rows, T* tile) const {
    for (int64_t row = 0; row < rows; row++)
      for (int64_t gate = 0; gate < kGates; gate++)
        for (int64_t u = H - (P - 1) * kLanes; u < kLanes; u++) tile[row * kRecord + gate * kLanes + u] = T(0);
  }

  void multiply_direct(int64_t t, int64_t p, int64_t b, int64_t rows, const T* h_prev, T* tile) {
    if constexpr (kSameType)
      for (int64_t gate = 0; gate < kGates; gate++) {
        const int64_t first = gate * H + p * kLanes, n = std::min(kLanes, H - p * kLanes);
        T* const out = tile + gate * kLanes;
        path.copy(rows, kLanes, {bias + p * kPanel + gate * kLanes, 0}, {out, kRecord});
        path.dot({.m = rows, .n = n, .k = I, .a = f.x.at(seq, t, b), .a_m = f.x.b_stride, .w = f.w.ih + first * I, .w_n = I,
                  .init = out, .init_m = kRecord, .c = out, .c_m = kRecord});
        path.dot({.m = rows, .n = n, .k = R, .a = h_prev + b * state_row, .a_m = state_row, .w = f.w.hh + first * R,
                  .w_n = R, .init = out, .init_m = kRecord, .c = out, .c_m = kRecord});
      }
  }

  // New hidden values of block p: for the next step, as output, and as final state of sequences that end here.
  void emit(int64_t t, int64_t p, int64_t b, int64_t rows, Block<const T> from, T* h) {
    path.copy(rows, kLanes, from, {h + b * state_row + p * kLanes, state_row});
    store(rows, std::min(kLanes, R - p * kLanes), from, {f.y + (seq.first[t] + b) * R + p * kLanes, R});
    keep_final(f.h_n, R, t, p, b, rows, from.p);
  }

  void keep_final(S* state_n, int64_t n, int64_t t, int64_t p, int64_t b, int64_t rows, const T* values) {
    const int64_t ended = std::max(b, seq.size_after(t));
    if (ended >= b + rows) return;
    store(b + rows - ended, std::min(kLanes, n - p * kLanes), {values + (ended - b) * kRecord, kRecord},
          {state_n + ended * n + p * kLanes, n});
  }

  void store(int64_t rows, int64_t n, Block<const T> from, Block<S> to) {
    if constexpr (kSameType)
      if (n == kLanes) return path.copy(rows, n, from, to);
    convert(rows, n, from, to);
  }

  const LstmForward<S>& f;
  const Sequence& seq;
  const int64_t I, H, R, P, units;  // P panels of hidden units, `units` blocks of recurrent ones
  const GemmPath<T>& path;
  const GateKernel kernel;
  std::optional<Team> team;
  bool direct = false, hoist = false;
  int64_t state_row = 0, hidden_row = 0, chunk_rows = 0, tile_size = 0;
  Buffer<T> bias, packed, packed_hr;
  Buffer<T> state[2];  // h, read from one and written to the other in turn
  Buffer<T> cell, hidden, inputs, products, tiles;
};

}  // namespace

template <class S>
void LstmForward<S>::run() {
  Forward<S>(*this).run();
}

template struct LstmForward<float>;
template struct LstmForward<double>;
template struct LstmForward<torch::headeronly::BFloat16>;
template struct LstmForward<torch::headeronly::Half>;

}  // namespace fastlstm
