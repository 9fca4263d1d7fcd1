"""A stack of ConvLSTMs over images as a case: I and H are channels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import fastlstm
from fastlstm.backends import CONVOLUTIONAL, VARIANTS
from fastlstm.case.rowwise import Case
from fastlstm.case.words import CONV, CaseError, Word
from fastlstm.kernels.conv_lstm import Geometry, same
from fastlstm.kernels.variant import Variant

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class ConvCase(Case):
    """Layers feed each other images of one size, S'; their kernels are alike.

    Where layers differ in channels, a state is one tensor of all their channels, (D, B, sum of H, *S').
    """

    S: tuple[int, ...]  # of the input's images: 1 to 3 dimensions
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()  # 1 where nothing is said
    dilation: tuple[int, ...] = ()
    padding: Pairs | str = "same"
    hadamard: bool = False  # peepholes of every pixel
    unequal: tuple[int, ...] = ()  # the channels of each layer, where they differ; H is the last's
    blind: bool = False  # goes on from the states, with no input
    words: ClassVar[tuple[Word, ...]] = CONV

    def check(self) -> None:
        D = len(self.S)
        if not 1 <= D <= 3:
            raise CaseError(f"S has {D} dimensions, expected 1 to 3")
        for name in ("kernel", "stride", "dilation", "padding"):
            value = getattr(self, name)
            if value and value != "same" and len(value) != D:
                raise CaseError(f"{name} is of {len(value)} dimensions, expected {D}, those of S")
        if self.unequal and (len(self.unequal), self.unequal[-1]) != (self.layers, self.H):
            raise CaseError(
                f"unequal is {self.unequal}, expected {self.layers} of them, the last of which is H, {self.H}"
            )
        if min(*self.S, *self.kernel, *self.stride, *self.dilation, *self.unequal) < 1:
            raise CaseError("a size of the image, the kernel, the stride, the dilation or the channels is below 1")
        if min(self.image) < 1:
            raise CaseError(f"a kernel of {self.kernel} finds no room in an image of {self.S}")
        if self.layout not in ("dense", "lengths") or self.P:
            raise CaseError("a ConvLSTM is run dense or with lengths, without P")
        if self.variant is not None and self.hadamard and not self.kind.peepholes:
            raise CaseError(f"hadamard is of peepholes, and a {self.variant} has none")
        super().check()

    def smaller(self) -> dict[str, Any]:
        return super().smaller() | {"S": tuple([min(size, 4) for size in self.S])}

    @property
    def family(self) -> dict[str, Variant]:
        return CONVOLUTIONAL

    @property
    def geometry(self) -> Geometry:
        """Of the first layer's input convolution."""
        ones = (1,) * len(self.S)
        stride, dilation = (ones, ones) if self.blind else (self.stride or ones, self.dilation or ones)
        if isinstance(self.padding, str):
            return Geometry(stride, same(self.kernel, dilation), dilation)
        return Geometry(stride, tuple([side for pair in self.padding for side in pair]), dilation)

    @property
    def image(self) -> tuple[int, ...]:
        """S', of states and outputs."""
        return self.geometry.image(self.S, self.kernel)

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
        return {"y": width} | ({"cells": width} if self.return_cells else {})

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

    def module(self, **more: Any) -> nn.Module:
        args, options = self.arguments
        options |= {"coupled": True} if self.kind.coupled else {}
        if self.kind.peepholes and not self.hadamard:
            options["peephole"] = "channel"
        return getattr(fastlstm, f"ConvLSTM{len(self.S)}d")(*args, **options | more)

    @property
    def options(self) -> dict[str, Any]:
        some = super().options | {name: getattr(self, name) for name in ("stride", "dilation") if getattr(self, name)}
        some |= {} if self.padding == "same" else {"padding": self.padding}
        return some | ({"peephole": "hadamard", "spatial_size": self.S} if self.hadamard else {})

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        _, options = super().arguments
        return (self.I, list(self.unequal) or self.H, self.kernel), options

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

    def gemms(self) -> list[tuple[int, int, int, int]]:
        """Those that the convolutions are: a row per pixel, over taps and channels. What is padded counts as well."""
        taps, pixels = math.prod(self.kernel), math.prod(self.image)
        products, inputs = [], 0 if self.blind else self.I
        for H in self.channels:
            columns = len(self.kind.gates) * H
            products.append((self.directions, self.rows * pixels, taps * inputs, columns))
            products.append((self.directions * self.T, max(1, self.rows // self.T) * pixels, taps * H, columns))
            inputs = self.directions * H
        return [product for product in products if product[2]]

    def shape(self) -> str:
        return f"{super().shape()}, {'x'.join(map(str, self.kernel))}"

    def batch(self) -> str:
        return f"{self.B} ({'x'.join(map(str, self.S))})"
