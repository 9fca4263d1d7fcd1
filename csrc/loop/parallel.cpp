#include "loop/parallel.h"

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

}  // namespace

int64_t max_workers() { return forked.load(std::memory_order_relaxed) ? 1 : torch::stable::get_num_threads(); }

}  // namespace fastlstm
