// The ops fastlstm::attend_fwd and fastlstm::attend_bwd: attention by the queries of all steps at once. Without w_score, scores are
// products; without keys, these are the memory.
#include "attention/attend.h"
#include "ops/attention_ops.h"

namespace fastlstm {
namespace {

// Queries are read in whole panels: the last row may be read beyond its end.
Tensor with_room(const Tensor& t, int64_t rows, int64_t n) {
  const Tensor copy = new_tensor(t, {rows * n + kPanel});
  for_arithmetic_type(t.scalar_type(), [&]<class S>(S) {
    const Rows<const S> from = rows_of<S>(t);
    for (int64_t s = 0; s < t.size(0); s++)
      for (int64_t b = 0; b < t.size(1); b++)
        std::copy_n(from.p + s * from.t_stride + b * from.b_stride, n, out<S>(copy) + (s * t.size(1) + b) * n);
  });
  return copy;
}

void check_arguments(
    const Tensor& query, const Tensor& memory, const Optional& keys, const Optional& memory_lengths, const Optional& w_score) {
  check(query.dim() == 3 && memory.dim() == 3 && query.is_cpu(), "query must be (T, B, A) and memory (S, B, M), on the CPU");
  check(query.scalar_type() == ScalarType::Float || query.scalar_type() == ScalarType::Double, "dtype must be float32 or float64");
  check_memory(query, memory, keys, memory_lengths, w_score, query.size(1), query.size(2));
}

std::tuple<Tensor, Tensor, Tensor> attend_fwd(Tensor query, Tensor memory, Optional keys, Optional memory_lengths, Optional w_score,
                                              bool return_alignments, bool save) {
  check_arguments(query, memory, keys, memory_lengths, w_score);
  const int64_t T = query.size(0), B = query.size(1), A = query.size(2), S = memory.size(0), M = memory.size(2);
  query = as_contiguous(query), memory = with_contiguous_rows(memory);
  if (keys) keys = with_contiguous_rows(*keys);
  memory_lengths = as_contiguous(memory_lengths), w_score = as_contiguous(w_score);
  const Tensor context = new_tensor(query, {T, B, M});
  const Tensor alignments = new_tensor(query, return_alignments ? std::vector<int64_t>{T, B, S} : std::vector<int64_t>{0});
  const Tensor saved = new_saved(query, save ? T * B : 0, S, query.scalar_type());
  for_arithmetic_type(query.scalar_type(), [&]<class V>(V) {
    const int64_t rows = T * B;
    V* const weights = save ? out<V>(saved) : return_alignments ? out<V>(alignments) : nullptr;
    AttendCall<V>{T, memory_of<V>(memory, keys, memory_lengths, w_score, A), data<V>(query), out<V>(context), weights}.run();
    if (save && return_alignments) std::copy_n(weights, rows * S, out<V>(alignments));
  });
  return {context, alignments, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attend_bwd(Optional dcontext, Optional dalignments, Tensor query, Tensor memory, Optional keys,
                                                      Optional memory_lengths, Optional w_score, Tensor saved, bool need_dx, bool need_dw) {
  check_arguments(query, memory, keys, memory_lengths, w_score);
  const int64_t T = query.size(0), B = query.size(1), A = query.size(2), S = memory.size(0), M = memory.size(2);
  check_like(query, dcontext, "dcontext", {T, B, M});
  check_like(query, dalignments, "dalignments", {T, B, S});
  check_saved(saved, query.scalar_type(), T * B, S, "attend_fwd");
  query = with_contiguous_rows(query), memory = with_contiguous_rows(memory);
  if (keys) keys = with_contiguous_rows(*keys);
  memory_lengths = as_contiguous(memory_lengths), w_score = as_contiguous(w_score), saved = as_contiguous(saved);
  if (dcontext) dcontext = with_contiguous_rows(*dcontext);
  if (dalignments) dalignments = with_contiguous_rows(*dalignments);
  const Tensor queries = with_room(query, T * B, A), dquery = gradient_of(query, query, need_dx);
  const Tensor dmemory = gradient_of(query, memory, true), dkeys = gradient_of(query, keys, true);
  const Tensor dscore = gradient_of(query, w_score, need_dw);
  for_arithmetic_type(query.scalar_type(), [&]<class V>(V) {
    const V* const weights = data<V>(saved);
    const auto out_or_null = [](const Tensor& t) { return t.numel() > 0 ? out<V>(t) : nullptr; };
    AttendBackwardCall<V>{T, memory_of<V>(memory, keys, memory_lengths, w_score, A), data<V>(queries), weights,
                          rows_of<V>(dcontext), rows_of<V>(dalignments), need_dx ? out<V>(dquery) : nullptr, out<V>(dmemory),
                          out_or_null(dkeys), out_or_null(dscore)}
        .run();
  });
  return {dquery, dmemory, dkeys, dscore};
}

}  // namespace
}  // namespace fastlstm

STABLE_TORCH_LIBRARY_FRAGMENT(fastlstm, m) {
  m.def(
      "attend_fwd(Tensor query, Tensor memory, Tensor? keys, Tensor? memory_lengths, Tensor? w_score, bool return_alignments, bool save) "
      "-> (Tensor context, Tensor alignments, Tensor saved)");
  m.def(
      "attend_bwd(Tensor? dcontext, Tensor? dalignments, Tensor query, Tensor memory, Tensor? keys, Tensor? memory_lengths, "
      "Tensor? w_score, Tensor saved, bool need_dx, bool need_dw) -> (Tensor dquery, Tensor dmemory, Tensor dkeys, Tensor dw_score)");
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("attend_fwd", TORCH_BOX(&fastlstm::attend_fwd));
  m.impl("attend_bwd", TORCH_BOX(&fastlstm::attend_bwd));
}
