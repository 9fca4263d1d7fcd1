// The Python module fastlstm._C: what is not an op. Ops are registered by the other files when the library is loaded.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "cell/variant.h"
#include "cuda/launch.h"
#include "gemm/gemm.h"
#include "gemm/isa.h"
#include "loop/parallel.h"
#include "loop/stream.h"
#include "memory/pool.h"

namespace py = pybind11;

namespace fastlstm {
namespace {

py::object* compile = nullptr;  // (variant, pass, dtype, path) -> int; never freed: the interpreter may be gone when static objects are

constexpr const char* kPasses[] = {"fwd", "bwd", "hidden", "prepare", "keys"};

void* compile_kernel(const std::string& variant, Pass pass, bool is_double, Isa isa) {
  const py::gil_scoped_acquire gil;
  if (!compile) throw std::runtime_error("fastlstm: no gate kernels are registered; import fastlstm before calling its ops");
  const auto address = (*compile)(variant, kPasses[static_cast<int>(pass)], is_double ? "f64" : "f32", isa_name(isa));
  return reinterpret_cast<void*>(address.cast<std::uintptr_t>());
}

}  // namespace

void* Kernels::address(Pass pass, bool is_double) const {
  const Isa wanted = isa();
  const int of_path = static_cast<int>(wanted) * static_cast<int>(Pass::count) + static_cast<int>(pass);
  std::atomic<void*>& known = addresses[of_path * 2 + is_double];
  void* address = known.load(std::memory_order_acquire);
  if (!address) {
    address = compile_kernel(name, pass, is_double, wanted);
    known.store(address, std::memory_order_release);
  }
  return address;
}

namespace {

template <class T>
int64_t multiply_adds_of(int64_t times) {
  const int64_t workers = max_workers();
  std::atomic<int64_t> count{0};
  run_team(workers, [](int64_t) {}, [&](int64_t) {
    T sum;
    count += micro_kernels<T>().multiply_adds(times, T(0.5), &sum);
  });
  return count;
}

int64_t multiply_adds(bool is_double, int64_t times) {
  return is_double ? multiply_adds_of<double>(times) : multiply_adds_of<float>(times);
}

}  // namespace

}  // namespace fastlstm

PYBIND11_MODULE(_C, m) {
  using namespace fastlstm;
  m.doc() = "The loops over time of fastlstm, and their gate kernels' addresses.";
  m.def("gemm_path", [] { return isa_name(isa()); },
        "The micro-kernels in use: 'avx512+amx', 'avx512+bf16', 'avx512', 'avx2' or 'portable'.");
  m.def("set_float32_precision", &set_float32_precision, "How precise products of float32 are to be: 'highest', 'high' or 'medium'.");
  m.def("float32_precision", &float32_precision, "What was set.");
  m.def("force_path", &force_isa, "Use 'avx512+bf16', 'avx512', 'avx2' or 'portable' from now on; None: the best that this CPU has.");
  m.attr("PANEL") = kPanel;
  m.def("empty_pool", &empty_pool, "Return scratch memory that is kept for the next call to the system.");
  m.def("poison", &set_poison, "For tests: whether fresh memory, scratch and results, is handed out full of NaN.");
  m.def("fail_after", &fail_after, 
        "For tests: that so many blocks of memory from now on are there, and the next isn't; -1: all are. How many of the last such number "
        "were left, -1 where the next had been asked for.");
  m.def("multiply_adds", &multiply_adds, py::arg("is_double"), py::arg("times"), py::call_guard<py::gil_scoped_release>(),
        "Runs nothing but multiply-adds on all of PyTorch's threads, `times` as many as there are in registers; how many those were.");
  m.def("crowd", &crowd, "For tests: whether a call may have more workers than there are CPUs.");
  py::class_<Room>(m, "Room", "For tests: how many workers have CPUs to run on, by what those of past calls had to do without.")
      .def(py::init<>())
      .def("among", &Room::among, py::arg("workers"), py::arg("now"))
      .def("note", &Room::note, py::arg("workers"), py::arg("now"), py::arg("wall"), py::arg("lost"));
  m.def("asleep_for", &asleep_for, py::arg("asleep"), py::arg("changed"), py::arg("awake"),
        "For tests: what of the time between is sleep, and no waiting for a CPU.");
  bind_launcher(m);
  bind_stream(m);
  m.def(
      "register_variant",
      [](const std::string& name, const std::vector<int64_t>& gates, std::pair<int64_t, int64_t> x, std::pair<int64_t, int64_t> h,
         const std::vector<std::pair<int64_t, bool>>& peepholes, bool cell) {
        std::vector<Peephole> rows;
        for (const auto& [slot, sees_new] : peepholes) rows.push_back({slot, sees_new});
        register_variant(name, gates, {x.first, x.second}, {h.first, h.second}, rows, cell);
      },
      py::arg("name"), py::kw_only(), py::arg("gates"), py::arg("x"), py::arg("h"), py::arg("peepholes"), py::arg("cell"),
      "Make a variant known to the loops: of each slot of its records the gate of the weights; the first slot, and the number of "
      "slots, that the weights of x and of h feed; of each row of peepholes the slot, and whether it sees the new cell; whether "
      "there is a cell apart from h.");
  m.def(
      "set_kernel_compiler",
      [](py::object f) {
        forget_kernels();
        delete compile;
        compile = new py::object(std::move(f));
      },
      "Register the function that compiles a kernel, for (variant, 'fwd', 'bwd', 'hidden', 'prepare' or 'keys', 'f32' or 'f64', path), "
      "and returns its address; forgets those known so far.");
}
