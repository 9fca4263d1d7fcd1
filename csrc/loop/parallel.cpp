#include "loop/parallel.h"

#include <algorithm>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastlstm {
namespace {

// OpenMP's pool does not survive fork(): a parallel region in the child would hang.
std::atomic<bool> forked{false};

#if defined(__unix__) || defined(__APPLE__)
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

std::atomic<bool> crowded{false};

// Those that this thread may run on, which can change at any time; 0 where that isn't known.
int64_t cpus() {
#if defined(__linux__)
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
#else
  return std::thread::hardware_concurrency();
#endif
}

}  // namespace

int64_t max_workers() {
  if (forked.load(std::memory_order_relaxed)) return 1;
  const int64_t wanted = torch::stable::get_num_threads();
  if (wanted == 1 || crowded.load(std::memory_order_relaxed)) return wanted;
  const int64_t there = cpus();
  return room().among(there > 0 ? std::min(wanted, there) : wanted, now_ns());
}

void crowd(bool on) { crowded = on; }

}  // namespace fastlstm
