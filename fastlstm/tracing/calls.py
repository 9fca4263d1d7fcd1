"""What a recurrent call is of: its sizes and its layout, read off the arguments of the functions that all such calls reach."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm.case import AttentionCase, Case, CaseError, ConvCase, even
from fastlstm.case.words import DTYPES

SHORT = {getattr(torch, long): short for short, long in DTYPES.items()}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
GRID = 8  # lengths are told in parts of the longest one, of which there are so many


class Shape(NamedTuple):
    """The fields of a `fastlstm.case.Case`, but for dtype, mode and what has no gradient. `rows` are the valid steps of all
    sequences together, rounded so that there are few cases: lengths themselves are the data's.
    """

    variant: str
    T: int
    B: int
    I: int
    H: int
    P: int = 0
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    layout: str = "dense"
    shortest: int = 0
    zero_state: bool = False
    resets: float = 0.0
    return_cells: bool = False
    more: tuple[tuple[str, Any], ...] = ()  # fields of a ConvCase or an AttentionCase

    def case(self, dtype: str, mode: str, frozen: tuple[str, ...]) -> str:
        """The line of text. Where there is no such case, as of PyTorch's plain RNN, its name stands before it."""
        fields = self._asdict() | dict(self.more) | {"dtype": dtype, "mode": mode, "frozen": frozen}
        del fields["more"]
        shortest = fields.pop("shortest")
        if self.layout in ("packed", "lengths"):
            fields["lengths"] = even(shortest, self.T, self.B)
        kind = ConvCase if "kernel" in fields else AttentionCase if "S" in fields else Case
        try:
            return str(kind(**fields))
        except CaseError:
            return f"{self.variant} {kind(**fields | {'variant': None})}"


def shortest(rows: int, T: int, B: int, least: int) -> int:
    """The shortest of B lengths that fall evenly from T and have so many rows together, or nearly."""
    return max(least, round(GRID * (2 * rows / B - T) / T) * T // GRID)


# PyTorch's own: torch._VF


def torchs_layers(variant: str, args: Sequence[Any]) -> Shape:
    """`(input, hx, weights, bias, layers, dropout, training, bidirectional, batch_first)`; packed, `batch_sizes` comes second
    and the last is missing."""
    packed = isinstance(args[3], (list, tuple))
    x, (hx, weights, bias, layers, _, _, bidirectional) = args[0], args[1 + packed : 8 + packed]
    H, R = weights[1].shape[0] // GATES[variant], weights[1].shape[1]
    options: dict[str, Any] = {"P": R if R != H else 0, "layers": layers, "bidirectional": bidirectional, "bias": bias}
    given = hx if isinstance(hx, Tensor) else hx[0]
    # the module makes zeros where none are given, which want no gradient
    options["zero_state"] = not given.requires_grad
    if packed:
        T, B = args[1].shape[0], int(args[1][0])
        options |= {"layout": "packed", "shortest": shortest(x.shape[0], T, B, 1)}
        return Shape(variant, T, B, x.shape[1], H, **options)
    T, B = x.shape[:2] if not args[8] else (x.shape[1], x.shape[0])
    return Shape(variant, T, B, x.shape[2], H, **options)


def torchs_cell(variant: str, args: Sequence[Any]) -> Shape:
    """`(input, hx, w_ih, w_hh, b_ih, b_hh)`."""
    x, w_hh = args[0], args[3]
    (B, I), H = x.shape, w_hh.shape[1]
    return Shape(variant, 1, B, I, H, bias=len(args) > 4 and args[4] is not None, layout="cell")


# ours: what the modules call


def our_layers(args: Sequence[Any]) -> Shape:
    """`(variant, input, weights, hx, call)` of a `fastlstm.functional.driver.recurrent`."""
    variant, input, weights, hx, call = args
    H, R = weights[0][1].shape[0] // len(variant.gates), weights[0][1].shape[1]
    options: dict[str, Any] = {
        "P": R if R != H else 0,
        "layers": len(weights) // call.directions,
        "bidirectional": call.bidirectional,
        "bias": len(weights[0]) - (R != H) - bool(variant.peepholes) == 4,
        "zero_state": hx is None,
        "return_cells": call.return_cells,
    }
    if not isinstance(input, Tensor):
        T, B = input.batch_sizes.shape[0], int(input.batch_sizes[0])
        options |= {"layout": "packed", "shortest": shortest(input.data.shape[0], T, B, 1)}
        return Shape(variant.name, T, B, input.data.shape[1], H, **options)
    T, B = _sizes(input, call.batch_first, 3)
    return Shape(variant.name, T, B, input.shape[-1], H, **options, **_uneven(call, T, B))


def our_cell(args: Sequence[Any]) -> Shape:
    """`(variant, input, hx, weights, backend)` of a `fastlstm.functional.driver.step`."""
    variant, x, _, weights, _ = args
    (B, I), H = x.shape, weights[1].shape[1]
    return Shape(variant.name, 1, B, I, H, bias=weights[2] is not None, layout="cell")


def our_maps(args: Sequence[Any]) -> Shape:
    """`(input, weights, hx, call, conv)` of a `fastlstm.functional.conv_driver.convolutional`."""
    input, weights, hx, call, conv = args
    kernel = tuple(weights[0][0].shape[2:])
    each = tuple([of_layer[1].shape[1] for of_layer in weights[:: call.directions]])
    more: dict[str, Any] = {"kernel": kernel, "unequal": each if len(set(each)) > 1 else ()}
    for name, value in (("stride", conv.stride), ("dilation", conv.dilation)):
        more[name] = () if value == 1 else value if isinstance(value, tuple) else (value,) * len(kernel)
    if input is None:  # a forecast, which goes on from the states
        h = hx[0] if isinstance(hx[0], Tensor) else hx[0][0]
        T, B, more["S"], more["blind"] = conv.steps, h.shape[1], tuple(h.shape[-len(kernel) :]), True
    else:
        T, B = _sizes(input, call.batch_first, 3 + len(kernel))
        more["S"] = tuple(input.shape[-len(kernel) :])
    rows = weights[0][0].shape[0] // each[0]
    peepholes = len(weights[0]) in (3, 5)
    variant = ("cifg_" if rows == 3 else "") + ("peephole_" if peepholes else "") + "conv_lstm"
    more["hadamard"] = peepholes and max(weights[0][-1].shape[2:]) > 1
    options = {"layers": len(each), "bidirectional": call.bidirectional, "bias": len(weights[0]) > 3}
    options |= {"zero_state": hx is None, "return_cells": call.return_cells, **_uneven(call, T, B)}
    return Shape(variant, T, B, weights[0][0].shape[1], each[-1], **options, more=tuple(more.items()))


def our_map_cell(args: Sequence[Any]) -> Shape:
    """`(input, weights, hx, conv, backend)` of a `fastlstm.functional.conv_driver.convolutional_step`."""
    input, weights, hx, conv, _ = args
    return our_maps((input[None], [weights], hx, _One, conv))


class _One:
    """What a single step asks of a stack."""

    directions, bidirectional, batch_first, lengths, reset, return_cells = 1, False, False, None, None, False


def our_decoder(args: Sequence[Any]) -> Shape:
    """`(input, memory, weights, beside, hx, memory_lengths, call, more)` of a `...attention_driver.decode`."""
    input, memory, weights, beside, hx, _, call, more = args
    T, B = _sizes(input, call.batch_first, 3)
    S, _ = _sizes(memory, call.batch_first, 3)
    options = {"layers": len(weights), "zero_state": hx is None, **_uneven(call, T, B)}
    return _decoder(input, memory, weights, beside, more, (T, B, S), options)


def our_decoder_step(args: Sequence[Any]) -> Shape:
    """`(input, precomputed, weights, beside, hx, call, more)` of a `...attention_driver.decode_step`."""
    input, precomputed, weights, beside, hx, _, more = args
    sizes = 1, len(input) if input.dim() == 2 else 1, len(precomputed.memory)
    options = {"layers": len(weights), "zero_state": hx is None, "layout": "step"}
    return _decoder(input, precomputed.memory, weights, beside, more, sizes, options)


def _decoder(
    input: Tensor, memory: Tensor, weights: Any, beside: Any, more: Any, sizes: tuple[int, int, int], options: dict
) -> Shape:
    T, B, S = sizes
    score, feed, attend, output = more.attention
    of_memory = {
        "S": S,
        "M": memory.shape[-1],
        "A": len(beside.w_score) if beside.w_score is not None else 0,
        "attention": score,
        "feed": feed,
        "attend": attend,
        "output": output,
        "query_layer": more.query_layer,
        "coupled": more.coupled,
        "peephole": len(weights[0]) in (3, 5),
        "need_weights": more.need_weights,
    }
    H = weights[0][1].shape[1]
    options["bias"] = len(weights[0]) > 3
    return Shape("attention_lstm", T, B, input.shape[-1], H, **options, more=tuple(of_memory.items()))


def _sizes(x: Tensor, batch_first: bool, batched: int) -> tuple[int, int]:
    """T and B of a tensor that has so many dimensions where it is batched."""
    if x.dim() < batched:
        return x.shape[0], 1
    return (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])


def _uneven(call: Any, T: int, B: int) -> dict[str, Any]:
    """Of lengths and resets."""
    said: dict[str, Any] = {}
    if call.lengths is not None:
        rows = int(torch.as_tensor(call.lengths).sum())
        said |= {"layout": "lengths", "shortest": shortest(rows, T, B, 0)}
    if call.reset is not None:
        said["resets"] = round(float(call.reset.float().mean()), 2)
    return said
