// The forward of one layer in one direction: a step of it. What it is made of: layer_forward.cpp.
#pragma once
#include <optional>

#include "cell/forward_stages.h"

namespace fastlstm {

template <class S>
class LayerForward {
  using T = compute_t<S>;

 public:
  // A single step of no more rows than this multiplies each with weights' rows as they lie, in an order of its own. Several steps sum in
  // one order, however few: they may be a part of a sequence, or what a stream compares with
  static constexpr int64_t kUnpackedStepRows = Context<S>::kBf16 ? 2 : 8;

  explicit LayerForward(const ForwardCall<S>& call) : f(call), seq(call.seq), o(call) {}

  Work work() const { return o.work(); }

  // By one thread, before the others begin.
  void set_up(Team& team);

  // By every thread, before the first step; a barrier must follow.
  void begin(const Thread& thread) {
    pack(thread);
    const Range rows = thread.mine(seq.B);
    init_state(rows);
    if (!seq.packed) clear_skipped_rows(thread);
  }

  // What is made of the weights: this thread's share.
  void pack(const Thread& thread) {
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) products->pack(thread, p);
    for (const auto& stage : stages) stage->set_up(thread);
    products->set_up(thread);
  }

  // Some sequences begin with what is given. A state that no step changes is final at once: that of a sequence of length zero.
  void init_state(Range rows) {
    const int64_t idle = std::max(rows.begin, seq.T == 0 ? 0 : seq.size[0]);
    if (idle < rows.end) {
      finish_at_once(f.h0, idle, rows.end - idle, o.R, f.h_n);
      if (f.c_n) finish_at_once(f.c0, idle, rows.end - idle, o.H, f.c_n);
    }
    for (const auto& stage : stages) stage->init_state(rows);
    products->init_h(rows, f.h0);
  }

  void run_chunk(const Thread& thread, const Chunk& chunk) {
    products->begin_chunk(thread, chunk);
    if (thread.in_plan()) {
      int64_t row = 0;
      for (int64_t s = chunk.begin; s < chunk.end; s++) {
        run(thread, s, row);
        row += seq.size[seq.step(s)];
      }
    }
    products->end_chunk(thread);
  }
  // The s-th step; `row` is its first one within the chunk.
  void run(const Thread& thread, int64_t s, int64_t row) {
    if (f.stepwise) products->begin_step(thread, s);
    for (const auto& stage : stages) stage->run(thread, s, row);
  }

  // For what follows, of a stream: another team, by one thread before the others begin.
  void take(Team& team) {
    o.team = &team;
    if (team.workers > tile_workers) make_tiles(team);
    products->plan(team.plan);
  }
  // The first step of what follows goes on from the last of the `steps` that were run.
  void go_on(int64_t steps) { products->go_on(steps); }

 private:
  void make_tiles(const Team& team) {
    tile_workers = team.workers;
    o.make_tiles(team.plan.tile_rows * std::max(o.record.forward(), kMaxBlock), tile_workers);
  }

  std::unique_ptr<ForwardProducts<S>> make_products(const Plan& plan) const;
  std::unique_ptr<ProjectionForward<S>> make_projection() const;

  void finish_at_once(const State<S>& from, int64_t row, int64_t rows, int64_t n, S* to) const {
    o.take_rows(from, row, rows, n, [&](int64_t first, int64_t count, int64_t p, Block<const T> values) {
      o.put_rows(first, count, n, p, values, to, o.finals_moved());
    });
  }

  void clear_skipped_rows(const Thread& thread) {
    const int64_t saved = o.n_panels * o.record.saved();
    const Range steps = thread.mine(seq.T);
    for (int64_t t = steps.begin; t < steps.end; t++) {
      const int64_t begin = seq.first[t] + seq.size[t], end = seq.first[t] + seq.B;
      if (f.y) std::fill(f.y + begin * o.R, f.y + end * o.R, S(0));
      if (f.cells) std::fill(f.cells + begin * o.H, f.cells + end * o.H, S(0));
      if (f.saved) std::fill(f.saved + begin * saved, f.saved + end * saved, T(0));
    }
  }

  const ForwardCall<S>& f;
  const Sequence& seq;
  Context<S> o;
  int64_t tile_workers = 0;
  std::unique_ptr<ForwardProducts<S>> products;
  std::optional<HiddenSink<S>> sink;
  std::vector<std::unique_ptr<Stage>> stages;
};

}  // namespace fastlstm
