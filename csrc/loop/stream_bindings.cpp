// The streams' part of the Python module fastlstm._C. Steps run without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "loop/stream.h"

namespace py = pybind11;

namespace fastlstm {

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

}  // namespace fastlstm
