// Values of pixels in memory: a row of channels for each pixel, or the channels of an image one after the other, each a map.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cell/record.h"
#include "loop/plan.h"

namespace fastlstm {

// to[j][i] = from[i][j]; where types differ, in blocks whose lines stay in the cache.
template <class From, class To>
void transpose(int64_t rows, int64_t columns, Block<const From> from, Block<To> to) {
  if constexpr (std::is_same_v<From, To> && std::is_floating_point_v<To>) return micro_kernels<To>().transpose(rows, columns, from, to);
  if constexpr (std::is_same_v<From, Bf16Pair> && std::is_same_v<To, Bf16Pair>)  // as numbers of as many bytes
    return micro_kernels<float>().transpose(rows, columns, {reinterpret_cast<const float*>(from.p), from.row},
                                            {reinterpret_cast<float*>(to.p), to.row});
  for (int64_t i0 = 0; i0 < rows; i0 += kPanel)
    for (int64_t j0 = 0; j0 < columns; j0 += kPanel)
      for (int64_t i = i0; i < std::min(rows, i0 + kPanel); i++)
        for (int64_t j = j0; j < std::min(columns, j0 + kPanel); j++)
          to.p[j * to.row + i] = static_cast<To>(from.p[i * from.row + j]);
}

// Where channels come before pixels. A row is a pixel, or two neighbours, whose channels are side by side (ops/pixel_pairs.h).
struct Maps {
  int64_t rows;      // of an image
  int64_t channels;  // of a row
  int64_t together;  // pixels of a row

  static constexpr int64_t kMost = kImageTileRows;  // rows at once

  // Calls f(image, row, done, n) for the parts of rows [row, row + all) that lie in one image each: `done` come before.
  template <class F>
  void for_images(int64_t row, int64_t all, const F& f) const {
    for (int64_t done = 0, n; done < all; done += n) {
      n = std::min({all - done, rows - (row + done) % rows, kMost});
      f((row + done) / rows, (row + done) % rows, done, n);
    }
  }

  // Channels of panel p of `n` rows of an image = from, by `bf16` where that is what they become.
  template <class T, class S>
  void put(int64_t row, int64_t n, int64_t p, Block<const T> from, S* image, const Bf16Kernels* bf16 = nullptr) const {
    const int64_t units = units_of(channels, p);
    if constexpr (std::is_same_v<T, float> && sizeof(S) == sizeof(uint16_t))
      if (bf16) {
        T lines[kPanel * kMost];
        transpose<T, T>(n, units, from, {lines, kMost});
        uint16_t rounded[kPanel * kMost], *const to = reinterpret_cast<uint16_t*>(image) + p * kPanel * rows + row;
        if (together == 1) return bf16->narrow(units, n, {lines, kMost}, {to, rows});
        bf16->narrow(units, n, {lines, kMost}, {rounded, kMost});
        for (int64_t i = 0; i < units / 2; i++)
          bf16->interleave(n, rounded + i * kMost, rounded + (units / 2 + i) * kMost,
                           reinterpret_cast<Bf16Pair*>(image) + i * rows + row);
        return;
      }
    if (together == 1) return transpose<T, S>(n, units, from, {image + p * kPanel * rows + row, rows});
    T lines[kPanel * kMost];
    transpose<T, T>(n, units, from, {lines, kMost});
    for (int64_t i = 0; i < units / 2; i++) {
      S* const to = image + (i * rows + row) * 2;
      const T *const first = lines + i * kMost, *const second = first + units / 2 * kMost;
      for (int64_t m = 0; m < n; m++) to[2 * m] = static_cast<S>(first[m]), to[2 * m + 1] = static_cast<S>(second[m]);
    }
  }

  // The reverse: to = channels of panel p.
  template <class S, class T>
  void get(int64_t row, int64_t n, int64_t p, const S* image, Block<T> to) const {
    const int64_t units = units_of(channels, p);
    if (together == 1) return transpose<S, T>(units, n, {image + p * kPanel * rows + row, rows}, to);
    T lines[kPanel * kMost];
    for (int64_t i = 0; i < units / 2; i++) {
      const S* const from = image + (i * rows + row) * 2;
      T *const first = lines + i * kMost, *const second = first + units / 2 * kMost;
      for (int64_t m = 0; m < n; m++) first[m] = static_cast<T>(from[2 * m]), second[m] = static_cast<T>(from[2 * m + 1]);
    }
    transpose<T, T>(units, n, {lines, kMost}, to);
  }
};

}  // namespace fastlstm
