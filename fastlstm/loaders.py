"""Weights of other frameworks by our names: each function returns a part of a `state_dict`, for one layer.

Parts of several layers and directions are joined with `|`:

>>> kernels = [(np.ones((3, 20)), np.ones((5, 20)), np.zeros(20)) for _ in range(2)]
>>> lstm = torch.nn.LSTM(3, 5, bidirectional=True)
>>> lstm.load_state_dict(from_keras(*kernels[0]) | from_keras(*kernels[1], reverse=True))
<All keys matched successfully>

Weights are tensors, or whatever NumPy makes an array of; they are copied, and keep their dtype. Gates are named by letters: i
input, f forget, g cell (others write c or j), o output; r reset, z update, n new (others write h). All functions take

    layer: k of the names `weight_ih_l{k}` and so on; None for the names of a cell, `weight_ih`.
    reverse: the names end on `_reverse`, those of the backward direction.

and raise ValueError where shapes don't fit each other, or where our modules don't have what the weights were made for.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["from_keras", "from_onnx_order", "from_order", "from_tensorflow"]

Weights = dict[str, Tensor]
ORDERS = ("ifgo", "igo", "rzn")  # ours: of the LSTM, with and without peepholes, of the CIFG LSTM, and of the GRU


def from_order(
    order: str,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    w_peephole: Any = None,
    w_hr: Any = None,
    *,
    layer: int | None = 0,
    reverse: bool = False,
) -> Weights:
    """Weights that are PyTorch's but for their gate order.

    order: the gates, a letter for each block of rows: "ifgo" in any order for the LSTM, "igo" for the CIFG LSTM, "rzn" for the
        GRU. "fgo" is the CIFG LSTM that learns f and has i = 1 - f, where ours learns i and has f = 1 - i: as σ(-a) = 1 - σ(a),
        it becomes ours when the rows of its gate are negated, biases and peephole included.
    w_ih (G * H, I), w_hh (G * H, R), biases (G * H) or None, for G gates; w_peephole (G - 1, H), in the same order without g;
        w_hr (P, H), the projection.

    >>> from_order("fgo", [[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]])["weight_ih_l0"].T
    tensor([[-1.,  2.,  3.]], dtype=torch.float64)
    """
    target = (
        "igo" if sorted(order) == ["f", "g", "o"] else next((o for o in ORDERS if sorted(o) == sorted(order)), None)
    )
    if target is None:
        raise ValueError(f"order is {order!r}, expected the letters of 'ifgo', 'igo', 'fgo' or 'rzn', each once")
    tensors = (_tensor(w) for w in (w_ih, w_hh, b_ih, b_hh, w_peephole, w_hr))
    return _layer(order, target, *tensors, layer=layer, reverse=reverse)


def from_onnx_order(
    W: Any,
    R: Any,
    B: Any = None,
    P: Any = None,
    *,
    input_forget: bool = False,
    linear_before_reset: bool = False,
    layer: int | None = 0,
    reverse: bool = False,
) -> Weights:
    """Weights of an ONNX `LSTM` or `GRU`, by the names that its inputs have there; both directions if there are two.

    W (D, G * H, I), R (D, G * H, H), B (D, 2 * G * H) or None, P (D, 3 * H) or None. Gates i, o, f, g (LSTM), z, r, n (GRU).
    input_forget, linear_before_reset: the operator's attributes. An LSTM with input_forget=1 becomes a CIFG LSTM: its
    forget gate is not used. A GRU has to have linear_before_reset=1, which is not the default of ONNX.
    Other activations than the default ones, and `clip`, have no counterpart here.

    Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, and onnx__GRU.html.
    """
    w_ih, w_hh, b, p = (_tensor(w) for w in (W, R, B, P))
    if w_ih is None or w_hh is None or w_ih.dim() != 3 or w_hh.dim() != 3 or not 1 <= len(w_hh) <= 2:
        raise ValueError(
            f"W and R have shapes {_shape(W)} and {_shape(R)}, expected (D, G * H, I) and (D, G * H, H), D 1 or 2"
        )
    D, rows, H = w_hh.shape
    if rows not in (3 * H, 4 * H):
        raise ValueError(f"R has shape {(D, rows, H)}, expected (D, 4 * H, H) or (D, 3 * H, H): an LSTM or a GRU")
    order, target = ("zrn", "rzn") if rows == 3 * H else ("iofg", "igo" if input_forget else "ifgo")
    if target == "rzn" and not linear_before_reset:
        raise ValueError(
            "linear_before_reset is 0, expected 1: our GRU, as PyTorch's, resets after the product with the weights, "
            "and no weights make one of the other"
        )
    _check("W", w_ih, (D, rows, w_ih.shape[2]), "the directions and gates of R")
    _check("B", b, (D, 2 * rows), "two biases for each row of R")
    _check("P", p, (D, 3 * H), "three peepholes; a GRU has none")
    if D == 2 and reverse:
        raise ValueError("reverse is True, expected False: W and R have both directions")
    weights: Weights = {}
    for d in range(D):
        b_ih, b_hh = (None, None) if b is None else b[d].chunk(2)
        peephole = None if p is None else p[d].view(3, H)
        weights |= _layer(
            order, target, w_ih[d], w_hh[d], b_ih, b_hh, peephole, None, layer=layer, reverse=reverse or d == 1
        )
    return weights


def from_keras(
    kernel: Any, recurrent_kernel: Any, bias: Any = None, *, layer: int | None = 0, reverse: bool = False
) -> Weights:
    """Weights of `keras.layers.LSTM` or `GRU`, and of their cells: `from_keras(*keras_layer.get_weights())`.

    kernel (I, G * H), recurrent_kernel (H, G * H), bias (4 * H) of the LSTM, (2, 3 * H) of the GRU, or None. Gates i, f, g, o
    (LSTM), z, r, n (GRU). A GRU has to have reset_after=True, Keras's default since TensorFlow 2; without biases it doesn't
    show, and is not checked. Other activations than the default ones, as the "hard_sigmoid" of old, have no counterpart here.
    The backward layer of a `Bidirectional` is a part of its own, with `reverse=True`.
    """
    w_ih, w_hh, b = _tensor(kernel), _tensor(recurrent_kernel), _tensor(bias)
    if w_ih is None or w_hh is None or w_ih.dim() != 2 or w_hh.dim() != 2:
        raise ValueError(
            f"kernel and recurrent_kernel have shapes {_shape(kernel)} and {_shape(recurrent_kernel)}, "
            "expected (I, G * H) and (H, G * H)"
        )
    H, rows = w_hh.shape
    if rows not in (3 * H, 4 * H):
        raise ValueError(f"recurrent_kernel has shape {(H, rows)}, expected (H, 4 * H) or (H, 3 * H): an LSTM or a GRU")
    if rows == 4 * H:
        order, target, b_ih, b_hh = "ifgo", "ifgo", b, None
        _check("bias", b, (rows,), "one for each column of recurrent_kernel")
    else:
        order, target = "zrn", "rzn"
        _check("bias", b, (2, rows), "one of the input and one of the state; a single one is that of reset_after=False")
        b_ih, b_hh = (None, None) if b is None else (b[0], b[1])
    return _layer(order, target, w_ih.T, w_hh.T, b_ih, b_hh, None, None, layer=layer, reverse=reverse)


def from_tensorflow(
    kernel: Any,
    bias: Any,
    peepholes: Sequence[Any] | None = None,
    projection_kernel: Any = None,
    *,
    forget_bias: float = 1.0,
    layer: int | None = 0,
    reverse: bool = False,
) -> Weights:
    """Weights of `tf.compat.v1.nn.rnn_cell.LSTMCell`, `BasicLSTMCell` or `LSTMBlockCell`.

    kernel (I + R, 4 * H) of input and state together, bias (4 * H): gates i, g, f, o. peepholes: `w_i_diag`, `w_f_diag` and
    `w_o_diag`, each (H). projection_kernel (H, P). TensorFlow adds `forget_bias` when it runs: here it becomes part of the
    bias. Its default is that of TensorFlow; a cell that was made with another one needs it here.
    TensorFlow's GRUCell resets before the product with the weights, which our GRU can't do.

    Source: https://www.tensorflow.org/api_docs/python/tf/compat/v1/nn/rnn_cell/LSTMCell
    """
    w, b, w_hr = _tensor(kernel), _tensor(bias), _tensor(projection_kernel)
    if w is None or w.dim() != 2 or w.shape[1] % 4:
        raise ValueError(f"kernel has shape {_shape(kernel)}, expected (I + R, 4 * H)")
    H = w.shape[1] // 4
    if w_hr is not None:
        _check("projection_kernel", w_hr, (H, w_hr.shape[-1]), "(H, P), with the hidden size of kernel")
    R = H if w_hr is None else w_hr.shape[1]
    if b is None or w.shape[0] <= R:
        raise ValueError(
            f"kernel and bias have shapes {_shape(kernel)} and {_shape(bias)}, expected (I + {R}, {4 * H}) and ({4 * H})"
        )
    _check("bias", b, (4 * H,), "one for each column of kernel")
    b = b.clone()
    b[2 * H : 3 * H] += forget_bias
    diags = None
    if peepholes is not None:
        if len(peepholes) != 3:
            raise ValueError(f"peepholes has {len(peepholes)} entries, expected 3: w_i_diag, w_f_diag, w_o_diag")
        diags = torch.stack([torch.as_tensor(_tensor(p)) for p in peepholes])
    w_ih, w_hh = w[:-R].T, w[-R:].T
    return _layer(
        "igfo", "ifgo", w_ih, w_hh, b, None, diags, None if w_hr is None else w_hr.T, layer=layer, reverse=reverse
    )


def _layer(
    order: str,
    target: str,
    w_ih: Tensor | None,
    w_hh: Tensor | None,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_peephole: Tensor | None,
    w_hr: Tensor | None,
    *,
    layer: int | None,
    reverse: bool,
) -> Weights:
    """PyTorch's shapes, with the gates in the order `target`. One bias alone gets zeros for the other."""
    if w_ih is None or w_hh is None or w_ih.dim() != 2 or w_hh.dim() != 2 or w_hh.shape[0] % len(order):
        G = len(order)
        raise ValueError(
            f"w_ih and w_hh have shapes {_shape(w_ih)} and {_shape(w_hh)}, expected ({G} * H, I) and ({G} * H, R)"
        )
    rows, R = w_hh.shape
    H = rows // len(order)
    _check("w_ih", w_ih, (rows, w_ih.shape[1]), "the rows of w_hh")
    _check("w_hr", w_hr, (R, H), "the columns and the hidden size of w_hh")
    if w_hr is None:
        _check("w_hh", w_hh, (rows, H), "the hidden size, where there is no projection")
    for name, b in (("b_ih", b_ih), ("b_hh", b_hh)):
        _check(name, b, (rows,), "the rows of w_hh")
    _check("w_peephole", w_peephole, (len(order.replace("g", "")), H), "a row for each gate but g")
    if w_peephole is not None and target == "rzn":
        raise ValueError("w_peephole is given, expected None: a GRU has no peepholes")
    if b_ih is not None or b_hh is not None:
        b_ih, b_hh = (torch.zeros(rows, dtype=w_hh.dtype) if b is None else b for b in (b_ih, b_hh))
    found = {
        "weight_ih": _reordered(w_ih, order, target),
        "weight_hh": _reordered(w_hh, order, target),
        "bias_ih": _reordered(b_ih, order, target),
        "bias_hh": _reordered(b_hh, order, target),
        "weight_hr": None if w_hr is None else w_hr.clone(memory_format=torch.contiguous_format),
        "weight_peephole": _reordered(w_peephole, order.replace("g", ""), target.replace("g", "")),
    }
    suffix = ("" if layer is None else f"_l{layer}") + ("_reverse" if reverse else "")
    return {name + suffix: tensor for name, tensor in found.items() if tensor is not None}


def _reordered(rows: Tensor | None, order: str, target: str) -> Tensor | None:
    if rows is None:
        return None
    gates = dict(zip(order, rows.chunk(len(order)), strict=True))
    if "i" in target and "i" not in gates:
        gates["i"] = -gates["f"]  # the same gate, learned as 1 - i
    return torch.cat([gates[gate] for gate in target])


def _tensor(weight: Any) -> Tensor | None:
    if weight is None or isinstance(weight, Tensor):
        return None if weight is None else weight.detach()
    return torch.from_numpy(np.array(weight))  # a copy: the weights of other frameworks may be read-only


def _shape(weight: Any) -> tuple[int, ...] | None:
    return None if weight is None else tuple(np.shape(weight))


def _check(name: str, tensor: Tensor | None, shape: tuple[int, ...], why: str) -> None:
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}: {why}")
