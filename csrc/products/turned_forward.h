// The forward's products of a single step of some rows, turned: weights are left factors, as they lie, and x and h, which are small, lie
// as right factors. So weights are read once, and nothing is made of them. Sums come unit by unit, and are turned into records.
#pragma once
#include "products/forward.h"

namespace fastlstm {

template <class S>
class TurnedForward final : public ForwardProducts<S> {
  using Base = ForwardProducts<S>;
  using Base::o, Base::bias_of;

 public:
  // Of more rows packing weights pays: its share is small, and packed products take taller tiles. And a row group's x and h are to
  // stay in the second-level cache from panel to panel.
  static constexpr int64_t kRows = kMaxBlock, kBytes = 1 << 19;

  static bool suits(const Context<S>& o) {
    const int64_t columns = most_rows(o);
    return columns <= kRows && columns * (o.I + o.R) * static_cast<int64_t>(sizeof(S)) <= kBytes;
  }

  TurnedForward(const Context<S>& context, const State<S>& h0)
      : Base(context), h0_(h0), columns_(most_rows(context)), factors_(o.team->plan.row_groups * columns_ * (o.I + o.R)),
        sums_(o.team->workers * o.gate_width * columns_) {}

  void set_up(const Thread& thread) override {
    if (!thread.in_plan()) return;
    const Range rows = rows_of(thread), blocks = thread.of_unit_group(columns_ / kPanel);
    for (int64_t first = blocks.begin * kPanel; first < blocks.end * kPanel; first += kPanel) {
      const int64_t b = rows.begin + first, count = std::clamp<int64_t>(rows.size() - first, 0, kPanel);
      turn(o.I, count, {o.x.at(o.seq, 0, b), o.x.b_stride}, x_of(thread), first);
      if (o.fresh()) continue;
      turn(o.R, count, {h0_.p + b * o.R, o.R}, h_of(thread), first);
      for (int64_t i = 0; i < count; i++)
        if (o.cut_at_start(b + i)) fill_rows(o.R, 1, S(0), column(o.R, h_of(thread), first + i));
    }
  }

  // The sums of a panel, of all rows of the group.
  void begin_panel(const Thread& thread, int64_t, int64_t p) override {
    for (int64_t i = 0; i < o.gate_width; i++) std::fill_n(sums_of(thread) + i * columns_, columns_, bias_of(p)[i]);
    add(thread, o.v.ih, p, o.w.ih, o.I, x_of(thread));
    if (!o.fresh()) add(thread, o.v.hh, p, o.w.hh, o.R, h_of(thread));
  }

  void into_tile(const Thread& thread, const Tile& tile, S* records) const override {
    o.micro.transpose(o.gate_width, tile.rows, {sums_of(thread) + tile.b - rows_of(thread).begin, columns_},
                      {records, o.record.forward()});
  }

  void init_h(Range, const State<S>&) override {}
  void set_h(const Tile&, Block<const S>) override {}

 private:
  // Of a row group, in whole panels.
  static int64_t most_rows(const Context<S>& o) {
    int64_t most = 0;
    for (int64_t g = 0; g < o.team->plan.row_groups; g++)
      most = std::max(most, exist(o, share(o.team->plan.rows, g, o.team->plan.row_groups, o.team->plan.together)).size());
    return panels_of(most) * kPanel;
  }
  // Of a row group's rows, those that the step has: others are of sequences of length zero.
  static Range exist(const Context<S>& o, Range rows) {
    return {std::min(rows.begin, o.seq.size[0]), std::min(rows.end, o.seq.size[0])};
  }
  Range rows_of(const Thread& thread) const { return exist(o, thread.of_row_group(o.team->plan.rows)); }
  S* x_of(const Thread& thread) const { return factors_ + thread.row_group() * columns_ * (o.I + o.R); }
  S* h_of(const Thread& thread) const { return x_of(thread) + columns_ * o.I; }
  S* sums_of(const Thread& thread) const { return sums_ + thread.worker * o.gate_width * columns_; }

  // Of a right factor of k terms, from column i on.
  Block<S> column(int64_t k, S* factor, int64_t i) const {
    const Packed of{k, columns_, o.micro.width};
    return {factor + of.at(0, i), of.row(i)};
  }
  void turn(int64_t k, int64_t count, Block<const S> from, S* factor, int64_t first) const {
    const Block<S> to = column(k, factor, first);
    if (count < kPanel) fill_rows(k, kPanel, S(0), to);
    o.micro.transpose(count, k, from, to);
  }

  void add(const Thread& thread, const GateMap& map, int64_t p, const S* w, int64_t k, const S* factor) const {
    for (int64_t i = 0; i < map.gates; i++) {
      S* const to = sums_of(thread) + (map.offset() + i * kPanel) * columns_;
      o.micro.gemm({.m = units_of(o.H, p), .n = columns_, .k = k, .a = w + (map.gate[i] * o.H + p * kPanel) * k, .a_m = k, .b = factor,
                    .init = to, .init_m = columns_, .c = to, .c_m = columns_});
    }
  }

  const State<S>& h0_;
  const int64_t columns_;  // rows of a group as columns of right factors
  Buffer<S> factors_, sums_;
};

}  // namespace fastlstm
