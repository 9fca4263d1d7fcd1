"""The arguments of a ConvLSTM. Sizes: n dimensions of an image, L layers, D directions; others as in `functional.conv_lstm`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm.backends import CONVOLUTIONAL
from fastlstm.checks.input import check_no_lengths
from fastlstm.checks.states import check_state_fits
from fastlstm.checks.weights import check_alike
from fastlstm.kernels.conv_lstm import Geometry, same
from fastlstm.kernels.variant import Variant

IMAGES = {1: "L", 2: "H, W", 3: "D, H, W"}


def per_dimension(name: str, value: Any, n: int, least: int = 1) -> tuple[int, ...]:
    """`value`, an int or `n` of them, as `n`."""
    sizes = (value,) * n if _is_int(value) else value
    if not isinstance(sizes, (tuple, list)) or len(sizes) != n or not all(_is_int(s) for s in sizes):
        raise ValueError(f"{name} is {value!r}, expected an int or a tuple of {n}: one for each dimension of the image")
    if min(sizes) < least:
        raise ValueError(f"{name} is {value!r}, expected at least {least} in each dimension of the image")
    return tuple(sizes)


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def positive(name: str, value: Any) -> int:
    if not _is_int(value):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
    return value


def check_geometry(stride: Any, padding: Any, dilation: Any, kernel: Sequence[int]) -> Geometry:
    """The input convolution of the first layer, from what users write."""
    n = len(kernel)
    strides, dilations = per_dimension("stride", stride, n), per_dimension("dilation", dilation, n)
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding is {padding!r}, expected 'same', 'valid' or numbers")
        return Geometry(strides, same(kernel, dilations) if padding == "same" else (0,) * (2 * n), dilations)
    sides = (padding,) * n if _is_int(padding) else padding
    if isinstance(sides, (tuple, list)) and len(sides) == n:
        pairs = [(side, side) if _is_int(side) else side for side in sides]
        flat = [p for pair in pairs if isinstance(pair, (tuple, list)) and len(pair) == 2 for p in pair]
        if len(flat) == 2 * n and all(_is_int(p) and p >= 0 for p in flat):
            return Geometry(strides, tuple(flat), dilations)
    raise ValueError(
        f"padding is {padding!r}, expected 'same', 'valid', an int, or a tuple of {n} ints or pairs (before, after), none "
        "negative: one for each dimension of the image"
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_conv_input(x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"input is of type {type(x).__name__}, expected a Tensor, or None with steps=")
    if x.layout is not torch.strided:
        raise RuntimeError(f"input has layout {x.layout}, expected torch.strided: the steps are read as dense maps")


def check_forecast(input: object, hx: object, steps: Any, bidirectional: bool, lengths: object) -> None:
    """Without an input there are a number of steps, and a state to go on from."""
    if input is not None:
        if steps is not None:
            raise ValueError(f"steps is {steps!r}, expected None where there is an input: it has its own")
        return
    if steps is None:
        raise ValueError("input is None and so is steps, expected one of them: what to run, or how far to forecast")
    if not _is_int(steps) or steps < 1:
        raise ValueError(f"steps is {steps!r}, expected an int of at least 1: how far to forecast")
    if hx is None:
        raise ValueError("hx is None, expected (h0, c0) where input is None: a forecast goes on from a state")
    if bidirectional:
        raise ValueError(
            "bidirectional is True, expected False where input is None: a forecast has no end to start from"
        )
    check_no_lengths(lengths, "a forecast has `steps` steps of every sequence")


def check_conv_weights(
    weights: Sequence[Sequence[Tensor]], D: int, coupled: bool
) -> tuple[Variant, list[dict[str, Tensor]]]:
    """The variant, and the weights by their names; they fit each other, but for the image of "hadamard" peepholes."""
    if len(weights) == 0 or len(weights) % D:
        raise ValueError(f"weights has {len(weights)} entries, expected a multiple of {D}: one per layer and direction")
    count = len(weights[0])
    if not 2 <= count <= 5:
        raise ValueError(f"weights[0] has {count} tensors, expected 2 to 5: w_ih, w_hh, b_ih, b_hh, w_peephole")
    names = ["w_ih", "w_hh", *(["b_ih", "b_hh"] if count > 3 else []), *(["w_peephole"] if count % 2 else [])]
    kind = ("cifg_" if coupled else "") + ("peephole_" if count % 2 else "") + "conv_lstm"
    variant = CONVOLUTIONAL[kind]
    first = weights[0][0]
    n = first.dim() - 2
    if n not in IMAGES:
        raise ValueError(
            f"w_ih of weights[0] has shape {tuple(first.shape)}, expected (rows, channels, *kernel), 3D to 5D"
        )
    named: list[dict[str, Tensor]] = []
    for k, tensors in enumerate(weights):
        if len(tensors) != count:
            raise ValueError(f"weights[{k}] has {len(tensors)} tensors, expected {count}: as many as weights[0]")
        of_layer = dict(zip(names, tensors, strict=True))
        C = first.shape[1] if k < D else D * named[k - D]["w_hh"].shape[1]
        _check_layer(variant, k, of_layer, n, C, named[k - 1]["w_hh"] if k % D else None)
        for name, w in of_layer.items():
            if w.dtype is not first.dtype or w.device != first.device:
                raise ValueError(
                    f"{name} of weights[{k}] is {w.dtype} on {w.device}, expected {first.dtype} on {first.device}: "
                    "all weights are alike"
                )
        named.append(of_layer)
    return variant, named


def _check_layer(variant: Variant, k: int, weights: dict[str, Tensor], n: int, C: int, beside: Tensor | None) -> None:
    """`beside` is w_hh of the layer's other direction, where that has been checked."""
    w_ih, w_hh, w_peephole = weights["w_ih"], weights["w_hh"], weights.get("w_peephole")
    kernels = []
    for name, w in (("w_ih", w_ih), ("w_hh", w_hh)):
        if w.dim() != n + 2 or min(w.shape[2:]) < 1:
            raise ValueError(
                f"{name} of weights[{k}] has shape {tuple(w.shape)}, expected {n + 2} dimensions: (rows, channels, *kernel)"
            )
        kernels.append(tuple(w.shape[2:]))
    H = w_hh.shape[1] if beside is None else beside.shape[1]
    rows = len(variant.gates) * H
    expected: dict[str, tuple[int, ...]] = {"w_ih": (rows, C, *kernels[0]), "w_hh": (rows, H, *kernels[1])}
    expected |= {"b_ih": (rows,), "b_hh": (rows,)}
    for name, size in expected.items():
        if name in weights and weights[name].shape != size:
            raise ValueError(
                f"{name} of weights[{k}] has shape {tuple(weights[name].shape)}, expected {size}: "
                f"{len(variant.gates)} gates, {C} input channels and {H} hidden channels of its layer"
            )
    P = len(variant.peepholes)
    if w_peephole is not None and (w_peephole.dim() != n + 2 or w_peephole.shape[:2] != (P, H)):
        raise ValueError(
            f"w_peephole of weights[{k}] has shape {tuple(w_peephole.shape)}, expected ({P}, {H}, {', '.join('1' * n)}) or "
            f"({P}, {H}, {IMAGES[n]}): {P} gates that see the cell and {H} hidden channels"
        )


def check_conv_fits(x: Tensor, w_ih: Tensor, batch_first: bool) -> None:
    """The input's dimensions, channels, dtype and device are those of the first weight."""
    n = w_ih.dim() - 2
    leading = "B, T" if batch_first else "T, B"
    if x.dim() not in (n + 2, n + 3):
        raise ValueError(
            f"ConvLSTM{n}d: Expected input to be {n + 2}D or {n + 3}D, got {x.dim()}D instead: "
            f"(T, C, {IMAGES[n]}) unbatched, or ({leading}, C, {IMAGES[n]})"
        )
    check_alike(x, w_ih)
    if x.shape[-n - 1] != w_ih.shape[1]:
        raise RuntimeError(
            f"input has {x.shape[-n - 1]} channels in its shape {tuple(x.shape)}, expected {w_ih.shape[1]}: "
            f"the input channels of the weights; they stand before the image ({IMAGES[n]})"
        )


def check_image(S: Sequence[int], geometry: Geometry, kernel: Sequence[int], name: str = "input") -> tuple[int, ...]:
    """S', which is not empty."""
    image = geometry.image(S, kernel)
    if min(image) < 1:
        raise RuntimeError(
            f"{name} has an image of {tuple(S)}, expected one that a kernel of {tuple(kernel)} fits in: "
            f"with padding {geometry.padding} and dilation {geometry.dilation} it gives {image}"
        )
    return image


def check_peepholes(layers: Sequence[dict[str, Tensor]], image: tuple[int, ...]) -> None:
    """A peephole's image is a pixel, or `image`, S'."""
    for k, of_layer in enumerate(layers):
        own = tuple(of_layer["w_peephole"].shape[2:]) if "w_peephole" in of_layer else image
        if own != image and max(own) > 1:
            raise RuntimeError(
                f"w_peephole of weights[{k}] has an image of {own}, expected {image}, that of this output: "
                "'hadamard' peepholes are of one spatial_size; 'channel' takes any"
            )


def check_conv_hx(hx: Any, L: int, differ: bool) -> None:
    """A pair of tensors; where the layers' channels `differ`, of lists with one for each of `L` layers."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        got = f"of length {len(hx)}" if isinstance(hx, (tuple, list)) else f"of type {type(hx).__name__}"
        raise RuntimeError(f"hx is {got}, expected a pair (h0, c0)")
    for k, states in enumerate(hx):
        if not differ:
            if not isinstance(states, Tensor):
                raise TypeError(f"hx[{k}] is of type {type(states).__name__}, expected a Tensor: hx is a pair (h0, c0)")
            continue
        if not isinstance(states, (tuple, list)) or not all(isinstance(s, Tensor) for s in states):
            raise TypeError(
                f"hx[{k}] is of type {type(states).__name__}, expected a list of Tensors: the layers have different "
                "hidden_channels, and so a state each"
            )
        if len(states) != L:
            raise ValueError(f"hx[{k}] has {len(states)} tensors, expected {L}: one for each layer")


def check_forecast_fits(h0: Tensor, n: int) -> None:
    """What is forecast from tells the image, and whether there is a batch."""
    if h0.dim() not in (n + 2, n + 3):
        raise RuntimeError(
            f"h0 has shape {tuple(h0.shape)}, expected {n + 2} or {n + 3} dimensions: (layers, hidden channels, {IMAGES[n]}) "
            f"unbatched, or (layers, batch, hidden channels, {IMAGES[n]})"
        )


def check_conv_states(
    states: Sequence[Sequence[Tensor]],
    x: Tensor,
    leading: int,
    batch: tuple[int, ...],
    widths: Sequence[int],
    image: tuple[int, ...],
) -> None:
    """`(h0, c0)`, a list of tensors (`leading`, *batch, width, *image) each, as many as there are `widths`."""
    for letter, of_layers in zip("hc", states, strict=True):
        for k, (s, width) in enumerate(zip(of_layers, widths, strict=True)):
            name = f"{letter}0" if len(widths) == 1 else f"{letter}0[{k}]"
            expected = (leading, *batch, width, *image)
            if s.shape != expected:
                what = "layers x directions" if len(widths) == 1 else "directions"
                raise RuntimeError(
                    f"{name} has shape {tuple(s.shape)}, expected {expected}: {what}, "
                    f"{'batch, ' if batch else ''}hidden channels and the image of the output"
                )
            check_state_fits(s, name, x)
