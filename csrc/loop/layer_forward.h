// The forward of one layer in one direction: what it is made of, and a step of it.
#pragma once
#include <optional>

#include "cell/forward_stages.h"
#include "products/conv_forward.h"

namespace fastlstm {

template <class S>
class LayerForward {
  using T = compute_t<S>;

 public:
  // With no more rows than this in all, packing the weights would not pay; in a single step it takes longer to
  static constexpr int64_t kUnpackedRows = 8, kUnpackedStepRows = 32;

  explicit LayerForward(const ForwardCall<S>& call) : f(call), seq(call.seq), o(call) {}

  Work work() const { return {o.n_panels, o.v.hh.width(), o.k_input(), o.k_recurrent(), sizeof(T)}; }

  // By one thread, before the others begin.
  void set_up(Team& team) {
    o.team = &team;
    if constexpr (Context<S>::kBf16) o.bf16 = o.size.paired() ? bf16_kernels() : nullptr;
    o.chunk_rows = max_chunk_rows(seq);
    o.make_tiles(team.plan.tile_rows * std::max(o.record.forward(), kMaxBlock), team.workers);
    products = make_products(team.plan);
    sink.emplace(o, f, *products);
    if (o.size.project) m = States<T>::by_rows(seq.B, o.n_panels);
    stages.push_back(std::make_unique<GateForward<S>>(o, f, *products, *sink, o.size.project ? &m : nullptr));
    if (o.size.project) stages.push_back(std::make_unique<ProjectionForward<S>>(o, m, *sink));
  }

  // By every thread, before the first step; a barrier must follow.
  void begin(const Thread& thread) {
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) products->pack(p);
    for (const auto& stage : stages) stage->set_up(thread);
    products->set_up(thread);
    init_states(thread);
    if (!seq.packed) clear_skipped_rows(thread);
  }

  void begin_chunk(const Thread& thread, const Chunk& chunk) { products->begin_chunk(thread, chunk); }
  // The s-th step; `row` is its first one within the chunk.
  void run(const Thread& thread, int64_t s, int64_t row) {
    for (const auto& stage : stages) stage->run(thread, s, row);
  }
  void end_chunk(const Thread& thread) { products->end_chunk(thread); }

 private:
  std::unique_ptr<ForwardProducts<S>> make_products(const Plan& plan) const {
    if (o.images) return std::make_unique<ConvForward<S>>(o);
    if constexpr (Context<S>::kSameType)
      if (!o.size.project && seq.rows() <= (seq.T == 1 ? kUnpackedStepRows : kUnpackedRows)) return std::make_unique<UnpackedForward<S>>(o);
    if constexpr (Context<S>::kBf16)
      if (o.bf16) return std::make_unique<PackedForward<S, Bf16Pair>>(o, false);
    if (f.stepwise) return std::make_unique<PackedForward<S, T>>(o, false, kStepwiseBlock);
    return std::make_unique<PackedForward<S, T>>(o, plan.precompute_input);
  }

  // States that no step changes are final at once: those of sequences of length zero.
  void init_states(const Thread& thread) {
    const Range rows = thread.mine(seq.B);
    for (int64_t b = rows.begin; b < rows.end; b++) {
      std::copy_n(f.h0 + b * o.R, o.R, f.h_n + b * o.R);
      if (f.c_n) std::copy_n(f.c0 + b * o.H, o.H, f.c_n + b * o.H);
      products->init_h(b, f.h0 + b * o.R, o.cut_at_start(b));
    }
  }

  void clear_skipped_rows(const Thread& thread) {
    const int64_t saved = o.n_panels * o.record.saved();
    const Range steps = thread.mine(seq.T);
    for (int64_t t = steps.begin; t < steps.end; t++) {
      const int64_t begin = seq.first[t] + seq.size[t], end = seq.first[t] + seq.B;
      std::fill(f.y + begin * o.R, f.y + end * o.R, S(0));
      if (f.cells) std::fill(f.cells + begin * o.H, f.cells + end * o.H, S(0));
      if (f.saved) std::fill(f.saved + begin * saved, f.saved + end * saved, T(0));
    }
  }

  const ForwardCall<S>& f;
  const Sequence& seq;
  Context<S> o;
  States<T> m;  // what a projection makes h of
  std::unique_ptr<ForwardProducts<S>> products;
  std::optional<HiddenSink<S>> sink;
  std::vector<std::unique_ptr<Stage>> stages;
};

}  // namespace fastlstm
