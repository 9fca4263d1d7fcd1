// What the backward takes over all rows of a chunk: the gradients of weights and inputs.
#include "loop/backward.h"

namespace fastlstm {

// dw.T[p] += [x, h_prev, 1].T @ dG[p], the ones being the biases' input; cut into jobs of some rows of dw.T each.
template <class S>
void Backward<S>::weight_gradients(const Thread& thread, int64_t rows) {
  static constexpr T kOne = 1;
  static constexpr Bf16Pair kOnes{0x3f80, 0x3f80};
  if (bf16) {
    pair_rows(thread, rows);
    thread.barrier_all();
  }
  const Range panels = thread.mine(n_panels);
  for (int64_t p = panels.begin; p < panels.end; p++) {
    if (v.peepholes) peephole_gradients(p, rows);
    if (unpacked) write_products(p, rows);
    if (f.size.project)
      micro.gemm({.m = R, .n = kPanel, .k = rows, .a = dprojected, .a_m = 1, .a_k = r_panels * kPanel,
                 .b = hidden + p * chunk_rows * kPanel, .c = dw_hr + p * R * kPanel, .c_m = kPanel, .accumulate = true});
  }
  if (unpacked) return;
  const int64_t of_x = (I + kWeightRows - 1) / kWeightRows, of_h = (R + kWeightRows - 1) / kWeightRows, per_panel = of_x + of_h + 1;
  const Range jobs = thread.mine(n_panels * per_panel);
  for (int64_t job = jobs.begin; job < jobs.end; job++) {
    const int64_t p = job / per_panel, k = job % per_panel;
    if (k < of_x)
      add_product(v.ih, p, rows, 0, I, k, dw_ih(p));
    else if (k < of_x + of_h)
      add_product(v.hh, p, rows, I, R, k - of_x, dw_hh(p));
    else if (bf16)
      bf16->gemm({.m = 1, .n = gate_width, .k = (rows + 1) / 2, .a = &kOnes, .a_m = 0, .a_k = 0, .b = dgate_pairs_of(p),
                  .c = reinterpret_cast<float*>(db(p)), .c_m = gate_width, .block = kBiasBlock / 2});
    else
      micro.gemm({.m = 1, .n = gate_width, .k = rows, .a = &kOne, .a_m = 0, .a_k = 0, .b = dgates_of(p, 0), .c = db(p), .c_m = gate_width,
                 .block = kBiasBlock});
    if (k == of_x + of_h)
      for (int64_t i = 0; i < gate_width; i++) db_total[p * gate_width + i] += db(p)[i];
  }
}

template <class S>
void Backward<S>::peephole_gradients(int64_t p, int64_t rows) {
  for (int64_t k = 0; k < v.peepholes; k++) {
    const bool output = k == v.peepholes - 1;  // o sees the new cell, the gates before it the old one
    const int64_t slot = output ? v.slots - 1 : k;
    T of_chunk[kPanel] = {};
    micro.dots(rows, {dgates_of(p, 0) + slot * kPanel, gate_width},
              {seen_cells + p * chunk_rows * 2 * kPanel + (output ? 0 : kPanel), 2 * kPanel}, of_chunk);
    for (int64_t i = 0; i < kPanel; i++) dpeepholes[(p * v.peepholes + k) * kPanel + i] += of_chunk[i];
  }
}

// The gradients of panel p's weights and biases from the few rows that there are, as they are to be returned.
template <class S>
void Backward<S>::write_products(int64_t p, int64_t rows) {
  if constexpr (kSameType) {
    const int64_t n = std::min(kPanel, H - p * kPanel);
    const auto write_product = [&](const GateMap& feed, const T* right, int64_t right_row, int64_t width, T* to) {
      for (int64_t i = 0; i < feed.gates; i++)
        multiply({.m = n, .n = width, .k = rows, .a = dgates_of(p, 0) + feed.offset() + i * kPanel, .a_m = 1, .a_k = gate_width,
                      .w = right, .w_k = right_row, .c = to + (feed.gate[i] * H + p * kPanel) * width, .c_m = width,
                      .accumulate = false});
    };
    write_product(v.ih, xh, xh_row, I, gradients.ih);
    write_product(v.hh, xh + I, xh_row, R, gradients.hh);
    std::fill_n(db_total + p * gate_width, gate_width, 0.0);
    for (int64_t row = 0; row < rows; row++)
      for (int64_t i = 0; i < gate_width; i++) db_total[p * gate_width + i] += dgates_of(p, row)[i];
    write_bias(v.ih, p, n, gradients.b_ih);
    if (gradients.b_hh) write_bias(v.hh, p, n, gradients.b_hh);
  }
}

// Rows of dG and of [x, h_prev] side by side in pairs, for products over rows; a last single row with zeros.
template <class S>
void Backward<S>::pair_rows(const Thread& thread, int64_t rows) {
  const int64_t count = (rows + 1) / 2;
  const auto interleave = [&](int64_t n, const BFloat16* from, int64_t row_size, int64_t pair, Bf16Pair* to) {
    const BFloat16* const first = from + 2 * pair * row_size;
    bf16->interleave(n, bits(first), bits(2 * pair + 1 < rows ? first + row_size : bf16_zeros + 0), to + pair * row_size);
  };
  const Range mine = thread.mine(count), of_all = thread.mine(n_panels * count);
  for (int64_t pair = mine.begin; pair < mine.end; pair++) interleave(I + R, bf16_xh, xh_row, pair, xh_pairs);
  for (int64_t i = of_all.begin; i < of_all.end; i++)
    interleave(gate_width, bf16_dgates_of(i / count, 0), gate_width, i % count, dgate_pairs_of(i / count));
}

// The k-th kWeightRows rows of a panel's dw.T, of which there are `depth`, += columns of [x, h_prev] from `column` on, times dG.
template <class S>
void Backward<S>::add_product(const GateMap& feed, int64_t p, int64_t rows, int64_t column, int64_t depth, int64_t k, T* to) {
  const int64_t first = k * kWeightRows, m = std::min(kWeightRows, depth - first);
  T* const out = to + first * feed.width();
  if (bf16)
    bf16->gemm({.m = m, .n = feed.width(), .k = (rows + 1) / 2, .a = xh_pairs + column + first, .a_m = 1, .a_k = xh_row,
                .b = dgate_pairs_of(p) + feed.offset(), .b_k = gate_width, .c = reinterpret_cast<float*>(out), .c_m = feed.width(),
                .accumulate = true, .block = 128});
  else
    micro.gemm({.m = m, .n = feed.width(), .k = rows, .a = xh + column + first, .a_m = 1, .a_k = xh_row,
               .b = dgates_of(p, 0) + feed.offset(), .b_k = gate_width, .c = out, .c_m = feed.width(), .accumulate = true});
}

// Calls put(i, m, to) for runs of m rows, of the chunk's rows [row, row + rows), that belong to one step: the i-th and
// following are rows `to` and following of tensors such as y.
template <class S>
template <class F>
void Backward<S>::scatter(const Chunk& chunk, int64_t row, int64_t rows, const F& put) {
  int64_t first = 0;
  for (int64_t s = chunk.begin; s < chunk.end && first < row + rows; s++) {
    const int64_t t = seq.step(seq.T - 1 - s), n = seq.size[t];
    const int64_t begin = std::max(first, row), end = std::min(first + n, row + rows);
    if (begin < end) put(begin - row, end - begin, seq.first[t] + begin - first);
    first += n;
  }
}

// dx = dG @ w_ih, over this worker's share of the chunk's rows.
template <class S>
void Backward<S>::input_gradients(const Thread& thread, const Chunk& chunk) {
  if (unpacked) return input_gradients_unpacked(thread, chunk);
  T* const tile = tiles + thread.worker * tile_size;
  const Range mine = thread.mine(chunk.rows);
  for_column_blocks(0, i_panels, [&](int64_t block, int64_t count) {
    const int64_t n = std::min(count * kPanel, I - block * kPanel);
    for (int64_t row = mine.begin; row < mine.end; row += kInputRows) {
      const int64_t rows = std::min(kInputRows, mine.end - row);
      const int64_t weights = n_panels * v.ih.width() * kPanel * block;
      if (bf16)
        bf16->gemm({.m = rows, .n = count * kPanel, .k = v.ih.width() / 2, .batch = n_panels,
                    .a = pairs(bf16_dgates_of(0, row) + v.ih.offset()), .a_m = gate_width / 2, .a_batch = chunk_rows * gate_width / 2,
                    .b = pairs_ih + weights / 2, .c = reinterpret_cast<float*>(tile), .c_m = kMaxBlock});
      else
        micro.gemm({.m = rows, .n = count * kPanel, .k = v.ih.width(), .batch = n_panels, .a = dgates_of(0, row) + v.ih.offset(),
                   .a_m = gate_width, .a_batch = chunk_rows * gate_width, .b = packed_ih + weights, .c = tile, .c_m = kMaxBlock});
      scatter(chunk, row, rows, [&](int64_t i, int64_t m, int64_t to) {
        const Block<const T> from{tile + i * kMaxBlock, kMaxBlock};
        const Block<S> out{f.dx + to * I + block * kPanel, I};
        if constexpr (kBf16)
          if (bf16) return bf16->narrow(m, n, from, {bits(out.p), out.row});
        convert<T, S>(m, n, from, out);
      });
    }
  });
}

// The same over this worker's share of the columns, step by step, with the weights as they are.
template <class S>
void Backward<S>::input_gradients_unpacked(const Thread& thread, const Chunk& chunk) {
  if constexpr (kSameType) {
    const Range mine = thread.mine(i_panels);
    const Range columns{mine.begin * kPanel, std::min(I, mine.end * kPanel)};
    int64_t row = 0;
    for (int64_t s = chunk.begin; s < chunk.end; s++) {
      const int64_t t = seq.step(seq.T - 1 - s), n = seq.size[t];
      if (columns.size() > 0) combine(v.ih, row, n, f.w.ih, I, columns, {f.dx + seq.first[t] * I, I});
      row += n;
    }
  }
}

// to = dG @ w, in the given columns of w (gates * H, size), for rows [row, row + rows) of the chunk.
template <class S>
void Backward<S>::combine(const GateMap& feed, int64_t row, int64_t rows, const S* w, int64_t size, Range columns, Block<T> to) {
  if constexpr (kSameType) {
    // Whole panels of a gate are one product over a batch where there are rows enough; else, and the last, one by one
    const int64_t n = columns.size(), batch = skinny() ? 0 : H / kPanel, whole = batch ? n / kPanel * kPanel : 0;
    for (int64_t i = 0; i < feed.gates; i++) {
      const T* const dg = dgates_of(0, row) + feed.offset() + i * kPanel;
      const S* const of_gate = w + feed.gate[i] * H * size + columns.begin;
      for (int64_t at = 0; at < whole; at += kMaxBlock)
        micro.gemm({.m = rows, .n = std::min(kMaxBlock, whole - at), .k = kPanel, .batch = batch, .a = dg, .a_m = gate_width,
                   .a_batch = chunk_rows * gate_width, .b = of_gate + at, .b_k = size, .c = to.p + columns.begin + at, .c_m = to.row,
                   .accumulate = i > 0});
      for (int64_t p = 0; p < n_panels; p++) {
        const int64_t done = p < batch ? whole : 0;
        if (done < n)
          multiply({.m = rows, .n = n - done, .k = std::min(kPanel, H - p * kPanel), .a = dg + p * chunk_rows * gate_width, .a_m = gate_width,
                    .a_k = 1, .w = of_gate + p * kPanel * size + done, .w_k = size, .c = to.p + columns.begin + done, .c_m = to.row,
                    .accumulate = i > 0 || p > 0});
      }
    }
  }
}

// A product with weights, or gradients of weights, as they stand in memory: whole blocks of columns by the micro-kernels where
// there are rows and terms enough to use a block in registers well.
template <class S>
void Backward<S>::multiply(const GemmUnpacked<T>& product) const {
  GemmUnpacked<T> rest = product;
  const int64_t whole = !skinny() && product.k > 4 ? product.n / kPanel * kPanel : 0;
  for (int64_t n = 0; n < whole; n += kMaxBlock)
    micro.gemm({.m = product.m, .n = std::min(kMaxBlock, whole - n), .k = product.k, .a = product.a, .a_m = product.a_m,
               .a_k = product.a_k, .b = product.w + n, .b_k = product.w_k, .c = product.c + n, .c_m = product.c_m,
               .accumulate = product.accumulate});
  rest.n -= whole, rest.w += whole, rest.c += whole;
  if (rest.n > 0) micro.gemm_unpacked(rest);
}

// From the memory of what is done with: as large, and of pages that the system has cleared.
template <class S>
void Backward<S>::make_gradients() {
  for (Buffer<T>* buffer : {&packed_ih, &packed_hh, &dgates, &xh}) *buffer = {};
  for (Buffer<Bf16Pair>* buffer : {&pairs_ih, &pairs_hh, &dgate_pairs, &xh_pairs}) *buffer = {};
  try {
    gradients = f.make_dw();
  } catch (...) {
    error = std::current_exception();
  }
}

template <class S>
void Backward<S>::finish(const Thread& thread) {
  if (f.need_dw && !unpacked) {
    if (thread.worker == 0) make_gradients();
    thread.barrier_all();
    if (error) return;
  }
  const Range panels = thread.mine(n_panels), rows = thread.mine(seq.B);
  for (int64_t b = rows.begin; b < rows.end; b++) {
    const auto dcell = [&](int64_t i) { return dc[(i / kPanel * seq.B + b) * kPanel + i % kPanel]; };
    for (int64_t i = 0; i < R; i++) f.dh0[b * R + i] = static_cast<S>(dh[b * state_row + i] + (v.cell ? T(0) : dcell(i)));
    for (int64_t i = 0; i < H && v.cell; i++) f.dc0[b * H + i] = static_cast<S>(dcell(i));
  }
  const Range steps = thread.mine(seq.packed || !f.dx ? 0 : seq.T);
  for (int64_t t = steps.begin; t < steps.end; t++)
    std::fill(f.dx + (seq.first[t] + seq.size[t]) * I, f.dx + (seq.first[t] + seq.B) * I, S(0));
  if (!f.need_dw) return;
  for (int64_t p = panels.begin; p < panels.end; p++) {
    const int64_t n = std::min(kPanel, H - p * kPanel);
    if (!unpacked) {
      write(v.ih, dw_ih(p), I, p, n, gradients.ih);
      write(v.hh, dw_hh(p), R, p, n, gradients.hh);
      write_bias(v.ih, p, n, gradients.b_ih);
      if (gradients.b_hh) write_bias(v.hh, p, n, gradients.b_hh);
    }
    if (v.peepholes)
      convert<double, S>(v.peepholes, n, {dpeepholes + p * v.peepholes * kPanel, kPanel}, {gradients.peephole + p * kPanel, H});
    if (f.size.project)
      convert<T, S>(R, n, {dw_hr + p * R * kPanel, kPanel}, {gradients.hr + p * kPanel, H});
  }
}

// Panel p of a gradient (gates * H, depth) from its transpose.
template <class S>
void Backward<S>::write(const GateMap& feed, const T* from, int64_t depth, int64_t p, int64_t n, S* to) {
  for (int64_t i = 0; i < feed.gates; i++)
    transpose<T, S>(depth, n, {from + i * kPanel, feed.width()}, {to + (feed.gate[i] * H + p * kPanel) * depth, depth});
}

template <class S>
void Backward<S>::write_bias(const GateMap& feed, int64_t p, int64_t n, S* to) {
  const double* const from = db_total + p * gate_width + feed.offset();
  for (int64_t i = 0; i < feed.gates; i++)
    convert<double, S>(1, n, {from + i * kPanel, 0}, {to + feed.gate[i] * H + p * kPanel, 0});
}

template class Backward<float>;
template class Backward<double>;
template class Backward<torch::headeronly::BFloat16>;
template class Backward<torch::headeronly::Half>;

}  // namespace fastlstm
