// What the backward takes over all rows of a chunk: the gradients of weights and inputs.
#include "backward.h"

namespace fastlstm {

// dw.T[p] += [x, h_prev, 1].T @ dG[p], the ones being the biases' input; cut into jobs of some rows of dw.T each.
template <class S>
void Backward<S>::weight_gradients(const Place& place, int64_t rows) {
  static constexpr T kOne = 1;
  static constexpr Pair kOnes{0x3f80, 0x3f80};
  if (half) {
    pair_rows(place, rows);
    place.meet_all();
  }
  const Range panels = place.mine(P);
  for (int64_t p = panels.begin; p < panels.end; p++) {
    if (v.peepholes) peephole_gradients(p, rows);
    if (direct) write_products(p, rows);
    if (f.size.project)
      path.gemm({.m = R, .n = kLanes, .k = rows, .a = dprojected, .a_m = 1, .a_k = units * kLanes,
                 .b = hidden + p * chunk_rows * kLanes, .c = dw_hr + p * R * kLanes, .c_m = kLanes, .accumulate = true});
  }
  if (direct) return;
  const int64_t of_x = (I + kWeightRows - 1) / kWeightRows, of_h = (R + kWeightRows - 1) / kWeightRows, per_panel = of_x + of_h + 1;
  const Range jobs = place.mine(P * per_panel);
  for (int64_t job = jobs.begin; job < jobs.end; job++) {
    const int64_t p = job / per_panel, k = job % per_panel;
    if (k < of_x)
      add_product(v.ih, p, rows, 0, I, k, dw_ih(p));
    else if (k < of_x + of_h)
      add_product(v.hh, p, rows, I, R, k - of_x, dw_hh(p));
    else if (half)
      half->gemm({.m = 1, .n = gates, .k = (rows + 1) / 2, .a = &kOnes, .a_m = 0, .a_k = 0, .b = dgate_pairs_of(p),
                  .c = reinterpret_cast<float*>(db(p)), .c_m = gates, .block = kBiasBlock / 2});
    else
      path.gemm({.m = 1, .n = gates, .k = rows, .a = &kOne, .a_m = 0, .a_k = 0, .b = dgates_of(p, 0), .c = db(p), .c_m = gates,
                 .block = kBiasBlock});
    if (k == of_x + of_h)
      for (int64_t i = 0; i < gates; i++) db_total[p * gates + i] += db(p)[i];
  }
}

template <class S>
void Backward<S>::peephole_gradients(int64_t p, int64_t rows) {
  for (int64_t k = 0; k < v.peepholes; k++) {
    const bool output = k == v.peepholes - 1;  // o sees the new cell, the gates before it the old one
    const int64_t slot = output ? v.slots - 1 : k;
    T of_chunk[kLanes] = {};
    path.dots(rows, {dgates_of(p, 0) + slot * kLanes, gates},
              {seen_cells + p * chunk_rows * 2 * kLanes + (output ? 0 : kLanes), 2 * kLanes}, of_chunk);
    for (int64_t i = 0; i < kLanes; i++) dpeepholes[(p * v.peepholes + k) * kLanes + i] += of_chunk[i];
  }
}

// The gradients of panel p's weights and biases from the few rows that there are, as they are to be returned.
template <class S>
void Backward<S>::write_products(int64_t p, int64_t rows) {
  if constexpr (kSameType) {
    const int64_t n = std::min(kLanes, H - p * kLanes);
    const auto write_product = [&](const Feed& feed, const T* right, int64_t right_row, int64_t width, T* to) {
      for (int64_t i = 0; i < feed.gates; i++)
        multiply({.m = n, .n = width, .k = rows, .a = dgates_of(p, 0) + feed.offset() + i * kLanes, .a_m = 1, .a_k = gates,
                      .w = right, .w_k = right_row, .c = to + (feed.gate[i] * H + p * kLanes) * width, .c_m = width,
                      .accumulate = false});
    };
    write_product(v.ih, joined, joined_row, I, gradients.ih);
    write_product(v.hh, joined + I, joined_row, R, gradients.hh);
    std::fill_n(db_total + p * gates, gates, 0.0);
    for (int64_t row = 0; row < rows; row++)
      for (int64_t i = 0; i < gates; i++) db_total[p * gates + i] += dgates_of(p, row)[i];
    write_bias(v.ih, p, n, gradients.b_ih);
    if (gradients.b_hh) write_bias(v.hh, p, n, gradients.b_hh);
  }
}

// Rows of dG and of [x, h_prev] side by side in pairs, for products over rows; a last single row with zeros.
template <class S>
void Backward<S>::pair_rows(const Place& place, int64_t rows) {
  const int64_t count = (rows + 1) / 2;
  const auto interleave = [&](int64_t n, const BFloat16* from, int64_t row_size, int64_t pair, Pair* to) {
    const BFloat16* const first = from + 2 * pair * row_size;
    half->interleave(n, bits(first), bits(2 * pair + 1 < rows ? first + row_size : half_zeros + 0), to + pair * row_size);
  };
  const Range mine = place.mine(count), of_all = place.mine(P * count);
  for (int64_t pair = mine.begin; pair < mine.end; pair++) interleave(I + R, half_joined, joined_row, pair, joined_pairs);
  for (int64_t i = of_all.begin; i < of_all.end; i++)
    interleave(gates, half_dgates_of(i / count, 0), gates, i % count, dgate_pairs_of(i / count));
}

// The k-th kWeightRows rows of a panel's dw.T, of which there are `depth`, += columns of [x, h_prev] from `column` on, times dG.
template <class S>
void Backward<S>::add_product(const Feed& feed, int64_t p, int64_t rows, int64_t column, int64_t depth, int64_t k, T* to) {
  const int64_t first = k * kWeightRows, m = std::min(kWeightRows, depth - first);
  T* const out = to + first * feed.columns();
  if (half)
    half->gemm({.m = m, .n = feed.columns(), .k = (rows + 1) / 2, .a = joined_pairs + column + first, .a_m = 1, .a_k = joined_row,
                .b = dgate_pairs_of(p) + feed.offset(), .b_k = gates, .c = reinterpret_cast<float*>(out), .c_m = feed.columns(),
                .accumulate = true, .block = 128});
  else
    path.gemm({.m = m, .n = feed.columns(), .k = rows, .a = joined + column + first, .a_m = 1, .a_k = joined_row,
               .b = dgates_of(p, 0) + feed.offset(), .b_k = gates, .c = out, .c_m = feed.columns(), .accumulate = true});
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
void Backward<S>::input_gradients(const Place& place, const Chunk& chunk) {
  if (direct) return input_gradients_direct(place, chunk);
  T* const tile = tiles + place.worker * tile_size;
  const Range mine = place.mine(chunk.rows);
  for_column_blocks(0, inputs, [&](int64_t block, int64_t count) {
    const int64_t n = std::min(count * kLanes, I - block * kLanes);
    for (int64_t row = mine.begin; row < mine.end; row += kInputRows) {
      const int64_t rows = std::min(kInputRows, mine.end - row);
      const int64_t weights = P * v.ih.columns() * kLanes * block;
      if (half)
        half->gemm({.m = rows, .n = count * kLanes, .k = v.ih.columns() / 2, .segments = P,
                    .a = pairs(half_dgates_of(0, row) + v.ih.offset()), .a_m = gates / 2, .a_segment = chunk_rows * gates / 2,
                    .b = pairs_ih + weights / 2, .c = reinterpret_cast<float*>(tile), .c_m = kMaxBlock});
      else
        path.gemm({.m = rows, .n = count * kLanes, .k = v.ih.columns(), .segments = P, .a = dgates_of(0, row) + v.ih.offset(),
                   .a_m = gates, .a_segment = chunk_rows * gates, .b = packed_ih + weights, .c = tile, .c_m = kMaxBlock});
      scatter(chunk, row, rows, [&](int64_t i, int64_t m, int64_t to) {
        const Block<const T> from{tile + i * kMaxBlock, kMaxBlock};
        const Block<S> out{f.dx + to * I + block * kLanes, I};
        if constexpr (kHalf)
          if (half) return half->narrow(m, n, from, {bits(out.p), out.row});
        convert<T, S>(m, n, from, out);
      });
    }
  });
}

// The same over this worker's share of the columns, step by step, with the weights as they are.
template <class S>
void Backward<S>::input_gradients_direct(const Place& place, const Chunk& chunk) {
  if constexpr (kSameType) {
    const Range mine = place.mine(inputs);
    const Range columns{mine.begin * kLanes, std::min(I, mine.end * kLanes)};
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
void Backward<S>::combine(const Feed& feed, int64_t row, int64_t rows, const S* w, int64_t size, Range columns, Block<T> to) {
  if constexpr (kSameType) {
    // Whole panels of a gate are one product over segments where there are rows enough; else, and the last, one by one
    const int64_t n = columns.size(), segments = few() ? 0 : H / kLanes, whole = segments ? n / kLanes * kLanes : 0;
    for (int64_t i = 0; i < feed.gates; i++) {
      const T* const dg = dgates_of(0, row) + feed.offset() + i * kLanes;
      const S* const of_gate = w + feed.gate[i] * H * size + columns.begin;
      for (int64_t at = 0; at < whole; at += kMaxBlock)
        path.gemm({.m = rows, .n = std::min(kMaxBlock, whole - at), .k = kLanes, .segments = segments, .a = dg, .a_m = gates,
                   .a_segment = chunk_rows * gates, .b = of_gate + at, .b_k = size, .c = to.p + columns.begin + at, .c_m = to.row,
                   .accumulate = i > 0});
      for (int64_t p = 0; p < P; p++) {
        const int64_t done = p < segments ? whole : 0;
        if (done < n)
          multiply({.m = rows, .n = n - done, .k = std::min(kLanes, H - p * kLanes), .a = dg + p * chunk_rows * gates, .a_m = gates,
                    .a_k = 1, .w = of_gate + p * kLanes * size + done, .w_k = size, .c = to.p + columns.begin + done, .c_m = to.row,
                    .accumulate = i > 0 || p > 0});
      }
    }
  }
}

// A product with weights, or gradients of weights, as they stand in memory: whole blocks of columns by the micro-kernels where
// there are rows and terms enough to use a block in registers well.
template <class S>
void Backward<S>::multiply(const Combine<T>& product) const {
  Combine<T> rest = product;
  const int64_t whole = !few() && product.k > 4 ? product.n / kLanes * kLanes : 0;
  for (int64_t n = 0; n < whole; n += kMaxBlock)
    path.gemm({.m = product.m, .n = std::min(kMaxBlock, whole - n), .k = product.k, .a = product.a, .a_m = product.a_m,
               .a_k = product.a_k, .b = product.w + n, .b_k = product.w_k, .c = product.c + n, .c_m = product.c_m,
               .accumulate = product.accumulate});
  rest.n -= whole, rest.w += whole, rest.c += whole;
  if (rest.n > 0) path.combine(rest);
}

// From the memory of what is done with: as large, and of pages that the system has cleared.
template <class S>
void Backward<S>::make_gradients() {
  for (Buffer<T>* buffer : {&packed_ih, &packed_hh, &dgates, &joined}) *buffer = {};
  for (Buffer<Pair>* buffer : {&pairs_ih, &pairs_hh, &dgate_pairs, &joined_pairs}) *buffer = {};
  try {
    gradients = f.make_dw();
  } catch (...) {
    error = std::current_exception();
  }
}

template <class S>
void Backward<S>::finish(const Place& place) {
  if (f.need_dw && !direct) {
    if (place.worker == 0) make_gradients();
    place.meet_all();
    if (error) return;
  }
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
    if (!direct) {
      write(v.ih, dw_ih(p), I, p, n, gradients.ih);
      write(v.hh, dw_hh(p), R, p, n, gradients.hh);
      write_bias(v.ih, p, n, gradients.b_ih);
      if (gradients.b_hh) write_bias(v.hh, p, n, gradients.b_hh);
    }
    if (v.peepholes)
      convert<double, S>(v.peepholes, n, {dpeepholes + p * v.peepholes * kLanes, kLanes}, {gradients.peephole + p * kLanes, H});
    if (f.size.project)
      convert<T, S>(R, n, {dw_hr + p * R * kLanes, kLanes}, {gradients.hr + p * kLanes, H});
  }
}

// Panel p of a gradient (gates * H, depth) from its transpose.
template <class S>
void Backward<S>::write(const Feed& feed, const T* from, int64_t depth, int64_t p, int64_t n, S* to) {
  for (int64_t i = 0; i < feed.gates; i++)
    transpose<T, S>(depth, n, {from + i * kLanes, feed.columns()}, {to + (feed.gate[i] * H + p * kLanes) * depth, depth});
}

template <class S>
void Backward<S>::write_bias(const Feed& feed, int64_t p, int64_t n, S* to) {
  const double* const from = db_total + p * gates + feed.offset();
  for (int64_t i = 0; i < feed.gates; i++)
    convert<double, S>(1, n, {from + i * kLanes, 0}, {to + feed.gate[i] * H + p * kLanes, 0});
}

template class Backward<float>;
template class Backward<double>;
template class Backward<torch::headeronly::BFloat16>;
template class Backward<torch::headeronly::Half>;

}  // namespace fastlstm
