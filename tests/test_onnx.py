"""Our modules as ONNX models, by `torch.onnx.export` and by hand, give the modules' own results in ONNX Runtime."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from fastlstm import backends
from fastlstm.modules import build
from fastlstm.onnx import recurrent_model

pytestmark = [
    # PyTorch's exporter asks its own pytree in a way that it deprecates
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    # One name for the batch of all inputs is what we want
    pytest.mark.filterwarnings("ignore:# The axis name. B will not be used:UserWarning"),
]
I, H = 3, 5
# T and B: those of the trace, others, and single steps and sequences
SIZES = [(4, 3), (7, 2), (1, 3), (5, 1), (1, 1)]


class Exported(NamedTuple):
    variant: str
    layers: int
    directions: int
    module: nn.Module
    model: onnx.ModelProto
    session: onnxruntime.InferenceSession

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type in ("LSTM", "GRU")]


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def export(module: nn.Module, *args: Any, shapes: Any = None, **kwargs: Any) -> onnx.ModelProto:
    program = torch.onnx.export(module.eval(), args, kwargs=kwargs, dynamic_shapes=shapes, dynamo=True, verbose=False)
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program.model_proto


def states(variant: str, rows: int, B: int) -> Any:
    h0, c0 = torch.randn(2, rows, B, H)
    return h0 if variant == "gru" else (h0, c0)


def flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [t for part in results for t in flat(part)]


def assert_agree(session: onnxruntime.InferenceSession, given: Sequence[Tensor], expected: Any) -> None:
    """The session's outputs for `given`, in the order of its inputs, are those expected."""
    names = [node.name for node in session.get_inputs()]
    outputs = session.run(None, {name: t.numpy() for name, t in zip(names, given, strict=True)})
    torch.testing.assert_close([torch.from_numpy(t) for t in outputs], flat(expected))


def of_variants(test):
    return pytest.mark.parametrize("variant", backends.VARIANTS)(test)


@pytest.fixture(scope="module", params=backends.VARIANTS)
def single(request) -> Exported:
    """One layer on a dense batch, from zero states."""
    module = build(request.param, I, H)
    model = export(module, torch.randn(4, 3, I), shapes=({0: "T", 1: "B"},))
    return Exported(request.param, 1, 1, module, model, session_of(model))


@pytest.fixture(scope="module", params=backends.VARIANTS)
def stacked(request) -> Exported:
    """Two layers in two directions, batch first, with states and lengths."""
    module = build(request.param, I, H, num_layers=2, bidirectional=True, batch_first=True)
    hx = {1: "B"}
    shapes = {"input": {0: "B", 1: "T"}, "hx": hx if request.param == "gru" else (hx, hx), "lengths": {0: "B"}}
    given = {"hx": states(request.param, 4, 3), "lengths": torch.tensor([4, 2, 3])}
    model = export(module, torch.randn(3, 4, I), shapes=shapes, **given)
    return Exported(request.param, 2, 2, module, model, session_of(model))


@pytest.mark.parametrize(("T", "B"), SIZES)
def test_single(single, T, B):
    x = torch.randn(T, B, I)
    with torch.no_grad():
        assert_agree(single.session, [x], single.module(x))


@pytest.mark.parametrize(("T", "B"), SIZES)
def test_stacked(stacked, T, B):
    x, hx = torch.randn(B, T, I), states(stacked.variant, 4, B)
    # In no order, and one of them 0 if there are several: its final states are its initial ones
    lengths = torch.tensor([min(2, T), 0, T][:B])
    with torch.no_grad():
        assert_agree(stacked.session, [x, *flat(hx), lengths], stacked.module(x, hx, lengths=lengths))


def test_single_is_one_node(single):
    """Weights are reordered beforehand, so that nothing else is left."""
    assert [node.op_type for node in single.model.graph.node] == [
        "GRU" if single.variant == "gru" else "LSTM",
        "Squeeze",
    ]


def test_stacked_is_a_node_per_layer(stacked):
    assert len(stacked.nodes) == 2
    counts = Counter(node.op_type for node in stacked.model.graph.node)
    assert not counts.keys() & {"Loop", "Scan", "If", "MatMul", "Gemm", "Sigmoid", "Tanh"}
    for node in stacked.nodes:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        expected = {"hidden_size": H, "direction": b"bidirectional"}
        if stacked.variant == "gru":
            expected["linear_before_reset"] = 1
        if stacked.variant.startswith("cifg"):
            expected["input_forget"] = 1
        assert given == expected
        # x, W, R, B, sequence_lens, states, P
        assert all(node.input)
        assert len(node.input) == {"gru": 6, "lstm": 7, "cifg_lstm": 7}.get(stacked.variant, 8)


@of_variants
@pytest.mark.parametrize(("layers", "directions", "bias"), [(1, 1, False), (2, 2, True)])
def test_recurrent_model(variant, layers, directions, bias):
    module = build(variant, I, H, layers, bias, bidirectional=directions == 2)
    model = recurrent_model(variant, module.state_dict(), layers, directions)
    onnx.checker.check_model(model, full_check=True)
    x, hx, lengths = torch.randn(7, 3, I), states(variant, layers * directions, 3), torch.tensor([2, 7, 4])
    with torch.no_grad():
        assert_agree(session_of(model), [lengths.int(), x, *flat(hx)], module(x, hx, lengths=lengths))


@of_variants
def test_recurrent_model_reverse(variant):
    module = build(variant, I, H)
    x, hx = torch.randn(7, 3, I), states(variant, 1, 3)
    session = session_of(recurrent_model(variant, module.state_dict(), 1, 1, reverse=True))
    with torch.no_grad():
        y, finals = module(x.flip(0), hx)
        assert_agree(session, [torch.full((3,), 7).int(), x, *flat(hx)], (y.flip(0), finals))


@pytest.mark.parametrize("variant", ["cifg_lstm", "cifg_peephole_lstm"])
@pytest.mark.parametrize("honoured", [True, False])
def test_coupled_gates_do_not_need_input_forget(variant, honoured):
    """Some runtimes ignore the attribute; those that honour it ignore the forget gate's weights."""
    module = build(variant, I, H)
    model = recurrent_model(variant, module.state_dict(), 1, 1)
    (node,) = [node for node in model.graph.node if node.op_type == "LSTM"]
    (flag,) = [a for a in node.attribute if a.name == "input_forget"]
    if honoured:
        for constant in model.graph.initializer:
            if constant.name in node.input[1:4]:
                values = onnx.numpy_helper.to_array(constant).copy()
                spans = {"B_l0": [(2, 3), (6, 7)]}.get(constant.name, [(2, 3)])
                for start, stop in spans:
                    values[:, start * H : stop * H] = 3.0
                constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
    else:
        node.attribute.remove(flag)
    x, hx = torch.randn(7, 3, I), states(variant, 1, 3)
    with torch.no_grad():
        assert_agree(session_of(model), [torch.full((3,), 7).int(), x, *hx], module(x, hx))


def test_export_needs_no_kernels(monkeypatch):
    """No backend is chosen, so that the model doesn't depend on whether the extension is built."""
    monkeypatch.setattr(backends, "choose", None)
    model = export(build("lstm", I, H, backend="numba"), torch.randn(4, 3, I))
    assert [node.op_type for node in model.graph.node] == ["LSTM", "Squeeze"]


def test_export_of_a_whole_model():
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, I)
            self.recur = build("cifg_lstm", I, H, 2, batch_first=True, dropout=0.5)
            self.out = nn.Linear(H, 2)

        def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
            return self.out(self.recur(self.embed(ids), lengths=lengths)[0])

    tagger, shapes = Tagger(), ({0: "B", 1: "T"}, {0: "B"})
    model = export(tagger, torch.randint(11, (2, 4)), torch.tensor([4, 1]), shapes=shapes)
    ids, lengths = torch.randint(11, (4, 6)), torch.tensor([1, 6, 0, 3])
    with torch.no_grad():
        assert_agree(session_of(model), [ids, lengths], tagger(ids, lengths))


def test_export_unbatched():
    module = build("peephole_lstm", I, H)
    hx = torch.randn(1, H), torch.randn(1, H)
    model = export(module, torch.randn(4, I), hx, shapes=({0: "T"}, ({}, {})))
    x = torch.randn(6, I)
    with torch.no_grad():
        assert_agree(session_of(model), [x, *hx], module(x, hx))


def test_export_float64():
    """ONNX Runtime has no such kernels; ONNX's own, slow evaluator has."""
    module = build("lstm", I, H, dtype=torch.float64)
    x = torch.randn(4, 3, I, dtype=torch.float64)
    outputs = ReferenceEvaluator(export(module, x)).run(None, {"input": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close([torch.from_numpy(t) for t in outputs], flat(module(x)))


PACKED = pack_padded_sequence(torch.randn(4, 3, I), torch.tensor([4, 2, 1]))
BFLOAT16 = "input has dtype torch.bfloat16, expected one of torch.float16, torch.float32, torch.float64 in an export"
BAD = {
    "proj_size": ("lstm", {"proj_size": 2}, torch.randn(4, 3, I), {}, "proj_size is 2, expected 0 in an export"),
    "reset": (
        "gru",
        {},
        torch.randn(4, 3, I),
        {"reset": torch.zeros(4, 3).bool()},
        "reset is given, expected None in an",
    ),
    "cells": (
        "cifg_lstm",
        {},
        torch.randn(4, 3, I),
        {"return_cells": True},
        "return_cells is True, expected False in an",
    ),
    "packed": ("gru", {}, PACKED, {}, "input is a PackedSequence, expected a Tensor and lengths="),
    "dtype": ("lstm", {"dtype": torch.bfloat16}, torch.zeros(4, 3, I, dtype=torch.bfloat16), {}, BFLOAT16),
    "hx": (
        "gru",
        {},
        torch.randn(4, 3, I),
        {"hx": torch.zeros(1, 3, 4)},
        "Expected hidden size (1, 3, 5), got [1, 3, 4]",
    ),
    "lengths": ("gru", {}, torch.randn(4, 3, I), {"lengths": [4]}, "lengths has shape (1,), expected (3,)"),
    "unbatched": (
        "lstm",
        {},
        torch.randn(4, I),
        {"lengths": [4]},
        "lengths is given, expected None: an unbatched input",
    ),
}


@pytest.mark.parametrize(("variant", "options", "x", "given", "message"), BAD.values(), ids=BAD)
def test_what_is_no_model_raises(variant, options, x, given, message, monkeypatch):
    monkeypatch.setattr("fastlstm.onnx.exporting", lambda: True)
    monkeypatch.setattr("fastlstm.functional.quick.is_usual", lambda: False)  # as in an export
    with pytest.raises((RuntimeError, ValueError), match=re.escape(message)):
        build(variant, I, H, **options)(x, **given)


def test_the_exporter_quotes_the_error():
    """And finds no other way: PyTorch's second, by Dynamo, meets the same error."""
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="reset is given, expected None in an export"):
        export(build("lstm", I, H), torch.randn(4, 3, I), reset=torch.zeros(4, 3).bool())
