// The Python module fastlstm._C: what is not an op. Ops are registered by the other files when the library is loaded.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>

#include "gemm.h"
#include "kernel_table.h"
#include "pool.h"

namespace py = pybind11;

namespace fastlstm {
namespace {

constexpr std::array<const char*, static_cast<int>(Kernel::count)> kNames = {"lstm_fwd_f32", "lstm_fwd_f64", "lstm_bwd_f32",
                                                                            "lstm_bwd_f64"};
std::array<std::atomic<void*>, static_cast<int>(Kernel::count)> addresses{};
py::object* compile = nullptr;  // str -> int; never freed: the interpreter may be gone when static objects are

GateKernel compile_kernel(int id) {
  const py::gil_scoped_acquire gil;
  if (!compile) throw std::runtime_error("fastlstm: no gate kernels are registered; import fastlstm before calling its ops");
  addresses[id] = reinterpret_cast<void*>((*compile)(kNames[id]).cast<std::uintptr_t>());
  return reinterpret_cast<GateKernel>(addresses[id].load());
}

}  // namespace

GateKernel gate_kernel(Kernel id) {
  const int i = static_cast<int>(id);
  void* const address = addresses[i].load(std::memory_order_acquire);
  return address ? reinterpret_cast<GateKernel>(address) : compile_kernel(i);
}

}  // namespace fastlstm

PYBIND11_MODULE(_C, m) {
  using namespace fastlstm;
  m.doc() = "The loops over time of fastlstm, and their gate kernels' addresses.";
  m.def("gemm_path", &gemm_path_name, "The micro-kernels chosen for this CPU: 'avx512', 'avx2' or 'portable'.");
  m.def("empty_pool", &empty_pool, "Return scratch memory that is kept for the next call to the system.");
  m.def(
      "set_kernel_compiler",
      [](py::object f) {
        for (auto& address : addresses) address = nullptr;
        delete compile;
        compile = new py::object(std::move(f));
      },
      "Register the function that compiles a gate kernel by name and returns its address; forgets addresses known so far.");
}
