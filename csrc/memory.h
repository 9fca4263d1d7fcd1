// Scratch memory of a call, and weights packed into it.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace fastlstm {

// Aligned, uninitialised, freed at the end of its scope.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t n) {
    const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
    p_ = bytes ? static_cast<T*>(std::aligned_alloc(64, bytes)) : nullptr;
    if (bytes && !p_) throw std::bad_alloc();
  }
  Buffer(Buffer&& other) noexcept : p_(other.p_) { other.p_ = nullptr; }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(p_, other.p_);
    return *this;
  }
  ~Buffer() { std::free(p_); }
  operator T*() const { return p_; }

 private:
  T* p_ = nullptr;
};

// Row length for a matrix whose rows are read side by side: never a multiple of 1 KiB, where they would share cache sets.
template <class T>
int64_t padded_row(int64_t n) {
  return (n * sizeof(T)) % 1024 == 0 && n > 0 ? n + 64 / static_cast<int64_t>(sizeof(T)) : n;
}

}  // namespace fastlstm
