// The ops fastlstm::lstm_fwd and fastlstm::lstm_bwd: the LSTM, with peepholes, with coupled gates, or with both.
#include "ops/each.h"

namespace fastlstm {
namespace {

Sizes make_sizes(const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                 const Optional& b_ih, const Optional& b_hh, const Optional& w_hr, const Optional& w_peephole, const Variant& v) {
  check(is_state(c0), "c0 must be (B, H)");
  const Sizes size{x.size(x.dim() - 1), width_of(c0), width_of(h0), w_hr.has_value()};
  const int64_t B = batch_of(h0), gates = v.ih.gates * size.H;
  check_like(x, h0, "h0", state_shape(h0, B, size.project ? size.R : size.H));
  check_like(x, c0, "c0", state_shape(h0, B, size.H));
  check_like(x, w_ih, "w_ih", {gates, size.I});
  check_like(x, w_hh, "w_hh", {gates, size.R});
  check_like(x, b_ih, "b_ih", {gates});
  check_like(x, b_hh, "b_hh", {gates});
  check_like(x, w_hr, "w_hr", {size.R, size.H});
  check_like(x, w_peephole, "w_peephole", {static_cast<int64_t>(v.peepholes.size()), size.H});
  return size;
}

// What a row saves: its records, and h where a projection makes it. Those of all rows follow the records of all.
int64_t saved_records(const Variant& v, const Sizes& size) { return panels_of(size.H) * Record(v, size).saved(); }
int64_t saved_row(const Variant& v, const Sizes& size) { return saved_records(v, size) + (size.project ? size.R : 0); }
template <class S>
S* projected(const Tensor& saved, const Variant& v, const Sizes& size) {
  return reinterpret_cast<S*>(out<compute_t<S>>(saved) + saved.size(0) * saved_records(v, size));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_fwd(
    Tensor x, Optional batch_sizes, Optional reset, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Optional b_ih, Optional b_hh,
    Optional w_hr, Optional w_peephole, bool coupled, bool reverse, bool return_cells, bool save) {
  const Variant& variant = lstm_variant(coupled, w_peephole.has_value());
  const Sequence seq = make_sequence(x, batch_sizes, reset, h0, reverse);
  const Sizes size = make_sizes(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_peephole, variant);
  x = with_contiguous_rows(x);
  h0 = as_contiguous(h0), c0 = as_contiguous(c0);
  w_ih = as_contiguous(w_ih), w_hh = as_contiguous(w_hh);
  b_ih = as_contiguous(b_ih), b_hh = as_contiguous(b_hh), w_hr = as_contiguous(w_hr), w_peephole = as_contiguous(w_peephole);
  const ScalarType dtype = x.scalar_type();
  const Tensor y = new_tensor(x, rows_shape(seq, x, size.R));
  const Tensor h_n = new_tensor(x, state_shape(h0, seq.B, size.R)), c_n = new_tensor(x, state_shape(h0, seq.B, size.H));
  const Tensor cells = new_tensor(x, return_cells ? rows_shape(seq, x, size.H) : std::vector<int64_t>{0});
  const Tensor saved = new_saved(x, save ? row_count(seq, x) : 0, saved_row(variant, size), compute_type(dtype));
  for_storage_type(dtype, [&]<class S>(S) {
    ForwardCall<S>{.variant = variant, .seq = seq, .size = size,
                   .w = {data<S>(w_ih), data<S>(w_hh), data<S>(b_ih), data<S>(b_hh), data<S>(w_hr), data<S>(w_peephole)},
                   .x = rows_of<S>(x), .h0 = data<S>(h0), .c0 = data<S>(c0), .y = out<S>(y), .h_n = out<S>(h_n),
                   .c_n = out<S>(c_n), .cells = return_cells ? out<S>(cells) : nullptr,
                   .saved = save ? out<compute_t<S>>(saved) : nullptr}
        .run();
    if (save && size.project) std::copy_n(data<S>(y), y.numel(), projected<S>(saved, variant, size));
  });
  return {y, h_n, c_n, cells, saved};
}

// Gradients that are not wanted come back empty (zero elements).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_bwd(
    Optional dy, Optional dh_n, Optional dc_n, Optional dcells, Tensor x, Optional batch_sizes, Optional reset, Tensor h0, Tensor c0,
    Tensor w_ih, Tensor w_hh, Optional w_hr, Optional w_peephole, Tensor saved, bool coupled, bool reverse, bool need_dx, bool need_dw,
    bool need_dh) {
  const Variant& variant = lstm_variant(coupled, w_peephole.has_value());
  const Sequence seq = make_sequence(x, batch_sizes, reset, h0, reverse);
  const Sizes size = make_sizes(x, h0, c0, w_ih, w_hh, std::nullopt, std::nullopt, w_hr, w_peephole, variant);
  const ScalarType dtype = x.scalar_type();
  check_like(x, dy, "dy", rows_shape(seq, x, size.R));
  check_like(x, dcells, "dcells", rows_shape(seq, x, size.H));
  check_like(x, dh_n, "dh_n", {seq.B, size.R});
  check_like(x, dc_n, "dc_n", {seq.B, size.H});
  check_saved(saved, dtype, row_count(seq, x), saved_row(variant, size), "lstm_fwd");
  x = with_contiguous_rows(x);
  if (dy) dy = with_contiguous_rows(*dy);
  if (dcells) dcells = with_contiguous_rows(*dcells);
  dh_n = as_contiguous(dh_n), dc_n = as_contiguous(dc_n);
  h0 = as_contiguous(h0), c0 = as_contiguous(c0);
  saved = as_contiguous(saved);
  w_ih = as_contiguous(w_ih), w_hh = as_contiguous(w_hh);
  w_hr = as_contiguous(w_hr), w_peephole = as_contiguous(w_peephole);
  const Tensor dx = gradient_of(x, x, need_dx), dh0 = gradient_of(x, h0, need_dh), dc0 = gradient_of(x, c0, need_dh);
  Tensor dw_ih, dw_hh, db, dw_hr, dw_peephole;
  const auto make_dw = [&] {
    dw_ih = gradient_of(x, w_ih, need_dw), dw_hh = gradient_of(x, w_hh, need_dw);
    db = new_tensor(x, {need_dw ? w_ih.size(0) : 0});
    dw_hr = gradient_of(x, w_hr, need_dw), dw_peephole = gradient_of(x, w_peephole, need_dw);
  };
  if (!need_dw) make_dw();
  for_storage_type(dtype, [&]<class S>(S) {
    BackwardCall<S>{.variant = variant, .seq = seq, .size = size,
                    .w = {data<S>(w_ih), data<S>(w_hh), nullptr, nullptr, data<S>(w_hr), data<S>(w_peephole)},
                    .x = rows_of<S>(x), .dy = rows_of<S>(dy), .dcells = rows_of<S>(dcells), .h0 = data<S>(h0), .c0 = data<S>(c0),
                    .h = size.project ? projected<S>(saved, variant, size) : nullptr, .dh_n = data<S>(dh_n), .dc_n = data<S>(dc_n),
                    .saved = data<compute_t<S>>(saved), .dx = need_dx ? out<S>(dx) : nullptr, .dh0 = need_dh ? out<S>(dh0) : nullptr,
                    .dc0 = need_dh ? out<S>(dc0) : nullptr, .need_dw = need_dw, .make_dw = [&] {
                      make_dw();
                      return WeightGradients<S>{out<S>(dw_ih), out<S>(dw_hh), out<S>(db), nullptr, out<S>(dw_hr), out<S>(dw_peephole)};
                    }}
        .run();
  });
  return {dx, dh0, dc0, dw_ih, dw_hh, db, dw_hr, dw_peephole};
}

}  // namespace
}  // namespace fastlstm

STABLE_TORCH_LIBRARY(fastlstm, m) {
  fastlstm::define_with_each(
      m, "lstm_fwd",
      "Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, Tensor? w_hr, Tensor? w_peephole, bool coupled, bool reverse, bool return_cells, bool save",
      "(Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor saved)");
  fastlstm::define_with_each(
      m, "lstm_bwd",
      "Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, "
      "Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? w_hr, Tensor? w_peephole, Tensor saved, bool coupled, bool reverse, "
      "bool need_dx, bool need_dw, bool need_dh",
      "(Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, Tensor dw_hh, Tensor db, Tensor dw_hr, Tensor dw_peephole)");
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_fwd", TORCH_BOX(&fastlstm::lstm_fwd));
  m.impl("lstm_fwd_each", TORCH_BOX(&fastlstm::Each<&fastlstm::lstm_fwd>::run));
  m.impl("lstm_bwd", TORCH_BOX(&fastlstm::lstm_bwd));
  m.impl("lstm_bwd_each", TORCH_BOX(&fastlstm::Each<&fastlstm::lstm_bwd>::run));
}
