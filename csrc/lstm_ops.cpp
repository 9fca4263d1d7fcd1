// The ops fastlstm::lstm_fwd and fastlstm::lstm_bwd: schema, checks of what the loops rely on, allocation of results.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "lstm.h"

namespace fastlstm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

void check(bool ok, const std::string& message) {
  if (!ok) throw std::runtime_error("fastlstm: " + message);
}

std::string text(const int64_t* sizes, size_t n) {
  std::string s = "(";
  for (size_t i = 0; i < n; i++) s += (i ? ", " : "") + std::to_string(sizes[i]);
  return s + ")";
}

// The loops read memory by these shapes: they are checked here once more, also for callers that skip fastlstm.functional.
void check_like(const Tensor& x, const Optional& t, const char* name, std::initializer_list<int64_t> shape) {
  if (!t) return;
  const auto sizes = t->sizes();
  if (sizes.size() != shape.size() || !std::equal(shape.begin(), shape.end(), sizes.begin()))
    check(false, std::string(name) + " has shape " + text(sizes.data(), sizes.size()) + ", expected " +
                     text(shape.begin(), shape.size()));
  check(t->is_cpu() && t->scalar_type() == x.scalar_type(), std::string(name) + " must have the dtype and device of x");
}

template <class S>
const S* data(const Tensor& t) {
  return static_cast<const S*>(t.const_data_ptr());
}
template <class S>
const S* data(const Optional& t) {
  return t ? data<S>(*t) : nullptr;
}
template <class S>
S* out(const Tensor& t) {
  return static_cast<S*>(t.mutable_data_ptr());
}

Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape) {
  const Tensor t = torch::stable::new_empty(like, {shape.begin(), shape.size()});
  if (t.numel() > 0) advise_huge(t.mutable_data_ptr(), t.numel() * t.element_size());
  return t;
}

// What only the backward sees; its memory goes back to the pool.
Tensor new_saved(const Tensor& like, int64_t rows, int64_t row, ScalarType dtype) {
  const std::array<int64_t, 2> shape{rows, row}, strides{row, 1};
  if (rows == 0) return torch::stable::new_empty(like, {shape.data(), 2}, dtype);
  const size_t bytes = static_cast<size_t>(rows * row) * (dtype == ScalarType::Double ? sizeof(double) : sizeof(float));
  return torch::stable::from_blob(take_block(bytes), {shape.data(), 2}, {strides.data(), 2}, like.device(), dtype, give_back_block);
}

Tensor with_contiguous_rows(const Tensor& t) {
  return t.dim() == 0 || t.stride(t.dim() - 1) == 1 || t.size(t.dim() - 1) <= 1 ? t : torch::stable::contiguous(t);
}
Optional contiguous(const Optional& t) { return t ? Optional(torch::stable::contiguous(*t)) : std::nullopt; }

Sequence make_sequence(const Tensor& x, const Optional& batch_sizes, const Tensor& h0, bool reverse) {
  Sequence seq;
  check(h0.dim() == 2, "h0 must be (B, H), or (B, P) with a projection");
  seq.reverse = reverse;
  seq.B = h0.size(0);
  seq.packed = x.dim() == 2;
  check(x.is_cpu() && (seq.packed || x.dim() == 3), "x must be (T, B, I), or (N, I) with batch_sizes, on the CPU");
  check(!seq.packed || batch_sizes, "x of two dimensions is packed and needs batch_sizes");
  check(seq.packed || x.size(1) == seq.B, "x and h0 differ in their batch size");
  seq.T = seq.packed ? batch_sizes->size(0) : x.size(0);
  seq.size.assign(seq.T, seq.B);
  if (batch_sizes) {
    check(batch_sizes->is_cpu() && batch_sizes->scalar_type() == ScalarType::Long && batch_sizes->dim() == 1 &&
              batch_sizes->size(0) == seq.T,
          "batch_sizes must be int64 (T,) on the CPU");
    const int64_t stride = seq.T > 0 ? batch_sizes->stride(0) : 1;
    for (int64_t t = 0; t < seq.T; t++) {
      seq.size[t] = data<int64_t>(*batch_sizes)[t * stride];
      check(seq.size[t] >= 0 && seq.size[t] <= (t ? seq.size[t - 1] : seq.B),
            "batch_sizes must not increase, and lie between 0 and the batch size");
    }
  }
  int64_t row = 0;
  for (int64_t t = 0; t < seq.T; t++) {
    seq.first.push_back(row);
    row += seq.packed ? seq.size[t] : seq.B;
  }
  check(!seq.packed || row == x.size(0), "the rows of x are not as many as batch_sizes say");
  return seq;
}

template <class S>
Rows<const S> rows_of(const Tensor& t) {
  if (t.dim() == 2) return {data<S>(t), 0, t.stride(0)};
  return {data<S>(t), t.stride(0), t.stride(1)};
}

Sizes make_sizes(const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                 const Optional& b_ih, const Optional& b_hh, const Optional& w_hr) {
  check(c0.dim() == 2, "c0 must be (B, H)");
  const Sizes size{x.size(x.dim() - 1), c0.size(1), h0.size(1), w_hr.has_value()};
  const int64_t B = h0.size(0), gates = kGates * size.H;
  check_like(x, h0, "h0", {B, size.project ? size.R : size.H});
  check_like(x, c0, "c0", {B, size.H});
  check_like(x, w_ih, "w_ih", {gates, size.I});
  check_like(x, w_hh, "w_hh", {gates, size.R});
  check_like(x, b_ih, "b_ih", {gates});
  check_like(x, b_hh, "b_hh", {gates});
  check_like(x, w_hr, "w_hr", {size.R, size.H});
  return size;
}

template <class F>
void for_storage_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::BFloat16: return f(torch::headeronly::BFloat16{});
    case ScalarType::Half: return f(torch::headeronly::Half{});
    default: check(false, "dtype must be float32, float64, bfloat16 or float16");
  }
}

ScalarType compute_type(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_fwd(Tensor x, Optional batch_sizes, Tensor h0, Tensor c0, Tensor w_ih,
                                                    Tensor w_hh, Optional b_ih, Optional b_hh, Optional w_hr, bool reverse,
                                                    bool save) {
  const Sequence seq = make_sequence(x, batch_sizes, h0, reverse);
  const Sizes size = make_sizes(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr);
  x = with_contiguous_rows(x);
  h0 = torch::stable::contiguous(h0), c0 = torch::stable::contiguous(c0);
  w_ih = torch::stable::contiguous(w_ih), w_hh = torch::stable::contiguous(w_hh);
  b_ih = contiguous(b_ih), b_hh = contiguous(b_hh), w_hr = contiguous(w_hr);
  const int64_t rows = seq.packed ? x.size(0) : seq.T * seq.B;
  const ScalarType dtype = x.scalar_type();
  const Tensor y = seq.packed ? new_tensor(x, {rows, size.R}) : new_tensor(x, {seq.T, seq.B, size.R});
  const Tensor h_n = new_tensor(x, {seq.B, size.R}), c_n = new_tensor(x, {seq.B, size.H});
  const Tensor saved = new_saved(x, save ? rows : 0, size.panels() * size.saved_row(), compute_type(dtype));
  for_storage_type(dtype, [&]<class S>(S) {
    LstmForward<S>{.seq = seq, .size = size,
                   .w = {data<S>(w_ih), data<S>(w_hh), data<S>(b_ih), data<S>(b_hh), data<S>(w_hr)},
                   .x = rows_of<S>(x), .h0 = data<S>(h0), .c0 = data<S>(c0), .y = out<S>(y), .h_n = out<S>(h_n),
                   .c_n = out<S>(c_n), .saved = save ? out<compute_t<S>>(saved) : nullptr}
        .run();
  });
  return {y, h_n, c_n, saved};
}

// Gradients that are not wanted come back empty (zero elements).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_bwd(
    Optional dy, Optional dh_n, Optional dc_n, Tensor x, Optional batch_sizes, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh,
    Optional w_hr, Tensor y, Tensor saved, bool reverse, bool need_dx, bool need_dw) {
  const Sequence seq = make_sequence(x, batch_sizes, h0, reverse);
  const Sizes size = make_sizes(x, h0, c0, w_ih, w_hh, std::nullopt, std::nullopt, w_hr);
  const ScalarType dtype = x.scalar_type();
  const int64_t rows = seq.packed ? x.size(0) : seq.T * seq.B;
  if (seq.packed) {
    check_like(x, dy, "dy", {rows, size.R});
    check_like(x, y, "y", {rows, size.R});
  } else {
    check_like(x, dy, "dy", {seq.T, seq.B, size.R});
    check_like(x, y, "y", {seq.T, seq.B, size.R});
  }
  check_like(x, dh_n, "dh_n", {seq.B, size.R});
  check_like(x, dc_n, "dc_n", {seq.B, size.H});
  check(saved.is_cpu() && saved.scalar_type() == compute_type(dtype) && saved.dim() == 2 && saved.size(0) == rows &&
            saved.size(1) == size.panels() * size.saved_row(),
        "saved is not what lstm_fwd returned with save=True");
  x = with_contiguous_rows(x);
  if (dy) dy = with_contiguous_rows(*dy);
  dh_n = contiguous(dh_n), dc_n = contiguous(dc_n);
  h0 = torch::stable::contiguous(h0), c0 = torch::stable::contiguous(c0);
  y = torch::stable::contiguous(y), saved = torch::stable::contiguous(saved);
  w_ih = torch::stable::contiguous(w_ih), w_hh = torch::stable::contiguous(w_hh), w_hr = contiguous(w_hr);
  const auto empty = [&](bool wanted, std::initializer_list<int64_t> shape) {
    return new_tensor(x, wanted ? shape : std::initializer_list<int64_t>{0});
  };
  const int64_t gates = kGates * size.H;
  const Tensor dx = !need_dx     ? empty(false, {})
                    : seq.packed ? empty(true, {x.size(0), size.I})
                                 : empty(true, {seq.T, seq.B, size.I});
  const Tensor dh0 = empty(true, {seq.B, size.R}), dc0 = empty(true, {seq.B, size.H});
  const Tensor dw_ih = empty(need_dw, {gates, size.I}), dw_hh = empty(need_dw, {gates, size.R}), db = empty(need_dw, {gates});
  const Tensor dw_hr = empty(need_dw && w_hr, {size.R, size.H});
  for_storage_type(dtype, [&]<class S>(S) {
    LstmBackward<S>{.seq = seq, .size = size, .w = {data<S>(w_ih), data<S>(w_hh), nullptr, nullptr, data<S>(w_hr)},
                    .x = rows_of<S>(x), .dy = dy ? rows_of<S>(*dy) : Rows<const S>{}, .h0 = data<S>(h0), .c0 = data<S>(c0),
                    .y = data<S>(y), .dh_n = data<S>(dh_n), .dc_n = data<S>(dc_n), .saved = data<compute_t<S>>(saved),
                    .dx = need_dx ? out<S>(dx) : nullptr, .dh0 = out<S>(dh0), .dc0 = out<S>(dc0),
                    .need_dw = need_dw, .dw_ih = out<S>(dw_ih), .dw_hh = out<S>(dw_hh), .db = out<S>(db),
                    .dw_hr = out<S>(dw_hr)}
        .run();
  });
  return {dx, dh0, dc0, dw_ih, dw_hh, db, dw_hr};
}

}  // namespace
}  // namespace fastlstm

STABLE_TORCH_LIBRARY(fastlstm, m) {
  m.def(
      "lstm_fwd(Tensor x, Tensor? batch_sizes, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
      "Tensor? w_hr, bool reverse, bool save) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved)");
  m.def(
      "lstm_bwd(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor? batch_sizes, Tensor h0, Tensor c0, Tensor w_ih, "
      "Tensor w_hh, Tensor? w_hr, Tensor y, Tensor saved, bool reverse, bool need_dx, bool need_dw) "
      "-> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, Tensor dw_hh, Tensor db, Tensor dw_hr)");
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_fwd", TORCH_BOX(&fastlstm::lstm_fwd));
  m.impl("lstm_bwd", TORCH_BOX(&fastlstm::lstm_bwd));
}
