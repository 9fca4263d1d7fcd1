// Which instruction set the micro-kernels and the gate kernels are for.
#pragma once
#include <optional>
#include <string>

namespace fastlstm {

// Those that there are implementations for, each a superset of those before it.
enum class Isa : int { portable, avx2, avx512, avx512_bf16, amx, count };

// The one in use: the best that this CPU has, or what was forced.
Isa isa();
const char* isa_name(Isa isa);  // "portable", "avx2", "avx512", "avx512+bf16" or "avx512+amx"

// Uses one of them, but the last, in this process from now on: "avx512" without the instructions for bfloat16; the best again where
// null. Throws std::runtime_error where this CPU can't, and std::invalid_argument for other names.
void force_isa(const std::optional<std::string>& name);

}  // namespace fastlstm
