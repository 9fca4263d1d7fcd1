#include "attention/attend.h"

#include <optional>

namespace fastlstm {
namespace {

int64_t workers_for(const auto& memory, int64_t steps) {
  const double flops = 4.0 * steps * memory.B * memory.S * (memory.A + memory.M);
  return std::clamp<int64_t>(static_cast<int64_t>(flops / 250e3), 1, max_workers());
}

Plan plan_of(int64_t B, int64_t workers) { return {workers, 1, B, kTileRows, false, false}; }

}  // namespace

template <class T>
void AttendCall<T>::run() {
  Reader<T> reader(memory, steps, false);
  std::optional<Team> team;
  Buffer<T> scratch;
  run_team(
      workers_for(memory, steps),
      [&](int64_t workers) {
        team.emplace(plan_of(memory.B, workers), workers, false);
        scratch = Buffer<T>(workers * (reader.scratch_size() + memory.S));
      },
      [&](int64_t worker) {
        const Thread thread(*team, worker);
        reader.set_up(thread.mine(memory.B));
        thread.barrier_all();
        T* const own = scratch + worker * (reader.scratch_size() + memory.S);
        const Range rows = thread.mine(steps * memory.B);  // sequence by sequence, so that a worker reads few of them
        for (int64_t i = rows.begin; i < rows.end; i++) {
          const int64_t b = i / steps, row = i % steps * memory.B + b;
          reader.read(b, queries + row * memory.A, own, weights ? weights + row * memory.S : own + reader.scratch_size(),
                      contexts + row * memory.M);
        }
      });
}

template <class T>
void AttendBackwardCall<T>::run() {
  Reader<T> reader(memory, steps, true);
  const MicroKernels<T>& micro = micro_kernels<T>();
  const int64_t rows = steps * memory.B;
  Buffer<T> dcontext(rows * memory.M + kPanel), dscores(rows * memory.S + kPanel), scratch;
  std::optional<Team> team;
  std::optional<MemoryGradients<T>> gradients;
  run_team(
      workers_for(memory, 2 * steps),
      [&](int64_t workers) {
        team.emplace(plan_of(memory.B, workers), workers, false);
        scratch = Buffer<T>(workers * (reader.scratch_size() + memory.A));
        gradients.emplace(reader, micro, steps, workers);
      },
      [&](int64_t worker) {
        const Thread thread(*team, worker);
        reader.set_up(thread.mine(memory.B));
        thread.barrier_all();
        const Range mine = thread.mine(rows);
        T* const mine_scratch = scratch + worker * (reader.scratch_size() + memory.A);
        for (int64_t i = mine.begin; i < mine.end; i++) {
          const int64_t b = i / steps, t = i % steps, row = t * memory.B + b;
          T* const dc = dcontext + row * memory.M;
          if (dcontexts.p) std::copy_n(dcontexts.p + t * dcontexts.t_stride + b * dcontexts.b_stride, memory.M, dc);
          else std::fill_n(dc, memory.M, T(0));
          const T* const dw = dweights.p ? dweights.p + t * dweights.t_stride + b * dweights.b_stride : nullptr;
          reader.read_backward(b, queries + row * memory.A, mine_scratch, weights + row * memory.S, contexts + row * memory.M, dc, dw,
                               dscores + row * memory.S, dqueries ? dqueries + row * memory.A : mine_scratch + reader.scratch_size());
        }
        thread.barrier_all();
        gradients->run(thread, {queries, weights, dcontext, dscores}, dmemory, dkeys);
      });
  if (dscore) gradients->write_score(dscore);
}

template struct AttendCall<float>;
template struct AttendCall<double>;
template struct AttendBackwardCall<float>;
template struct AttendBackwardCall<double>;

}  // namespace fastlstm
