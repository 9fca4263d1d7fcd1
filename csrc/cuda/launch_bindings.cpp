// The launcher's part of the Python module fastlstm._C. Everything that calls the driver runs without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string_view>
#include <tuple>
#include <utility>
#include <variant>

#include "cuda/launch.h"

namespace py = pybind11;

namespace fastlstm {
namespace {

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

}  // namespace

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

}  // namespace fastlstm
