// Peephole weights as records hold them: alike in every row, or those of each pixel of an image.
#pragma once
#include "products/pack.h"

namespace fastlstm {

template <class S>
class Peepholes {
 public:
  using T = compute_t<S>;

  explicit Peepholes(const Context<S>& context)
      : o(context), rows_(o.size.peephole_rows), width_(o.v.peephole_width()), packed_(o.n_panels * rows_ * width_) {}

  void pack(int64_t p) const {
    const int64_t count = o.v.peepholes.size(), units = units_of(o.H, p);
    for (int64_t row = 0; row < rows_ && o.w.peephole; row++)
      for (int64_t k = 0; k < count; k++) {
        T* const to = at(p, row) + k * kPanel;
        convert<S, T>(1, units, {o.w.peephole + (k * rows_ + row) * o.H + p * kPanel, 0}, {to, 0});
        std::fill(to + units, to + kPanel, T(0));
      }
  }

  // Into the records of the batch's rows [b, b + rows).
  void copy(int64_t p, int64_t b, int64_t rows, Block<T> to) const {
    if (width_ == 0) return;
    if (rows_ == 1) return o.micro.copy(rows, width_, {at(p, 0), 0}, to);
    for (int64_t m = 0; m < rows;) {
      const int64_t pixel = (b + m) % rows_, n = std::min(rows - m, rows_ - pixel);
      o.micro.copy(n, width_, {at(p, pixel), width_}, {to.p + m * to.row, to.row});
      m += n;
    }
  }

 private:
  T* at(int64_t p, int64_t row) const { return packed_ + (p * rows_ + row) * width_; }

  const Context<S>& o;
  const int64_t rows_, width_;
  Buffer<T> packed_;
};

}  // namespace fastlstm
