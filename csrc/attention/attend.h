// Reads of a memory by queries that don't depend on one another: those of all steps at once.
#pragma once
#include "attention/gradients.h"

namespace fastlstm {

template <class T>
struct AttendCall {
  int64_t steps;
  Memory<T> memory;
  const T* queries;          // (T, B, A), contiguous
  T *contexts, *weights;     // (T, B, M), (T, B, S) or null
  void run();

 private:
  void run_many();
};

template <class T>
struct AttendBackwardCall {
  int64_t steps;
  Memory<T> memory;
  const T *queries, *weights;
  Rows<const T> dcontexts, dweights;  // .p may be null
  T *dqueries, *dmemory, *dkeys, *dscore;  // dqueries and dscore: null where not wanted
  void run();
};

}  // namespace fastlstm
