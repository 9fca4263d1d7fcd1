// One state of every sequence of the batch.
#pragma once
#include "cell/record.h"
#include "memory/memory.h"

namespace fastlstm {

template <class V>
class States {
 public:
  States() = default;
  // A sequence's units side by side, as the left factor of a product is read.
  static States by_rows(int64_t B, int64_t panels) {
    const int64_t row = padded_row<V>(panels * kPanel);
    return {Buffer<V>(B * row), panels, kPanel, row};
  }
  // A panel's units of all sequences side by side, as gate kernels take them.
  static States by_panels(int64_t B, int64_t panels) { return {Buffer<V>(panels * B * kPanel), panels, B * kPanel, kPanel}; }

  // Panel p of the sequences from b on.
  Block<V> at(int64_t p, int64_t b) const { return {p_ + p * panel_ + b * row_, row_}; }

  // The units of sequence b become `n` values, and what pads the last panel zero; all are zero where there are no values.
  template <class From>
  void put(int64_t b, int64_t n, const From* from) const {
    for (int64_t p = 0; p < panels_; p++) {
      V* const to = at(p, b).p;
      const int64_t count = from ? units_of(n, p) : 0;
      for (int64_t i = 0; i < count; i++) to[i] = static_cast<V>(from[p * kPanel + i]);
      std::fill(to + count, to + kPanel, V(0));
    }
  }

 private:
  States(Buffer<V> p, int64_t panels, int64_t panel, int64_t row) : p_(std::move(p)), panels_(panels), panel_(panel), row_(row) {}

  Buffer<V> p_;
  int64_t panels_ = 0, panel_ = 0, row_ = 0;  // panel_ and row_: strides, in elements
};

}  // namespace fastlstm
