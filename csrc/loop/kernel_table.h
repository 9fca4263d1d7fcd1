// Addresses of the gate kernels, which Numba compiles. C++ knows them by id and asks Python to compile one when first needed.
#pragma once
#include <cstdint>

namespace fastlstm {

enum class Recurrence : int { lstm, peephole_lstm, cifg_lstm, cifg_peephole_lstm, gru, count };
enum class Pass : int { forward, backward, count };

// A gate kernel works in place on `rows` records, one after the other; kernels/*/cpu.py describes the record.
using GateKernel = void (*)(void* records, int64_t rows);

GateKernel gate_kernel(Recurrence recurrence, Pass pass, bool is_double);

}  // namespace fastlstm
