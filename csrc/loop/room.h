// How many workers have CPUs to run on, by what those of past calls had to do without: other processes may have some of them, and
// a worker without one keeps all others waiting at the next barrier.
#pragma once
#include <cstdint>
#include <mutex>

namespace fastlstm {

class Room {
 public:
  // Of that many workers, those that there is room for. Times are in nanoseconds, and `now` is since any time.
  int64_t among(int64_t workers, int64_t now);
  // That a call of `workers` ended now, took `wall`, and that in all they had no CPU for `lost` of it.
  void note(int64_t workers, int64_t now, int64_t wall, int64_t lost);

 private:
  std::mutex mutex_;
  int64_t cap_ = 0, until_ = 0, span_ = 0;  // at most so many workers until then; for how long, and 0 where all had CPUs
  bool again_ = false;                        // whether they lacked some, last time
  int64_t wall_ = 0, lost_ = 0, longest_ = 0, last_ = 0;  // of the calls that are not judged yet
};

// Of the process.
Room& room();

// Nanoseconds since any time; those that this thread had a CPU, or 0 where that isn't known.
int64_t now_ns();
int64_t thread_ns();

// What this thread has slept, waiting for others.
inline thread_local int64_t slept_ns = 0;
// Of the time from `asleep` to `awake`, that until others were there, at `changed`, and what waking takes; the rest is waiting for a CPU.
int64_t asleep_for(int64_t asleep, int64_t changed, int64_t awake);

// What one worker of a call had no CPU for, though it had work: from its begin to its end, but for what it slept; and before, as it
// came late. (What it then waits until all is set up is no loss: a process's first calls load kernels.)
class Turn {
 public:
  explicit Turn(int64_t late) : late_(late), begin_(now_ns()), cpu_(thread_ns()), slept_(slept_ns) {}
  int64_t lost() const;

 private:
  const int64_t late_, begin_, cpu_, slept_;
};

}  // namespace fastlstm
