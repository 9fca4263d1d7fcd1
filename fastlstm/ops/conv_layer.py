"""One layer of a ConvLSTM in one direction: which op runs it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fastlstm.kernels.conv_lstm import Geometry
from fastlstm.kernels.lstm import CIFG_LSTM, CIFG_PEEPHOLE_LSTM, LSTM, PEEPHOLE_LSTM
from fastlstm.kernels.variant import Variant
from fastlstm.ops import program
from fastlstm.ops.conv_finals import Place
from fastlstm.ops.conv_lstm import conv_lstm
from fastlstm.ops.layer import layer

# Without a neighbourhood, a pixel is a sequence of its own
OF_A_PIXEL = {(v.gates, v.peepholes): v for v in (LSTM, PEEPHOLE_LSTM, CIFG_LSTM, CIFG_PEEPHOLE_LSTM)}

Results = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def conv_layer(
    variant: Variant,
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    states: tuple[Tensor, Tensor],
    weights: Mapping[str, Any],
    geometry: Geometry,
    fresh: bool = False,
    reverse: bool = False,
    return_cells: bool = False,
    checkpoint: bool = False,
    moved: bool = False,
    return_y: bool = True,
    place: Place | None = None,
    *,
    backend: str,
) -> Results:
    """What each step yields, y and then cells if `return_cells`; and the final states. Layouts are those of `conv_lstm`.

    `return_y`: False where nobody reads y; the LSTM's op makes it all the same. `place`: of none that `is_per_pixel`.
    """
    if backend != "reference" and not checkpoint and is_per_pixel(weights, geometry):
        return _per_pixel(variant, x, batch_sizes, reset, states, weights, geometry, reverse, return_cells, backend)
    given = weights.get
    tensors = (
        x, batch_sizes, reset, *states, weights["w_ih"], weights["w_hh"], given("b_ih"), given("b_hh"), given("w_peephole")
    )  # fmt: skip
    if backend != "reference" and program.is_made():
        y, h_n, c_n, cells = torch.ops.fastlstm.conv_lstm_layer(
            *tensors, *geometry, variant.coupled, fresh, reverse, return_cells, checkpoint, moved=moved, return_y=return_y,
        )  # fmt: skip
    else:
        y, h_n, c_n, cells = conv_lstm(
            *tensors, stride=geometry.stride, padding=geometry.padding, dilation=geometry.dilation, coupled=variant.coupled,
            fresh=fresh, reverse=reverse, return_cells=return_cells, checkpoint=checkpoint, moved=moved, return_y=return_y,
            place=place, backend=backend,
        )  # fmt: skip
    return ((y, cells) if return_cells else (y,)), (h_n, c_n)


def is_per_pixel(weights: Mapping[str, Tensor], geometry: Geometry) -> bool:
    if any(geometry.padding) or max(*weights["w_ih"].shape[1:-1], *weights["w_hh"].shape[1:-1]) > 1:
        return False
    return "w_peephole" not in weights or weights["w_peephole"].dim() == 2


def _per_pixel(
    variant: Variant,
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    states: tuple[Tensor, Tensor],
    weights: Mapping[str, Tensor],
    geometry: Geometry,
    reverse: bool,
    return_cells: bool,
    backend: str,
) -> Results:
    """A kernel of one pixel: an LSTM over (T, B * pixels, C)."""
    strides = geometry.stride if x.shape[-1] else (1,) * len(geometry.stride)
    x = x[:, :, *[slice(None, None, step) for step in strides]]
    maps = x.shape[:-1]
    pixels = math.prod(maps[2:])
    flat = {name: w.flatten(1) if name in ("w_ih", "w_hh") else w for name, w in weights.items()}
    steps, finals = layer(
        OF_A_PIXEL[variant.gates, variant.peepholes],
        x.flatten(1, -2),
        None if batch_sizes is None else sizes_of_pixels(batch_sizes, pixels),
        None if reset is None else reset.repeat_interleave(pixels, 1),
        [s.flatten(0, -2) for s in states],
        flat,
        reverse,
        return_cells,
        backend=backend,
    )
    return tuple([t.view(*maps, t.shape[-1]) for t in steps]), tuple([s.view(*maps[1:], s.shape[-1]) for s in finals])


# For each `batch_sizes` what they were when they were multiplied, and the product
_products: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def sizes_of_pixels(batch_sizes: Tensor, pixels: int) -> Tensor:
    """`batch_sizes * pixels`, for all layers and directions the same tensor: a GPU has a copy of each that it is given."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return batch_sizes * pixels
    of = pixels, batch_sizes.tolist()
    known = _products.get(batch_sizes)
    if known is None or known[0] != of:
        known = _products[batch_sizes] = of, batch_sizes * pixels
    return known[1]
