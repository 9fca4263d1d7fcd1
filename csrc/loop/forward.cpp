// The forward over time: a loop over the steps, in chunks.
#include "loop/layer_forward.h"

namespace fastlstm {
namespace {

template <class S>
class Forward {
 public:
  explicit Forward(const ForwardCall<S>& call) : f(call), seq(call.seq), layer(call) {}

  void run() {
    const Work work = layer.work();
    run_team(
        useful_workers(seq, work, max_workers()),
        [&](int64_t workers) { layer.set_up(team.emplace(make_plan(seq, work, workers), workers, f.images != nullptr)); },
        [&](int64_t worker) { loop(Thread(*team, worker)); });
  }

 private:
  void loop(const Thread& thread) {
    layer.begin(thread);
    thread.barrier_all();
    for (Chunk chunk{0, 0, 0}; chunk.end < seq.T;) {
      chunk = next_chunk(seq, chunk.end, false);
      layer.run_chunk(thread, chunk);
    }
  }

  const ForwardCall<S>& f;
  const Sequence& seq;
  LayerForward<S> layer;
  std::optional<Team> team;
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
