// The forward over time: a loop over the steps, each a list of stages.
#include "cell/forward_stages.h"
#include "products/conv_forward.h"

namespace fastlstm {
namespace {

// With no more rows than this in all, packing the weights would not pay; in a single step it takes longer to
constexpr int64_t kUnpackedRows = 8, kUnpackedStepRows = 32;

template <class S>
class Forward {
  using T = compute_t<S>;

 public:
  explicit Forward(const ForwardCall<S>& call) : f(call), seq(call.seq), o(call) {}

  void run() {
    const Work work{o.n_panels, o.v.hh.width(), o.k_input(), o.k_recurrent(), sizeof(T)};
    run_team(
        useful_workers(seq, work, max_workers()), [&](int64_t workers) { set_up(make_plan(seq, work, workers), workers); },
        [&](int64_t worker) { loop(Thread(*o.team, worker)); });
  }

 private:
  void set_up(const Plan& plan, int64_t workers) {
    o.team.emplace(plan, workers, o.images != nullptr);
    if constexpr (Context<S>::kBf16) o.bf16 = o.size.paired() ? bf16_kernels() : nullptr;
    o.chunk_rows = max_chunk_rows(seq);
    o.make_tiles(plan.tile_rows * std::max(o.record.forward(), kMaxBlock), workers);
    products = make_products(plan);
    sink.emplace(o, f, *products);
    if (o.size.project) m = States<T>::by_rows(seq.B, o.n_panels);
    stages.push_back(std::make_unique<GateForward<S>>(o, f, *products, *sink, o.size.project ? &m : nullptr));
    if (o.size.project) stages.push_back(std::make_unique<ProjectionForward<S>>(o, m, *sink));
  }

  std::unique_ptr<ForwardProducts<S>> make_products(const Plan& plan) const {
    if (o.images) return std::make_unique<ConvForward<S>>(o);
    if constexpr (Context<S>::kSameType)
      if (!o.size.project && seq.rows() <= (seq.T == 1 ? kUnpackedStepRows : kUnpackedRows)) return std::make_unique<UnpackedForward<S>>(o);
    if constexpr (Context<S>::kBf16)
      if (o.bf16) return std::make_unique<PackedForward<S, Bf16Pair>>(o, false);
    return std::make_unique<PackedForward<S, T>>(o, plan.precompute_input);
  }

  void loop(const Thread& thread) {
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++) products->pack(p);
    for (const auto& stage : stages) stage->set_up(thread);
    products->set_up(thread);
    init_states(thread);
    if (!seq.packed) clear_skipped_rows(thread);
    thread.barrier_all();
    for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
      chunk = next_chunk(seq, chunk.end, false);
      products->begin_chunk(thread, chunk);
      if (thread.in_plan()) {
        int64_t row = 0;
        for (int64_t s = chunk.begin; s < chunk.end; s++) {
          for (const auto& stage : stages) stage->run(thread, s, row);
          row += seq.size[seq.step(s)];
        }
      }
      products->end_chunk(thread);
    }
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

}  // namespace

template <class S>
void ForwardCall<S>::run() {
  Forward<S>(*this).run();
}

template struct ForwardCall<float>;
template struct ForwardCall<double>;
template struct ForwardCall<torch::headeronly::BFloat16>;
template struct ForwardCall<torch::headeronly::Half>;

}  // namespace fastlstm
