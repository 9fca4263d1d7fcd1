// The Python module fastlstm._C: what is not an op. Ops are registered by the other files when the library is loaded.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "gemm/gemm.h"
#include "gemm/isa.h"
#include "loop/kernel_table.h"
#include "memory/pool.h"

namespace py = pybind11;

namespace fastlstm {
namespace {

constexpr int kRecurrences = static_cast<int>(Recurrence::count), kPasses = static_cast<int>(Pass::count);
constexpr std::array<const char*, kRecurrences> kNames = {"lstm", "peephole_lstm", "cifg_lstm", "cifg_peephole_lstm", "gru"};
constexpr int kIsas = static_cast<int>(Isa::count);
std::array<std::atomic<void*>, kIsas * kRecurrences * kPasses * 2> addresses{};
py::object* compile = nullptr;  // (str, str) -> int; never freed: the interpreter may be gone when static objects are

void* compile_kernel(const std::string& name, Isa isa) {
  const py::gil_scoped_acquire gil;
  if (!compile) throw std::runtime_error("fastlstm: no gate kernels are registered; import fastlstm before calling its ops");
  return reinterpret_cast<void*>((*compile)(name, isa_name(isa)).cast<std::uintptr_t>());
}

}  // namespace

GateKernel gate_kernel(Recurrence recurrence, Pass pass, bool is_double) {
  const Isa wanted = isa();
  const int i = static_cast<int>(wanted), r = static_cast<int>(recurrence), p = static_cast<int>(pass);
  std::atomic<void*>& known = addresses[((i * kRecurrences + r) * kPasses + p) * 2 + is_double];
  void* address = known.load(std::memory_order_acquire);
  if (!address) {
    const char* const pass_name = pass == Pass::forward ? "_fwd" : "_bwd";
    address = compile_kernel(std::string(kNames[r]) + pass_name + (is_double ? "_f64" : "_f32"), wanted);
    known.store(address, std::memory_order_release);
  }
  return reinterpret_cast<GateKernel>(address);
}

}  // namespace fastlstm

PYBIND11_MODULE(_C, m) {
  using namespace fastlstm;
  m.doc() = "The loops over time of fastlstm, and their gate kernels' addresses.";
  m.def(
      "gemm_path", [] { return isa_name(isa()); }, "The micro-kernels in use: 'avx512+bf16', 'avx512', 'avx2' or 'portable'.");
  m.def("force_path", &force_isa, "Use 'avx512', 'avx2' or 'portable' from now on; None: the best that this CPU has.");
  m.attr("PANEL") = kPanel;
  m.def("empty_pool", &empty_pool, "Return scratch memory that is kept for the next call to the system.");
  m.def("poison", &set_poison, "For tests: whether fresh memory, scratch and results, is handed out full of NaN.");
  bind_launcher(m);
  m.def(
      "set_kernel_compiler",
      [](py::object f) {
        for (auto& address : addresses) address = nullptr;
        delete compile;
        compile = new py::object(std::move(f));
      },
      "Register the function that compiles a gate kernel, by name and path, and returns its address; forgets those known so far.");
}
