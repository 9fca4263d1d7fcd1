// Large blocks of memory, kept for the next call: what the system hands out afresh, it has to clear page by page, which can take
// as long as computing what is written there.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fastlstm {

constexpr size_t kHugePage = 2 << 20;

// At least `bytes` of uninitialised memory, aligned to 64. Throws std::runtime_error, as PyTorch does.
void* take_block(size_t bytes);
void give_back_block(void* block);

// Returns the blocks that are kept and not in use to the system.
void empty_pool();

// For tests: whether memory is handed out full of NaN, which in every dtype is all ones. poison_fresh does it where it is switched on.
void set_poison(bool on);
void poison_fresh(void* p, size_t bytes);
// For tests: that so many blocks from now on are there, and the next isn't; -1: all are. Returns how many of the last such number
// were left, -1 where the next had been asked for.
int64_t fail_after(int64_t blocks);

// Asks for huge pages, where the system has them, for a large block; it helps where the block was not touched yet.
void advise_huge(void* p, size_t bytes);

}  // namespace fastlstm
