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

  // Unit i of sequence b becomes f(i), for all units and for those that pad the last panel.
  template <class F>
  void set(int64_t b, const F& f) const {
    for (int64_t i = 0; i < panels_ * kPanel; i++) at(i / kPanel, b).p[i % kPanel] = f(i);
  }
  V get(int64_t b, int64_t i) const { return at(i / kPanel, b).p[i % kPanel]; }

 private:
  States(Buffer<V> p, int64_t panels, int64_t panel, int64_t row) : p_(std::move(p)), panels_(panels), panel_(panel), row_(row) {}

  Buffer<V> p_;
  int64_t panels_ = 0, panel_ = 0, row_ = 0;  // panel_ and row_: strides, in elements
};

}  // namespace fastlstm
