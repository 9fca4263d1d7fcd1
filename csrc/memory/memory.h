// Scratch memory of a call.
#pragma once
#include <cstdint>
#include <utility>

#include "memory/pool.h"

namespace fastlstm {

// Aligned, uninitialised, given back at the end of its scope.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t n) : p_(n > 0 ? static_cast<T*>(take_block(static_cast<size_t>(n) * sizeof(T))) : nullptr) {}
  Buffer(Buffer&& other) noexcept : p_(std::exchange(other.p_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(p_, other.p_);
    return *this;
  }
  ~Buffer() { give_back_block(p_); }
  operator T*() const { return p_; }

 private:
  T* p_ = nullptr;
};

// Asks for memory that will be read, or written, soon and lies in no cache yet: what is saved is used once in each pass.
template <bool WRITE, class T>
void prefetch(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + i, WRITE, 2);
}

// Row length for a matrix whose rows are read side by side: never a multiple of 1 KiB, where they would share cache sets.
template <class T>
int64_t padded_row(int64_t n) {
  return (n * sizeof(T)) % 1024 == 0 && n > 0 ? n + 64 / static_cast<int64_t>(sizeof(T)) : n;
}

}  // namespace fastlstm
