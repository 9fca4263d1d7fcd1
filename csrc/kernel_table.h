// Addresses of the gate kernels, which Numba compiles. C++ knows them by id and asks Python to compile one when first needed.
#pragma once
#include <cstdint>

namespace fastlstm {

enum class Kernel : int { lstm_fwd_f32, lstm_fwd_f64, lstm_bwd_f32, lstm_bwd_f64, count };

// A gate kernel works in place on `rows` records, one after the other; kernels/*/cpu.py describes the record.
using GateKernel = void (*)(void* records, int64_t rows);

GateKernel gate_kernel(Kernel id);

}  // namespace fastlstm
