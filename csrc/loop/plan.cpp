#include "loop/plan.h"

#include <algorithm>

namespace fastlstm {
namespace {

// With more rows per step, weights of the inputs that stay in the cache are well used step by step.
constexpr int64_t kPrecomputeRows = 3;
// Steps that pack the weights of h anew, where those are near and where they are far, and rows of all of them but the first.
constexpr int64_t kFewNear = 2, kFewFar = 4, kFewRows = 8;
constexpr double kBarrier = 750;           // cycles of each worker: they write one line in turn, and read another
constexpr double kCacheBytes = 900e3;      // of the second-level cache, for weights
constexpr double kNear = 64, kFar = 20;    // bytes per cycle lost on weights from the second and the third level
constexpr double kGateCycles = 130;        // per row and panel
constexpr double kSerialFlops = 250e3;     // below it, waking a worker costs more than it brings

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool sizes_vary(const Sequence& seq) { return !seq.size.empty() && seq.size.front() != seq.size.back(); }

// One step of one worker that has `rows` rows and `panels` panels.
struct Step {
  const Work& work;
  double rows, panels;

  double values() const { return static_cast<double>(work.width) * panels; }
  double bytes(double k) const { return values() * k * work.bytes_per_value; }  // of weights with rows of k
  double k() const { return work.k_recurrent + work.k_input; }

  double cycles(bool precompute_input) const {
    const double streamed = bytes(precompute_input ? work.k_recurrent : k());
    const double compute = rows * values() * k() / work.rate + rows * panels * kGateCycles;
    return compute + streamed / (streamed > kCacheBytes ? kFar : kNear);
  }

  bool far(double k) const { return bytes(k) > kCacheBytes; }

  // Weights that stay in the cache from step to step are well used by a few rows; else those of the inputs are read once for a
  // chunk of steps of all `batch` rows, and their products written and read instead.
  bool precompute_input(double batch) const {
    if (rows <= kPrecomputeRows) return true;
    const double once = bytes(work.k_input) * std::min(batch / kChunkRows, 1.0), products = 2 * bytes(rows);
    return far(k()) && cycles(true) + (once + products) / kFar < cycles(false);
  }
};

}  // namespace

Plan make_plan(const Sequence& seq, const Work& work, int64_t workers) {
  Plan best{};
  double best_cycles = 0;
  for (int64_t unit_groups = 1; unit_groups <= std::min(workers, work.panels); unit_groups++) {
    const int64_t row_groups = std::min(workers / unit_groups, std::max<int64_t>(seq.B / seq.together, 1));
    if (row_groups * unit_groups < workers && unit_groups > 1 && workers % unit_groups) continue;
    const int64_t rows = ceil_div(seq.B, row_groups);
    const Step step{work, static_cast<double>(rows), static_cast<double>(ceil_div(work.panels, unit_groups))};
    const bool precompute_input = seq.T > 1 && step.precompute_input(seq.B);
    const double cycles = step.cycles(precompute_input) + (unit_groups > 1 ? kBarrier * unit_groups : 0);
    if (best.row_groups && cycles >= best_cycles) continue;
    best_cycles = cycles;
    const bool cyclic = row_groups > 1 && sizes_vary(seq);
    const int64_t few = !step.far(step.k()) ? kFewNear : step.far(work.k_recurrent) ? kFewFar : work.few_steps;
    best = {row_groups, unit_groups, seq.B, cyclic ? work.tile_rows / 2 : work.tile_rows, seq.together, cyclic, precompute_input,
            seq.T == 1 || (precompute_input && seq.B * (seq.T - 1) <= kFewRows && seq.T <= few)};
  }
  return best;
}

int64_t useful_workers(const Sequence& seq, const Work& work, int64_t available) {
  const double rows = seq.rows();
  const double flops = 2 * rows * static_cast<double>(work.width * work.panels) * (work.k_input + work.k_recurrent);
  return std::clamp<int64_t>(static_cast<int64_t>(flops / kSerialFlops), 1, available);
}

Chunk next_chunk(const Sequence& seq, int64_t begin, bool backward) {
  Chunk chunk{begin, begin, 0};
  while (chunk.end < seq.T && chunk.rows < seq.chunk_rows) {
    const int64_t s = chunk.end++;
    chunk.rows += seq.size[seq.step(backward ? seq.T - 1 - s : s)];
  }
  return chunk;
}

int64_t max_chunk_rows(const Sequence& seq) {
  if (seq.pixels == 1 && sizes_vary(seq)) return std::min(seq.rows(), seq.chunk_rows + seq.B);
  if (seq.pixels == 1) {
    const int64_t rows = seq.size.empty() ? 0 : seq.size[0];  // of each step; B counts empty sequences too
    return rows ? std::min(seq.rows(), rows * ceil_div(seq.chunk_rows, rows)) : 0;
  }
  int64_t most = 0;  // what is kept of a pixel is more
  for (const bool backward : {false, true})
    for (Chunk chunk{0, 0, 0}; chunk.end < seq.T; most = std::max(most, chunk.rows)) chunk = next_chunk(seq, chunk.end, backward);
  return most;
}

}  // namespace fastlstm
