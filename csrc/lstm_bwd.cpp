// The LSTM's backward over time.
//
// The loop yields gate gradients dG only, kept for a chunk of steps. After each chunk the gradients of weights and inputs are
// taken over all of its rows at once, while dG is still in the cache.
#include <optional>
#include <type_traits>

#include "lstm.h"
#include "pack.h"
#include "team.h"

namespace fastlstm {
namespace {

constexpr int64_t kRecord = kBackwardSlots * kLanes;
constexpr int64_t kWeightRows = 48;  // rows of a weight gradient per job
constexpr int64_t kBiasBlock = 16;   // a bias sums terms of either sign and any size, to little in the end
constexpr int64_t kInputRows = 24;   // rows of an input gradient at a time

template <class S>
class Backward {
  using T = compute_t<S>;

 public:
  explicit Backward(const LstmBackward<S>& call)
      : f(call), seq(call.seq), I(call.size.I), H(call.size.H), R(call.size.R), P(call.size.panels()),
        units(Sizes::blocks(R)), inputs(Sizes::blocks(I)), path(gemm_path<T>()), kernel(gate_kernel(backward_kernel<T>)) {}

  void run() {
    const Work work{P, I, R, sizeof(T)};
    run_team(
        useful_workers(seq, work, max_workers()), [&](int64_t workers) { set_up(make_plan(seq, work, workers), workers); },
        [&](int64_t worker) { loop(Place(*team, worker)); });
  }

 private:
  void set_up(const Plan& plan, int64_t workers) {
    team.emplace(plan, workers);
    const int64_t gates = P * kPanel;
    packed_hh = Buffer<T>(gates * units * kLanes);
    if (f.dx) packed_ih = Buffer<T>(gates * inputs * kLanes);
    if (f.need_dw) dw = Buffer<T>(P * (I + R + 1) * kPanel);
    chunk_rows = max_chunk_rows(seq);
    dgates = Buffer<T>(chunk_rows * gates);
    joined_row = padded_row<T>(I + R);
    if (f.need_dw) joined = Buffer<T>(chunk_rows * joined_row);
    state_row = padded_row<T>(units * kLanes);
    dh = Buffer<T>(seq.B * state_row);
    dc = Buffer<T>(P * seq.B * kLanes);
    c0 = Buffer<T>(P * seq.B * kLanes);
    if (f.size.project) {
      packed_hr = Buffer<T>(R * P * kLanes);
      dprojected = Buffer<T>(chunk_rows * units * kLanes);
      hidden = Buffer<T>(P * chunk_rows * kLanes);
      dw_hr = Buffer<T>(P * R * kLanes);
    }
    tile_size = std::max(plan.tile_rows, kInputRows) * kRecord;
    tiles = Buffer<T>(workers * tile_size);
  }

  void loop(const Place& place) {
    pack(place);
    begin_states(place);
    place.meet_all();
    for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
      chunk = next_chunk(seq, chunk.end, true);
      int64_t row = 0;
      for (int64_t s = chunk.begin; s < chunk.end; s++) {
        const int64_t t = seq.step(seq.T - 1 - s);
        if (place.in_plan()) step(place, t, row);
        if (f.need_dw) join(place, t, row);
        row += seq.size[t];
      }
      place.meet_all();
      if (f.need_dw) weight_gradients(place, chunk.rows);
      if (f.dx) input_gradients(place, chunk);
      place.meet_all();
    }
    finish(place);
  }

  void pack(const Place& place) {
    const Range panels = place.mine(P);
    for (int64_t p = panels.begin; p < panels.end; p++) {
      if (f.dx)
        for_column_blocks(0, inputs, [&](int64_t block, int64_t count) {
          pack_gate_columns(f.w.ih, H, I, p, block * kLanes, count * kLanes, packed_ih + P * kPanel * kLanes * block);
        });
      for (int64_t column = 0; column < team->plan.columns; column++) {
        const Range of_column = share(units, column, team->plan.columns);
        for_column_blocks(of_column.begin, of_column.end, [&](int64_t block, int64_t count) {
          pack_gate_columns(f.w.hh, H, R, p, block * kLanes, count * kLanes, packed_hh + P * kPanel * kLanes * block);
        });
      }
      if (f.need_dw) std::fill(dw + p * (I + R + 1) * kPanel, dw + (p + 1) * (I + R + 1) * kPanel, T(0));
      if (!f.size.project) continue;
      pack_columns<false>(f.w.hr, R, H, p * kLanes, kLanes, packed_hr + p * R * kLanes);
      std::fill(dw_hr + p * R * kLanes, dw_hr + (p + 1) * R * kLanes, T(0));
    }
  }

  void begin_states(const Place& place) {
    const Range rows = place.mine(seq.B);
    for (int64_t b = rows.begin; b < rows.end; b++) {
      for (int64_t i = 0; i < units * kLanes; i++)
        dh[b * state_row + i] = i < R && f.dh_n ? static_cast<T>(f.dh_n[b * R + i]) : T(0);
      for (int64_t i = 0; i < P * kLanes; i++) {
        const int64_t at = (i / kLanes * seq.B + b) * kLanes + i % kLanes;
        dc[at] = i < H && f.dc_n ? static_cast<T>(f.dc_n[b * H + i]) : T(0);
        c0[at] = i < H ? static_cast<T>(f.c0[b * H + i]) : T(0);
      }
    }
  }

  // `row`: of this step's first row within its chunk.
  void step(const Place& place, int64_t t, int64_t row) {
    const int64_t n = seq.size[t];
    T* const tile = tiles + place.worker * tile_size;
    if (f.size.project) add_output_gradient(place, t, row);
    const Range panels = place.of_column(P);
    for (int64_t p = panels.begin; p < panels.end; p++)
      place.for_tiles(n, [&](int64_t b, int64_t rows) {
        fill_tile(t, p, b, rows, row, tile);
        kernel(tile, rows);
        path.copy(rows, kPanel, {tile, kRecord}, {dgates + (p * chunk_rows + row + b) * kPanel, kPanel});
        path.copy(rows, kLanes, {tile + kGradCellSlot * kLanes, kRecord}, {dc + (p * seq.B + b) * kLanes, kLanes});
      });
    place.meet_group();
    const Range mine = place.of_column(units);
    for_column_blocks(mine.begin, mine.end, [&](int64_t block, int64_t count) {
      place.for_tiles(n, [&](int64_t b, int64_t rows) {
        path.gemm({.m = rows, .n = count * kLanes, .k = kPanel, .segments = P, .a = dgates + (row + b) * kPanel,
                   .a_m = kPanel, .a_segment = chunk_rows * kPanel, .b = packed_hh + P * kPanel * kLanes * block,
                   .c = dh + b * state_row + block * kLanes, .c_m = state_row});
      });
    });
  }

  // With a projection, the gradient of its output (all of it, before any panel needs it).
  void add_output_gradient(const Place& place, int64_t t, int64_t row) {
    const Range mine = place.of_column(units);
    const int64_t projected_row = units * kLanes;
    for (int64_t p = mine.begin; p < mine.end; p++)
      place.for_tiles(seq.size[t], [&](int64_t b, int64_t rows) {
        const Block<T> to{dprojected + (row + b) * projected_row + p * kLanes, projected_row};
        path.copy(rows, kLanes, {dh + b * state_row + p * kLanes, state_row}, to);
        add_rows(t, p, b, rows, to);
      });
    place.meet_group();
  }

  // += dy of block p.
  void add_rows(int64_t t, int64_t p, int64_t b, int64_t rows, Block<T> to) {
    if (!f.dy.p) return;
    const S* dy = f.dy.at(seq, t, b) + p * kLanes;
    const int64_t n = std::min(kLanes, R - p * kLanes);
    if constexpr (std::is_same_v<S, T>)
      if (n == kLanes) return path.add(rows, n, {dy, f.dy.b_stride}, to);
    for (int64_t m = 0; m < rows; m++)
      for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] += static_cast<T>(dy[m * f.dy.b_stride + i]);
  }

  void fill_tile(int64_t t, int64_t p, int64_t b, int64_t rows, int64_t row, T* tile) {
    const int64_t n = seq.size[t], before = seq.size_before(t), saved_row = f.size.saved_row();
    const T* const saved = f.saved + (seq.first[t] * P + p * n + b) * saved_row;
    path.copy(rows, kPanel + kLanes, {saved, saved_row}, {tile, kRecord});
    const int64_t known = std::clamp<int64_t>(before - b, 0, rows);  // rows whose previous cell state is not the initial one
    T* const c_prev = tile + kPrevCellSlot * kLanes;
    if (known > 0) {
      const int64_t t_prev = seq.before(t);
      const T* const previous = f.saved + (seq.first[t_prev] * P + p * before + b) * saved_row;
      path.copy(known, kLanes, {previous + kCellSlot * kLanes, saved_row}, {c_prev, kRecord});
    }
    path.copy(rows - known, kLanes, {c0 + (p * seq.B + b + known) * kLanes, kLanes}, {c_prev + known * kRecord, kRecord});
    const Block<T> grad_hidden{tile + kGradHiddenSlot * kLanes, kRecord};
    if (f.size.project) {
      const int64_t projected_row = units * kLanes;
      path.gemm({.m = rows, .n = kLanes, .k = R, .a = dprojected + (row + b) * projected_row, .a_m = projected_row,
                 .b = packed_hr + p * R * kLanes, .c = grad_hidden.p, .c_m = kRecord});
      path.copy(rows, kLanes, {saved + kHiddenSlot * kLanes, saved_row}, {hidden + (p * chunk_rows + row + b) * kLanes, kLanes});
    } else {
      path.copy(rows, kLanes, {dh + b * state_row + p * kLanes, state_row}, grad_hidden);
      add_rows(t, p, b, rows, grad_hidden);
    }
    path.copy(rows, kLanes, {dc + (p * seq.B + b) * kLanes, kLanes}, {tile + kGradCellSlot * kLanes, kRecord});
  }

  // Rows [x, h_prev] of a step, side by side: the left factor of the weight gradients.
  void join(const Place& place, int64_t t, int64_t row) {
    const Range rows = place.mine(seq.size[t]);
    if (rows.size() == 0) return;
    T* const to = joined + (row + rows.begin) * joined_row;
    convert<S, T>(rows.size(), I, {f.x.at(seq, t, rows.begin), f.x.b_stride}, {to, joined_row});
    const int64_t known = std::clamp<int64_t>(seq.size_before(t) - rows.begin, 0, rows.size());
    if (known > 0)
      convert<S, T>(known, R, {f.y + (seq.first[seq.before(t)] + rows.begin) * R, R}, {to + I, joined_row});
    convert<S, T>(rows.size() - known, R, {f.h0 + (rows.begin + known) * R, R}, {to + known * joined_row + I, joined_row});
  }

  // dw.T[p] += [x, h_prev, 1].T @ dG[p], the ones being the biases' input.
  void weight_gradients(const Place& place, int64_t rows) {
    static constexpr T kOne = 1;
    const int64_t depth = I + R, blocks = (depth + kWeightRows - 1) / kWeightRows;
    const Range jobs = place.mine(P * (blocks + 1));
    for (int64_t job = jobs.begin; job < jobs.end; job++) {
      const int64_t p = job / (blocks + 1), first = job % (blocks + 1) * kWeightRows;
      const bool is_bias = first / kWeightRows == blocks;
      const int64_t at = is_bias ? depth : first;
      path.gemm({.m = is_bias ? 1 : std::min(kWeightRows, depth - first), .n = kPanel, .k = rows,
                 .a = is_bias ? &kOne : joined + first, .a_m = is_bias ? 0 : 1, .a_k = is_bias ? 0 : joined_row,
                 .b = dgates + p * chunk_rows * kPanel, .c = dw + (p * (depth + 1) + at) * kPanel, .c_m = kPanel,
                 .accumulate = true, .block = is_bias ? kBiasBlock : Gemm<T>{}.block});
    }
    if (!f.size.project) return;
    const Range panels = place.mine(P);
    for (int64_t p = panels.begin; p < panels.end; p++)
      path.gemm({.m = R, .n = kLanes, .k = rows, .a = dprojected, .a_m = 1, .a_k = units * kLanes,
                 .b = hidden + p * chunk_rows * kLanes, .c = dw_hr + p * R * kLanes, .c_m = kLanes, .accumulate = true});
  }

  // dx = dG @ w_ih, over this worker's share of the chunk's rows.
  void input_gradients(const Place& place, const Chunk& chunk) {
    T* const tile = tiles + place.worker * tile_size;
    const Range mine = place.mine(chunk.rows);
    for_column_blocks(0, inputs, [&](int64_t block, int64_t count) {
      const int64_t n = std::min(count * kLanes, I - block * kLanes);
      for (int64_t row = mine.begin; row < mine.end; row += kInputRows) {
        const int64_t rows = std::min(kInputRows, mine.end - row);
        path.gemm({.m = rows, .n = count * kLanes, .k = kPanel, .segments = P, .a = dgates + row * kPanel, .a_m = kPanel,
                   .a_segment = chunk_rows * kPanel, .b = packed_ih + P * kPanel * kLanes * block, .c = tile, .c_m = kPanel});
        scatter(chunk, row, rows, [&](int64_t i, int64_t m, int64_t to) {
          convert<T, S>(m, n, {tile + i * kPanel, kPanel}, {f.dx + to * I + block * kLanes, I});
        });
      }
    });
  }

  // Calls put(i, m, to) for runs of m rows, of the chunk's rows [row, row + rows), that belong to one step: the i-th and
  // following are rows `to` and following of tensors such as y.
  template <class F>
  void scatter(const Chunk& chunk, int64_t row, int64_t rows, const F& put) {
    int64_t first = 0;
    for (int64_t s = chunk.begin; s < chunk.end && first < row + rows; s++) {
      const int64_t t = seq.step(seq.T - 1 - s), n = seq.size[t];
      const int64_t begin = std::max(first, row), end = std::min(first + n, row + rows);
      if (begin < end) put(begin - row, end - begin, seq.first[t] + begin - first);
      first += n;
    }
  }

  void finish(const Place& place) {
    if (place.worker == 0)  // done with, and as large as the gradients that are written now
      for (Buffer<T>* buffer : {&packed_ih, &packed_hh, &dgates, &joined}) *buffer = Buffer<T>();
    const Range panels = place.mine(P), rows = place.mine(seq.B);
    for (int64_t b = rows.begin; b < rows.end; b++) {
      for (int64_t i = 0; i < R; i++) f.dh0[b * R + i] = static_cast<S>(dh[b * state_row + i]);
      for (int64_t i = 0; i < H; i++)
        f.dc0[b * H + i] = static_cast<S>(dc[(i / kLanes * seq.B + b) * kLanes + i % kLanes]);
    }
    const Range steps = place.mine(seq.packed || !f.dx ? 0 : seq.T);
    for (int64_t t = steps.begin; t < steps.end; t++)
      std::fill(f.dx + (seq.first[t] + seq.size[t]) * I, f.dx + (seq.first[t] + seq.B) * I, S(0));
    if (!f.need_dw) return;
    for (int64_t p = panels.begin; p < panels.end; p++) {
      const T* const from = dw + p * (I + R + 1) * kPanel;
      const int64_t n = std::min(kLanes, H - p * kLanes);
      for (int64_t gate = 0; gate < kGates; gate++) {
        const int64_t first = gate * H + p * kLanes;
        const T* const columns = from + gate * kLanes;
        transpose<T, S>(I, n, {columns, kPanel}, {f.dw_ih + first * I, I});
        transpose<T, S>(R, n, {columns + I * kPanel, kPanel}, {f.dw_hh + first * R, R});
        convert<T, S>(1, n, {columns + (I + R) * kPanel, kPanel}, {f.db + first, n});
      }
      if (f.size.project)
        convert<T, S>(R, n, {dw_hr + p * R * kLanes, kLanes}, {f.dw_hr + p * kLanes, H});
    }
  }

  const LstmBackward<S>& f;
  const Sequence& seq;
  const int64_t I, H, R, P, units, inputs;  // P panels of hidden units, blocks of recurrent units and of inputs
  const GemmPath<T>& path;
  const GateKernel kernel;
  std::optional<Team> team;
  int64_t state_row = 0, joined_row = 0, chunk_rows = 0, tile_size = 0;
  Buffer<T> packed_ih, packed_hh, packed_hr;
  Buffer<T> dh, dc, c0, dgates, joined, dw, dprojected, hidden, dw_hr, tiles;
};

}  // namespace

template <class S>
void LstmBackward<S>::run() {
  Backward<S>(*this).run();
}

template struct LstmBackward<float>;
template struct LstmBackward<double>;
template struct LstmBackward<torch::headeronly::BFloat16>;
template struct LstmBackward<torch::headeronly::Half>;

}  // namespace fastlstm
