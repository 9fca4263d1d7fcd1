// A team of workers on PyTorch's own thread pool, and the barrier they meet at.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastlstm {

// Waits for others who need microseconds; yields where one of them was descheduled.
template <class Condition>
void spin_until(const Condition& done) {
  for (int spins = 0; !done(); spins++) {
    if (spins >= 10000)
      std::this_thread::yield();
#if defined(__x86_64__)
    else
      _mm_pause();
#endif
  }
}

class Barrier {
 public:
  explicit Barrier(int64_t workers) : workers_(workers) {}
  void wait() {
    if (workers_ == 1) return;
    const int64_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == workers_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
  }

 private:
  const int64_t workers_;
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> phase_{0};
};

// The number of workers that may run at once: PyTorch's setting, and 1 after a fork, whose child has no thread pool.
int64_t max_workers();

// Calls setup(workers) once, then body(worker) on every worker at the same time, so that they may wait for one another.
// The pool may grant fewer workers than wanted (nested parallel regions, thread limits): setup is told how many.
template <class Setup, class Body>
void run_team(int64_t wanted, const Setup& setup, const Body& body) {
  if (wanted <= 1) {
    setup(1);
    return body(0);
  }
  std::atomic<int64_t> range{0};  // length of the pool's ranges; the caller's own, which begins at 0, tells the others
  std::exception_ptr error;
  torch::stable::parallel_for(0, wanted, 1, [&](int64_t begin, int64_t end) {
    if (begin == 0) {
      try {
        setup((wanted + end - 1) / end);
        range.store(end, std::memory_order_release);
      } catch (...) {
        error = std::current_exception();
        range.store(-1, std::memory_order_release);
      }
    }
    int64_t length = 0;
    spin_until([&] { return (length = range.load(std::memory_order_acquire)) != 0; });
    if (length > 0) body(begin / length);
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace fastlstm
