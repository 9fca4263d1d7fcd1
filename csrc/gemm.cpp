// Chooses the implementation of gemm.h once, from what the CPU offers.
#include "gemm.h"

namespace fastlstm {
namespace {

enum class Isa { portable, avx2, avx512 };

Isa detect() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

}  // namespace

template <class T>
const GemmPath<T>& gemm_path() {
  static const GemmPath<T> chosen = [] {
#if defined(__x86_64__)
    if (isa() == Isa::avx512) return avx512::path<T>();
    if (isa() == Isa::avx2) return avx2::path<T>();
#endif
    return portable::path<T>();
  }();
  return chosen;
}
template const GemmPath<float>& gemm_path<float>();
template const GemmPath<double>& gemm_path<double>();

const HalfPath* half_path() {
#if defined(__x86_64__)
  static const bool has = isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
  static const HalfPath path = has ? avx512_bf16::half_path() : HalfPath{};  // compiled for CPUs that have it
  return has ? &path : nullptr;
#else
  return nullptr;
#endif
}

const char* gemm_path_name() {
  if (half_path()) return "avx512+bf16";
  return isa() == Isa::avx512 ? "avx512" : isa() == Isa::avx2 ? "avx2" : "portable";
}

}  // namespace fastlstm
