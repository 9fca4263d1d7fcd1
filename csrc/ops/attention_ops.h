// What the ops of attention share: checks of the memory, and what a reader gets of it.
#pragma once
#include "attention/reader.h"
#include "ops/ops.h"

namespace fastlstm {

// Lengths are read where the memory is: there may be no more slots than it has.
inline void check_memory(const Tensor& x, const Tensor& memory, const Optional& keys, const Optional& lengths, const Optional& w_score,
                         int64_t B, int64_t A) {
  const int64_t S = memory.size(0), M = memory.size(2);
  check_like(x, memory, "memory", {S, B, M});
  check_like(x, keys, "keys", {S, B, A});
  check_like(x, w_score, "w_score", {A});
  check(keys || M == A, "without keys the memory is multiplied with queries of its own size");
  if (!lengths) return;
  check(lengths->is_cpu() && lengths->scalar_type() == ScalarType::Long && lengths->dim() == 1 && lengths->size(0) == B,
        "memory_lengths must be int64 (B,) on the CPU");
  for (int64_t b = 0; b < B; b++) {
    const int64_t length = data<int64_t>(*lengths)[b * lengths->stride(0)];
    check(length >= 0 && length <= S, "memory_lengths must lie between 0 and the number of slots");
  }
}

// Of tensors whose rows are contiguous.
template <class S>
Memory<S> memory_of(const Tensor& memory, const Optional& keys, const Optional& lengths, const Optional& w_score, int64_t A) {
  const auto slots = [](const Tensor& t) { return MemoryRows<S>{data<S>(t), t.stride(0), t.stride(1)}; };
  return {.S = memory.size(0), .B = memory.size(1), .M = memory.size(2), .A = A, .memory = slots(memory),
          .keys = slots(keys ? *keys : memory), .own_keys = keys.has_value(), .lengths = data<int64_t>(lengths), .score = data<S>(w_score)};
}

template <class F>
void for_arithmetic_type(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Double) f(double{});
  else f(float{});
}

}  // namespace fastlstm
