// The factors of a product: elements A, which are T, or Bf16Pair where the CPU multiplies two bfloat16 at once.
#pragma once
#include "products/pack.h"

namespace fastlstm {

template <class A>
constexpr bool kPaired = std::is_same_v<A, Bf16Pair>;
template <class A>
constexpr int64_t kTerms = kPaired<A> ? 2 : 1;  // of a sum, in an element

// How states and gradients of gates are kept, of which elements A are factors.
template <class S, class A>
using kept_t = std::conditional_t<kPaired<A>, BFloat16, compute_t<S>>;

template <class A, class V>
const A* factors(const V* p) {
  if constexpr (std::is_same_v<A, V>) return p;
  else return reinterpret_cast<const A*>(p);
}

}  // namespace fastlstm
