// The backward over time: a loop over the steps, in chunks.
#include "loop/layer_backward.h"

namespace fastlstm {
namespace {

template <class S>
class Backward {
 public:
  explicit Backward(const BackwardCall<S>& call) : f(call), seq(call.seq), layer(call) {}

  void run() {
    const Work work = layer.work();
    run_team(
        useful_workers(seq, work, max_workers()),
        [&](int64_t workers) { layer.set_up(team.emplace(make_plan(seq, work, workers), workers, f.images != nullptr)); },
        [&](int64_t worker) { loop(Thread(*team, worker)); });
    layer.rethrow();
  }

 private:
  void loop(const Thread& thread) {
    layer.begin(thread);
    thread.barrier_all();
    for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
      chunk = next_chunk(seq, chunk.end, true);
      int64_t row = 0;
      for (int64_t done = chunk.begin; done < chunk.end; done++) {
        const int64_t s = seq.T - 1 - done;
        if (thread.in_plan()) layer.run(thread, s, row);
        layer.keep_factors(thread, s, row);
        row += seq.size[seq.step(s)];
      }
      thread.barrier_all();
      layer.end_chunk(thread, chunk);
      thread.barrier_all();
    }
    layer.finish(thread);
  }

  const BackwardCall<S>& f;
  const Sequence& seq;
  LayerBackward<S> layer;
  std::optional<Team> team;
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
