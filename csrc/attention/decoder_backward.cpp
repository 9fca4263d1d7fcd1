// What a decoder's backward is made of, and the gradients of a step.
#include "attention/decoder_backward.h"

namespace fastlstm {

template <class S>
DecoderBackward<S>::DecoderBackward(const DecoderBackwardCall<S>& call)
    : f(call), d(call.shape), seq(call.seq), kept(call.saved, d, seq, record_size(), call.dropped.layers, true), memory(call.memory),
      reader(memory.get(), call.seq.T, true), top(d.L - 1) {
  const int64_t BH = seq.B * d.H, gates = f.variant.ih.gates * d.H, peepholes = f.variant.peepholes.size() * d.H;
  for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
    chunk = next_chunk(seq, chunk.end, true);
    chunk_first.insert(chunk_first.begin(), chunk.end - chunk.begin, seq.T - chunk.end);
    most = std::max(most, chunk.end - chunk.begin);
  }
  dz = rows_of<S>(most, d.has_output ? d.H : 0), dqueries = rows_of<T>(most, d.A);
  if (!kSameType && d.projects_query) rounded_dqueries = rows_of<S>(most, d.A);
  if (f.need_dw && d.has_output) hidden = rows_of<S>(most, d.H);
  if (f.need_dw && own_states()) states = rows_of<S>(most, d.H);
  dcontexts = rows_of<T>(seq.T, d.M), dscores = rows_of<T>(seq.T, d.S);
  for (int64_t l = 0; l < d.L; l++) dy.push_back(States<T>::by_rows(seq.B, panels_of(d.H)));
  for (int64_t l = 0; l < d.L; l++) {
    const auto of = [l](auto* p, int64_t n) { return p ? p + l * n : nullptr; };
    const auto of_inputs = [l, n = gates * d.H](auto* first, auto* above) { return l && above ? above + (l - 1) * n : first; };
    const int64_t I = d.of_layer(l);
    const Block<T> given = dy[l].at(0, 0);
    calls.push_back({.variant = f.variant, .seq = seq, .size = {I, d.H, d.H, false},
                     .w = {of_inputs(f.w.ih, f.w.ih_above), of(f.w.hh, gates * d.H), nullptr, nullptr, nullptr,
                           of(f.w.peephole, peepholes)},
                     .x = l ? Rows<const S>{kept.dropped[l - 1], seq.B * I, I} : f.x, .dy = {}, .dcells = {},
                     .given = {given.p, 0, given.row},
                     .h0 = f.h0 + l * BH, .c0 = f.c0 + l * BH, .h = kept.hidden[l], .gives_hidden = l == top,
                     .dh_n = of(f.dh_n, BH), .dc_n = of(f.dc_n, BH), .saved = kept.records[l], .dx = l ? nullptr : f.d.x,
                     .dh0 = f.d.h0 + l * BH, .dc0 = f.d.c0 + l * BH, .need_dw = f.need_dw,
                     .stepwise_begin = l ? 0 : d.I, .stepwise_columns = l ? d.H : d.F,
                     .make_dw = [this, of, of_inputs, gates, peepholes]() -> WeightGradients<S> {
                       make_dw();
                       return {of_inputs(dw->ih, dw->ih_above), of(dw->hh, gates * d.H), of(dw->b, gates), nullptr, nullptr,
                               of(dw->peephole, peepholes)};
                     }});
  }
  if (d.F)
    calls[0].inputs = [this](int64_t t, int64_t b, int64_t rows, Block<S> to) {
      convert<S, S>(rows, d.I, {f.x.at(seq, t, b), f.x.b_stride}, to);
      for (int64_t m = 0; m < rows; m++) put_fed(t, b + m, to.p + m * to.row + d.I);
    };
  for (const BackwardCall<S>& layer : calls) layers.push_back(std::make_unique<LayerBackward<S>>(layer));
  if (d.has_output && d.tanh) tanh = reinterpret_cast<Tanh>(find_kernels("output").address(Pass::backward, sizeof(T) == 8));
}

// dcontext and dh of the top layer, from the gradients of the output and of what was fed.
template <class S>
void DecoderBackward<S>::output_gradient(const Thread& thread, int64_t t) {
  if (d.has_output) {
    shared_rows(thread, t, [&](int64_t b) {
      S* const to = chunk_row(dz, d.H, t, b);
      const T* const output = row(kept.outputs, d.H, t, b);
      if constexpr (kSameType) {
        output_row(t, b, to, 0, d.H);
        if (d.tanh) tanh(output, to, d.H);
      } else {
        T* const sum = wide(thread);
        output_row(t, b, sum, 0, d.H);
        if (d.tanh) tanh(output, sum, d.H);
        with.store(1, d.H, {sum, 0}, {to, 0});
      }
    });
    thread.barrier_group();
  }
  for_blocks(thread, t, panels_of(d.M), [&](int64_t b, int64_t rows, int64_t p, int64_t count, Block<T> tile) {
    const int64_t first = p * kPanel, n = std::min(count * kPanel, d.M - first);
    const Block<T> to{row(dcontexts, d.M, t, b) + first, d.M};
    if (d.has_output) {
      to_context.multiply(rows, p, count, {chunk_row(dz, d.H, t, b), d.H}, tile, false);
      convert<T, T>(rows, n, constant(tile), to);
    } else {
      fill_rows(rows, n, T(0), to);
    }
    for (int64_t m = 0; m < rows && d.feed == Feed::context; m++) {
      const S* const mask = mask_of(f.dropped.fed, d.M, t, b + m);
      const T* const fed = dinputs.at(p, b + m).p;
      for (int64_t i = 0; i < n; i++) to.p[m * d.M + i] += mask ? static_cast<T>(mask[first + i]) * fed[i] : fed[i];
    }
  });
  for_blocks(thread, t, panels_of(d.H), [&](int64_t b, int64_t rows, int64_t p, int64_t count, Block<T> tile) {
    const Block<T> to = dy[top].at(p, b);
    if (d.has_output) return to_hidden.multiply(rows, p, count, {chunk_row(dz, d.H, t, b), d.H}, to, false);
    const int64_t n = std::min(count * kPanel, d.H - p * kPanel);
    for (int64_t m = 0; m < rows; m++) {
      output_row(t, b + m, tile.p, p * kPanel, n);
      std::copy_n(tile.p, n, to.p + m * to.row);
    }
  });
  thread.barrier_group();
}

// The gradient of a row of outputs before they were dropped.
template <class S>
void DecoderBackward<S>::output_row(int64_t t, int64_t b, T* to, int64_t first, int64_t n) const {
  const S* const given = f.dy.p ? f.dy.at(seq, t, b) + first : nullptr;
  const T* const fed = d.feed == Feed::attentional ? dinputs.at(0, b).p + first : nullptr;
  const S* const mask = mask_of(f.dropped.output, d.H, t, b);
  for (int64_t i = 0; i < n; i++) {
    const T sum = (given ? static_cast<T>(given[i]) : T(0)) + (fed ? fed[i] : T(0));
    to[i] = mask ? static_cast<T>(mask[first + i]) * sum : sum;
  }
}

template <class S>
void DecoderBackward<S>::attend(const Thread& thread, int64_t t) {
  T* const mine = wide(thread) + wide_size;
  shared_rows(thread, t, [&](int64_t b) {
    T* const dcontext = row(dcontexts, d.M, t, b);
    if (d.before)
      for (int64_t i = 0; i < d.M; i++) dcontext[i] += dinputs.at(0, b).p[i];
    const T* const q = d.own_queries() ? row(kept.queries, d.A, t, b) : nullptr;  // products need none
    T* const dquery = chunk_row(dqueries, d.A, t, b);
    const S* const dweights = f.dalignments.p ? f.dalignments.at(seq, t, b) : nullptr;
    const auto read_backward = [&](const T* given) {
      reader.read_backward(b, q, mine, row(kept.weights, d.S, t, b), dcontext, given, row(dscores, d.S, t, b), dquery);
    };
    if constexpr (kSameType) {
      read_backward(dweights);
    } else {
      read_backward(dweights ? widen(dweights, d.S, wide(thread)) : nullptr);
      if (d.projects_query) with.store(1, d.A, {dquery, 0}, {chunk_row(rounded_dqueries, d.A, t, b), 0});
    }
  });
  thread.barrier_group();
}

// What the query gives to the gradient of the state that it was made of. Each thread has those panels that its gates need.
template <class S>
void DecoderBackward<S>::query_gradient(const Thread& thread, int64_t t, const States<T>& to) {
  for_blocks(thread, t, panels_of(d.H), [&](int64_t b, int64_t rows, int64_t p, int64_t count, Block<T>) {
    const Block<T> sum = to.at(p, b);
    if (d.projects_query) return query.multiply(rows, p, count, {chunk_row(query_factors(), d.A, t, b), d.A}, sum, true);
    const Block<const T> dq{chunk_row(dqueries, d.A, t, b), d.A};
    const int64_t n = std::min(count * kPanel, d.H - p * kPanel);
    for (int64_t m = 0; m < rows; m++)
      for (int64_t i = 0; i < n; i++) sum.p[m * sum.row + i] += static_cast<T>(d.scale) * dq.p[m * dq.row + p * kPanel + i];
  });
}

template <class S>
void DecoderBackward<S>::drop(const Thread& thread, int64_t t, const States<T>& states, const S* masks) {
  for_blocks(thread, t, panels_of(d.H), [&](int64_t b, int64_t rows, int64_t p, int64_t count, Block<T>) {
    const Block<T> to = states.at(p, b);
    const int64_t n = std::min(count * kPanel, d.H - p * kPanel);
    for (int64_t m = 0; m < rows; m++)
      for (int64_t i = 0; i < n; i++) to.p[m * to.row + i] *= static_cast<T>(mask_of(masks, d.H, t, b + m)[p * kPanel + i]);
  });
}

template <class S>
void DecoderBackwardCall<S>::run() {
  DecoderBackward<S>(*this).run();
}

template struct DecoderBackwardCall<float>;
template struct DecoderBackwardCall<double>;
template struct DecoderBackwardCall<BFloat16>;

}  // namespace fastlstm
