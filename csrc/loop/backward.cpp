// The backward over time: a loop over the steps, each a list of stages.
//
// It yields gate gradients dG only, kept for a chunk of steps. After each chunk the gradients of weights and inputs are taken
// over all of its rows at once, while dG is still in the cache.
#include <exception>

#include "cell/backward_stages.h"
#include "products/conv_backward.h"
#include "products/packed_backward.h"
#include "products/unpacked_backward.h"

namespace fastlstm {
namespace {

template <class S>
class Backward {
  using T = compute_t<S>;

 public:
  explicit Backward(const BackwardCall<S>& call) : f(call), seq(call.seq), o(call) {}

  void run() {
    const Work work{o.n_panels, o.v.hh.width(), o.k_input(), o.k_recurrent(), sizeof(T)};
    run_team(
        useful_workers(seq, work, max_workers()), [&](int64_t workers) { set_up(make_plan(seq, work, workers), workers); },
        [&](int64_t worker) { loop(Thread(*o.team, worker)); });
    if (error) std::rethrow_exception(error);
  }

 private:
  void set_up(const Plan& plan, int64_t workers) {
    o.team.emplace(plan, workers, o.images != nullptr);
    if constexpr (Context<S>::kBf16) o.bf16 = o.size.paired() && o.v.peepholes.empty() ? bf16_kernels() : nullptr;
    o.chunk_rows = max_chunk_rows(seq);
    const int64_t of_product = o.images ? ConvBackward<S>::kTileSize : PackedBackward<S, T>::kTileSize;
    o.make_tiles(std::max(plan.tile_rows * o.record.backward(), of_product), workers);
    dh = States<T>::by_rows(seq.B, o.r_panels);
    products = make_products();
    if (o.size.project) projection.emplace(o, f, dh);
    gates.emplace(o, f, *products, dh, o.size.project ? &*projection : nullptr);
    states.emplace(o, *products, dh);
    if (o.size.project) stages.push_back(&*projection);
    stages.push_back(&*gates);
    stages.push_back(&*states);
  }

  std::unique_ptr<BackwardProducts<S>> make_products() {
    if (o.images) return std::make_unique<ConvBackward<S>>(o, f);
    if constexpr (Context<S>::kSameType)
      if (!o.size.project && seq.T > 0 && (seq.T == 1 || seq.rows() <= UnpackedBackward<S>::kRows)) {
        unpacked = true;
        if (f.need_dw) gradients = f.make_dw();
        return std::make_unique<UnpackedBackward<S>>(o, f, gradients);
      }
    if constexpr (Context<S>::kBf16)
      if (o.bf16) return std::make_unique<PackedBackward<S, Bf16Pair>>(o, f);
    return std::make_unique<PackedBackward<S, T>>(o, f);
  }

  void loop(const Thread& thread) {
    const Range panels = thread.mine(o.n_panels), rows = thread.mine(seq.B);
    for (int64_t p = panels.begin; p < panels.end; p++) products->pack(p);
    for (BackwardStage<S>* stage : stages) stage->set_up(thread);
    products->set_up(thread);
    for (int64_t b = rows.begin; b < rows.end; b++)
      dh.set(b, [&](int64_t i) { return i < o.R && f.dh_n ? static_cast<T>(f.dh_n[b * o.R + i]) : T(0); });
    thread.barrier_all();
    for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
      chunk = next_chunk(seq, chunk.end, true);
      int64_t row = 0;
      for (int64_t s = chunk.begin; s < chunk.end; s++) {
        const int64_t t = seq.step(seq.T - 1 - s);
        if (thread.in_plan())
          for (BackwardStage<S>* stage : stages) stage->run(thread, seq.T - 1 - s, row);
        if (f.need_dw) products->concat_xh(thread, t, row);
        row += seq.size[t];
      }
      thread.barrier_all();
      if (f.need_dw) weight_gradients(thread, chunk);
      if (f.dx) products->input_gradients(thread, chunk);
      thread.barrier_all();
    }
    finish(thread);
  }

  void weight_gradients(const Thread& thread, const Chunk& chunk) {
    const Range panels = thread.mine(o.n_panels);
    for (int64_t p = panels.begin; p < panels.end; p++)
      for (BackwardStage<S>* stage : stages) stage->weight_gradients(p, chunk.rows);
    products->weight_gradients(thread, chunk);
  }

  // From the memory of what is done with: as large, and of pages that the system has cleared.
  void make_gradients() {
    products->release();
    try {
      gradients = f.make_dw();
    } catch (...) {
      error = std::current_exception();
    }
  }

  void finish(const Thread& thread) {
    if (f.need_dw && !unpacked) {
      if (thread.worker == 0) make_gradients();
      thread.barrier_all();
      if (error) return;
    }
    const Range panels = thread.mine(o.n_panels), rows = thread.mine(seq.B);
    for (int64_t b = rows.begin; b < rows.end; b++) {
      for (int64_t i = 0; i < o.R && f.dh0; i++) f.dh0[b * o.R + i] = static_cast<S>(dh.get(b, i) + (o.v.cell ? T(0) : gates->dc(b, i)));
      for (int64_t i = 0; i < o.H && f.dc0; i++) f.dc0[b * o.H + i] = static_cast<S>(gates->dc(b, i));
    }
    const Range steps = thread.mine(seq.packed || !f.dx ? 0 : seq.T);
    for (int64_t t = steps.begin; t < steps.end; t++)
      std::fill(f.dx + o.inputs_before(seq.first[t] + seq.size[t]), f.dx + o.inputs_before(seq.first[t] + seq.B), S(0));
    for (int64_t p = panels.begin; p < panels.end && f.need_dw; p++) {
      products->write(p, gradients);
      for (BackwardStage<S>* stage : stages) stage->write(p, gradients);
    }
  }

  const BackwardCall<S>& f;
  const Sequence& seq;
  Context<S> o;
  States<T> dh;
  bool unpacked = false;
  WeightGradients<S> gradients{};  // where they are written
  std::exception_ptr error;        // of one worker, while others wait for it
  std::unique_ptr<BackwardProducts<S>> products;
  std::optional<ProjectionBackward<S>> projection;
  std::optional<GateBackward<S>> gates;
  std::optional<StateBackward<S>> states;
  std::vector<BackwardStage<S>*> stages;
};

}  // namespace

template <class S>
void BackwardCall<S>::run() {
  Backward<S>(*this).run();
}

template struct BackwardCall<float>;
template struct BackwardCall<double>;
template struct BackwardCall<torch::headeronly::BFloat16>;
template struct BackwardCall<torch::headeronly::Half>;

}  // namespace fastlstm
