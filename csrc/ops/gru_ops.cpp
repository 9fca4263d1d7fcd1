// The ops fastlstm::gru_fwd and fastlstm::gru_bwd.
#include "ops/each.h"

namespace fastlstm {
namespace {

Sizes make_sizes(const Tensor& x, const Tensor& h0, const Tensor& w_ih, const Tensor& w_hh, const Optional& b_ih,
                 const Optional& b_hh) {
  const Sizes size{x.size(x.dim() - 1), width_of(h0), width_of(h0), false};
  const int64_t gates = 3 * size.H;
  check_like(x, h0, "h0", state_shape(h0, batch_of(h0), size.H));
  check_like(x, w_ih, "w_ih", {gates, size.I});
  check_like(x, w_hh, "w_hh", {gates, size.H});
  check_like(x, b_ih, "b_ih", {gates});
  check_like(x, b_hh, "b_hh", {gates});
  return size;
}

std::tuple<Tensor, Tensor, Tensor> gru_fwd(Tensor x, Optional batch_sizes, Optional reset, Tensor h0, Tensor w_ih, Tensor w_hh,
                                           Optional b_ih, Optional b_hh, bool reverse, bool save) {
  const Variant& variant = find_variant("gru");
  const Sequence seq = make_sequence(x, batch_sizes, reset, h0, reverse);
  const Sizes size = make_sizes(x, h0, w_ih, w_hh, b_ih, b_hh);
  x = with_contiguous_rows(x), h0 = as_contiguous(h0);
  w_ih = as_contiguous(w_ih), w_hh = as_contiguous(w_hh);
  b_ih = as_contiguous(b_ih), b_hh = as_contiguous(b_hh);
  const ScalarType dtype = x.scalar_type();
  const Tensor y = new_tensor(x, rows_shape(seq, x, size.H)), h_n = new_tensor(x, state_shape(h0, seq.B, size.H));
  const int64_t saved_row = panels_of(size.H) * Record(variant, size).saved();
  const Tensor saved = new_saved(x, save ? row_count(seq, x) : 0, saved_row, compute_type(dtype));
  for_storage_type(dtype, [&]<class S>(S) {
    ForwardCall<S>{.variant = variant, .seq = seq, .size = size,
                   .w = {data<S>(w_ih), data<S>(w_hh), data<S>(b_ih), data<S>(b_hh), nullptr, nullptr}, .x = rows_of<S>(x),
                   .h0 = data<S>(h0), .c0 = data<S>(h0), .y = out<S>(y), .h_n = out<S>(h_n), .c_n = nullptr, .cells = nullptr,
                   .saved = save ? out<compute_t<S>>(saved) : nullptr}
        .run();
  });
  return {y, h_n, saved};
}

// Gradients that are not wanted come back empty (zero elements).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gru_bwd(Optional dy, Optional dh_n, Tensor x, Optional batch_sizes,
                                                                   Optional reset, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor saved,
                                                                   bool reverse, bool need_dx, bool need_dw, bool need_dh) {
  const Variant& variant = find_variant("gru");
  const Sequence seq = make_sequence(x, batch_sizes, reset, h0, reverse);
  const Sizes size = make_sizes(x, h0, w_ih, w_hh, std::nullopt, std::nullopt);
  const ScalarType dtype = x.scalar_type();
  check_like(x, dy, "dy", rows_shape(seq, x, size.H));
  check_like(x, dh_n, "dh_n", {seq.B, size.H});
  check_saved(saved, dtype, row_count(seq, x), panels_of(size.H) * Record(variant, size).saved(), "gru_fwd");
  x = with_contiguous_rows(x), h0 = as_contiguous(h0);
  if (dy) dy = with_contiguous_rows(*dy);
  dh_n = as_contiguous(dh_n), saved = as_contiguous(saved);
  w_ih = as_contiguous(w_ih), w_hh = as_contiguous(w_hh);
  const Tensor dx = gradient_of(x, x, need_dx), dh0 = gradient_of(x, h0, need_dh);
  Tensor dw_ih, dw_hh, db_ih, db_hh;
  const auto make_dw = [&] {
    dw_ih = gradient_of(x, w_ih, need_dw), dw_hh = gradient_of(x, w_hh, need_dw);
    db_ih = new_tensor(x, {need_dw ? w_ih.size(0) : 0}), db_hh = new_tensor(x, {need_dw ? w_ih.size(0) : 0});
  };
  if (!need_dw) make_dw();
  for_storage_type(dtype, [&]<class S>(S) {
    BackwardCall<S>{.variant = variant, .seq = seq, .size = size,
                    .w = {data<S>(w_ih), data<S>(w_hh), nullptr, nullptr, nullptr, nullptr}, .x = rows_of<S>(x),
                    .dy = rows_of<S>(dy), .dcells = {}, .h0 = data<S>(h0), .c0 = data<S>(h0),
                    .dh_n = data<S>(dh_n), .dc_n = nullptr, .saved = data<compute_t<S>>(saved),
                    .dx = need_dx ? out<S>(dx) : nullptr, .dh0 = need_dh ? out<S>(dh0) : nullptr, .dc0 = nullptr, .need_dw = need_dw,
                    .make_dw = [&] {
                      make_dw();
                      return WeightGradients<S>{out<S>(dw_ih), out<S>(dw_hh), out<S>(db_ih), out<S>(db_hh), nullptr, nullptr};
                    }}
        .run();
  });
  return {dx, dh0, dw_ih, dw_hh, db_ih, db_hh};
}

}  // namespace
}  // namespace fastlstm

STABLE_TORCH_LIBRARY_FRAGMENT(fastlstm, m) {
  fastlstm::define_with_each(
      m, "gru_fwd",
      "Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, bool "
      "reverse, bool save",
      "(Tensor y, Tensor h_n, Tensor saved)");
  fastlstm::define_with_each(
      m, "gru_bwd",
      "Tensor? dy, Tensor? dh_n, Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor "
      "saved, bool reverse, bool need_dx, bool need_dw, bool need_dh",
      "(Tensor dx, Tensor dh0, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh)");
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("gru_fwd", TORCH_BOX(&fastlstm::gru_fwd));
  m.impl("gru_fwd_each", TORCH_BOX(&fastlstm::Each<&fastlstm::gru_fwd>::run));
  m.impl("gru_bwd", TORCH_BOX(&fastlstm::gru_bwd));
  m.impl("gru_bwd_each", TORCH_BOX(&fastlstm::Each<&fastlstm::gru_bwd>::run));
}
