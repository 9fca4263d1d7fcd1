// Attention: a read of the memory by one query, and the gradients of that. The math is in kernels/attention_lstm/cpu.py.
#pragma once
#include <algorithm>

#include "cell/variant.h"
#include "loop/call.h"
#include "loop/team.h"
#include "memory/memory.h"

namespace fastlstm {

// Slots (S, B, ...) of any strides, of which a sequence has the first few.
template <class T>
struct MemoryRows {
  const T* p;
  int64_t slot, row;  // strides, in elements

  const T* at(int64_t b) const { return p + b * row; }
};

template <class T>
struct Memory {
  int64_t S, B, M, A;
  MemoryRows<T> memory, keys;  // keys are the memory itself where they have no tensor of their own
  bool own_keys;
  const int64_t* lengths;  // (B), or null: all S slots
  const T* score;          // (A), of additive scores; null: those are products

  int64_t length(int64_t b) const { return lengths ? lengths[b] : S; }
};

// A memory in the type that it is read in: as it is, or a copy in which a sequence's slots follow one another.
template <class S>
class WideMemory {
  using T = compute_t<S>;
  static constexpr bool kCopies = !std::is_same_v<S, T>;

 public:
  explicit WideMemory(const Memory<S>& given)
      : given_(given), copy_(kCopies ? given.B * given.S * given.M : 0), keys_(kCopies && given.own_keys ? given.B * given.S * given.A : 0),
        score_(kCopies && given.score ? given.A : 0) {
    if constexpr (kCopies) {
      for (int64_t a = 0; a < given.A && score_; a++) score_[a] = static_cast<T>(given.score[a]);
      const int64_t S_ = given.S;
      const MemoryRows<T> rows{copy_, given.M, S_ * given.M};
      memory_ = {S_, given.B, given.M, given.A, rows, given.own_keys ? MemoryRows<T>{keys_, given.A, S_ * given.A} : rows, given.own_keys,
                 given.lengths, score_};
    } else {
      memory_ = given;
    }
  }

  // Some sequences of it are copied: those that this thread prepares.
  void set_up(const Range& sequences) const {
    if constexpr (kCopies)
      for (int64_t b = sequences.begin; b < sequences.end; b++)
        for (int64_t s = 0; s < given_.length(b); s++) {
          widen(given_.memory.at(b) + s * given_.memory.slot, given_.M, copy_ + (b * given_.S + s) * given_.M);
          if (keys_) widen(given_.keys.at(b) + s * given_.keys.slot, given_.A, keys_ + (b * given_.S + s) * given_.A);
        }
  }

  const Memory<T>& get() const { return memory_; }

 private:
  static void widen(const S* from, int64_t n, T* to) {
    for (int64_t i = 0; i < n; i++) to[i] = static_cast<T>(from[i]);
  }

  const Memory<S>& given_;
  Buffer<T> copy_, keys_, score_;
  Memory<T> memory_;
};

template <class T>
class Reader {
  static constexpr bool kDouble = sizeof(T) == 8;
  using Prepare = int64_t (*)(const T* keys, int64_t key_stride, int64_t S, int64_t A, T* prepared);
  using Forward = void (*)(const T* query, const T* keys, int64_t key_stride, const T* memory, int64_t memory_stride, const T* score,
                           int64_t S, int64_t A, int64_t M, int64_t prepared, T* scratch, T* weights, T* context);
  using Backward = void (*)(const T* query, const T* keys, int64_t key_stride, const T* memory, int64_t memory_stride, const T* score,
                            int64_t S, int64_t A, int64_t M, int64_t prepared, T* scratch, const T* weights, const T* dcontext,
                            const T* dweights, int64_t has_dweights, T* dscores, T* dquery);
  using Keys = void (*)(const T* queries, int64_t query_stride, int64_t steps, const T* keys, int64_t key_stride, const T* score, int64_t S,
                        int64_t A, int64_t prepared, T* scratch, const T* dscores, int64_t dscore_stride, T* dkeys, T* dscore);

 public:
  // Keys that are read in one step only are not worth preparing. Kernels are compiled now, if they are not yet: not where other
  // threads wait.
  Reader(const Memory<T>& memory, int64_t steps, bool with_backward)
      : memory(memory), prepares_(additive() && steps > 1), prepared_(prepares_ ? memory.B * memory.S * memory.A : 0),
        is_prepared_(prepares_ ? memory.B : 0) {
    const Kernels& kernels = find_kernels(additive() ? "additive_attention" : "dot_attention");
    forward_ = reinterpret_cast<Forward>(kernels.address(Pass::forward, kDouble));
    if (prepares_) prepare_ = reinterpret_cast<Prepare>(kernels.address(Pass::prepare, kDouble));
    if (!with_backward) return;
    backward_ = reinterpret_cast<Backward>(kernels.address(Pass::backward, kDouble));
    if (additive()) keys_ = reinterpret_cast<Keys>(kernels.address(Pass::keys, kDouble));
  }

  const Memory<T>& memory;

  bool additive() const { return memory.score; }
  int64_t scratch_size() const { return 3 * memory.A; }

  // Before any sequence is read: this thread's share of what is made of the keys.
  void set_up(const Range& sequences) {
    for (int64_t b = sequences.begin; b < sequences.end && prepares_; b++)
      is_prepared_[b] = memory.length(b) == 0 || prepare_(memory.keys.at(b), memory.keys.slot, memory.length(b), memory.A, prepared(b));
  }

  // weights (S), 0 beyond the sequence's length, and context (M).
  void read(int64_t b, const T* query, T* scratch, T* weights, T* context) const {
    const auto& m = memory;
    const int64_t S = m.length(b);
    std::fill(weights + S, weights + m.S, T(0));
    if (S == 0) return void(std::fill_n(context, m.M, T(0)));
    forward_(query, keys(b), key_stride(), m.memory.at(b), m.memory.slot, m.score, S, m.A, m.M, is_prepared(b), scratch, weights, context);
  }

  // The gradients of the scores (S) and of the query (A); `dweights` may be null.
  void read_backward(int64_t b, const T* query, T* scratch, const T* weights, const T* dcontext, const T* dweights, T* dscores,
                     T* dquery) const {
    const auto& m = memory;
    const int64_t S = m.length(b);
    std::fill(dscores + S, dscores + m.S, T(0));
    if (S == 0) return void(std::fill_n(dquery, m.A, T(0)));
    backward_(query, keys(b), key_stride(), m.memory.at(b), m.memory.slot, m.score, S, m.A, m.M, is_prepared(b), scratch, weights,
              dcontext, dweights ? dweights : dcontext, dweights != nullptr, dscores, dquery);
  }

  // Of additive scores, over all steps of a sequence: dkeys (length, A), and its part of dscore (A).
  void keys_backward(int64_t b, Block<const T> queries, int64_t steps, T* scratch, Block<const T> dscores, T* dkeys, T* dscore) const {
    const auto& m = memory;
    keys_(queries.p, queries.row, steps, keys(b), key_stride(), m.score, m.length(b), m.A, is_prepared(b), scratch, dscores.p, dscores.row,
          dkeys, dscore);
  }

 private:
  T* prepared(int64_t b) const { return prepared_ + b * memory.S * memory.A; }
  const T* keys(int64_t b) const { return prepares_ ? prepared(b) : memory.keys.at(b); }
  int64_t key_stride() const { return prepares_ ? memory.A : memory.keys.slot; }
  int64_t is_prepared(int64_t b) const { return prepares_ ? is_prepared_[b] : 0; }

  const bool prepares_;
  Buffer<T> prepared_;  // (B, S, A)
  Buffer<int64_t> is_prepared_;
  Prepare prepare_ = nullptr;
  Forward forward_ = nullptr;
  Backward backward_ = nullptr;
  Keys keys_ = nullptr;
};

}  // namespace fastlstm
