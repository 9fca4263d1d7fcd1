// The backward's loop over the steps.
//
// It yields gate gradients dG only, kept for a chunk of steps. After each chunk the gradients of weights and inputs are taken
// over all of its rows at once (gradients.cpp), while dG is still in the cache.
#include "loop/backward.h"

namespace fastlstm {

template <class S>
void Backward<S>::run() {
  const Work work{n_panels, v.hh.width(), I, R, sizeof(T)};
  run_team(
      useful_workers(seq, work, max_workers()), [&](int64_t workers) { set_up(make_plan(seq, work, workers), workers); },
      [&](int64_t worker) { loop(Thread(*team, worker)); });
  if (error) std::rethrow_exception(error);
}

template <class S>
void Backward<S>::set_up(const Plan& plan, int64_t workers) {
  team.emplace(plan, workers);
  unpacked = kSameType && !f.size.project && seq.T > 0 && (seq.T == 1 || seq.rows() <= kUnpackedRows);
  if constexpr (kBf16) bf16 = f.size.paired() && !v.peepholes ? bf16_kernels() : nullptr;
  chunk_rows = max_chunk_rows(seq);
  xh_row = padded_row<T>(I + R);
  if (bf16) {
    const int64_t pair_rows = (chunk_rows + 1) / 2;
    pairs_hh = Buffer<Bf16Pair>(n_panels * v.hh.width() / 2 * r_panels * kPanel);
    if (f.dx) pairs_ih = Buffer<Bf16Pair>(n_panels * v.ih.width() / 2 * i_panels * kPanel);
    bf16_dgates = Buffer<BFloat16>(chunk_rows * n_panels * gate_width);
    if (f.need_dw) {
      dgate_pairs = Buffer<Bf16Pair>(pair_rows * n_panels * gate_width);
      bf16_xh = Buffer<BFloat16>(chunk_rows * xh_row);
      xh_pairs = Buffer<Bf16Pair>(pair_rows * xh_row);
      bf16_zeros = Buffer<BFloat16>(std::max(xh_row, gate_width));
      std::fill_n(bf16_zeros + 0, std::max(xh_row, gate_width), BFloat16(0));
    }
  } else {
    if (!unpacked) packed_hh = Buffer<T>(n_panels * v.hh.width() * r_panels * kPanel);
    if (f.dx && !unpacked) packed_ih = Buffer<T>(n_panels * v.ih.width() * i_panels * kPanel);
    dgates = Buffer<T>(chunk_rows * n_panels * gate_width);
    if (f.need_dw) xh = Buffer<T>(chunk_rows * xh_row);
  }
  if (f.need_dw) db_total = Buffer<double>(n_panels * gate_width);
  if (f.need_dw && unpacked) gradients = f.make_dw();
  else if (f.need_dw) dw = Buffer<T>(n_panels * dw_panel());
  if (v.peepholes) {
    peepholes = Buffer<T>(n_panels * v.peepholes * kPanel);
    dpeepholes = Buffer<double>(n_panels * v.peepholes * kPanel);
    seen_cells = Buffer<T>(n_panels * chunk_rows * 2 * kPanel);
  }
  state_row = padded_row<T>(r_panels * kPanel);
  dh = Buffer<T>(seq.B * state_row);
  dc = Buffer<T>(n_panels * seq.B * kPanel);
  c0 = Buffer<T>(n_panels * seq.B * kPanel);
  if (f.size.project) {
    packed_hr = Buffer<T>(R * n_panels * kPanel);
    dprojected = Buffer<T>(chunk_rows * r_panels * kPanel);
    hidden = Buffer<T>(n_panels * chunk_rows * kPanel);
    dw_hr = Buffer<T>(n_panels * R * kPanel);
  }
  tile_size = std::max(plan.tile_rows * row_size, kInputRows * kMaxBlock);
  tiles = Buffer<T>(workers * tile_size);
}

template <class S>
void Backward<S>::loop(const Thread& thread) {
  pack(thread);
  init_states(thread);
  thread.barrier_all();
  for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
    chunk = next_chunk(seq, chunk.end, true);
    int64_t row = 0;
    for (int64_t s = chunk.begin; s < chunk.end; s++) {
      const int64_t t = seq.step(seq.T - 1 - s);
      if (thread.in_plan()) step(thread, t, row);
      if (f.need_dw && bf16) concat_xh<BFloat16>(thread, t, row, bf16_xh);
      else if (f.need_dw) concat_xh<T>(thread, t, row, xh);
      row += seq.size[t];
    }
    thread.barrier_all();
    if (f.need_dw) weight_gradients(thread, chunk.rows);
    if (f.dx) input_gradients(thread, chunk);
    thread.barrier_all();
  }
  finish(thread);
}

template <class S>
void Backward<S>::pack(const Thread& thread) {
  const Range panels = thread.mine(n_panels);
  for (int64_t p = panels.begin; p < panels.end; p++) {
    if (v.peepholes) {
      const int64_t size = v.peepholes * kPanel;
      pack_columns<false>(f.w.peephole, v.peepholes, H, p * kPanel, kPanel, peepholes + p * size);
      std::fill_n(dpeepholes + p * size, size, 0.0);
    }
    if (unpacked) continue;
    if (f.dx)
      for_column_blocks(0, i_panels, [&](int64_t block, int64_t count) {
        const int64_t at = n_panels * v.ih.width() * kPanel * block;
        if (bf16)
          pack_gate_column_pairs(f.w.ih, v.ih, H, I, p, block * kPanel, count * kPanel, pairs_ih + at / 2);
        else
          pack_gate_columns(f.w.ih, v.ih, H, I, p, block * kPanel, count * kPanel, packed_ih + at);
      });
    for (int64_t column = 0; column < team->plan.unit_groups; column++) {
      const Range of_unit_group = share(r_panels, column, team->plan.unit_groups);
      for_column_blocks(of_unit_group.begin, of_unit_group.end, [&](int64_t block, int64_t count) {
        const int64_t at = n_panels * v.hh.width() * kPanel * block;
        if (bf16)
          pack_gate_column_pairs(f.w.hh, v.hh, H, R, p, block * kPanel, count * kPanel, pairs_hh + at / 2);
        else
          pack_gate_columns(f.w.hh, v.hh, H, R, p, block * kPanel, count * kPanel, packed_hh + at);
      });
    }
    if (f.need_dw) {
      std::fill(dw + p * dw_panel(), dw + (p + 1) * dw_panel(), T(0));
      std::fill_n(db_total + p * gate_width, gate_width, 0.0);
    }
    if (!f.size.project) continue;
    pack_columns<false>(f.w.hr, R, H, p * kPanel, kPanel, packed_hr + p * R * kPanel);
    std::fill(dw_hr + p * R * kPanel, dw_hr + (p + 1) * R * kPanel, T(0));
  }
}

template <class S>
void Backward<S>::init_states(const Thread& thread) {
  const Range rows = thread.mine(seq.B);
  for (int64_t b = rows.begin; b < rows.end; b++) {
    for (int64_t i = 0; i < r_panels * kPanel; i++)
      dh[b * state_row + i] = i < R && f.dh_n ? static_cast<T>(f.dh_n[b * R + i]) : T(0);
    for (int64_t i = 0; i < n_panels * kPanel; i++) {
      const int64_t at = (i / kPanel * seq.B + b) * kPanel + i % kPanel;
      dc[at] = i < H && f.dc_n ? static_cast<T>(f.dc_n[b * H + i]) : T(0);
      c0[at] = i < H ? static_cast<T>(f.c0[b * H + i]) : T(0);
    }
  }
}

// `row`: of this step's first row within its chunk.
template <class S>
void Backward<S>::step(const Thread& thread, int64_t t, int64_t row) {
  const int64_t n = seq.size[t];
  T* const tile = tiles + thread.worker * tile_size;
  if (f.size.project) add_output_gradient(thread, t, row);
  const Range panels = thread.of_unit_group(n_panels);
  for (int64_t p = panels.begin; p < panels.end; p++)
    thread.for_tiles(n, [&](int64_t b, int64_t rows) {
      if (p + 1 < panels.end) prefetch<false>(saved_of(t, p + 1, b), rows * record.saved());
      fill_tile(t, p, b, rows, row, tile);
      kernel(tile, rows);
      if (bf16)
        bf16->narrow(rows, gate_width, {reinterpret_cast<const float*>(tile), row_size}, {bits(bf16_dgates_of(p, row + b)), gate_width});
      else
        micro.copy(rows, gate_width, {tile, row_size}, {dgates_of(p, row + b), gate_width});
      const Block<T> to{dc + (p * seq.B + b) * kPanel, kPanel};
      micro.copy(rows, kPanel, {tile + record.dc(), row_size}, to);
      apply_reset(t, b, rows, kPanel, to);
    });
  thread.barrier_group();
  const Range mine = thread.of_unit_group(r_panels);
  if (unpacked)
    return thread.for_tiles(n, [&](int64_t b, int64_t rows) {
      const Range columns{mine.begin * kPanel, std::min(R, mine.end * kPanel)};
      const Block<T> to{dh + b * state_row, state_row};
      combine(v.hh, row + b, rows, f.w.hh, R, columns, to);
      apply_reset(t, b, rows, columns.size(), {to.p + columns.begin, to.row});
    });
  for_column_blocks(mine.begin, mine.end, [&](int64_t block, int64_t count) {
    thread.for_tiles(n, [&](int64_t b, int64_t rows) {
      const Block<T> to{dh + b * state_row + block * kPanel, state_row};
      const int64_t weights = n_panels * v.hh.width() * kPanel * block;
      if (bf16)
        bf16->gemm({.m = rows, .n = count * kPanel, .k = v.hh.width() / 2, .batch = n_panels,
                    .a = pairs(bf16_dgates_of(0, row + b) + v.hh.offset()), .a_m = gate_width / 2, .a_batch = chunk_rows * gate_width / 2,
                    .b = pairs_hh + weights / 2, .c = reinterpret_cast<float*>(to.p), .c_m = to.row});
      else
        micro.gemm({.m = rows, .n = count * kPanel, .k = v.hh.width(), .batch = n_panels, .a = dgates_of(0, row + b) + v.hh.offset(),
                   .a_m = gate_width, .a_batch = chunk_rows * gate_width, .b = packed_hh + weights, .c = to.p, .c_m = to.row});
      apply_reset(t, b, rows, count * kPanel, to);
    });
  });
}

// No gradient crosses a cut: zeroes that of the state that rows of step t were cut off from.
template <class S>
void Backward<S>::apply_reset(int64_t t, int64_t b, int64_t rows, int64_t n, Block<T> state) const {
  if (!seq.reset) return;
  for (int64_t m = 0; m < rows; m++)
    if (seq.resets_before(t, b + m)) std::fill_n(state.p + m * state.row, n, T(0));
}

// With a projection, the gradient of its output (all of it, before any panel needs it).
template <class S>
void Backward<S>::add_output_gradient(const Thread& thread, int64_t t, int64_t row) {
  const Range mine = thread.of_unit_group(r_panels);
  const int64_t projected_row = r_panels * kPanel;
  for (int64_t p = mine.begin; p < mine.end; p++)
    thread.for_tiles(seq.size[t], [&](int64_t b, int64_t rows) {
      const Block<T> to{dprojected + (row + b) * projected_row + p * kPanel, projected_row};
      micro.copy(rows, kPanel, {dh + b * state_row + p * kPanel, state_row}, to);
      add_rows(t, p, b, rows, to);
    });
  thread.barrier_group();
}

// += block p of the gradients that came for each step, `size` wide.
template <class S>
void Backward<S>::add_given(const Rows<const S>& given, int64_t size, int64_t t, int64_t p, int64_t b, int64_t rows, Block<T> to) const {
  if (!given.p) return;
  const S* from = given.at(seq, t, b) + p * kPanel;
  const int64_t n = std::min(kPanel, size - p * kPanel);
  if constexpr (std::is_same_v<S, T>)
    if (n == kPanel) return micro.add(rows, n, {from, given.b_stride}, to);
  for (int64_t m = 0; m < rows; m++)
    for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] += static_cast<T>(from[m * given.b_stride + i]);
}

template <class S>
void Backward<S>::fill_tile(int64_t t, int64_t p, int64_t b, int64_t rows, int64_t row, T* tile) {
  const int64_t saved_row = record.saved();
  const T* const saved = saved_of(t, p, b);
  micro.copy(rows, gate_width + kPanel, {saved, saved_row}, {tile, row_size});
  const int64_t known = std::clamp<int64_t>(seq.size_before(t) - b, 0, rows);  // rows whose previous cell state is not the initial one
  const Block<T> prev_cell{tile + record.c_prev(), row_size};
  if (known > 0) micro.copy(known, kPanel, {saved_of(seq.before(t), p, b) + record.c(), saved_row}, prev_cell);
  micro.copy(rows - known, kPanel, {c0 + (p * seq.B + b + known) * kPanel, kPanel}, {prev_cell.p + known * row_size, row_size});
  apply_reset(t, b, rows, kPanel, prev_cell);
  const Block<T> grad_hidden{tile + record.dh(), row_size}, grad_cell{tile + record.dc(), row_size};
  if (f.size.project) {
    const int64_t projected_row = r_panels * kPanel;
    micro.gemm({.m = rows, .n = kPanel, .k = R, .a = dprojected + (row + b) * projected_row, .a_m = projected_row,
               .b = packed_hr + p * R * kPanel, .c = grad_hidden.p, .c_m = row_size});
    micro.copy(rows, kPanel, {saved + record.m(), saved_row}, {hidden + (p * chunk_rows + row + b) * kPanel, kPanel});
  } else {
    micro.copy(rows, kPanel, {dh + b * state_row + p * kPanel, state_row}, grad_hidden);
    add_rows(t, p, b, rows, grad_hidden);
  }
  micro.copy(rows, kPanel, {dc + (p * seq.B + b) * kPanel, kPanel}, grad_cell);
  add_given(f.dcells, H, t, p, b, rows, grad_cell);
  if (!v.peepholes) return;
  micro.copy(rows, v.peepholes * kPanel, {peepholes + p * v.peepholes * kPanel, 0}, {tile + record.backward_peepholes(), row_size});
  if (f.need_dw)  // c and c_prev, side by side as in the record
    micro.copy(rows, 2 * kPanel, {tile + record.c(), row_size}, {seen_cells + (p * chunk_rows + row + b) * 2 * kPanel, 2 * kPanel});
}

// Rows [x, h_prev] of a step, side by side: the left factor of the weight gradients.
template <class S>
template <class J>
void Backward<S>::concat_xh(const Thread& thread, int64_t t, int64_t row, J* xh_rows) {
  const Range rows = thread.mine(seq.size[t]);
  if (rows.size() == 0) return;
  J* const to = xh_rows + (row + rows.begin) * xh_row;
  convert<S, J>(rows.size(), I, {f.x.at(seq, t, rows.begin), f.x.b_stride}, {to, xh_row});
  const int64_t known = std::clamp<int64_t>(seq.size_before(t) - rows.begin, 0, rows.size());
  if (known > 0)
    convert<S, J>(known, R, {f.y + (seq.first[seq.before(t)] + rows.begin) * R, R}, {to + I, xh_row});
  convert<S, J>(rows.size() - known, R, {f.h0 + (rows.begin + known) * R, R}, {to + known * xh_row + I, xh_row});
  for (int64_t m = 0; m < rows.size(); m++)
    if (seq.resets_before(t, rows.begin + m)) std::fill_n(to + m * xh_row + I, R, J(0));
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
