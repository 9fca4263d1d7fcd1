// The ops fastlstm::attention_lstm_fwd and fastlstm::attention_lstm_bwd: an LSTM decoder with attention, a whole target in one call.
#include "attention/decoder.h"
#include "ops/attention_ops.h"

namespace fastlstm {
namespace {

struct Arguments {
  const Variant& variant;
  Sequence seq;
  DecoderShape shape;
};

// bfloat16 where pairs of it are multiplied; callers bring other halves in float32.
void check_dtype(ScalarType dtype, const DecoderShape& d) {
  if (dtype == ScalarType::Float || dtype == ScalarType::Double) return;
  check(dtype == ScalarType::BFloat16, "dtype must be float32, float64 or bfloat16");
  check(bf16_kernels(), "the path of products has none of bfloat16: a backward needs the path of its forward, which force_path changed since");
  check(d.H % 2 == 0 && d.M % 2 == 0 && d.A % 2 == 0, "bfloat16 needs even sizes of h, of the memory and of the attention");
}

template <class F>
void for_decoder_type(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::BFloat16) f(torch::headeronly::BFloat16{});
  else for_arithmetic_type(dtype, f);
}

int64_t kept_size(ScalarType dtype, const Arguments& a, bool drops_layers) {
  const int64_t record = panels_of(a.shape.H) * Record(a.variant, {a.shape.I, a.shape.H, a.shape.H, false}).saved();
  int64_t size = 0;
  for_decoder_type(dtype, [&]<class S>(S) { size = Kept<S>(nullptr, a.shape, a.seq, record, drops_layers, true).size; });
  return size;
}

Arguments make_arguments(const Tensor& x, const Optional& batch_sizes, const Tensor& h0, const Tensor& c0, const Optional& fed0,
                         const Tensor& memory, const Optional& keys, const Optional& memory_lengths, const Optional& dropped_layers,
                         const Optional& dropped_output, const Optional& dropped_fed, const Tensor& w_ih, const Optional& w_ih_above,
                         const Tensor& w_hh, const Optional& w_peephole, const Optional& w_query, const Optional& w_score,
                         const Optional& w_out, bool coupled, bool before, int64_t feed, int64_t query_layer, bool tanh, double scale) {
  check(x.dim() == 3 && h0.dim() == 3 && memory.dim() == 3, "x must be (T, B, I), h0 (L, B, H) and memory (S, B, M)");
  check(feed >= 0 && feed <= 2 && (feed == 0 || !before), "feed must be 0, or without `before` 1 or 2");
  check(h0.size(0) >= 1 && query_layer >= 0 && query_layer < h0.size(0), "query_layer must be one of the layers");
  const bool additive = w_score.has_value();
  check(additive == w_query.has_value() && (!additive || (w_query->dim() == 2 && keys)), "additive scores need w_query and keys");
  check(h0.size(2) >= 1 && memory.size(2) >= 1, "hidden units and the memory's features must be 1 or more");
  check(w_out || feed != 1, "what is fed is an attentional vector: it needs w_out");
  const int64_t L = h0.size(0), B = h0.size(1), H = h0.size(2), T = x.size(0), I = x.size(2), S = memory.size(0), M = memory.size(2);
  const int64_t F = before || feed == 2 ? M : feed == 1 ? H : 0, A = additive ? w_query->size(0) : H;
  Arguments a{lstm_variant(coupled, w_peephole.has_value()), {}, {.L = L, .I = I, .H = H, .F = F, .M = M, .A = A, .S = S, .before = before,
              .feed = static_cast<Feed>(feed), .query_layer = query_layer, .projects_query = additive, .has_output = w_out.has_value(),
              .tanh = tanh, .scale = scale}};
  a.seq.T = T, a.seq.B = B, a.seq.packed = false, a.seq.reverse = false, a.seq.chunk_rows = kDecoderChunkRows;
  check(x.is_cpu() && x.size(1) == B, "x must be on the CPU, and x and h0 have the same batch size");
  check_dtype(x.scalar_type(), a.shape);
  read_batch_sizes(a.seq, batch_sizes);
  for (int64_t t = 0; t < T; t++) a.seq.first.push_back(t * B);
  const int64_t gates = a.variant.ih.gates * H, peepholes = static_cast<int64_t>(a.variant.peepholes.size());
  check_like(x, h0, "h0", {L, B, H});
  check_like(x, c0, "c0", {L, B, H});
  check_like(x, fed0, "fed0", {B, F});
  check(fed0.has_value() == (feed != 0), "fed0 is there where something is fed");
  check_memory(x, memory, keys, memory_lengths, w_score, B, A);
  check_like(x, dropped_layers, "dropped_layers", {L - 1, T, B, H});
  check_like(x, dropped_output, "dropped_output", {T, B, H});
  check_like(x, dropped_fed, "dropped_fed", {T, B, M});
  check(!dropped_fed || feed == 2, "dropped_fed is of a context that is fed");
  check_like(x, w_ih, "w_ih", {gates, I + F});
  check_like(x, w_ih_above, "w_ih_above", {L - 1, gates, H});
  check(L == 1 || w_ih_above, "more than one layer needs w_ih_above");
  check_like(x, w_hh, "w_hh", {L, gates, H});
  check_like(x, w_peephole, "w_peephole", {L, peepholes, H});
  check_like(x, w_query, "w_query", {A, H});
  check_like(x, w_out, "w_out", {H, M + H});
  return a;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_lstm_fwd(
    Tensor x, Optional batch_sizes, Tensor h0, Tensor c0, Optional fed0, Tensor memory, Optional keys, Optional memory_lengths,
    Optional dropped_layers, Optional dropped_output, Optional dropped_fed, Tensor w_ih, Optional w_ih_above, Tensor w_hh, Optional b_ih,
    Optional b_hh, Optional w_peephole, Optional w_query, Optional b_query, Optional w_score, Optional w_out, Optional b_out, bool coupled,
    bool before, int64_t feed, int64_t query_layer, bool tanh, double scale, bool return_alignments, bool save) {
  const Arguments a = make_arguments(x, batch_sizes, h0, c0, fed0, memory, keys, memory_lengths, dropped_layers, dropped_output,
                                     dropped_fed, w_ih, w_ih_above, w_hh, w_peephole, w_query, w_score, w_out, coupled, before, feed,
                                     query_layer, tanh, scale);
  const DecoderShape& d = a.shape;
  const int64_t T = a.seq.T, B = a.seq.B, gates = w_hh.size(1);
  check_like(x, b_ih, "b_ih", {d.L, gates});
  check_like(x, b_hh, "b_hh", {d.L, gates});
  check_like(x, b_query, "b_query", {d.A});
  check((w_query || !b_query) && (w_out || !b_out), "b_query and b_out are biases of w_query and w_out");
  check_like(x, b_out, "b_out", {d.H});
  x = with_contiguous_rows(x), memory = with_contiguous_rows(memory);
  if (keys) keys = with_contiguous_rows(*keys);
  h0 = as_contiguous(h0), c0 = as_contiguous(c0), fed0 = as_contiguous(fed0), memory_lengths = as_contiguous(memory_lengths);
  dropped_layers = as_contiguous(dropped_layers), dropped_output = as_contiguous(dropped_output), dropped_fed = as_contiguous(dropped_fed);
  w_ih = as_contiguous(w_ih), w_ih_above = as_contiguous(w_ih_above), w_hh = as_contiguous(w_hh);
  b_ih = as_contiguous(b_ih), b_hh = as_contiguous(b_hh), w_peephole = as_contiguous(w_peephole);
  w_query = as_contiguous(w_query), b_query = as_contiguous(b_query), w_score = as_contiguous(w_score);
  w_out = as_contiguous(w_out), b_out = as_contiguous(b_out);
  const Tensor y = new_tensor(x, {T, B, d.H}), h_n = new_tensor(x, {d.L, B, d.H}), c_n = new_tensor(x, {d.L, B, d.H});
  const Tensor fed_n = new_tensor(x, d.feeds() ? std::vector<int64_t>{B, d.F} : std::vector<int64_t>{0});
  const Tensor alignments = new_tensor(x, return_alignments ? std::vector<int64_t>{T, B, d.S} : std::vector<int64_t>{0});
  const int64_t kept = kept_size(x.scalar_type(), a, dropped_layers.has_value());
  const Tensor saved = new_saved(x, save ? 1 : 0, kept, compute_type(x.scalar_type()));
  for_decoder_type(x.scalar_type(), [&]<class S>(S) {
    const Memory<S> read = memory_of<S>(memory, keys, memory_lengths, w_score, d.A);
    DecoderForwardCall<S>{.variant = a.variant, .seq = a.seq, .shape = d,
                          .w = {data<S>(w_ih), data<S>(w_ih_above), data<S>(w_hh), data<S>(b_ih), data<S>(b_hh), data<S>(w_peephole),
                                data<S>(w_query), data<S>(b_query), data<S>(w_out), data<S>(b_out)},
                          .memory = read, .dropped = {data<S>(dropped_layers), data<S>(dropped_output), data<S>(dropped_fed)},
                          .x = rows_of<S>(x), .h0 = data<S>(h0), .c0 = data<S>(c0), .fed0 = data<S>(fed0), .y = out<S>(y),
                          .h_n = out<S>(h_n), .c_n = out<S>(c_n), .fed_n = out<S>(fed_n),
                          .alignments = return_alignments ? out<S>(alignments) : nullptr,
                          .saved = save ? out<compute_t<S>>(saved) : nullptr}
        .run();
  });
  return {y, h_n, c_n, fed_n, alignments, saved};
}

// Gradients that are not wanted, or of what is not there, come back empty (zero elements).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
attention_lstm_bwd(Optional dy, Optional dh_n, Optional dc_n, Optional dfed_n, Optional dalignments, Tensor x, Optional batch_sizes,
                   Tensor h0, Tensor c0, Optional fed0, Tensor memory, Optional keys, Optional memory_lengths, Optional dropped_layers,
                   Optional dropped_output, Optional dropped_fed, Tensor w_ih, Optional w_ih_above, Tensor w_hh, Optional w_peephole,
                   Optional w_query, Optional w_score, Optional w_out, Tensor saved, bool coupled, bool before, int64_t feed,
                   int64_t query_layer, bool tanh, double scale, bool need_dx, bool need_dw) {
  const Arguments a = make_arguments(x, batch_sizes, h0, c0, fed0, memory, keys, memory_lengths, dropped_layers, dropped_output,
                                     dropped_fed, w_ih, w_ih_above, w_hh, w_peephole, w_query, w_score, w_out, coupled, before, feed,
                                     query_layer, tanh, scale);
  const DecoderShape& d = a.shape;
  const int64_t T = a.seq.T, B = a.seq.B, gates = w_hh.size(1);
  check_like(x, dy, "dy", {T, B, d.H});
  check_like(x, dh_n, "dh_n", {d.L, B, d.H});
  check_like(x, dc_n, "dc_n", {d.L, B, d.H});
  if (!d.feeds()) dfed_n = std::nullopt;  // there is no such state: what comes has no elements
  check_like(x, dfed_n, "dfed_n", {B, d.F});
  check_like(x, dalignments, "dalignments", {T, B, d.S});
  const int64_t kept = kept_size(x.scalar_type(), a, dropped_layers.has_value());
  check_saved(saved, x.scalar_type(), 1, kept, "attention_lstm_fwd");
  x = with_contiguous_rows(x), memory = with_contiguous_rows(memory), fed0 = as_contiguous(fed0);
  if (keys) keys = with_contiguous_rows(*keys);
  if (dy) dy = with_contiguous_rows(*dy);
  if (dalignments) dalignments = with_contiguous_rows(*dalignments);
  h0 = as_contiguous(h0), c0 = as_contiguous(c0), memory_lengths = as_contiguous(memory_lengths), saved = as_contiguous(saved);
  dh_n = as_contiguous(dh_n), dc_n = as_contiguous(dc_n), dfed_n = as_contiguous(dfed_n);
  dropped_layers = as_contiguous(dropped_layers), dropped_output = as_contiguous(dropped_output), dropped_fed = as_contiguous(dropped_fed);
  w_ih = as_contiguous(w_ih), w_ih_above = as_contiguous(w_ih_above), w_hh = as_contiguous(w_hh), w_peephole = as_contiguous(w_peephole);
  w_query = as_contiguous(w_query), w_score = as_contiguous(w_score), w_out = as_contiguous(w_out);
  const auto some = [&](bool wanted, const std::vector<int64_t>& shape) { return new_tensor(x, wanted ? shape : std::vector<int64_t>{0}); };
  const Tensor dx = gradient_of(x, x, need_dx), dh0 = gradient_of(x, h0, true), dc0 = gradient_of(x, c0, true);
  const Tensor dfed0 = some(d.feeds(), {B, d.F});
  const Tensor dw_query = gradient_of(x, w_query, need_dw), dw_out = gradient_of(x, w_out, need_dw);
  Tensor dmemory, dkeys, dw_ih, dw_ih_above, dw_hh, db, dw_peephole, db_query, dw_score, db_out;
  const auto make_dw = [&] {
    dw_ih = gradient_of(x, w_ih, need_dw), dw_ih_above = gradient_of(x, w_ih_above, need_dw), dw_hh = gradient_of(x, w_hh, need_dw);
    db = some(need_dw, {d.L, gates}), dw_peephole = gradient_of(x, w_peephole, need_dw);
    db_query = some(need_dw && w_query, {d.A}), dw_score = gradient_of(x, w_score, need_dw), db_out = some(need_dw && w_out, {d.H});
  };
  if (!need_dw) make_dw();
  for_decoder_type(x.scalar_type(), [&]<class S>(S) {
    const auto out_or_null = [](const Tensor& t) { return t.numel() > 0 ? out<S>(t) : nullptr; };
    const Memory<S> read = memory_of<S>(memory, keys, memory_lengths, w_score, d.A);
    DecoderBackwardCall<S>{.variant = a.variant, .seq = a.seq, .shape = d,
                           .w = {data<S>(w_ih), data<S>(w_ih_above), data<S>(w_hh), nullptr, nullptr, data<S>(w_peephole), data<S>(w_query),
                                 nullptr, data<S>(w_out), nullptr},
                           .memory = read, .dropped = {data<S>(dropped_layers), data<S>(dropped_output), data<S>(dropped_fed)},
                           .x = rows_of<S>(x), .dy = rows_of<S>(dy), .dalignments = rows_of<S>(dalignments), .h0 = data<S>(h0),
                           .c0 = data<S>(c0), .fed0 = data<S>(fed0),
                           .dh_n = data<S>(dh_n), .dc_n = data<S>(dc_n), .dfed_n = data<S>(dfed_n), .saved = out<compute_t<S>>(saved),
                           .d = {out_or_null(dx), out<S>(dh0), out<S>(dc0), out_or_null(dfed0), out_or_null(dw_query), out_or_null(dw_out)},
                           .need_dw = need_dw,
                           .make_dmemory = [&]() -> DecoderMemoryGradients<S> {
                             dmemory = gradient_of(x, memory, true), dkeys = gradient_of(x, keys, true);
                             return {out<S>(dmemory), out_or_null(dkeys)};
                           },
                           .make_dw = [&]() -> DecoderWeightGradients<S> {
                             make_dw();
                             return {out_or_null(dw_ih), out_or_null(dw_ih_above), out_or_null(dw_hh), out_or_null(db),
                                     out_or_null(dw_peephole), out_or_null(db_query), out_or_null(dw_score), out_or_null(db_out)};
                           }}
        .run();
  });
  return {dx, dh0, dc0, dfed0, dmemory, dkeys, dw_ih, dw_ih_above, dw_hh, db, dw_peephole, dw_query, db_query, dw_score, dw_out, db_out};
}

}  // namespace
}  // namespace fastlstm

STABLE_TORCH_LIBRARY_FRAGMENT(fastlstm, m) {
  m.def(
      "attention_lstm_fwd(Tensor x, Tensor? batch_sizes, Tensor h0, Tensor c0, Tensor? fed0, Tensor memory, Tensor? keys, "
      "Tensor? memory_lengths, Tensor? dropped_layers, Tensor? dropped_output, Tensor? dropped_fed, Tensor w_ih, Tensor? w_ih_above, "
      "Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_peephole, Tensor? w_query, Tensor? b_query, Tensor? w_score, Tensor? w_out, "
      "Tensor? b_out, bool coupled, bool before, int feed, int query_layer, bool tanh, float scale, bool return_alignments, bool save) "
      "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor fed_n, Tensor alignments, Tensor saved)");
  m.def(
      "attention_lstm_bwd(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dfed_n, Tensor? dalignments, Tensor x, Tensor? batch_sizes, "
      "Tensor h0, Tensor c0, Tensor? fed0, Tensor memory, Tensor? keys, Tensor? memory_lengths, Tensor? dropped_layers, "
      "Tensor? dropped_output, Tensor? dropped_fed, Tensor w_ih, Tensor? w_ih_above, Tensor w_hh, Tensor? w_peephole, Tensor? w_query, "
      "Tensor? w_score, Tensor? w_out, Tensor saved, bool coupled, bool before, int feed, int query_layer, bool tanh, float scale, "
      "bool need_dx, bool need_dw) -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dfed0, Tensor dmemory, Tensor dkeys, Tensor dw_ih, "
      "Tensor dw_ih_above, Tensor dw_hh, Tensor db, Tensor dw_peephole, Tensor dw_query, Tensor db_query, Tensor dw_score, Tensor dw_out, "
      "Tensor db_out)");
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("attention_lstm_fwd", TORCH_BOX(&fastlstm::attention_lstm_fwd));
  m.impl("attention_lstm_bwd", TORCH_BOX(&fastlstm::attention_lstm_bwd));
}
