// Scratch memory of a call, and weights packed into it.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastlstm {

// Asks for huge pages for a large block that was not touched yet: touching it page by page of 4 KiB takes longer than computing
// what is written to it.
inline void advise_huge(void* p, size_t bytes) {
#if defined(__linux__)
  constexpr size_t kLarge = 4 << 20, kPage = 4096;
  if (bytes < kLarge) return;
  const auto begin = (reinterpret_cast<std::uintptr_t>(p) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<std::uintptr_t>(p) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: nothing depends on its success
#endif
}

// Aligned, uninitialised, freed at the end of its scope.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t n) {
    const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
    p_ = bytes ? static_cast<T*>(std::aligned_alloc(64, bytes)) : nullptr;
    if (bytes && !p_) throw std::bad_alloc();
    advise_huge(p_, bytes);
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
