#include "memory/pool.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastlstm {
namespace {

#if defined(__SANITIZE_ADDRESS__)  // make sanitize: all blocks are malloc's, as long as was asked for, and their borders are watched
constexpr size_t kPooled = SIZE_MAX, kUnit = 1;
#else
constexpr size_t kPooled = 1 << 16, kUnit = 64;  // smaller blocks are left to malloc, which keeps them itself
#endif
constexpr size_t kPage = 4096;
std::atomic<bool> poisons{false};
std::atomic<int64_t> until_failure{-1};

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

[[noreturn]] void fail(size_t bytes) {
  // In PyTorch's words: those who search for a batch size that fits look for them.
  throw std::runtime_error("DefaultCPUAllocator: can't allocate memory: you tried to allocate " + std::to_string(bytes) + " bytes.");
}

void* allocate(size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 64, round_up(bytes, kUnit))) fail(bytes);
  return p;
}

// Blocks of the pool, of whole pages. From the system itself: malloc would keep what lies between them when they are returned. Where
// there are huge pages for them, they begin with one.
#if defined(__linux__)
constexpr bool kParts = true;  // a part of a block can be returned alone
void* map(size_t bytes) {
  const size_t more = bytes >= 2 * kHugePage ? kHugePage - kPage : 0;
  void* const p = mmap(nullptr, bytes + more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) fail(bytes);
  if (more == 0) return p;
  char* const begin = static_cast<char*>(p);
  char* const aligned = reinterpret_cast<char*>(round_up(reinterpret_cast<std::uintptr_t>(p), kHugePage));
  if (aligned > begin) munmap(begin, aligned - begin);
  if (const size_t left = begin + more - aligned) munmap(aligned + bytes, left);
  return aligned;
}
void unmap(void* p, size_t bytes) { munmap(p, bytes); }
#else
constexpr bool kParts = false;
void* map(size_t bytes) { return allocate(bytes); }
void unmap(void* p, size_t) { std::free(p); }
#endif

// Blocks in use and kept together are never more than the most that was in use at once in the last kMemory to 2 kMemory returns, and
// kSlack: what small calls take one after another in several sizes would be returned and asked for again by each of them.
constexpr int kMemory = 256;
constexpr size_t kSlack = 1 << 20;

class Pool {
 public:
  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes = round_up(bytes, kPage);
    Part block{nullptr, bytes, nullptr};
    auto best = smallest(bytes, bytes + bytes / 4);
    // Rather than return some to the system and ask it for another: a part of a larger one
    if (best == kept_.end() && used_bytes_ + kept_bytes_ + bytes > limit()) best = smallest(bytes, kParts ? SIZE_MAX : 2 * bytes);
    if (best != kept_.end()) {
      block = *best;
      if (kParts && block.bytes > bytes + bytes / 4) {
        *best = {block.p + bytes, block.bytes - bytes, block.mapped};
        block.bytes = bytes;
      } else {
        kept_.erase(best);
      }
      kept_bytes_ -= block.bytes;
    }
    const size_t most = std::exchange(most_, std::max(most_, used_bytes_ + block.bytes));
    if (!block.p) {
      trim(block.bytes);
      try {
        block.p = block.mapped = static_cast<char*>(map(block.bytes));
      } catch (...) {  // there is no such block, so nothing of its size is to be kept
        most_ = most;
        throw;
      }
      advise_huge(block.p, block.bytes);
    }
    used_bytes_ += block.bytes;
    used_[block.p] = block;
    return block.p;
  }

  // False where the block is not from here.
  bool give_back(void* p) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = used_.find(p);
    if (it == used_.end()) return false;
    kept_bytes_ += it->second.bytes;
    used_bytes_ -= it->second.bytes;
    keep(it->second);
    used_.erase(it);
    if (++returns_ % kMemory == 0) most_before_ = std::exchange(most_, used_bytes_);
    trim(0);
    return true;
  }

  void empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    most_ = most_before_ = 0;
    trim(0);
  }

  std::mutex mutex_;  // held over fork(), so that the child finds it free

 private:
  // A block, or a part of one that was mapped as a whole, `mapped` being where that began.
  struct Part {
    char* p;
    size_t bytes;
    char* mapped;
  };

  // Together with what is kept of the same block beside it.
  void keep(Part part) {
    for (auto it = kept_.begin(); it != kept_.end();)
      if (it->mapped == part.mapped && (it->p + it->bytes == part.p || part.p + part.bytes == it->p)) {
        part = {std::min(it->p, part.p), it->bytes + part.bytes, part.mapped};
        it = kept_.erase(it);
      } else {
        ++it;
      }
    kept_.push_back(part);
  }

  // Of the blocks that are kept, the smallest between two sizes, or the end.
  std::vector<Part>::iterator smallest(size_t least, size_t most) {
    auto best = kept_.end();
    for (auto it = kept_.begin(); it != kept_.end(); ++it)
      if (it->bytes >= least && it->bytes <= most && (best == kept_.end() || it->bytes < best->bytes)) best = it;
    return best;
  }
  size_t limit() const {
    const size_t most = std::max(most_, most_before_);
    return most == 0 ? 0 : most + kSlack;
  }

  // Releases kept blocks, the oldest first, until `more` bytes may be in use as well.
  void trim(size_t more) {
    while (!kept_.empty() && used_bytes_ + kept_bytes_ + more > limit()) {
      unmap(kept_.front().p, kept_.front().bytes);
      kept_bytes_ -= kept_.front().bytes;
      kept_.erase(kept_.begin());
    }
  }

  std::vector<Part> kept_;  // oldest first
  std::unordered_map<void*, Part> used_;
  size_t kept_bytes_ = 0, used_bytes_ = 0, most_ = 0, most_before_ = 0;
  int64_t returns_ = 0;
};

// Never destroyed: tensors may be freed after static objects are.
Pool& pool() {
  static Pool* const p = [] {
    auto* const created = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork([] { pool().mutex_.lock(); }, [] { pool().mutex_.unlock(); }, [] { pool().mutex_.unlock(); });
#endif
    return created;
  }();
  return *p;
}

}  // namespace

void* take_block(size_t bytes) {
  if (until_failure.load(std::memory_order_relaxed) >= 0 && until_failure.fetch_sub(1) == 0) fail(bytes);
  void* const block = bytes < kPooled ? allocate(bytes) : pool().take(bytes);
  poison_fresh(block, round_up(bytes, kUnit));
  return block;
}

void give_back_block(void* block) {
  if (block && !pool().give_back(block)) std::free(block);
}

void empty_pool() { pool().empty(); }

void set_poison(bool on) { poisons = on; }

int64_t fail_after(int64_t blocks) { return std::max<int64_t>(-1, until_failure.exchange(blocks)); }

void poison_fresh(void* p, size_t bytes) {
  if (poisons.load(std::memory_order_relaxed)) std::memset(p, 0xFF, bytes);
}

void advise_huge([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const auto begin = round_up(reinterpret_cast<std::uintptr_t>(p), kPage);
  const auto end = (reinterpret_cast<std::uintptr_t>(p) + bytes) / kPage * kPage;
  if (end >= begin + 2 * kHugePage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // only a hint
#endif
}

}  // namespace fastlstm
