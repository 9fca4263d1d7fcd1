// Rows of bfloat16 in pairs, for products that sum over rows.
#pragma once
#include "products/factors.h"

namespace fastlstm {

// Pairs of `rows` rows, with zeros behind them where sums are taken by whole registers.
inline int64_t row_pairs(const Bf16Kernels& bf16, int64_t rows) {
  return bf16.terms_together ? whole_terms(rows) / 2 : (rows + 1) / 2;
}

// to = rows 2 * pair and 2 * pair + 1 of `rows`, n elements of each side by side; what is not there is zero.
template <class V>
void pair_rows(const Bf16Kernels& bf16, Block<const V> from, int64_t rows, int64_t n, int64_t pair, Bf16Pair* to) {
  const V *const one = from.p + 2 * pair * from.row, *const two = one + from.row;
  if (2 * pair + 1 < rows) return bf16.interleave(n, bits(one), bits(two), to);
  for (int64_t i = 0; i < n; i++) to[i] = {2 * pair < rows ? bits(one)[i] : uint16_t{0}, 0};
}

// A matrix of rows as the left factor of such products: its columns are their rows.
template <class V>
class RowPairs {
 public:
  RowPairs() = default;
  // Of at most `rows` rows of n.
  RowPairs(const Arithmetic<V>& o, int64_t rows, int64_t n)
      : bf16_(o.bf16), micro_(&o.micro), n_(n), row_(padded_row<Bf16Pair>(n)), term_row_(padded_row<Bf16Pair>(row_pairs(*bf16_, rows))),
        pairs_(row_pairs(*bf16_, rows) * row_), terms_(bf16_->terms_together ? n * term_row_ : 0) {}

  // This thread's share; a barrier must follow.
  void pair(const Thread& thread, int64_t rows, Block<const V> from) const {
    const Range mine = thread.mine(row_pairs(*bf16_, rows));
    for (int64_t i = mine.begin; i < mine.end; i++) pair_rows(*bf16_, from, rows, n_, i, pairs_ + i * row_);
    if (terms_)  // as numbers of as many bytes
      micro_->transpose(mine.size(), n_, {reinterpret_cast<const float*>(pairs_ + mine.begin * row_), row_},
                        {reinterpret_cast<float*>(terms_ + mine.begin), term_row_});
  }

  // From a column on, and its strides.
  const Bf16Pair* at(int64_t column) const { return terms_ ? terms_ + column * term_row_ : pairs_ + column; }
  int64_t m() const { return terms_ ? term_row_ : 1; }
  int64_t k() const { return terms_ ? 1 : row_; }

 private:
  const Bf16Kernels* bf16_ = nullptr;
  const MicroKernels<float>* micro_ = nullptr;
  int64_t n_ = 0, row_ = 0, term_row_ = 0;
  Buffer<Bf16Pair> pairs_, terms_;  // terms_: transposed, where terms are to lie side by side
};

}  // namespace fastlstm
