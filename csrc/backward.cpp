// The backward's loop over the steps.
//
// It yields gate gradients dG only, kept for a chunk of steps. After each chunk the gradients of weights and inputs are taken
// over all of its rows at once (gradients.cpp), while dG is still in the cache.
#include "backward.h"

namespace fastlstm {

template <class S>
void Backward<S>::run() {
  const Work work{P, v.hh.columns(), I, R, sizeof(T)};
  run_team(
      useful_workers(seq, work, max_workers()), [&](int64_t workers) { set_up(make_plan(seq, work, workers), workers); },
      [&](int64_t worker) { loop(Place(*team, worker)); });
  if (error) std::rethrow_exception(error);
}

template <class S>
void Backward<S>::set_up(const Plan& plan, int64_t workers) {
  team.emplace(plan, workers);
  direct = kSameType && !f.size.project && seq.T > 0 && (seq.T == 1 || seq.rows() <= kDirectRows);
  if constexpr (kHalf) half = f.size.paired() && !v.peepholes ? half_path() : nullptr;
  chunk_rows = max_chunk_rows(seq);
  joined_row = padded_row<T>(I + R);
  if (half) {
    const int64_t pair_rows = (chunk_rows + 1) / 2;
    pairs_hh = Buffer<Pair>(P * v.hh.columns() / 2 * units * kLanes);
    if (f.dx) pairs_ih = Buffer<Pair>(P * v.ih.columns() / 2 * inputs * kLanes);
    half_dgates = Buffer<BFloat16>(chunk_rows * P * gates);
    if (f.need_dw) {
      dgate_pairs = Buffer<Pair>(pair_rows * P * gates);
      half_joined = Buffer<BFloat16>(chunk_rows * joined_row);
      joined_pairs = Buffer<Pair>(pair_rows * joined_row);
      half_zeros = Buffer<BFloat16>(std::max(joined_row, gates));
      std::fill_n(half_zeros + 0, std::max(joined_row, gates), BFloat16(0));
    }
  } else {
    if (!direct) packed_hh = Buffer<T>(P * v.hh.columns() * units * kLanes);
    if (f.dx && !direct) packed_ih = Buffer<T>(P * v.ih.columns() * inputs * kLanes);
    dgates = Buffer<T>(chunk_rows * P * gates);
    if (f.need_dw) joined = Buffer<T>(chunk_rows * joined_row);
  }
  if (f.need_dw) db_total = Buffer<double>(P * gates);
  if (f.need_dw && direct) gradients = f.make_dw();
  else if (f.need_dw) dw = Buffer<T>(P * dw_panel());
  if (v.peepholes) {
    peepholes = Buffer<T>(P * v.peepholes * kLanes);
    dpeepholes = Buffer<double>(P * v.peepholes * kLanes);
    seen_cells = Buffer<T>(P * chunk_rows * 2 * kLanes);
  }
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

template <class S>
void Backward<S>::loop(const Place& place) {
  pack(place);
  begin_states(place);
  place.meet_all();
  for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
    chunk = next_chunk(seq, chunk.end, true);
    int64_t row = 0;
    for (int64_t s = chunk.begin; s < chunk.end; s++) {
      const int64_t t = seq.step(seq.T - 1 - s);
      if (place.in_plan()) step(place, t, row);
      if (f.need_dw && half) join<BFloat16>(place, t, row, half_joined);
      else if (f.need_dw) join<T>(place, t, row, joined);
      row += seq.size[t];
    }
    place.meet_all();
    if (f.need_dw) weight_gradients(place, chunk.rows);
    if (f.dx) input_gradients(place, chunk);
    place.meet_all();
  }
  finish(place);
}

template <class S>
void Backward<S>::pack(const Place& place) {
  const Range panels = place.mine(P);
  for (int64_t p = panels.begin; p < panels.end; p++) {
    if (v.peepholes) {
      const int64_t size = v.peepholes * kLanes;
      pack_columns<false>(f.w.peephole, v.peepholes, H, p * kLanes, kLanes, peepholes + p * size);
      std::fill_n(dpeepholes + p * size, size, 0.0);
    }
    if (direct) continue;
    if (f.dx)
      for_column_blocks(0, inputs, [&](int64_t block, int64_t count) {
        const int64_t at = P * v.ih.columns() * kLanes * block;
        if (half)
          pack_gate_column_pairs(f.w.ih, v.ih, H, I, p, block * kLanes, count * kLanes, pairs_ih + at / 2);
        else
          pack_gate_columns(f.w.ih, v.ih, H, I, p, block * kLanes, count * kLanes, packed_ih + at);
      });
    for (int64_t column = 0; column < team->plan.columns; column++) {
      const Range of_column = share(units, column, team->plan.columns);
      for_column_blocks(of_column.begin, of_column.end, [&](int64_t block, int64_t count) {
        const int64_t at = P * v.hh.columns() * kLanes * block;
        if (half)
          pack_gate_column_pairs(f.w.hh, v.hh, H, R, p, block * kLanes, count * kLanes, pairs_hh + at / 2);
        else
          pack_gate_columns(f.w.hh, v.hh, H, R, p, block * kLanes, count * kLanes, packed_hh + at);
      });
    }
    if (f.need_dw) {
      std::fill(dw + p * dw_panel(), dw + (p + 1) * dw_panel(), T(0));
      std::fill_n(db_total + p * gates, gates, 0.0);
    }
    if (!f.size.project) continue;
    pack_columns<false>(f.w.hr, R, H, p * kLanes, kLanes, packed_hr + p * R * kLanes);
    std::fill(dw_hr + p * R * kLanes, dw_hr + (p + 1) * R * kLanes, T(0));
  }
}

template <class S>
void Backward<S>::begin_states(const Place& place) {
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
template <class S>
void Backward<S>::step(const Place& place, int64_t t, int64_t row) {
  const int64_t n = seq.size[t];
  T* const tile = tiles + place.worker * tile_size;
  if (f.size.project) add_output_gradient(place, t, row);
  const Range panels = place.of_column(P);
  for (int64_t p = panels.begin; p < panels.end; p++)
    place.for_tiles(n, [&](int64_t b, int64_t rows) {
      if (p + 1 < panels.end) foresee<false>(saved_of(t, p + 1, b), rows * record.saved());
      fill_tile(t, p, b, rows, row, tile);
      kernel(tile, rows);
      if (half)
        half->narrow(rows, gates, {reinterpret_cast<const float*>(tile), row_size}, {bits(half_dgates_of(p, row + b)), gates});
      else
        path.copy(rows, gates, {tile, row_size}, {dgates_of(p, row + b), gates});
      const Block<T> to{dc + (p * seq.B + b) * kLanes, kLanes};
      path.copy(rows, kLanes, {tile + record.grad_cell(), row_size}, to);
      cut_off(t, b, rows, kLanes, to);
    });
  place.meet_group();
  const Range mine = place.of_column(units);
  if (direct)
    return place.for_tiles(n, [&](int64_t b, int64_t rows) {
      const Range columns{mine.begin * kLanes, std::min(R, mine.end * kLanes)};
      const Block<T> to{dh + b * state_row, state_row};
      combine(v.hh, row + b, rows, f.w.hh, R, columns, to);
      cut_off(t, b, rows, columns.size(), {to.p + columns.begin, to.row});
    });
  for_column_blocks(mine.begin, mine.end, [&](int64_t block, int64_t count) {
    place.for_tiles(n, [&](int64_t b, int64_t rows) {
      const Block<T> to{dh + b * state_row + block * kLanes, state_row};
      const int64_t weights = P * v.hh.columns() * kLanes * block;
      if (half)
        half->gemm({.m = rows, .n = count * kLanes, .k = v.hh.columns() / 2, .segments = P,
                    .a = pairs(half_dgates_of(0, row + b) + v.hh.offset()), .a_m = gates / 2, .a_segment = chunk_rows * gates / 2,
                    .b = pairs_hh + weights / 2, .c = reinterpret_cast<float*>(to.p), .c_m = to.row});
      else
        path.gemm({.m = rows, .n = count * kLanes, .k = v.hh.columns(), .segments = P, .a = dgates_of(0, row + b) + v.hh.offset(),
                   .a_m = gates, .a_segment = chunk_rows * gates, .b = packed_hh + weights, .c = to.p, .c_m = to.row});
      cut_off(t, b, rows, count * kLanes, to);
    });
  });
}

// No gradient crosses a cut: zeroes that of the state that rows of step t were cut off from.
template <class S>
void Backward<S>::cut_off(int64_t t, int64_t b, int64_t rows, int64_t n, Block<T> state) const {
  if (!seq.reset) return;
  for (int64_t m = 0; m < rows; m++)
    if (seq.cut_before(t, b + m)) std::fill_n(state.p + m * state.row, n, T(0));
}

// With a projection, the gradient of its output (all of it, before any panel needs it).
template <class S>
void Backward<S>::add_output_gradient(const Place& place, int64_t t, int64_t row) {
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

// += block p of the gradients that came for each step, `size` wide.
template <class S>
void Backward<S>::add_given(const Rows<const S>& given, int64_t size, int64_t t, int64_t p, int64_t b, int64_t rows, Block<T> to) const {
  if (!given.p) return;
  const S* from = given.at(seq, t, b) + p * kLanes;
  const int64_t n = std::min(kLanes, size - p * kLanes);
  if constexpr (std::is_same_v<S, T>)
    if (n == kLanes) return path.add(rows, n, {from, given.b_stride}, to);
  for (int64_t m = 0; m < rows; m++)
    for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] += static_cast<T>(from[m * given.b_stride + i]);
}

template <class S>
void Backward<S>::fill_tile(int64_t t, int64_t p, int64_t b, int64_t rows, int64_t row, T* tile) {
  const int64_t saved_row = record.saved();
  const T* const saved = saved_of(t, p, b);
  path.copy(rows, gates + kLanes, {saved, saved_row}, {tile, row_size});
  const int64_t known = std::clamp<int64_t>(seq.size_before(t) - b, 0, rows);  // rows whose previous cell state is not the initial one
  const Block<T> prev_cell{tile + record.prev_cell(), row_size};
  if (known > 0) path.copy(known, kLanes, {saved_of(seq.before(t), p, b) + record.cell(), saved_row}, prev_cell);
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
template <class S>
template <class J>
void Backward<S>::join(const Place& place, int64_t t, int64_t row, J* joined_rows) {
  const Range rows = place.mine(seq.size[t]);
  if (rows.size() == 0) return;
  J* const to = joined_rows + (row + rows.begin) * joined_row;
  convert<S, J>(rows.size(), I, {f.x.at(seq, t, rows.begin), f.x.b_stride}, {to, joined_row});
  const int64_t known = std::clamp<int64_t>(seq.size_before(t) - rows.begin, 0, rows.size());
  if (known > 0)
    convert<S, J>(known, R, {f.y + (seq.first[seq.before(t)] + rows.begin) * R, R}, {to + I, joined_row});
  convert<S, J>(rows.size() - known, R, {f.h0 + (rows.begin + known) * R, R}, {to + known * joined_row + I, joined_row});
  for (int64_t m = 0; m < rows.size(); m++)
    if (seq.cut_before(t, rows.begin + m)) std::fill_n(to + m * joined_row + I, R, J(0));
}

template <class S>
void BackwardCall<S>::run() {
  Backward<S>(*this).run();
}

template struct BackwardCall<float>;
template struct BackwardCall<double>;
template struct BackwardCall<torch::headeronly::BFloat16>;
template struct BackwardCall<torch::headeronly::Half>;

}  // namespace fastlstm
