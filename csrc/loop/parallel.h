// A team of workers on PyTorch's own thread pool, and the barrier they meet at.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <exception>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "loop/room.h"

namespace fastlstm {

// A number that some threads wait for another one to change.
class Signal {
 public:
  int now() const { return value_.load(std::memory_order_relaxed); }

  void change(int to) {
    if (sleepers_.load(std::memory_order_relaxed)) changed_.store(now_ns(), std::memory_order_relaxed);
    value_.store(to, std::memory_order_release);
    value_.notify_all();
  }

  // What it becomes when it is no longer `from`. Others need microseconds: where it takes longer, one of them has no core, and gets the
  // one of this thread, which sleeps. What it then waits for a core itself is no sleep.
  int wait_while(int from) {
    for (int spins = 0; spins < 2000; spins++) {
      if (const int value = value_.load(std::memory_order_acquire); value != from) return value;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
    sleepers_.fetch_add(1, std::memory_order_relaxed);
    const int64_t asleep = now_ns();
    value_.wait(from, std::memory_order_acquire);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
    slept_ns += asleep_for(asleep, changed_.load(std::memory_order_relaxed), now_ns());
    return value_.load(std::memory_order_acquire);
  }

 private:
  std::atomic<int> value_{0}, sleepers_{0};
  std::atomic<int64_t> changed_{0};  // when it was, last time that some slept
};

class Barrier {
 public:
  explicit Barrier(int64_t workers) : workers_(workers) {}
  void wait() {
    if (workers_ == 1) return;
    const int phase = phase_.now();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == workers_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.change(phase ^ 1);
      return;
    }
    phase_.wait_while(phase);
  }

 private:
  const int64_t workers_;
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) Signal phase_;
};

// The number of workers that may run at once: PyTorch's setting, as far as there are CPUs for them that others leave, as they wait for
// one another; and 1 after a fork, whose child has no thread pool.
int64_t max_workers();
// For tests: whether there may be more workers than CPUs.
void crowd(bool on);

// Calls setup(workers) once, then body(worker) on every worker at the same time, so that they may wait for one another.
// The pool may grant fewer workers than wanted (nested parallel regions, thread limits): setup is told how many.
template <class Setup, class Body>
void run_team(int64_t wanted, const Setup& setup, const Body& body) {
  if (wanted <= 1) {
    setup(1);
    return body(0);
  }
  Signal range;  // length of the pool's ranges; the caller's own, which begins at 0, tells the others
  std::exception_ptr error;
  std::atomic<int64_t> lost{0};
  const int64_t called = now_ns();
  torch::stable::parallel_for(0, wanted, 1, [&](int64_t begin, int64_t end) {
    const int64_t late = now_ns() - called;
    if (begin == 0) {
      try {
        setup((wanted + end - 1) / end);
        range.change(static_cast<int>(end));
      } catch (...) {
        error = std::current_exception();
        range.change(-1);
      }
    }
    const int length = range.wait_while(0);
    if (length > 0) {
      const Turn turn(late);
      body(begin / length);
      lost.fetch_add(turn.lost(), std::memory_order_relaxed);
    }
  });
  if (error) std::rethrow_exception(error);
  const int64_t length = range.now(), ended = now_ns();
  room().note((wanted + length - 1) / length, ended, ended - called, lost.load(std::memory_order_relaxed));
}

}  // namespace fastlstm
