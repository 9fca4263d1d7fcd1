// What the ops of all variants share: checks of what the loops rely on, and tensors for results.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "loop/call.h"
#include "memory/memory.h"

namespace fastlstm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error("fastlstm: " + message); }
inline void check(bool ok, const char* message) {
  if (!ok) fail(message);
}

inline std::string text(const int64_t* sizes, size_t n) {
  std::string s = "(";
  for (size_t i = 0; i < n; i++) s += (i ? ", " : "") + std::to_string(sizes[i]);
  return s + ")";
}

// The loops read memory by these shapes: they are checked here once more, also for callers that skip fastlstm.functional.
inline void check_like(const Tensor& x, const Optional& t, const char* name, const std::vector<int64_t>& shape) {
  if (!t) return;
  const auto sizes = t->sizes();
  if (sizes.size() != shape.size() || !std::equal(shape.begin(), shape.end(), sizes.begin()))
    fail(std::string(name) + " has shape " + text(sizes.data(), sizes.size()) + ", expected " + text(shape.data(), shape.size()));
  if (!t->is_cpu() || t->scalar_type() != x.scalar_type()) fail(std::string(name) + " must have the dtype and device of x");
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

inline std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t n = 1;
  for (size_t i = shape.size(); i-- > 0; n *= std::max<int64_t>(shape[i], 1)) strides[i] = n;
  return strides;
}

// A tensor over the memory of another, from so many elements on behind its first.
inline Tensor part_of(const Tensor& whole, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int64_t offset) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(whole.get(), static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                                        offset, &handle));
  return Tensor(handle);
}

// Where the results of a call lie that is the i-th of n (each.h): in the order in which they are made, each is a part of one of all.
struct Parts {
  std::vector<Tensor>& wholes;
  int64_t n, i;
  size_t made = 0;

  template <class Make>
  Tensor next(const std::vector<int64_t>& shape, const Make& make) {
    if (made == wholes.size()) {
      std::vector<int64_t> all{n};
      all.insert(all.end(), shape.begin(), shape.end());
      wholes.push_back(make(all));
    }
    const Tensor& whole = wholes[made++];
    return part_of(whole, shape, contiguous_strides(shape), i * (whole.numel() / n));
  }
};
inline thread_local Parts* parts = nullptr;

// torch::stable::new_empty and contiguous look an op up by its name at every call, which a single step feels.
inline Tensor new_strided(ScalarType dtype, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
  const auto shim_dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(), shim_dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  const Tensor t(handle);
  if (t.numel() > 0) {
    advise_huge(t.mutable_data_ptr(), t.numel() * t.element_size());
    poison_fresh(t.mutable_data_ptr(), t.numel() * t.element_size());
  }
  return t;
}
inline Tensor new_tensor(ScalarType dtype, const std::vector<int64_t>& shape) {
  if (Parts* const of = std::exchange(parts, nullptr)) {
    const Tensor t = of->next(shape, [&](const auto& all) { return new_tensor(dtype, all); });
    parts = of;
    return t;
  }
  return new_strided(dtype, shape, contiguous_strides(shape));
}
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape) { return new_tensor(like.scalar_type(), shape); }

// The same in memory of the pool, where it goes back to; such a tensor can't be resized.
inline Tensor pooled_strided(const Tensor& like, ScalarType dtype, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                             size_t bytes) {
  return torch::stable::from_blob(take_block(bytes), {shape.data(), shape.size()}, {strides.data(), strides.size()}, like.device(), dtype,
                                  give_back_block);
}
inline Tensor new_pooled(const Tensor& like, ScalarType dtype, const std::vector<int64_t>& shape, size_t bytes) {
  if (Parts* const of = std::exchange(parts, nullptr)) {
    const Tensor t = of->next(shape, [&](const auto& all) { return new_pooled(like, dtype, all, bytes * of->n); });
    parts = of;
    return t;
  }
  return pooled_strided(like, dtype, shape, contiguous_strides(shape), bytes);
}

// What only the backward sees.
inline Tensor new_saved(const Tensor& like, int64_t rows, int64_t row, ScalarType dtype) {
  if (rows == 0) return new_tensor(dtype, {rows, row});
  const size_t value = dtype == ScalarType::Double ? sizeof(double) : sizeof(float);
  return new_pooled(like, dtype, {rows, row}, static_cast<size_t>(rows * row) * value);
}

inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline Optional as_contiguous(const Optional& t) { return t ? Optional(as_contiguous(*t)) : std::nullopt; }

inline Tensor with_contiguous_rows(const Tensor& t) {
  // whether bfloat16 is read in pairs may not depend on strides
  if (t.scalar_type() == ScalarType::BFloat16 && t.dim() > 1 && t.stride(t.dim() - 2) % 2) return as_contiguous(t);
  return t.dim() == 0 || t.stride(t.dim() - 1) == 1 || t.size(t.dim() - 1) <= 1 ? t : as_contiguous(t);
}

// The sequences of each of seq.T steps, of seq.B in all.
inline void read_batch_sizes(Sequence& seq, const Optional& batch_sizes) {
  seq.size.assign(seq.T, seq.B);
  if (!batch_sizes) return;
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

inline void read_reset(Sequence& seq, const Optional& reset, const std::vector<int64_t>& shape) {
  if (!reset) return;
  const auto sizes = reset->sizes();
  check(sizes.size() == shape.size() && std::equal(shape.begin(), shape.end(), sizes.begin()) && reset->is_cpu() &&
            reset->scalar_type() == ScalarType::Bool && reset->is_contiguous(),
        "reset must be bool, contiguous, on the CPU, and have the leading dimensions of x");
  seq.reset = data<bool>(*reset);
}

// A state is (B, n), or (1, B, n), as modules of one layer have it: so that a single step needs no views. Final states are like it.
inline int64_t batch_of(const Tensor& state) { return state.size(state.dim() - 2); }
inline int64_t width_of(const Tensor& state) { return state.size(state.dim() - 1); }
inline bool is_state(const Tensor& t) { return t.dim() == 2 || (t.dim() == 3 && t.size(0) == 1); }
inline std::vector<int64_t> state_shape(const Tensor& like, int64_t B, int64_t n) {
  return like.dim() == 3 ? std::vector<int64_t>{1, B, n} : std::vector<int64_t>{B, n};
}

inline Sequence make_sequence(const Tensor& x, const Optional& batch_sizes, const Optional& reset, const Tensor& h0, bool reverse) {
  Sequence seq;
  check(is_state(h0), "h0 must be (B, H), or (B, P) with a projection");
  seq.reverse = reverse;
  seq.B = batch_of(h0);
  seq.packed = x.dim() == 2;
  check(x.is_cpu() && (seq.packed || x.dim() == 3), "x must be (T, B, I), or (N, I) with batch_sizes, on the CPU");
  check(seq.packed || x.size(1) == seq.B, "x and h0 differ in their batch size");
  // two dimensions without batch_sizes: one step of all rows
  seq.T = !seq.packed ? x.size(0) : batch_sizes ? batch_sizes->size(0) : 1;
  read_batch_sizes(seq, batch_sizes);
  int64_t row = 0;
  for (int64_t t = 0; t < seq.T; t++) {
    seq.first.push_back(row);
    row += seq.packed ? seq.size[t] : seq.B;
  }
  check(!seq.packed || row == x.size(0), "the rows of x are not as many as batch_sizes say, or as h0 has");
  read_reset(seq, reset, seq.packed ? std::vector<int64_t>{row} : std::vector<int64_t>{seq.T, seq.B});
  return seq;
}

inline const Variant& lstm_variant(bool coupled, bool peephole) {
  return find_variant(coupled ? (peephole ? "cifg_peephole_lstm" : "cifg_lstm") : (peephole ? "peephole_lstm" : "lstm"));
}

template <class S>
Rows<const S> rows_of(const Tensor& t) {
  if (t.dim() == 2) return {data<S>(t), 0, t.stride(0)};
  return {data<S>(t), t.stride(0), t.stride(1)};
}

template <class F>
void for_storage_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::BFloat16: return f(torch::headeronly::BFloat16{});
    case ScalarType::Half: return f(torch::headeronly::Half{});
    default: fail("dtype must be float32, float64, bfloat16 or float16");
  }
}

inline ScalarType compute_type(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

inline void check_saved(const Tensor& saved, ScalarType dtype, int64_t rows, int64_t row, const char* forward) {
  if (!saved.is_cpu() || saved.scalar_type() != compute_type(dtype) || saved.dim() != 2 || saved.size(0) != rows ||
      saved.size(1) != row)
    fail(std::string("saved is not what ") + forward + " returned with save=True");
}

// The leading dimensions of x, then `n`: the shape of what has a row per step and sequence.
inline std::vector<int64_t> rows_shape(const Sequence& seq, const Tensor& x, int64_t n) {
  return seq.packed ? std::vector<int64_t>{x.size(0), n} : std::vector<int64_t>{seq.T, seq.B, n};
}
inline int64_t row_count(const Sequence& seq, const Tensor& x) { return seq.packed ? x.size(0) : seq.T * seq.B; }

template <class S>
Rows<const S> rows_of(const Optional& t) {
  return t ? rows_of<S>(*t) : Rows<const S>{};
}

constexpr size_t kPooledGradient = 1 << 16;

// A gradient of the shape of `t`, or nothing (zero elements) where it is not wanted. Those that are large enough for the pool
// take what the call is done with. `strides`: if not contiguous.
inline Tensor gradient_of(const Tensor& like, const Optional& t, bool wanted, const std::vector<int64_t>& strides = {}) {
  if (!wanted || !t) return new_tensor(like, {0});
  const std::vector<int64_t> shape(t->sizes().begin(), t->sizes().end());
  const size_t bytes = t->numel() * t->element_size();
  const bool pooled = bytes >= kPooledGradient;
  if (!strides.empty())
    return pooled ? pooled_strided(like, like.scalar_type(), shape, strides, bytes) : new_strided(like.scalar_type(), shape, strides);
  return pooled ? new_pooled(like, like.scalar_type(), shape, bytes) : new_tensor(like, shape);
}

}  // namespace fastlstm
