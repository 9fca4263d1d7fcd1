"""The cases of ConvLSTMs. Their states and outputs are maps; with a kernel of one pixel, each pixel is an LSTM's sequence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

import fastlstm
from fastlstm.backends import CONVOLUTIONAL, VARIANTS
from fastlstm.kernels.conv_lstm import Geometry
from fastlstm.kernels.conv_lstm.reference import conv_lstm_reference
from fastlstm.kernels.variant import PARAMETERS, Variant
from fastlstm.ops.conv_layer import conv_layer
from fastlstm.parity.cases import Case

Given = dict[str, Tensor]
Forward = Callable[[Any, Given], Given]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class ConvCase(Case):
    """Layers of ConvLSTMs over images: I and H are channels.

    Where layers differ in channels, a state is one tensor of all their channels, (D, B, sum of H, *S').
    """

    variant: str = "conv_lstm"
    S: tuple[int, ...] = (5, 6)  # of the input's images: 1 to 3 dimensions
    kernel: tuple[int, ...] = (3, 3)
    stride: tuple[int, ...] = ()  # 1 where nothing is said
    dilation: tuple[int, ...] = ()
    padding: Pairs | str = "same"
    hadamard: bool = False  # peepholes of every pixel
    unequal: tuple[int, ...] = ()  # the channels of each layer, where they differ
    blind: bool = False  # goes on from the states, with no input

    @property
    def kind(self) -> Variant:
        return CONVOLUTIONAL[self.variant]

    @property
    def geometry(self) -> Geometry:
        """Of the first layer's input convolution."""
        ones = (1,) * len(self.S)
        stride, dilation = self.stride or ones, self.dilation or ones
        if self.blind:
            stride = dilation = ones
        widths = [d * (k - 1) for d, k in zip(dilation, self.kernel, strict=True)]
        pairs = [(w // 2, w - w // 2) for w in widths] if isinstance(self.padding, str) else self.padding
        return Geometry(stride, tuple([side for pair in pairs for side in pair]), dilation)

    @property
    def image(self) -> tuple[int, ...]:
        """S', of states and outputs."""
        stride, padding, dilation = self.geometry
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, self.kernel, strict=True)]
        padded = [size + sum(padding[2 * d : 2 * d + 2]) for d, size in enumerate(self.S)]
        return tuple([(size - r) // step + 1 for size, r, step in zip(padded, reach, stride, strict=True)])

    @property
    def input(self) -> tuple[int, ...]:
        return self.T, self.B, *((0, *self.image) if self.blind else (self.I, *self.S))

    @property
    def channels(self) -> tuple[int, ...]:
        return self.unequal or (self.H,) * self.layers

    def row(self, features: int) -> tuple[int, ...]:
        return features, *self.image

    @property
    def outputs(self) -> dict[str, int]:
        width = self.directions * self.channels[-1]
        return {"y": width} | ({"cells": width} if self.cells else {})

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        if not self.unequal:
            return super().states
        return {f"{s}0": (self.directions, self.B, *self.row(sum(self.unequal))) for s in self.kind.states}

    @property
    def draws(self) -> int:
        return math.ceil(64 / (self.B * min(self.channels) * math.prod(self.image)))

    @property
    def bound(self) -> float:
        return 1 / math.sqrt(min(self.channels) * math.prod(self.kernel))

    def module(self, **options: Any) -> nn.Module:
        some: dict[str, Any] = {"num_layers": self.layers, "bias": self.bias, "bidirectional": self.bidirectional}
        some |= {name: value for name in ("stride", "dilation") if (value := getattr(self, name))}
        some |= {"padding": self.padding, "coupled": self.kind.coupled}
        if self.kind.peepholes:
            some |= {"peephole": "hadamard", "spatial_size": self.S} if self.hadamard else {"peephole": "channel"}
        kind = getattr(fastlstm, f"ConvLSTM{len(self.S)}d")
        return kind(self.I, list(self.unequal) or self.H, self.kernel, **some, **options)

    def each(self, state: Tensor) -> Sequence[Tensor]:
        if not self.unequal:
            return super().each(state)
        return [one for part in state.split(self.unequal, dim=2) for one in part]

    def joined(self, states: Sequence[Tensor]) -> Tensor:
        if not self.unequal:
            return super().joined(states)
        D = self.directions
        return torch.stack([torch.cat(list(states[d::D]), dim=1) for d in range(D)])

    def handed(self, state: Tensor) -> Tensor | list[Tensor]:
        return list(state.split(self.unequal, dim=2)) if self.unequal else state

    @property
    def flat(self) -> Case | None:
        if self.hadamard or self.blind or self.unequal or any(k > 1 for k in self.kernel) or any(self.geometry.padding):
            return None
        kind, pixels = self.kind, math.prod(self.image)
        of_pixels = [
            v for v in VARIANTS.values() if (v.op, v.gates, v.peepholes) == ("lstm", kind.gates, kind.peepholes)
        ]
        shared = {field.name: getattr(self, field.name) for field in fields(Case)}
        shared |= {"variant": of_pixels[0].name, "B": self.B * pixels}
        return Case(**shared | {"lengths": tuple([length for length in self.lengths for _ in range(pixels)])})


def pixelwise(forward: Forward) -> Forward:
    """`forward` of an LSTM, which runs a ConvLSTM's case as well if it has the pixels of one (`flat`)."""

    @wraps(forward)
    def run(case: Case, given: Given) -> Given:
        if not isinstance(case, ConvCase):
            return forward(case, given)
        assert case.flat is not None
        kept: tuple[Any, ...] = (..., *[slice(None, None, step) for step in case.geometry.stride])
        maps = {key: t[kept] if key == "x" else t for key, t in given.items() if key in ("x", *case.states)}
        rows = {key: t.movedim(2, -1).flatten(1, -2) for key, t in maps.items()}
        weights = {key: t.reshape(t.shape[:2]) for key, t in given.items() if key not in maps}
        results = forward(case.flat, rows | weights)
        return {key: t.unflatten(1, (case.B, *case.image)).movedim(-1, 2) for key, t in results.items()}

    return run


def one_conv_layer(
    case: ConvCase,
    backend: str | None,
    layer: int,
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    initial: Sequence[Tensor],
    weights: Given,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """y, h_n, c_n, then cells where there are any; all have their channels before the image, as modules have them."""
    geometry = case.geometry if layer == 0 else ConvCase(S=case.image, kernel=case.kernel).geometry
    of_names = {name: weights[long] for name, long in PARAMETERS.items() if long in weights}
    of_names = {name: w.movedim(1, -1) if w.dim() > 1 else w for name, w in of_names.items()}
    if case.kind.peepholes and not case.hadamard:
        of_names["w_peephole"] = of_names["w_peephole"].flatten(1)
    if case.blind and layer == 0:
        of_names["w_ih"] = of_names["w_ih"][..., :0]
    x, states = x.movedim(2, -1), (initial[0].movedim(1, -1), initial[1].movedim(1, -1))
    if backend is not None:
        (y, *cells), finals = conv_layer(
            case.kind, x, batch_sizes, reset, states, of_names, geometry, case.zero_state, reverse, case.cells,
            backend=backend,
        )  # fmt: skip
    else:
        some = [of_names.get(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_peephole")]
        y, h_n, c_n, *cells = conv_lstm_reference(
            x, batch_sizes, reset, *states, *some, *geometry, case.kind.coupled, False, reverse
        )
        finals = h_n, c_n
    y, *cells = [t.movedim(-1, 2) for t in (y, *cells)]
    return y, *[t.movedim(-1, 1) for t in finals], *cells


PLAIN = {
    "conv": ConvCase(),
    "one": ConvCase(T=1, B=1, I=1, H=1, S=(1, 1)),
    "step": ConvCase(T=1, B=1, I=5, H=32),
    "h17": ConvCase(I=3, H=17),
    "h65": ConvCase(T=3, I=65, H=65, S=(3, 3)),
    "image": ConvCase(T=3, B=2, I=3, H=16, S=(17, 19)),
    "large": ConvCase(T=2, I=3, S=(64, 64)),
    "wider_kernel": ConvCase(S=(2, 4), kernel=(5, 7)),
    "even": ConvCase(kernel=(2, 4)),
    "row": ConvCase(S=(1, 9), kernel=(1, 3)),
    "1d": ConvCase(S=(11,), kernel=(3,)),
    "1d_even": ConvCase(H=17, S=(6,), kernel=(4,), stride=(2,)),
    "3d": ConvCase(T=3, S=(3, 4, 5), kernel=(3, 3, 3)),
    "3d_even": ConvCase(T=3, S=(4, 5, 3), kernel=(2, 3, 1), stride=(1, 2, 1), dilation=(2, 1, 1)),
    "stride": ConvCase(S=(7, 8), stride=(2, 3)),
    "dilation": ConvCase(S=(7, 8), dilation=(2, 3)),
    "valid": ConvCase(S=(6, 7), kernel=(3, 2), padding=((0, 0), (0, 0))),
    "padding": ConvCase(S=(7, 8), stride=(2, 1), dilation=(1, 2), padding=((2, 0), (1, 3))),
    "long": ConvCase(T=100, B=2, I=3, H=5, S=(3, 4)),
    "saturated": ConvCase(T=12, gain=100.0),
    "zero_state": ConvCase(zero_state=True),
    "no_bias": ConvCase(bias=False),
    "strided": ConvCase(I=17, H=16, strided=True),
    "reverse": ConvCase(H=17, reverse=True),
    "padded": ConvCase(T=7, B=5, layout="padded", lengths=(6, 4, 4, 1, 0)),
    "padded_reverse": ConvCase(T=7, B=5, layout="padded", lengths=(6, 4, 4, 1, 0), reverse=True),
    "bidirectional": ConvCase(bidirectional=True),
    "stack": ConvCase(H=9, layers=3, bidirectional=True, S=(6, 5), stride=(2, 1)),
    "stack_padded": ConvCase(
        T=7, B=4, H=9, layers=2, bidirectional=True, layout="padded", lengths=(7, 4, 4, 0), zero_state=True
    ),
    "unequal": ConvCase(layers=3, unequal=(5, 17, 3), bidirectional=True),
    "blind": ConvCase(layers=2, blind=True, S=(7, 8), stride=(2, 1)),
    "blind_no_bias": ConvCase(blind=True, bias=False),
    "1x1": ConvCase(kernel=(1, 1)),
    "1x1_on_1x1": ConvCase(B=7, H=17, S=(1, 1), kernel=(1, 1)),
    "1x1_stack": ConvCase(S=(6, 5), kernel=(1, 1), stride=(2, 2), layers=2, bidirectional=True),
    "1x1_padded": ConvCase(T=6, B=4, kernel=(1, 1), layout="padded", lengths=(6, 3, 3, 1)),
    "1x1_reset": ConvCase(kernel=(1, 1), reset=0.2, cells=True),
    "only_y": ConvCase(used=("y",)),
    "only_h_n": ConvCase(used=("h_n",)),
    "only_c_n": ConvCase(used=("c_n",)),
    "frozen_input": ConvCase(frozen=("x",)),
    "frozen_states": ConvCase(frozen=("h0", "c0")),
    "frozen_weights": ConvCase(frozen=("weight", "bias")),
    "frozen_biases": ConvCase(frozen=("bias",)),
    "frozen_recurrence": ConvCase(frozen=("weight_hh", "x", "h0")),
    "reset": ConvCase(T=9, B=4, reset=0.2),
    "reset_reverse": ConvCase(T=9, B=4, reset=0.2, reverse=True),
    "reset_stack": ConvCase(
        T=8, B=4, reset=0.2, layers=2, bidirectional=True, layout="padded", lengths=(7, 4, 4, 0), S=(3, 4)
    ),
    "cells": ConvCase(T=6, cells=True),
    "cells_padded_reset": ConvCase(T=7, B=4, cells=True, reset=0.2, layout="padded", lengths=(7, 4, 4, 0)),
}
OF_EVERY_VARIANT = (
    "conv", "one", "large", "even", "1d", "3d", "saturated", "zero_state", "no_bias", "reverse", "stack", "unequal", "blind",
    "1x1", "1x1_on_1x1", "1x1_stack", "only_c_n", "frozen_recurrence", "cells_padded_reset",
)  # fmt: skip
HADAMARD = ("conv", "3d", "stride", "stack", "unequal", "1x1", "frozen_input", "cells_padded_reset")
CONV_CASES = {f"conv_lstm_{name}": case for name, case in PLAIN.items()}
CONV_CASES |= {
    f"{variant}_{name}": replace(PLAIN[name], variant=variant)
    for variant in CONVOLUTIONAL
    for name in OF_EVERY_VARIANT
    if variant != "conv_lstm"
}
CONV_CASES |= {
    f"{variant}_hadamard_{name}": replace(PLAIN[name], variant=variant, hadamard=True)
    for variant, kind in CONVOLUTIONAL.items()
    for name in HADAMARD
    if kind.peepholes
}
