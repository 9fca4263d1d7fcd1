"""One layer's weights in PyTorch's shapes and our order, whoever they come from."""

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

Weights = dict[str, Tensor]


def layer_of(
    order: str,
    target: str,
    w_ih: Tensor | None,
    w_hh: Tensor | None,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_peephole: Tensor | None,
    w_hr: Tensor | None,
    *,
    forget_bias: float = 0.0,
    convolved: bool = False,
    layer: int | None,
    reverse: bool,
) -> Weights:
    """PyTorch's shapes, with the gates in the order `target`. One bias alone gets zeros for the other.

    forget_bias: what is added to b_ih of the gate f. convolved: w_ih (G * H, C, *k), w_hh (G * H, H, *k), of 1 to 3 dimensions.
    """
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 0):
        raise ValueError(
            f"layer is {layer!r}, expected the number of a layer, from 0, or None for a cell: it ends names"
        )
    if isinstance(forget_bias, bool) or not isinstance(forget_bias, Real):
        raise TypeError(f"forget_bias is {forget_bias!r}, expected a number: it is added to the bias of f")
    if not math.isfinite(forget_bias):
        raise ValueError(f"forget_bias is {forget_bias!r}, expected a finite number: it is added to the bias of f")
    G, dims = len(order), (3, 4, 5) if convolved else (2,)
    fit = w_ih is not None and w_hh is not None and w_ih.dim() == w_hh.dim() and w_hh.dim() in dims
    if w_ih is None or w_hh is None or not fit or w_hh.shape[0] % G:
        expected = f"({G} * H, C, *k) and ({G} * H, H, *k)" if convolved else f"({G} * H, I) and ({G} * H, R)"
        raise ValueError(f"w_ih and w_hh have shapes {shape_of(w_ih)} and {shape_of(w_hh)}, expected {expected}")
    rows, R, *k = w_hh.shape
    H = rows // G
    check_shape("w_ih", w_ih, (rows, w_ih.shape[1], *k), "the kernel of w_hh" if convolved else "the rows of w_hh")
    check_shape("w_hr", w_hr, (R, H), "the columns and the hidden size of w_hh")
    if w_hr is None:
        check_shape("w_hh", w_hh, (rows, H, *k), "the hidden size, where there is no projection")
    for name, b in (("b_ih", b_ih), ("b_hh", b_hh)):
        check_shape(name, b, (rows,), "the rows of w_hh")
    S = () if w_peephole is None else (*w_peephole.shape[2:], *(1 for _ in k))[: len(k)]
    check_shape("w_peephole", w_peephole, (len(order.replace("g", "")), H, *S), "a row for each gate but g")
    if w_peephole is not None and target == "rzn":
        raise ValueError("w_peephole is given, expected None: a GRU has no peepholes")
    if forget_bias:
        b_ih = w_hh.new_zeros(rows) if b_ih is None else b_ih.clone()
        b_ih[order.index("f") * H :][:H] += forget_bias
    if b_ih is not None or b_hh is not None:
        b_ih, b_hh = (w_hh.new_zeros(rows) if b is None else b for b in (b_ih, b_hh))
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
    return torch.cat([gates[gate] for gate in target]).contiguous()


def tensors_of(**weights: Any) -> list[Tensor | None]:
    """The weights given by these names."""
    return [tensor_of(name, weight) for name, weight in weights.items()]


def tensor_of(name: str, weight: Any) -> Tensor | None:
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        try:
            weight = torch.from_numpy(np.array(weight))  # a copy: the weights of other frameworks may be read-only
        except (TypeError, ValueError) as error:
            reason = str(error).split(". ")[0]
            raise TypeError(
                f"{name} is of type {type(weight).__name__}, expected a tensor or an array: {reason}"
            ) from None
    if not weight.is_floating_point() or weight.layout != torch.strided:
        kind = weight.dtype if weight.layout == torch.strided else weight.layout
        raise TypeError(f"{name} is of {kind}, expected dense floating point: weights are taken as they are")
    return weight.detach()


def shape_of(weight: Any) -> tuple[int, ...] | None:
    return None if weight is None else tuple(np.shape(weight))


def check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...], why: str) -> None:
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}: {why}")
