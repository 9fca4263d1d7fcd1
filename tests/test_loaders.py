"""Weights of other frameworks give their results here: by their equations, written out, and by ONNX Runtime."""

import doctest
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import fastlstm
from fastlstm import loaders

Array = NDArray[np.float64]
T, B, I, H = 4, 2, 3, 5


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def draw(*shape: int) -> Array:
    return torch.randn(*shape, dtype=torch.float64).numpy()


def check(module: nn.Module, weights: dict[str, torch.Tensor], x: Array, expected: Array) -> None:
    module.to(torch.float64).load_state_dict(weights)
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x))[0].numpy(), expected, rtol=0, atol=1e-12)


def by_letters(gates: dict[str, tuple[Array, ...]], x: Array, w_hr: Array | None = None) -> Array:
    """The LSTM with peepholes, of gates that are (W, U, b, p) each; i or f may be the complement of the other."""
    h, c, y = np.zeros((B, H if w_hr is None else len(w_hr))), np.zeros((B, H)), []
    for x_t in x:

        def gate(name: str, c: Array) -> Array:
            W, U, b, p = gates[name]
            return x_t @ W.T + h @ U.T + b + p * c  # noqa: B023

        i = sigmoid(gate("i", c)) if "i" in gates else 1 - sigmoid(gate("f", c))
        f = sigmoid(gate("f", c)) if "f" in gates else 1 - sigmoid(gate("i", c))
        c = f * c + i * np.tanh(gate("g", np.zeros_like(c)))
        h = sigmoid(gate("o", c)) * np.tanh(c)
        h = h if w_hr is None else h @ w_hr.T
        y.append(h)
    return np.stack(y)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("order", ["ifgo", "gofi", "igo", "ogi", "fgo", "gof"])
def test_from_order(order: str, projected: bool) -> None:
    R = 2 if projected else H
    gates = {letter: (draw(H, I), draw(H, R), draw(H), draw(H)) for letter in order}
    w_hr = draw(R, H) if projected else None
    w_ih, w_hh, b = (np.concatenate([gates[k][n] for k in order]) for n in range(3))
    peephole = np.stack([gates[k][3] for k in order if k != "g"])
    options: dict[str, Any] = {"proj_size": R} if projected else {}
    if len(order) == 3:
        module: nn.Module = fastlstm.CIFGLSTM(I, H, peephole=True, **options)
    else:
        module = fastlstm.PeepholeLSTM(I, H, **options)
    x = draw(T, B, I)
    check(
        module, loaders.from_order(order, w_ih, w_hh, b / 3, b * 2 / 3, peephole, w_hr), x, by_letters(gates, x, w_hr)
    )


def test_a_gate_learned_as_the_other_goes_both_ways() -> None:
    w_ih, w_hh, b, p = draw(3 * H, I), draw(3 * H, H), draw(3 * H), draw(2, H)
    once = loaders.from_order("fgo", w_ih, w_hh, b, b, p, layer=None)
    twice = loaders.from_order("fgo", *once.values(), layer=None)
    np.testing.assert_array_equal(twice["weight_ih"], w_ih)
    np.testing.assert_array_equal(twice["weight_peephole"], p)
    np.testing.assert_array_equal(once["bias_hh"][:H], -b[:H])


def test_from_keras_lstm() -> None:
    kernel, recurrent_kernel, bias, x = draw(I, 4 * H), draw(H, 4 * H), draw(4 * H), draw(T, B, I)
    h, c, y = np.zeros((B, H)), np.zeros((B, H)), []
    for x_t in x:
        z0, z1, z2, z3 = np.split(x_t @ kernel + h @ recurrent_kernel + bias, 4, axis=1)
        i, f = sigmoid(z0), sigmoid(z1)
        c = f * c + i * np.tanh(z2)
        h = sigmoid(z3) * np.tanh(c)
        y.append(h)
    check(fastlstm.LSTM(I, H), loaders.from_keras(kernel, recurrent_kernel, bias), x, np.stack(y))
    check(fastlstm.LSTM(I, H, bias=False), loaders.from_keras(kernel, recurrent_kernel), x[:1] * 0, np.zeros((1, B, H)))


def test_from_keras_gru() -> None:
    kernel, recurrent_kernel, bias, x = draw(I, 3 * H), draw(H, 3 * H), draw(2, 3 * H), draw(T, B, I)
    h, y = np.zeros((B, H)), []
    for x_t in x:
        x_z, x_r, x_h = np.split(x_t @ kernel + bias[0], 3, axis=1)
        recurrent_z, recurrent_r, recurrent_h = np.split(h @ recurrent_kernel + bias[1], 3, axis=1)
        z, r = sigmoid(x_z + recurrent_z), sigmoid(x_r + recurrent_r)
        h = z * h + (1 - z) * np.tanh(x_h + r * recurrent_h)
        y.append(h)
    check(fastlstm.GRU(I, H), loaders.from_keras(kernel, recurrent_kernel, bias), x, np.stack(y))


def test_both_directions_of_two_layers_are_one_state_dict() -> None:
    weights: dict[str, torch.Tensor] = {}
    for layer, features in enumerate((I, 2 * H)):
        for reverse in (False, True):
            parts = draw(features, 4 * H), draw(H, 4 * H), draw(4 * H)
            weights |= loaders.from_keras(*parts, layer=layer, reverse=reverse)
    theirs, ours = (kind(I, H, 2, bidirectional=True).double() for kind in (nn.LSTM, fastlstm.LSTM))
    assert list(weights) == list(theirs.state_dict())
    theirs.load_state_dict(weights)
    with torch.no_grad():
        x = draw(T, B, I)
        check(ours, weights, x, theirs(torch.from_numpy(x))[0].numpy())


@pytest.mark.parametrize("forget_bias", [1.0, 0.0])
@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_from_tensorflow(forget_bias: float, peepholes: bool, projected: bool) -> None:
    R = 2 if projected else H
    kernel, bias, x = draw(I + R, 4 * H), draw(4 * H), draw(T, B, I)
    diags = tuple(draw(3, H)) if peepholes else (np.zeros(H),) * 3
    w_i_diag, w_f_diag, w_o_diag = diags
    projection = draw(H, R) if projected else np.eye(H)
    m, c, y = np.zeros((B, R)), np.zeros((B, H)), []
    for x_t in x:
        i, j, f, o = np.split(np.concatenate([x_t, m], axis=1) @ kernel + bias, 4, axis=1)
        c = sigmoid(f + forget_bias + w_f_diag * c) * c + sigmoid(i + w_i_diag * c) * np.tanh(j)
        m = sigmoid(o + w_o_diag * c) * np.tanh(c) @ projection
        y.append(m)
    weights = loaders.from_tensorflow(
        kernel, bias, diags if peepholes else None, projection if projected else None, forget_bias=forget_bias
    )
    kind = fastlstm.PeepholeLSTM if peepholes else fastlstm.LSTM
    check(kind(I, H, proj_size=R if projected else 0), weights, x, np.stack(y))


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("variant", ["lstm", "peephole", "cifg", "cifg_peephole", "gru"])
def test_from_onnx_order(variant: str, D: int) -> None:
    gates = 3 if variant == "gru" else 4
    tensors = {"W": draw(D, gates * H, I), "R": draw(D, gates * H, H), "B": draw(D, 2 * gates * H)}
    inputs, attributes = ["x", "W", "R", "B"], {"hidden_size": H}
    if variant.endswith("peephole"):
        tensors["P"] = draw(D, 3 * H)
        inputs += ["", "", "", "P"]
    flags = {"cifg": {"input_forget": 1}, "cifg_peephole": {"input_forget": 1}, "gru": {"linear_before_reset": 1}}
    flag = flags.get(variant, {})
    operator = "GRU" if variant == "gru" else "LSTM"
    direction = "bidirectional" if D == 2 else "forward"
    node = helper.make_node(operator, inputs, ["y"], direction=direction, **attributes, **flag)
    graph = helper.make_graph(
        [node],
        variant,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [T, B, I])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [T, D, B, H])],
        [numpy_helper.from_array(tensor.astype(np.float32), name) for name, tensor in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = draw(T, B, I).astype(np.float32)
    (y,) = session.run(None, {"x": x})

    module = {
        "lstm": fastlstm.LSTM, "peephole": fastlstm.PeepholeLSTM, "gru": fastlstm.GRU, "cifg": fastlstm.CIFGLSTM,
        "cifg_peephole": lambda *sizes, **options: fastlstm.CIFGLSTM(*sizes, peephole=True, **options),
    }[variant](I, H, bidirectional=D == 2).double()  # fmt: skip
    module.load_state_dict(loaders.from_onnx_order(**tensors, **{name: bool(v) for name, v in flag.items()}))
    with torch.no_grad():
        ours = module(torch.from_numpy(x).double())[0]
    np.testing.assert_allclose(ours.view(T, B, D, H).transpose(1, 2), y, rtol=0, atol=2e-6)


def test_names_of_cells_and_of_a_reverse_operator() -> None:
    kernel, recurrent_kernel, bias = draw(I, 4 * H), draw(H, 4 * H), draw(4 * H)
    cell = fastlstm.LSTMCell(I, H).double()
    cell.load_state_dict(loaders.from_keras(kernel, recurrent_kernel, bias, layer=None))
    parts = loaders.from_onnx_order(
        draw(1, 3 * H, I), draw(1, 3 * H, H), linear_before_reset=True, layer=1, reverse=True
    )
    assert list(parts) == ["weight_ih_l1_reverse", "weight_hh_l1_reverse"]


def test_weights_are_copies() -> None:
    given = [torch.randn(4 * H, I, requires_grad=True), torch.randn(4 * H, H), torch.randn(4 * H)]
    before = [w.detach().clone() for w in given]
    found = loaders.from_order("ifgo", *given)
    for weight in found.values():
        assert not weight.requires_grad
        weight.zero_()
    assert all(w.equal(b) for w, b in zip(given, before, strict=True))
    # as of a memory map
    kernel = draw(I + H, 4 * H)
    kernel.flags.writeable = False
    assert loaders.from_tensorflow(kernel, np.zeros(4 * H, np.float32))["bias_ih_l0"].dtype is torch.float32


W, R, K, U = np.zeros((1, 20, 3)), np.zeros((1, 20, 5)), np.zeros((3, 20)), np.zeros((5, 20))
G, V = np.zeros((3, 15)), np.zeros((5, 15))
ERRORS = {
    "letters": (lambda: loaders.from_order("ifg", K, U), "order is 'ifg', expected the letters of 'ifgo', 'rzn', 'igo' or 'f"),
    "rows": (lambda: loaders.from_order("igo", K.T, U.T), r"shapes \(20, 3\) and \(20, 5\), expected \(3 \* H, I\)"),
    "w_ih": (lambda: loaders.from_order("ifgo", K.T[1:], U.T), r"w_ih has shape \(19, 3\), expected \(20, 3\): the rows"),
    "w_hh": (lambda: loaders.from_order("ifgo", K.T, U.T[:, 1:]), r"w_hh has shape \(20, 4\), expected \(20, 5\): the hid"),
    "w_hr": (lambda: loaders.from_order("ifgo", K.T, U.T, w_hr=U), r"w_hr has shape \(5, 20\), expected \(5, 5\)"),
    "bias": (lambda: loaders.from_order("ifgo", K.T, U.T, K), r"b_ih has shape \(3, 20\), expected \(20,\)"),
    "peephole": (lambda: loaders.from_order("igo", G.T, V.T, w_peephole=V), r"w_peephole has shape \(5, 15\), expected \(2, 5"),
    "gru peephole": (lambda: loaders.from_order("rzn", G.T, V.T, w_peephole=V[:3, :5]), "w_peephole is given, expected None"),
    "2-D": (lambda: loaders.from_onnx_order(W[0], R[0]), r"W and R have shapes \(20, 3\) and \(20, 5\), expected \(D, "),
    "neither": (lambda: loaders.from_onnx_order(W, R[..., 1:]), r"R has shape \(1, 20, 4\), expected .*: an LSTM or a GRU"),
    "W": (lambda: loaders.from_onnx_order(W[:, 1:], R), r"W has shape \(1, 19, 3\), expected \(1, 20, 3\): the directions"),
    "B": (lambda: loaders.from_onnx_order(W, R, R[..., 0]), r"B has shape \(1, 20\), expected \(1, 40\): two biases"),
    "P": (lambda: loaders.from_onnx_order(W, R, P=R[..., 0]), r"P has shape \(1, 20\), expected \(1, 15\): three peepholes"),
    "linear": (lambda: loaders.from_onnx_order(G.T[None], V.T[None]), "linear_before_reset is 0, expected 1: our GRU"),
    "reverse": (lambda: loaders.from_onnx_order(*(np.concatenate([w, w]) for w in (W, R)), reverse=True), "both directions"),
    "1-D": (lambda: loaders.from_keras(K[0], U), r"kernel and recurrent_kernel have shapes \(20,\) and \(5, 20\)"),
    "other": (lambda: loaders.from_keras(K, U[1:]), r"recurrent_kernel has shape \(4, 20\), expected .*: an LSTM or a GRU"),
    "reset_after": (lambda: loaders.from_keras(G, V, G[0]), r"bias has shape \(15,\), expected \(2, 15\): .*reset_after=False"),
    "kernel": (lambda: loaders.from_tensorflow(G, G[0]), r"kernel has shape \(3, 15\), expected \(I \+ R, 4 \* H\)"),
    "no input": (lambda: loaders.from_tensorflow(U, U[0]), r"have shapes \(5, 20\) and \(20,\), expected \(I \+ 5, 20\)"),
    "diags": (lambda: loaders.from_tensorflow(np.zeros((8, 20)), U[0], [K]), "peepholes has 1 entries"),
    "no diag": (lambda: loaders.from_tensorflow(np.zeros((8, 20)), U[0], [U[:, 0], None, U[:, 0]]), "peepholes has 2 entries"),
    "diag": (lambda: loaders.from_tensorflow(np.zeros((8, 20)), U[0], [U[:, 0], U[:, 0], V[0]]), r"w_o_diag has shape \(15,"),
    "vector": (lambda: loaders.from_tensorflow(np.zeros((8, 20)), U[0], None, U[:, 0]), "projection_kernel has shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


NO_WEIGHTS = {
    "text": ("ab", "is of type str, expected a tensor or an array: can't convert np.ndarray of type numpy.str_"),
    "ragged": (
        [[1.0], [1.0, 2.0]],
        "is of type list, expected a tensor or an array: setting an array element with a sequence",
    ),
    "integers": (torch.zeros(20, dtype=torch.int8), "is of torch.int8, expected dense floating point"),
    "sparse": (torch.zeros(20).to_sparse(), "is of torch.sparse_coo, expected dense floating point"),
}


@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_what_is_no_weight_is_named(case: str) -> None:
    wrong, message = NO_WEIGHTS[case]
    convolved = np.zeros((20, 8, 3, 3)), np.zeros((20, 3, 3, 3)), np.zeros((20, 5, 3, 3))
    calls: dict[str, Callable[[], object]] = {
        "bias": lambda: loaders.from_keras(K, U, wrong),
        "b_hh": lambda: loaders.from_order("ifgo", K.T, U.T, None, wrong),
        "R": lambda: loaders.from_onnx_order(W, wrong),
        "w_f_diag": lambda: loaders.from_tensorflow(np.zeros((8, 20)), U[0], [U[:, 0], wrong, U[:, 0]]),
        "weight": lambda: loaders.from_conv_cat("ifgo", wrong, None, 3),
        "b_ih": lambda: loaders.from_conv_pair("ifgo", *convolved[1:], wrong),
        "Wxf.weight": lambda: loaders.from_conv_eight({"Wxi.weight": convolved[1], "Wxf.weight": wrong}),
        "rnn.bias_ih_l0": lambda: loaders.from_joeynmt(
            {"rnn.weight_ih_l0": K.T, "rnn.weight_hh_l0": U.T, "rnn.bias_ih_l0": wrong, "rnn.bias_hh_l0": U[0]}
        ),
        "memory_kernel": lambda: loaders.from_tensorflow_attention([(np.zeros((8, 20)), U[0])], wrong),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"^{re.escape(name)} {message}"):
            call()


def test_what_is_none_in_a_mapping_is_lacking() -> None:
    weights = {"rnn.weight_ih_l0": K.T, "rnn.weight_hh_l0": U.T, "rnn.bias_ih_l0": None, "rnn.bias_hh_l0": U[0]}
    with pytest.raises(ValueError, match=r"weights lacks .'rnn.bias_ih_l0'.*expected all of"):
        loaders.from_joeynmt(weights)


def test_the_examples_of_the_docstrings() -> None:
    results = [doctest.testmod(module) for module in (loaders, loaders.order)]
    assert [failed for failed, _ in results] == [0, 0]
    assert [attempted > 0 for _, attempted in results] == [True, True]
