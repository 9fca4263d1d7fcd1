#include "attention/attend.h"

#include <optional>

#include "attention/many_queries.h"

namespace fastlstm {
namespace {

int64_t workers_for(const auto& memory, int64_t steps) {
  const double flops = 4.0 * steps * memory.B * memory.S * (memory.A + memory.M);
  return std::clamp<int64_t>(static_cast<int64_t>(flops / 250e3), 1, max_workers());
}

Plan plan_of(int64_t B, int64_t workers) { return {workers, 1, B, kTileRows, false, false}; }

// Calls f(b, t, steps) for this thread's blocks of steps, sequence by sequence, so that a worker reads few of them.
template <class T, class F>
void for_steps(const Thread& thread, const Memory<T>& memory, int64_t steps, const F& f) {
  const int64_t blocks = (steps + ManyQueries<T>::kSteps - 1) / ManyQueries<T>::kSteps;
  const Range mine = thread.mine(memory.B * blocks);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const Range block = share(steps, i % blocks, blocks);
    f(i / blocks, block.begin, block.size());
  }
}

}  // namespace

template <class T>
void AttendCall<T>::run_many() {
  const ManyQueries<T> many(memory, false);
  const int64_t B = memory.B, S = memory.S, A = memory.A, M = memory.M;
  const int64_t size = many.scratch_size() + (weights ? 0 : ManyQueries<T>::kSteps * S);
  std::optional<Team> team;
  Buffer<T> scratch;
  run_team(
      workers_for(memory, steps),
      [&](int64_t workers) {
        team.emplace(plan_of(B, workers), workers, false);
        scratch = Buffer<T>(workers * size);
      },
      [&](int64_t worker) {
        T* const own = scratch + worker * size;
        for_steps(Thread(*team, worker), memory, steps, [&](int64_t b, int64_t t, int64_t n) {
          const int64_t row = t * B + b;
          const Block<T> to = weights ? Block<T>{weights + row * S, B * S} : Block<T>{own + many.scratch_size(), S};
          many.read(b, n, {queries + row * A, B * A}, own, to, {contexts + row * M, B * M});
        });
      });
}

template <class T>
void AttendCall<T>::run() {
  if (steps > 1 && ManyQueries<T>::serve(memory)) return run_many();
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
  std::optional<ManyQueries<T>> many;
  if (steps > 1 && ManyQueries<T>::serve(memory)) many.emplace(memory, true);
  const MicroKernels<T>& micro = micro_kernels<T>();
  const int64_t B = memory.B, S = memory.S, A = memory.A, M = memory.M;
  // As they are, where what reads whole panels stays within them
  const bool given = dcontexts.p && M % kPanel == 0 && dcontexts.b_stride == M && dcontexts.t_stride == B * M;
  Buffer<T> copied(given ? 0 : steps * B * M + kPanel), dscores(steps * B * S + kPanel), scratch;
  const T* const dcontext = given ? dcontexts.p : copied;
  std::optional<Team> team;
  std::optional<MemoryGradients<T>> gradients;
  int64_t size = 0;
  run_team(
      workers_for(memory, 2 * steps),
      [&](int64_t workers) {
        team.emplace(plan_of(memory.B, workers), workers, false);
        size = std::max(reader.scratch_size() + memory.A, many ? many->scratch_size() : 0);
        scratch = Buffer<T>(workers * size);
        gradients.emplace(reader, micro, steps, workers);
      },
      [&](int64_t worker) {
        const Thread thread(*team, worker);
        reader.set_up(thread.mine(memory.B));
        thread.barrier_all();
        T* const own = scratch + worker * size;
        for_steps(thread, memory, steps, [&](int64_t b, int64_t first, int64_t n) {
          for (int64_t t = first; t < first + n && !given; t++) {
            T* const dc = copied + (t * B + b) * M;
            if (dcontexts.p) std::copy_n(dcontexts.p + t * dcontexts.t_stride + b * dcontexts.b_stride, M, dc);
            else std::fill_n(dc, M, T(0));
          }
          const int64_t row = first * B + b;
          const T* const dw = dweights.p ? dweights.p + first * dweights.t_stride + b * dweights.b_stride : nullptr;
          if (many)
            return many->read_backward(b, n, own, {weights + row * S, B * S}, {dcontext + row * M, B * M}, {dw, dweights.t_stride},
                                       {dscores + row * S, B * S}, {dqueries ? dqueries + row * A : nullptr, B * A});
          for (int64_t t = 0; t < n; t++) {
            const int64_t at = row + t * B;
            reader.read_backward(b, queries + at * A, own, weights + at * S, dcontext + at * M, dw ? dw + t * dweights.t_stride : nullptr,
                                 dscores + at * S, dqueries ? dqueries + at * A : own + reader.scratch_size());
          }
        });
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
