"""The arguments of a ConvLSTM. Sizes: n dimensions of an image, L layers, D directions; others as in `functional.conv_lstm`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fastlstm.backends import CONVOLUTIONAL
from fastlstm.checks.conv_options import is_int
from fastlstm.checks.input import check_no_lengths, check_strided
from fastlstm.checks.once import once
from fastlstm.checks.states import check_state_fits
from fastlstm.checks.weights import check_alike
from fastlstm.kernels.conv_lstm import Geometry, unmoved
from fastlstm.kernels.variant import Variant

IMAGES = {1: "L", 2: "H, W", 3: "D, H, W"}


def check_conv_input(x: object, step: bool = False) -> None:
    """`step`: of a cell."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"input is of type {type(x).__name__}, expected a Tensor" + ", or None with steps=" * (not step)
        )
    check_strided("input", x, "the steps are read as dense maps")


def check_forecast(input: object, hx: object, steps: Any, bidirectional: bool, lengths: object) -> None:
    """Without an input there are a number of steps, and a state to go on from."""
    if input is not None:
        if steps is not None:
            raise ValueError(f"steps is {steps!r}, expected None where there is an input: it has its own")
        return
    if steps is None:
        raise ValueError("input is None and so is steps, expected one of them: what to run, or how far to forecast")
    if not is_int(steps) or steps < 1:
        raise ValueError(f"steps is {steps!r}, expected an int of at least 1: how far to forecast")
    if hx is None:
        raise ValueError("hx is None, expected (h0, c0) where input is None: a forecast goes on from a state")
    if bidirectional:
        raise ValueError(
            "bidirectional is True, expected False where input is None: a forecast has no end to start from"
        )
    check_no_lengths(lengths, "a forecast has `steps` steps of every sequence")


class Sizes(NamedTuple):
    """What the shapes of all weights tell."""

    variant: Variant
    names: tuple[str, ...]  # of the weights of a layer
    kernel: tuple[int, ...]  # of the first layer's input convolution
    widths: tuple[int, ...]  # H of each layer
    differ: bool  # whether these are not all the same
    inner: tuple[Geometry, ...]  # of each layer and direction above the first layer


def check_conv_weights(
    weights: Sequence[Sequence[Tensor]], D: int, coupled: bool
) -> tuple[Sizes, list[dict[str, Tensor]]]:
    """Their sizes, and the weights by their names; they fit each other, but for the image of "hadamard" peepholes."""
    try:
        shapes = tuple([tuple([w.shape for w in of_layer]) for of_layer in weights])
    except (TypeError, AttributeError):
        _check_types(weights)
        raise
    sizes = _check_shapes(shapes, D, coupled)
    layers = [dict(zip(sizes.names, of_layer, strict=True)) for of_layer in weights]
    first = weights[0][0]
    dtype, device = first.dtype, first.device
    for k, of_layer in enumerate(layers):
        for name, w in of_layer.items():
            if w.dtype is not dtype or w.device != device:
                raise ValueError(
                    f"{name} of weights[{k}] is {w.dtype} on {w.device}, expected {dtype} on {device}: all weights are alike"
                )
    return sizes, layers


def _check_types(weights: Any) -> None:
    """What has no shapes, or is no sequence."""
    if not isinstance(weights, (tuple, list)):
        raise TypeError(
            f"weights is of type {type(weights).__name__}, expected a list: an entry per layer and direction"
        )
    for k, of_layer in enumerate(weights):
        if not isinstance(of_layer, (tuple, list)):
            raise TypeError(
                f"weights[{k}] is of type {type(of_layer).__name__}, expected a tuple of Tensors: w_ih, w_hh, ..."
            )
        for n, w in enumerate(of_layer):
            if not isinstance(w, Tensor):
                raise TypeError(
                    f"weights[{k}][{n}] is of type {type(w).__name__}, expected a Tensor: what a layer lacks is left out"
                )


Shape = tuple[int, ...]


@once
def _check_shapes(shapes: tuple[tuple[Shape, ...], ...], D: int, coupled: bool) -> Sizes:
    if len(shapes) == 0 or len(shapes) % D:
        raise ValueError(f"weights has {len(shapes)} entries, expected a multiple of {D}: one per layer and direction")
    count = len(shapes[0])
    if not 2 <= count <= 5:
        raise ValueError(f"weights[0] has {count} tensors, expected 2 to 5: w_ih, w_hh, b_ih, b_hh, w_peephole")
    names = ("w_ih", "w_hh", *(("b_ih", "b_hh") if count > 3 else ()), *(("w_peephole",) if count % 2 else ()))
    kind = ("cifg_" if coupled else "") + ("peephole_" if count % 2 else "") + "conv_lstm"
    variant = CONVOLUTIONAL[kind]
    first = shapes[0][0]
    n = len(first) - 2
    if n not in IMAGES:
        raise ValueError(f"w_ih of weights[0] has shape {tuple(first)}, expected (rows, channels, *kernel), 3D to 5D")
    named: list[dict[str, Shape]] = []
    for k, of_layer in enumerate(shapes):
        if len(of_layer) != count:
            raise ValueError(f"weights[{k}] has {len(of_layer)} tensors, expected {count}: as many as weights[0]")
        named.append(dict(zip(names, of_layer, strict=True)))
        C = first[1] if k < D else D * named[k - D]["w_hh"][1]
        _check_layer(variant, k, named[k], n, C, named[k - 1]["w_hh"] if k % D else None)
    widths = tuple([w["w_hh"][1] for w in named[::D]])
    inner = tuple([unmoved(w["w_ih"][2:]) for w in named[D:]])
    return Sizes(variant, names, tuple(first[2:]), widths, any(widths[0] != H for H in widths[1:]), inner)


def _check_layer(variant: Variant, k: int, shapes: dict[str, Shape], n: int, C: int, beside: Shape | None) -> None:
    """`beside` is that of w_hh of the layer's other direction, where that has been checked."""
    kernels = []
    for name in ("w_ih", "w_hh"):
        shape = tuple(shapes[name])
        if len(shape) != n + 2 or min(shape[2:]) < 1:
            raise ValueError(
                f"{name} of weights[{k}] has shape {shape}, expected {n + 2} dimensions: (rows, channels, *kernel)"
            )
        kernels.append(shape[2:])
    H = (shapes["w_hh"] if beside is None else beside)[1]
    rows = len(variant.gates) * H
    expected: dict[str, Shape] = {"w_ih": (rows, C, *kernels[0]), "w_hh": (rows, H, *kernels[1])}
    expected |= {"b_ih": (rows,), "b_hh": (rows,)}
    for name, size in expected.items():
        if name in shapes and shapes[name] != size:
            raise ValueError(
                f"{name} of weights[{k}] has shape {tuple(shapes[name])}, expected {size}: "
                f"{len(variant.gates)} gates, {C} input channels and {H} hidden channels of its layer"
            )
    P, w_peephole = len(variant.peepholes), shapes.get("w_peephole")
    if w_peephole is not None and (len(w_peephole) != n + 2 or w_peephole[:2] != (P, H)):
        raise ValueError(
            f"w_peephole of weights[{k}] has shape {tuple(w_peephole)}, expected ({P}, {H}, {', '.join('1' * n)}) or "
            f"({P}, {H}, {IMAGES[n]}): {P} gates that see the cell and {H} hidden channels"
        )


def check_conv_fits(x: Tensor, w_ih: Tensor, batch_first: bool, step: bool = False) -> None:
    """The input's dimensions, channels, dtype and device are those of the first weight. A `step` was given without T."""
    n = w_ih.dim() - 2
    if x.dim() not in (n + 2, n + 3):
        T, B, dims = ("", "B, ", n + 1) if step else ("T, ", "B, T, " if batch_first else "T, B, ", n + 2)
        raise ValueError(
            f"ConvLSTM{n}d{'Cell' * step}: Expected input to be {dims}D or {dims + 1}D, got {x.dim() - step}D instead: "
            f"({T}C, {IMAGES[n]}) unbatched, or ({B}C, {IMAGES[n]})"
        )
    check_alike(x, w_ih)
    if x.shape[-n - 1] != w_ih.shape[1]:
        raise RuntimeError(
            f"input has {x.shape[-n - 1]} channels in its shape {tuple(x.shape[step:])}, expected {w_ih.shape[1]}: "
            f"the input channels of the weights; they stand before the image ({IMAGES[n]})"
        )


def check_image(S: Sequence[int], geometry: Geometry, kernel: Sequence[int], name: str = "input") -> tuple[int, ...]:
    """S', which is not empty."""
    image = _image(geometry, S, kernel)
    if min(image) < 1:
        raise (RuntimeError if name == "input" else ValueError)(
            f"{name} has an image of {tuple(S)}, expected one that a kernel of {tuple(kernel)} fits in: "
            f"with padding {geometry.padding} and dilation {geometry.dilation} it gives {image}"
        )
    return image


_image = once(Geometry.image)


def check_only(name: str, S: Sequence[int], only: tuple[int, ...]) -> None:
    """The image S of `name` is `only`, that of a module's spatial_size."""
    if tuple(S) != only:
        raise RuntimeError(
            f"{name} has an image of {tuple(S)}, expected {only}, that of spatial_size: 'hadamard' peepholes are of one image; "
            "'channel' takes any"
        )


def check_peepholes(layers: Sequence[dict[str, Tensor]], image: tuple[int, ...]) -> None:
    """A peephole's image is a pixel, or `image`, S'."""
    for k, of_layer in enumerate(layers):
        if "w_peephole" not in of_layer:
            return
        own = tuple(of_layer["w_peephole"].shape[2:])
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
        if not isinstance(states, (tuple, list)):
            raise TypeError(
                f"hx[{k}] is of type {type(states).__name__}, expected a list of Tensors: the layers have different "
                "hidden_channels, and so a state each"
            )
        if len(states) != L:
            raise ValueError(f"hx[{k}] has {len(states)} tensors, expected {L}: one for each layer")
        for layer, s in enumerate(states):
            if not isinstance(s, Tensor):
                raise TypeError(
                    f"hx[{k}][{layer}] is of type {type(s).__name__}, expected a Tensor: the state of a layer"
                )


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
    leading: tuple[int, ...],
    batch: tuple[int, ...],
    widths: Sequence[int],
    image: tuple[int, ...],
) -> None:
    """`(h0, c0)`, a list of tensors (*`leading`, *batch, width, *image) each, as many as there are `widths`."""
    for letter, of_layers in zip("hc", states, strict=True):
        for k, (s, width) in enumerate(zip(of_layers, widths, strict=True)):
            expected = (*leading, *batch, width, *image)
            if s.shape == expected and s.dtype is x.dtype and s.device == x.device:
                continue
            name = f"{letter}0" if len(widths) == 1 else f"{letter}0[{k}]"
            if s.shape != expected:
                what = "" if not leading else "layers x directions, " if len(widths) == 1 else "directions, "
                raise RuntimeError(
                    f"{name} has shape {tuple(s.shape)}, expected {expected}: {what}"
                    f"{'batch, ' if batch else ''}hidden channels and the image of the output"
                )
            check_state_fits(s, name, x)


def check_conv_pair(
    states: tuple[Tensor, Tensor], x: Tensor, leading: tuple[int, ...], batch: tuple[int, ...], H: int, image: Shape
) -> None:
    """Those of one layer in one direction, (*`leading`, *batch, H, *image) each, where `leading` is (1,), or ()."""
    expected = (*leading, *batch, H, *image)
    for s in states:
        if s.shape != expected or s.dtype is not x.dtype or s.device != x.device:
            check_conv_states([[s] for s in states], x, leading, batch, (H,), image)
