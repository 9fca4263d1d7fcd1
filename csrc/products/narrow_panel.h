// The last panel of hidden units where few of them exist: products need no columns for the others if slots stand closer together.
#pragma once
#include "products/pack.h"

namespace fastlstm {

class NarrowPanel {
 public:
  // There is none where it is not wanted, or would save too little of sums of so many `terms`.
  NarrowPanel(const Variant& v, int64_t H, int64_t terms, bool wanted) : H_(H), units_(units_of(H, panels_of(H) - 1)) {
    const int64_t x = columns(v.ih), h = columns(v.hh), saved = v.hh.width() - h;
    const bool fits = (v.joint() ? h : x + h) <= v.slots * kPanel;  // where a panel's columns are
    if (wanted && fits && saved * terms >= (v.joint() ? kLeast : kLeastApart)) p_ = panels_of(H) - 1;
  }

  bool is(int64_t p) const { return p == p_; }
  // Of panel p: units of a slot, and columns of products with a map's slots.
  int64_t units(int64_t p) const { return is(p) ? units_ : kPanel; }
  int64_t columns(const GateMap& map, int64_t p) const { return is(p) ? columns(map) : map.width(); }

  // Slots of the units that exist from slots of kPanel. What is written behind them, up to a panel more, is anything.
  template <class T>
  void close_up(int64_t rows, const GateMap& map, Block<const T> from, Block<T> to) const {
    for (int64_t m = 0; m < rows; m++) {
      T* const out = to.p + m * to.row;
      std::fill_n(out + columns(map) - kPanel, kPanel, T(0));
      for (int64_t i = 0; i + 1 < map.gates; i++) std::copy_n(from.p + m * from.row + i * kPanel, kPanel, out + i * units_);
      std::copy_n(from.p + m * from.row + (map.gates - 1) * kPanel, units_, out + (map.gates - 1) * units_);
    }
  }
  // The reverse, with anything in the place of units that don't exist.
  template <class T>
  void spread(int64_t rows, const GateMap& map, Block<const T> from, Block<T> to) const {
    for (int64_t m = 0; m < rows; m++)
      for (int64_t i = 0; i < map.gates; i++) std::copy_n(from.p + m * from.row + i * units_, kPanel, to.p + m * to.row + i * kPanel);
  }
  // Weights as pack_gates takes them.
  template <class S, class T>
  void pack(const S* w, const GateMap& map, int64_t K, const Packed& packed, int64_t first, T* to) const {
    for (int64_t column = 0; column < packed.n; column++) {
      T* const out = to + packed.at(first, column);
      const int64_t slot = column / units_, row = packed.row(column);
      const S* const from = slot < map.gates ? w + ((map.gate[slot] + 1) * H_ - units_ + column % units_) * K : nullptr;
      for (int64_t k = 0; k < K; k++) out[k * row] = from ? static_cast<T>(from[k]) : T(0);
    }
  }

 private:
  // Multiply-adds of a row that take as long as moving its slots; more of them are moved where x and h are multiplied apart.
  static constexpr int64_t kLeast = 1500, kLeastApart = 3500;

  int64_t columns(const GateMap& map) const { return panels_of(map.gates * units_) * kPanel; }

  const int64_t H_, units_;
  int64_t p_ = -1;
};

}  // namespace fastlstm
