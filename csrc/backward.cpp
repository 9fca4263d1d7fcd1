// The backward over time.
//
// The loop yields gate gradients dG only, kept for a chunk of steps. After each chunk the gradients of weights and inputs are
// taken over all of its rows at once, while dG is still in the cache.
#include <optional>
#include <type_traits>

#include "pack.h"
#include "recurrence.h"
#include "team.h"

namespace fastlstm {
namespace {

constexpr int64_t kWeightRows = 48;  // rows of a weight gradient per job
constexpr int64_t kBiasBlock = 16;   // a bias sums terms of either sign and any size, to little in the end
constexpr int64_t kInputRows = 24;   // rows of an input gradient at a time
constexpr int64_t kMaxBlock = 4 * kLanes;

template <class S>
class Backward {
  using T = compute_t<S>;

 public:
  explicit Backward(const BackwardCall<S>& call)
      : f(call), v(call.variant), seq(call.seq), record(call.variant, call.size), I(call.size.I), H(call.size.H), R(call.size.R),
        P(call.size.panels()), units(Sizes::blocks(R)), inputs(Sizes::blocks(I)), gates(record.gates()),
        row_size(record.backward()), path(gemm_path<T>()), kernel(gate_kernel(v.recurrence, Pass::backward, sizeof(T) == 8)) {}

  void run() {
    const Work work{P, v.hh.columns(), I, R, sizeof(T)};
    run_team(
        useful_workers(seq, work, max_workers()), [&](int64_t workers) { set_up(make_plan(seq, work, workers), workers); },
        [&](int64_t worker) { loop(Place(*team, worker)); });
  }

 private:
  void set_up(const Plan& plan, int64_t workers) {
    team.emplace(plan, workers);
    packed_hh = Buffer<T>(P * v.hh.columns() * units * kLanes);
    if (f.dx) packed_ih = Buffer<T>(P * v.ih.columns() * inputs * kLanes);
    if (f.need_dw) dw = Buffer<T>(P * dw_panel());
    chunk_rows = max_chunk_rows(seq);
    dgates = Buffer<T>(chunk_rows * P * gates);
    if (v.peepholes) {
      peepholes = Buffer<T>(P * v.peepholes * kLanes);
      dpeepholes = Buffer<T>(P * v.peepholes * kLanes);
      seen_cells = Buffer<T>(P * chunk_rows * 2 * kLanes);
    }
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
    tile_size = std::max(plan.tile_rows * row_size, kInputRows * kMaxBlock);
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
          pack_gate_columns(f.w.ih, v.ih, H, I, p, block * kLanes, count * kLanes, packed_ih + P * v.ih.columns() * kLanes * block);
        });
      for (int64_t column = 0; column < team->plan.columns; column++) {
        const Range of_column = share(units, column, team->plan.columns);
        for_column_blocks(of_column.begin, of_column.end, [&](int64_t block, int64_t count) {
          pack_gate_columns(f.w.hh, v.hh, H, R, p, block * kLanes, count * kLanes, packed_hh + P * v.hh.columns() * kLanes * block);
        });
      }
      if (f.need_dw) std::fill(dw + p * dw_panel(), dw + (p + 1) * dw_panel(), T(0));
      if (v.peepholes) {
        const int64_t size = v.peepholes * kLanes;
        pack_columns<false>(f.w.peephole, v.peepholes, H, p * kLanes, kLanes, peepholes + p * size);
        std::fill_n(dpeepholes + p * size, size, T(0));
      }
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
        path.copy(rows, gates, {tile, row_size}, {dgates + (p * chunk_rows + row + b) * gates, gates});
        const Block<T> to{dc + (p * seq.B + b) * kLanes, kLanes};
        path.copy(rows, kLanes, {tile + record.grad_cell(), row_size}, to);
        cut_off(t, b, rows, kLanes, to);
      });
    place.meet_group();
    const Range mine = place.of_column(units);
    for_column_blocks(mine.begin, mine.end, [&](int64_t block, int64_t count) {
      place.for_tiles(n, [&](int64_t b, int64_t rows) {
        const Block<T> to{dh + b * state_row + block * kLanes, state_row};
        path.gemm({.m = rows, .n = count * kLanes, .k = v.hh.columns(), .segments = P,
                   .a = dgates + (row + b) * gates + v.hh.offset(), .a_m = gates, .a_segment = chunk_rows * gates,
                   .b = packed_hh + P * v.hh.columns() * kLanes * block, .c = to.p, .c_m = to.row});
        cut_off(t, b, rows, count * kLanes, to);
      });
    });
  }

  // No gradient crosses a cut: zeroes that of the state that rows of step t were cut off from.
  void cut_off(int64_t t, int64_t b, int64_t rows, int64_t n, Block<T> state) const {
    if (!seq.reset) return;
    for (int64_t m = 0; m < rows; m++)
      if (seq.cut_before(t, b + m)) std::fill_n(state.p + m * state.row, n, T(0));
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
  void add_rows(int64_t t, int64_t p, int64_t b, int64_t rows, Block<T> to) const { add_given(f.dy, R, t, p, b, rows, to); }

  // += block p of the gradients that came for each step, `size` wide.
  void add_given(const Rows<const S>& given, int64_t size, int64_t t, int64_t p, int64_t b, int64_t rows, Block<T> to) const {
    if (!given.p) return;
    const S* from = given.at(seq, t, b) + p * kLanes;
    const int64_t n = std::min(kLanes, size - p * kLanes);
    if constexpr (std::is_same_v<S, T>)
      if (n == kLanes) return path.add(rows, n, {from, given.b_stride}, to);
    for (int64_t m = 0; m < rows; m++)
      for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] += static_cast<T>(from[m * given.b_stride + i]);
  }

  void fill_tile(int64_t t, int64_t p, int64_t b, int64_t rows, int64_t row, T* tile) {
    const int64_t n = seq.size[t], before = seq.size_before(t), saved_row = record.saved();
    const T* const saved = f.saved + (seq.first[t] * P + p * n + b) * saved_row;
    path.copy(rows, gates + kLanes, {saved, saved_row}, {tile, row_size});
    const int64_t known = std::clamp<int64_t>(before - b, 0, rows);  // rows whose previous cell state is not the initial one
    const Block<T> prev_cell{tile + record.prev_cell(), row_size};
    if (known > 0) {
      const int64_t t_prev = seq.before(t);
      const T* const previous = f.saved + (seq.first[t_prev] * P + p * before + b) * saved_row;
      path.copy(known, kLanes, {previous + record.cell(), saved_row}, prev_cell);
    }
    path.copy(rows - known, kLanes, {c0 + (p * seq.B + b + known) * kLanes, kLanes}, {prev_cell.p + known * row_size, row_size});
    cut_off(t, b, rows, kLanes, prev_cell);
    const Block<T> grad_hidden{tile + record.grad_hidden(), row_size}, grad_cell{tile + record.grad_cell(), row_size};
    if (f.size.project) {
      const int64_t projected_row = units * kLanes;
      path.gemm({.m = rows, .n = kLanes, .k = R, .a = dprojected + (row + b) * projected_row, .a_m = projected_row,
                 .b = packed_hr + p * R * kLanes, .c = grad_hidden.p, .c_m = row_size});
      path.copy(rows, kLanes, {saved + record.hidden(), saved_row}, {hidden + (p * chunk_rows + row + b) * kLanes, kLanes});
    } else {
      path.copy(rows, kLanes, {dh + b * state_row + p * kLanes, state_row}, grad_hidden);
      add_rows(t, p, b, rows, grad_hidden);
    }
    path.copy(rows, kLanes, {dc + (p * seq.B + b) * kLanes, kLanes}, grad_cell);
    add_given(f.dcells, H, t, p, b, rows, grad_cell);
    if (!v.peepholes) return;
    path.copy(rows, v.peepholes * kLanes, {peepholes + p * v.peepholes * kLanes, 0}, {tile + record.backward_peepholes(), row_size});
    if (f.need_dw)  // c and c_prev, side by side as in the record
      path.copy(rows, 2 * kLanes, {tile + record.cell(), row_size}, {seen_cells + (p * chunk_rows + row + b) * 2 * kLanes, 2 * kLanes});
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
    cut_off(t, rows.begin, rows.size(), R, {to + I, joined_row});
  }

  // A panel's accumulators: dw_ih.T (I, columns), dw_hh.T (R, columns), and both biases' in one row of all slots.
  int64_t dw_panel() const { return I * v.ih.columns() + R * v.hh.columns() + gates; }
  T* dw_ih(int64_t p) const { return dw + p * dw_panel(); }
  T* dw_hh(int64_t p) const { return dw_ih(p) + I * v.ih.columns(); }
  T* db(int64_t p) const { return dw_hh(p) + R * v.hh.columns(); }

  // dw.T[p] += [x, h_prev, 1].T @ dG[p], the ones being the biases' input; cut into jobs of some rows of dw.T each.
  void weight_gradients(const Place& place, int64_t rows) {
    static constexpr T kOne = 1;
    const int64_t of_x = (I + kWeightRows - 1) / kWeightRows, of_h = (R + kWeightRows - 1) / kWeightRows, per_panel = of_x + of_h + 1;
    const Range jobs = place.mine(P * per_panel);
    for (int64_t job = jobs.begin; job < jobs.end; job++) {
      const int64_t p = job / per_panel, k = job % per_panel;
      const T* const dg = dgates + p * chunk_rows * gates;
      if (k < of_x)
        add_product(v.ih, dg, rows, joined, I, k, dw_ih(p));
      else if (k < of_x + of_h)
        add_product(v.hh, dg, rows, joined + I, R, k - of_x, dw_hh(p));
      else
        path.gemm({.m = 1, .n = gates, .k = rows, .a = &kOne, .a_m = 0, .a_k = 0, .b = dg, .c = db(p), .c_m = gates,
                   .accumulate = true, .block = kBiasBlock});
    }
    const Range mine = place.mine(P);
    for (int64_t p = mine.begin; p < mine.end && v.peepholes; p++)
      for (int64_t k = 0; k < v.peepholes; k++) {
        const bool output = k == v.peepholes - 1;  // o sees the new cell, the gates before it the old one
        const int64_t slot = output ? v.slots - 1 : k;
        path.dots(rows, {dgates + p * chunk_rows * gates + slot * kLanes, gates},
                  {seen_cells + p * chunk_rows * 2 * kLanes + (output ? 0 : kLanes), 2 * kLanes},
                  dpeepholes + (p * v.peepholes + k) * kLanes);
      }
    if (!f.size.project) return;
    const Range panels = place.mine(P);
    for (int64_t p = panels.begin; p < panels.end; p++)
      path.gemm({.m = R, .n = kLanes, .k = rows, .a = dprojected, .a_m = 1, .a_k = units * kLanes,
                 .b = hidden + p * chunk_rows * kLanes, .c = dw_hr + p * R * kLanes, .c_m = kLanes, .accumulate = true});
  }

  // The k-th kWeightRows rows of a panel's dw.T, of which there are `depth`, += (left.T @ dG).
  void add_product(const Feed& feed, const T* dg, int64_t rows, const T* left, int64_t depth, int64_t k, T* to) {
    const int64_t first = k * kWeightRows;
    path.gemm({.m = std::min(kWeightRows, depth - first), .n = feed.columns(), .k = rows, .a = left + first, .a_m = 1,
               .a_k = joined_row, .b = dg + feed.offset(), .b_k = gates, .c = to + first * feed.columns(), .c_m = feed.columns(),
               .accumulate = true});
  }

  // dx = dG @ w_ih, over this worker's share of the chunk's rows.
  void input_gradients(const Place& place, const Chunk& chunk) {
    T* const tile = tiles + place.worker * tile_size;
    const Range mine = place.mine(chunk.rows);
    for_column_blocks(0, inputs, [&](int64_t block, int64_t count) {
      const int64_t n = std::min(count * kLanes, I - block * kLanes);
      for (int64_t row = mine.begin; row < mine.end; row += kInputRows) {
        const int64_t rows = std::min(kInputRows, mine.end - row);
        path.gemm({.m = rows, .n = count * kLanes, .k = v.ih.columns(), .segments = P, .a = dgates + row * gates + v.ih.offset(),
                   .a_m = gates, .a_segment = chunk_rows * gates, .b = packed_ih + P * v.ih.columns() * kLanes * block,
                   .c = tile, .c_m = kMaxBlock});
        scatter(chunk, row, rows, [&](int64_t i, int64_t m, int64_t to) {
          convert<T, S>(m, n, {tile + i * kMaxBlock, kMaxBlock}, {f.dx + to * I + block * kLanes, I});
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
      const auto dcell = [&](int64_t i) { return dc[(i / kLanes * seq.B + b) * kLanes + i % kLanes]; };
      for (int64_t i = 0; i < R; i++) f.dh0[b * R + i] = static_cast<S>(dh[b * state_row + i] + (v.cell ? T(0) : dcell(i)));
      for (int64_t i = 0; i < H && v.cell; i++) f.dc0[b * H + i] = static_cast<S>(dcell(i));
    }
    const Range steps = place.mine(seq.packed || !f.dx ? 0 : seq.T);
    for (int64_t t = steps.begin; t < steps.end; t++)
      std::fill(f.dx + (seq.first[t] + seq.size[t]) * I, f.dx + (seq.first[t] + seq.B) * I, S(0));
    if (!f.need_dw) return;
    for (int64_t p = panels.begin; p < panels.end; p++) {
      const int64_t n = std::min(kLanes, H - p * kLanes);
      write(v.ih, dw_ih(p), I, p, n, f.dw_ih);
      write(v.hh, dw_hh(p), R, p, n, f.dw_hh);
      write(v.ih, db(p) + v.ih.offset(), 1, p, n, f.db_ih);
      if (f.db_hh) write(v.hh, db(p) + v.hh.offset(), 1, p, n, f.db_hh);
      if (v.peepholes)
        convert<T, S>(v.peepholes, n, {dpeepholes + p * v.peepholes * kLanes, kLanes}, {f.dw_peephole + p * kLanes, H});
      if (f.size.project)
        convert<T, S>(R, n, {dw_hr + p * R * kLanes, kLanes}, {f.dw_hr + p * kLanes, H});
    }
  }

  // Panel p of a gradient (gates * H, depth) from its transpose.
  void write(const Feed& feed, const T* from, int64_t depth, int64_t p, int64_t n, S* to) {
    for (int64_t i = 0; i < feed.gates; i++)
      transpose<T, S>(depth, n, {from + i * kLanes, feed.columns()}, {to + (feed.gate[i] * H + p * kLanes) * depth, depth});
  }

  const BackwardCall<S>& f;
  const Variant& v;
  const Sequence& seq;
  const Record record;
  const int64_t I, H, R, P, units, inputs;  // P panels of hidden units, blocks of recurrent units and of inputs
  const int64_t gates, row_size;            // of a record, in elements
  const GemmPath<T>& path;
  const GateKernel kernel;
  std::optional<Team> team;
  int64_t state_row = 0, joined_row = 0, chunk_rows = 0, tile_size = 0;
  Buffer<T> packed_ih, packed_hh, packed_hr, peepholes, dpeepholes, seen_cells;
  Buffer<T> dh, dc, c0, dgates, joined, dw, dprojected, hidden, dw_hr, tiles;
};

}  // namespace

template <class S>
void BackwardCall<S>::run() {
  Backward<S>(*this).run();
}

template struct BackwardCall<float>;
template struct BackwardCall<double>;
template struct BackwardCall<torch::headeronly::BFloat16>;
template struct BackwardCall<torch::headeronly::Half>;

}  // namespace fastlstm
