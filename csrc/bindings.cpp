// The Python module fastlstm._C: what is not an op. Ops are registered by the other files when the library is loaded.
// All that needs pybind11 is here: its headers take longer to compile than what is bound.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <variant>

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

// The streams' part of the module. Steps run without the GIL.
void bind_stream(py::module_& m) {
  py::class_<Stream>(m, "Stream",
                     "A stack of layers in one direction that owns its state and packed weights; fastlstm.Stream keeps what it points to.")
      .def(py::init([](std::string variant, std::string dtype, int64_t layers, int64_t batch, int64_t input, int64_t hidden,
                       int64_t projection, uint64_t h, uint64_t c) {
             return make_stream({std::move(variant), std::move(dtype), layers, batch, input, hidden, projection, h, c});
           }),
           py::kw_only(), py::arg("variant"), py::arg("dtype"), py::arg("layers"), py::arg("B"), py::arg("I"), py::arg("H"), py::arg("P"),
           py::arg("h"), py::arg("c"),
           "P: 0 without a projection; h, c: addresses of contiguous memory (L, B, R) and (L, B, H), where the state stands after each "
           "call.")
      .def(
          "pack",
          [](Stream& stream, const std::vector<std::array<uint64_t, 6>>& layers) {
            std::vector<Stream::Weights> weights;
            for (const auto& [ih, hh, b_ih, b_hh, hr, peephole] : layers) weights.push_back({ih, hh, b_ih, b_hh, hr, peephole});
            stream.pack(weights);
          },
          py::arg("layers"), "Take the weights of each layer: six addresses of contiguous memory, 0 for those that lack.")
      .def("load", &Stream::load, py::arg("b"), "Take the state of sequence b from h and c.")
      .def("run", &Stream::run, py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("y"), py::arg("T"), py::arg("t_stride"),
           py::arg("b_stride"), "T steps of x (T, B, I), whose last dimension is contiguous, into y (T, B, R), contiguous.");
}

// The launcher's part. Everything that calls the driver runs without the GIL.
using Parameter = std::variant<int64_t, uint64_t>;  // negative numbers, and addresses up to 2^64 - 1
using Shape = std::pair<int64_t, int64_t>;
using Step = std::tuple<std::shared_ptr<Kernel>, Shape, std::vector<Parameter>, int64_t>;
using Released = py::gil_scoped_release;

std::vector<uint64_t> slots(const std::vector<Parameter>& parameters) {
  std::vector<uint64_t> bits;
  for (const Parameter& p : parameters)
    bits.push_back(std::visit([](auto value) { return static_cast<uint64_t>(value); }, p));
  return bits;
}

cuda::Stream stream_of(uint64_t handle) { return reinterpret_cast<cuda::Stream>(handle); }

void bind_launcher(py::module_& m) {
  py::class_<Kernel, std::shared_ptr<Kernel>>(m, "Kernel", "A kernel on one GPU; load_kernel makes it.")
      .def_property_readonly("name", &Kernel::name)
      .def_property_readonly("device", &Kernel::device)
      .def_property_readonly("shared", &Kernel::shared)
      .def_property_readonly("threads", &Kernel::threads)
      .def_property_readonly("cooperative", &Kernel::cooperative)
      .def("resident_programs", &Kernel::resident_programs, "How many of its programs the GPU can hold at once.");
  m.def("open_driver", &cuda::open_driver, py::arg("path") = "libcuda.so.1", py::call_guard<Released>(),
        "Use this library as the CUDA driver, for kernels loaded from now on: for tests. The system's is opened by itself.");
  m.def("close_driver", &cuda::close_driver, py::call_guard<Released>(),
        "Forget the driver in use: the system's is opened when next needed. Kernels that were loaded stay usable.");
  m.def(
      "load_kernel",
      [](const py::bytes& cubin, const std::string& name, int64_t shared, int64_t threads, int device) {
        const std::string_view image = cubin;
        const Released released;
        return std::make_shared<Kernel>(image.data(), name, shared, threads, device);
      },
      py::arg("cubin"), py::arg("name"), py::arg("shared"), py::arg("threads"), py::arg("device"),
      "Load a kernel by its symbol: shared memory in bytes and threads of a program, ordinal of the GPU.");
  m.def(
      "run_steps",
      [](std::vector<Step> steps, int64_t first, int64_t count, uint64_t stream) {
        std::vector<Launch> launches;
        for (auto& [kernel, grid, parameters, step_param] : steps)
          launches.push_back({std::move(kernel), {grid.first, grid.second}, slots(parameters), step_param});
        const Released released;
        run_steps(std::move(launches), first, count, stream_of(stream));
      },
      py::arg("launches"), py::arg("first"), py::arg("count"), py::arg("stream"),
      "For each step from first on, launch (kernel, grid, parameters, index of the parameter that is the step), in order.");
  m.def(
      "run_resident",
      [](const std::shared_ptr<Kernel>& kernel, Shape grid, const std::vector<Parameter>& parameters, int64_t barrier_param,
         uint64_t stream) {
        auto bits = slots(parameters);
        const Released released;
        return run_resident(*kernel, {grid.first, grid.second}, std::move(bits), barrier_param, stream_of(stream));
      },
      py::arg("kernel"), py::arg("grid"), py::arg("params"), py::arg("barrier_param"), py::arg("stream"),
      "Launch once, all programs at the same time; False where this process has too small a share of the GPU for that. "
      "The parameter that is the barrier is ours where it is 0, zeros of the stream's own, which the kernel has to leave so.");
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
