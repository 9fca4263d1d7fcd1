// Chooses the implementation of gemm.h, from what the CPU offers or what was asked for.
#include "gemm/gemm.h"

#include <atomic>
#include <stdexcept>

#include "gemm/isa.h"
#include "gemm/winograd.h"

namespace fastlstm {
namespace {

std::atomic<bool> amx_denied{false};
constexpr const char* kPrecisions[] = {"highest", "high", "medium"};
std::atomic<int> float32_precision_in_use{0};

bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  static const bool found = amx::supported();
  return found && !amx_denied;
#else
  return false;
#endif
}

Isa detect() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    return !__builtin_cpu_supports("avx512bf16") ? Isa::avx512 : has_amx() ? Isa::amx : Isa::avx512_bf16;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::portable;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> chosen{detect()};
  return chosen;
}

}  // namespace

Isa isa() { return current().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  static constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512+bf16", "avx512+amx"};
  return kNames[static_cast<int>(isa)];
}

void force_isa(const std::optional<std::string>& name) {
  const Isa best = detect();
  if (!name) return current().store(best);
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16})
    if (*name == isa_name(isa)) {
      if (isa > best) throw std::runtime_error("path '" + *name + "' can't run here: this CPU is one of '" + isa_name(best) + "'");
      return current().store(isa);
    }
  throw std::invalid_argument("path is '" + *name + "', expected 'avx512+bf16', 'avx512', 'avx2' or 'portable'");
}

// Each table is made where its instruction set was found only: making it may take such instructions.
template <class T>
const MicroKernels<T>& micro_kernels() {
#if defined(__x86_64__)
  if (isa() >= Isa::avx512) {
    static const MicroKernels<T> path = avx512::path<T>();
    return path;
  }
  if (isa() == Isa::avx2) {
    static const MicroKernels<T> path = avx2::path<T>();
    return path;
  }
#endif
  static const MicroKernels<T> path = portable::path<T>();
  return path;
}
template const MicroKernels<float>& micro_kernels<float>();
template const MicroKernels<double>& micro_kernels<double>();

template <class T>
const WinogradKernels<T>& winograd_kernels(int64_t taps) {
  const int of_five = taps == 5;
#if defined(__x86_64__)
  if (isa() >= Isa::avx512) {
    static const WinogradKernels<T> path[2] = {avx512::winograd<T>(3), avx512::winograd<T>(5)};
    return path[of_five];
  }
  if (isa() == Isa::avx2) {
    static const WinogradKernels<T> path[2] = {avx2::winograd<T>(3), avx2::winograd<T>(5)};
    return path[of_five];
  }
#endif
  static const WinogradKernels<T> path[2] = {portable::winograd<T>(3), portable::winograd<T>(5)};
  return path[of_five];
}
template const WinogradKernels<float>& winograd_kernels<float>(int64_t);
template const WinogradKernels<double>& winograd_kernels<double>(int64_t);

namespace {

// Asked for when it is needed: a process that uses none is as it was.
bool permits_amx() {
#if defined(__x86_64__) && defined(__linux__)
  if (isa() != Isa::amx) return false;
  static const bool permitted = amx::permitted();
  if (permitted) return true;
  amx_denied = true;
  current().store(detect());
#endif
  return false;
}

}  // namespace

const Bf16Kernels* bf16_kernels() {
#if defined(__x86_64__)
#if defined(__linux__)
  if (permits_amx()) {
    static const Bf16Kernels path = amx::bf16_kernels();
    return &path;
  }
#endif
  if (isa() == Isa::avx512_bf16) {
    static const Bf16Kernels path = avx512_bf16::bf16_kernels();
    return &path;
  }
#endif
  return nullptr;
}

const SplitKernels* split_kernels() {
  [[maybe_unused]] const int precision = float32_precision_in_use.load(std::memory_order_relaxed);
#if defined(__x86_64__) && defined(__linux__)
  if (precision > 0 && permits_amx()) {
    static const SplitKernels paths[] = {amx::split_kernels(2), amx::split_kernels(1)};
    return &paths[precision - 1];
  }
#endif
  return nullptr;
}

void set_float32_precision(const std::string& name) {
  for (int i = 0; i < 3; i++)
    if (name == kPrecisions[i]) return float32_precision_in_use.store(i);
  throw std::invalid_argument("precision is '" + name + "', expected 'highest', 'high' or 'medium'");
}

const char* float32_precision() { return kPrecisions[float32_precision_in_use.load()]; }

}  // namespace fastlstm
