// The op fastlstm::pairs_bwd: a cell over dual numbers, each a pair of rows, forward and back (kernels/pairs/).
//
// Every tensor with rows has two for each sequence, side by side. There are no biases: x has a column for them. The GRU has no c.
#include "ops/ops.h"

namespace fastlstm {
namespace {

const Variant& pairs_variant(bool cell, bool coupled, bool peephole) {
  if (!cell) return find_variant("gru_pairs");
  return find_variant(coupled ? (peephole ? "cifg_peephole_lstm_pairs" : "cifg_lstm_pairs")
                              : (peephole ? "peephole_lstm_pairs" : "lstm_pairs"));
}

Sequence make_pairs(const Tensor& x, const Optional& batch_sizes, const Optional& reset, const Tensor& h0, bool reverse) {
  Sequence seq = make_sequence(x, batch_sizes, reset, h0, reverse);
  seq.together = 2;
  const auto even = [](int64_t n) { return n % 2 == 0; };
  check(even(seq.B) && std::all_of(seq.size.begin(), seq.size.end(), even), "a row has no other beside it");
  return seq;
}

Sizes make_sizes(const Tensor& x, const Tensor& h0, const Optional& c0, const Tensor& w_ih, const Tensor& w_hh, const Optional& w_hr,
                 const Optional& w_peephole, const Variant& v) {
  check(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "dtype must be float32 or float64");
  const Tensor& c = c0 ? *c0 : h0;
  check(c.dim() == 2, "c0 must be (B, H)");
  const Sizes size{x.size(x.dim() - 1), c.size(1), h0.size(1), w_hr.has_value()};
  check_like(x, h0, "h0", {h0.size(0), size.project ? size.R : size.H});
  check_like(x, c, "c0", {h0.size(0), size.H});
  check_like(x, w_ih, "w_ih", {v.ih.gates * size.H, size.I});
  check_like(x, w_hh, "w_hh", {v.hh.gates * size.H, size.R});
  check_like(x, w_hr, "w_hr", {size.R, size.H});
  check_like(x, w_peephole, "w_peephole", {static_cast<int64_t>(v.peepholes.size()), size.H});
  return size;
}

// y, the final states and cells; then gradients, if `back`. Those that are not wanted come back empty (zero elements).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pairs_bwd(
    Optional dy, Optional dh_n, Optional dc_n, Optional dcells, Tensor x, Optional batch_sizes, Optional reset, Tensor h0, Optional c0,
    Tensor w_ih, Tensor w_hh, Optional w_hr, Optional w_peephole, bool coupled, bool reverse, bool return_cells, bool back, bool need_dx,
    bool need_dw) {
  const Variant& variant = pairs_variant(c0.has_value(), coupled, w_peephole.has_value());
  const Sequence seq = make_pairs(x, batch_sizes, reset, h0, reverse);
  const Sizes size = make_sizes(x, h0, c0, w_ih, w_hh, w_hr, w_peephole, variant);
  check_like(x, dy, "dy", rows_shape(seq, x, size.R));
  check_like(x, dcells, "dcells", rows_shape(seq, x, size.H));
  check_like(x, dh_n, "dh_n", {seq.B, size.R});
  check_like(x, dc_n, "dc_n", {seq.B, size.H});
  x = with_contiguous_rows(x), h0 = as_contiguous(h0), c0 = as_contiguous(c0);
  if (dy) dy = with_contiguous_rows(*dy);
  if (dcells) dcells = with_contiguous_rows(*dcells);
  dh_n = as_contiguous(dh_n), dc_n = as_contiguous(dc_n);
  w_ih = as_contiguous(w_ih), w_hh = as_contiguous(w_hh), w_hr = as_contiguous(w_hr), w_peephole = as_contiguous(w_peephole);
  need_dx = need_dx && back, need_dw = need_dw && back;
  const Tensor y = new_tensor(x, rows_shape(seq, x, size.R)), h_n = new_tensor(x, {seq.B, size.R});
  const Tensor c_n = new_tensor(x, {c0 ? seq.B : 0, size.H});
  const Tensor cells = new_tensor(x, return_cells ? rows_shape(seq, x, size.H) : std::vector<int64_t>{0});
  const Tensor dx = gradient_of(x, x, need_dx), dh0 = gradient_of(x, h0, back), dc0 = gradient_of(x, c0, back);
  Tensor dw_ih, dw_hh, dw_hr, dw_peephole, db_ih, db_hh;
  const auto make_dw = [&] {
    dw_ih = gradient_of(x, w_ih, need_dw), dw_hh = gradient_of(x, w_hh, need_dw);
    dw_hr = gradient_of(x, w_hr, need_dw), dw_peephole = gradient_of(x, w_peephole, need_dw);
    db_ih = new_tensor(x, {w_ih.size(0)}), db_hh = new_tensor(x, {w_hh.size(0)});  // sums over both rows of pairs: nobody's
  };
  if (!need_dw) make_dw();
  for_storage_type(x.scalar_type(), [&]<class S>(S) {
    const Weights<S> w{data<S>(w_ih), data<S>(w_hh), nullptr, nullptr, data<S>(w_hr), data<S>(w_peephole)};
    const S* const c = data<S>(c0 ? *c0 : h0);
    const Buffer<compute_t<S>> saved(back ? row_count(seq, x) * panels_of(size.H) * Record(variant, size).saved() : 0);
    ForwardCall<S>{.variant = variant, .seq = seq, .size = size, .w = w, .x = rows_of<S>(x), .h0 = data<S>(h0), .c0 = c,
                   .y = out<S>(y), .h_n = out<S>(h_n), .c_n = c0 ? out<S>(c_n) : nullptr,
                   .cells = return_cells ? out<S>(cells) : nullptr, .saved = back ? saved + 0 : nullptr}
        .run();
    if (!back) return;
    BackwardCall<S>{.variant = variant, .seq = seq, .size = size, .w = w, .x = rows_of<S>(x), .dy = rows_of<S>(dy),
                    .dcells = rows_of<S>(dcells), .h0 = data<S>(h0), .c0 = c, .h = size.project ? data<S>(y) : nullptr,
                    .dh_n = data<S>(dh_n), .dc_n = data<S>(dc_n), .saved = saved + 0, .dx = need_dx ? out<S>(dx) : nullptr,
                    .dh0 = out<S>(dh0), .dc0 = c0 ? out<S>(dc0) : nullptr, .need_dw = need_dw,
                    .make_dw = [&] {
                      make_dw();
                      return WeightGradients<S>{out<S>(dw_ih), out<S>(dw_hh), out<S>(db_ih), out<S>(db_hh), out<S>(dw_hr),
                                                out<S>(dw_peephole)};
                    }}
        .run();
  });
  return {y, h_n, c_n, cells, dx, dh0, dc0, dw_ih, dw_hh, dw_hr, dw_peephole};
}

}  // namespace
}  // namespace fastlstm

STABLE_TORCH_LIBRARY_FRAGMENT(fastlstm, m) {
  m.def(
      "pairs_bwd(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, "
      "Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? w_hr, Tensor? w_peephole, bool coupled, bool reverse, bool return_cells, "
      "bool back, bool need_dx, bool need_dw) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor dx, Tensor dh0, Tensor dc0, "
      "Tensor dw_ih, Tensor dw_hh, Tensor dw_hr, Tensor dw_peephole)");
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) { m.impl("pairs_bwd", TORCH_BOX(&fastlstm::pairs_bwd)); }
