// What a recurrent cell is to the loop over time: the slots of its records, the weights that feed them, and its gate kernels.
//
// A variant is data: kernels/<variant>/__init__.py says it, and it is registered by name when fastlstm is imported.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "gemm/gemm.h"
#include "gemm/isa.h"

namespace fastlstm {

constexpr int64_t kMaxGates = 8;

// The pre-activations of a record that one weight feeds: slots side by side, each from one of the weight's gates.
struct GateMap {
  int64_t first, gates;
  std::array<int64_t, kMaxGates> gate;  // of slot first + i

  int64_t width() const { return gates * kPanel; }
  int64_t offset() const { return first * kPanel; }
};

// A row of peephole weights: the slot whose pre-activation it joins, and which cell it sees, the new one or that before it.
struct Peephole {
  int64_t slot;
  bool sees_new;
};

// What a kernel is for; `hidden` is of variants with a cell, `prepare` and `keys` are attention's.
enum class Pass : int { forward, backward, hidden, prepare, keys, count };

// The kernels of one name, each compiled by Python the first time that it is needed on a path; bindings.cpp.
struct Kernels {
  std::string name;

  void* address(Pass pass, bool is_double) const;

  static constexpr int kKernels = static_cast<int>(Isa::count) * static_cast<int>(Pass::count) * 2;
  mutable std::array<std::atomic<void*>, kKernels> addresses{};
};

// A gate kernel works in place on `rows` records, one after the other; kernels/*/cpu.py describes the record.
using GateKernel = void (*)(void* records, int64_t rows);

struct Variant : Kernels {
  GateMap ih, hh;
  int64_t slots;  // of pre-activations
  std::vector<Peephole> peepholes;
  bool cell;  // c is a state of its own; else it is h

  int64_t peephole_width() const { return static_cast<int64_t>(peepholes.size()) * kPanel; }
  // Both weights feed the same slots: their products are sums over one record.
  bool joint() const { return ih.first == hh.first && ih.gates == hh.gates; }
  GateKernel kernel(Pass pass, bool is_double) const { return reinterpret_cast<GateKernel>(address(pass, is_double)); }
};

// Variants are never forgotten: calls hold references to them. Registering one again, alike, does nothing.
// `gates`: the weights' gate that each slot is; `x` and `h`: the first slot and the number of slots that their weights feed.
struct Slots {
  int64_t first, count;
};
void register_variant(const std::string& name, const std::vector<int64_t>& gates, Slots x, Slots h,
                      const std::vector<Peephole>& peepholes, bool cell);
// Throws std::runtime_error for a name that is not registered.
const Variant& find_variant(const std::string& name);
// Kernels that belong to no variant; never forgotten either.
const Kernels& find_kernels(const std::string& name);
// Forgets the addresses of all kernels.
void forget_kernels();

}  // namespace fastlstm
