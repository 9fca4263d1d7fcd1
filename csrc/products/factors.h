// The factors of a product: elements A, which are T, or Bf16Pair where the CPU multiplies two bfloat16 at once.
#pragma once
#include "products/narrow_panel.h"

namespace fastlstm {

template <class A>
constexpr bool kPaired = std::is_same_v<A, Bf16Pair>;
template <class A>
constexpr int64_t kTerms = kPaired<A> ? 2 : 1;  // of a sum, in an element

// How states and gradients of gates are kept, of which elements A are factors.
template <class S, class A>
using kept_t = std::conditional_t<kPaired<A>, BFloat16, compute_t<S>>;

// Terms of a sum, with zeros behind them up to whole elements A, or to whole registers where they are taken by such.
constexpr int64_t kWholeTerms = 32;
inline int64_t whole_terms(int64_t terms, int64_t of = kWholeTerms) { return (terms + of - 1) / of * of; }
template <class A, class S>
int64_t summed_terms(const Context<S>& o, int64_t terms) {
  if constexpr (kPaired<A>) return whole_terms(terms, o.bf16->terms_together ? kWholeTerms : kTerms<A>);
  else return terms;
}

// What S is multiplied as, where nothing else stands in the way.
template <class S>
using factor_t = std::conditional_t<std::is_same_v<S, BFloat16>, Bf16Pair, S>;

template <class A, class V>
const A* factors(const V* p) {
  if constexpr (std::is_same_v<A, V>) return p;
  else return reinterpret_cast<const A*>(p);
}

}  // namespace fastlstm
