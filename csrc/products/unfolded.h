// Pixels unfolded: what some taps meet, side by side in one row for each pixel.
#pragma once
#include <cstring>

#include "products/frames.h"

namespace fastlstm {

// Of the pixel that begins `at` a frame's element: what is met of some of the segments, one after the other; returns where they end.
template <class S>
S* unfold_pixel(const S* frames, int64_t at, const Taps& taps, Range segments, S* to) {
  const int64_t run = taps.end - taps.begin;
  for (int64_t i = segments.begin; i < segments.end; i++, to += run)
    std::memcpy(to, frames + at + taps.segments[i] + taps.begin, run * sizeof(S));
  return to;
}

inline Range all_segments(const Taps& taps) { return {0, taps.run ? static_cast<int64_t>(taps.segments.size()) : 0}; }

// Rows [row, row + rows) of the pixels that `taps` writes, at most kMostUnfolded.
constexpr int64_t kMostUnfolded = 128;
template <class S>
void unfold(const Frames<S, S>& frames, const Taps& taps, Range segments, int64_t row, int64_t rows, Block<S> to) {
  int64_t at[kMostUnfolded];
  find_rows(taps.rows, frames.frame.elements(), row, rows, at);
  for (int64_t m = 0; m < rows; m++) unfold_pixel(frames.at(0) + 0, at[m], taps, segments, to.p + m * to.row);
}

}  // namespace fastlstm
