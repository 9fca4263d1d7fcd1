#include "loop/room.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>

namespace fastlstm {
namespace {

constexpr int64_t kMillisecond = 1000000;
constexpr int64_t kWindow = 10 * kMillisecond;  // of calls that are judged together
constexpr double kMissing = 0.2;                // workers without a CPU, on average, that are too many
// For how long there are fewer workers, and for how many calls at least: twice as long each time that all of them were tried in vain,
// until a call which waits shows little. Short at first: a host may have taken a CPU away for a moment.
constexpr int64_t kShortest = 16 * kMillisecond, kLongest = 1024 * kMillisecond, kFewCalls = 8, kCalls = 32;
constexpr int64_t kWaking = 300000;  // what a thread of the pool may take to begin
constexpr int64_t kRousing = 100000;  // and one at a barrier to go on

}  // namespace

int64_t Room::among(int64_t workers, int64_t now) {
  const std::lock_guard guard(mutex_);
  return now < until_ ? std::min(workers, cap_) : workers;
}

void Room::note(int64_t workers, int64_t now, int64_t wall, int64_t lost) {
  const std::lock_guard guard(mutex_);
  if (now - last_ > kLongest) {  // too long ago
    wall_ = lost_ = longest_ = 0;
    again_ = false;
  }
  last_ = now;
  wall_ += wall;
  lost_ += lost;
  longest_ = std::max(longest_, wall);
  if (wall_ < kWindow) return;
  const double missing = static_cast<double>(lost_) / static_cast<double>(wall_);
  const int64_t longest = longest_;
  wall_ = lost_ = longest_ = 0;
  const bool all = now >= until_;
  if (missing < kMissing) {
    if (all) span_ = 0;
    again_ = false;
    return;
  }
  if (all && span_ == 0 && !again_) {  // once is nothing: something small ran
    again_ = true;
    return;
  }
  cap_ = std::max<int64_t>(1, workers - std::max<int64_t>(1, std::lround(missing)));
  if (all) span_ = std::clamp(2 * span_, kShortest, kLongest);
  until_ = now + std::max(span_, std::min(kCalls, kFewCalls * (span_ / kShortest)) * longest);
}

Room& room() {
  static Room of_process;
  return of_process;
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t thread_ns() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec t;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0) return t.tv_sec * 1000 * kMillisecond + t.tv_nsec;
#endif
  return 0;
}

int64_t asleep_for(int64_t asleep, int64_t changed, int64_t awake) {
  return std::min(std::max(changed, asleep) + kRousing, awake) - asleep;
}

int64_t Turn::lost() const {
  if (cpu_ == 0) return 0;
  const int64_t late = std::max<int64_t>(0, late_ - kWaking);
  const int64_t off = (now_ns() - begin_) - (thread_ns() - cpu_) - (slept_ns - slept_);
  return late + std::max<int64_t>(0, off);
}

}  // namespace fastlstm
