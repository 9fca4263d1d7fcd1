"""What runs, as a value: a stack of the LSTM family or a GRU, one batch, and how both are used."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

import fastlstm
from fastlstm.backends import VARIANTS
from fastlstm.case.words import ROWWISE, CaseError, Word, even, said
from fastlstm.kernels.variant import Variant
from fastlstm.modules import build

CELLS: dict[str, type[nn.Module]] = {
    cell.variant.name: cell
    for cell in (fastlstm.LSTMCell, fastlstm.GRUCell, fastlstm.PeepholeLSTMCell, fastlstm.CIFGLSTMCell)
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recurrent stack and one use of it; `str` is its line of text, and `parse` reads that back.

    Sizes: T time, B batch, I input, H hidden, P projection (0: none). Without a variant it is a case of all in its family.
    """

    T: int
    B: int
    I: int
    H: int
    variant: str | None = None
    P: int = 0
    layers: int = 1
    bidirectional: bool = False
    reverse: bool = False  # one direction, run from the end of each sequence
    bias: bool = True
    # "packed": a PackedSequence; "lengths": a padded batch with its lengths; "cell": one step of a cell, "step": of a decoder;
    # "stream": by steps, each a call
    layout: str = "dense"
    lengths: tuple[int, ...] = ()  # B of them, not increasing, where the layout is of variable length
    resets: float = 0.0  # the share of steps before which a sequence's state is zeroed
    zero_state: bool = False  # no initial states are given
    return_cells: bool = False  # all cell states are asked for
    gain: float = 1.0  # scale of the input; a large one saturates the gates
    strided: bool = False  # inputs and states are not contiguous
    loss: tuple[str, ...] = ()  # the outputs that a loss looks at; all that there are
    frozen: tuple[str, ...] = ()  # how the names of tensors begin that need no gradient
    dtype: str | None = None
    mode: str | None = None  # "train": forward and backward; "infer": forward, no gradients
    words: ClassVar[tuple[Word, ...]] = ROWWISE

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            if size < 1:
                raise CaseError(f"{name} is {size}, expected at least 1")
        if self.variant is not None and self.variant not in self.family:
            raise CaseError(f"{self.variant} has no such input, expected one of {', '.join(self.family)}")
        self.check()

    def __str__(self) -> str:
        return " ".join(said(self).values())

    def __repr__(self) -> str:
        return f"parse({str(self)!r})"

    @property
    def sizes(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("T", "B", "I", "H")} | {"L": self.layers, "P": self.P or 1}

    def check(self) -> None:
        """Raises CaseError where the parts don't fit each other; what a module checks, it checks."""
        if self.reverse and self.bidirectional:
            raise CaseError("reverse is one direction, and bi is both: expected one of them")
        if self.layout in ("packed", "lengths"):
            least = 1 if self.layout == "packed" else 0
            if len(self.lengths) != self.B:
                raise CaseError(f"{self.layout} has {len(self.lengths)} lengths, expected {self.B}, the batch")
            if list(self.lengths) != sorted(self.lengths, reverse=True):
                raise CaseError(f"the lengths are {list(self.lengths)}, expected none to be longer than the one before")
            if self.lengths[-1] < least or self.lengths[0] > self.T:
                span = f"{self.lengths[-1]} to {self.lengths[0]}"
                raise CaseError(f"the lengths are {span}, expected {least} to {self.T}, the steps of the batch")
        if self.layout == "cell" and (self.T, self.layers, self.bidirectional, self.P) != (1, 1, False, 0):
            raise CaseError("a cell is one step of one layer: expected T1, and no L, bi or P")
        if self.layout == "stream" and (self.bidirectional or self.reverse or self.resets or self.return_cells):
            raise CaseError("a stream goes one way, to its end: expected no bi, reverse, resets or return_cells")
        if self.variant is not None:
            if self.P and not self.kind.projects:
                raise CaseError(f"P is {self.P}, and a {self.variant} has no projection")
            if self.return_cells and "c" not in self.kind.states:
                raise CaseError(f"return_cells asks for the cells of a {self.variant}, which has none")
            if self.layout == "cell" and self.variant not in CELLS:
                raise CaseError(f"there is no cell of a {self.variant}, only of {', '.join(CELLS)}")
            self.module(device="meta")

    def small(self) -> Self:
        """The same of next to no work."""
        return replace(self, **self.smaller())

    def smaller(self) -> dict[str, Any]:
        T, B = min(self.T, 2), min(self.B, 2)
        return {"T": T, "B": B, "lengths": even(1, T, B) if self.lengths else ()}

    def said(self, *fields: str) -> list[str]:
        """Those of its words that are of these fields."""
        return [word for field, word in said(self).items() if field in fields]

    # what it is of

    @property
    def family(self) -> dict[str, Variant]:
        """The variants that take its input."""
        return VARIANTS

    @property
    def kind(self) -> Variant:
        if self.variant is None:
            raise CaseError(f"{self} names no variant, expected one of {', '.join(self.family)}")
        return self.family[self.variant]

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def R(self) -> int:
        """How wide h is."""
        return self.P or self.H

    @property
    def rows(self) -> int:
        """The valid steps of all sequences together."""
        return sum(self.lengths) if self.lengths else self.T * self.B

    def module(self, **more: Any) -> nn.Module:
        """A module of ours."""
        if self.layout == "cell":
            return CELLS[self.kind.name](self.I, self.H, bias=self.bias, **more)
        return build(self.kind.name, self.I, self.H, **self.options, **more)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of a module, of ours or of PyTorch's, after the two sizes."""
        some = {"num_layers": self.layers, "bias": self.bias, "bidirectional": self.bidirectional}
        return some | ({"proj_size": self.P} if self.P else {})

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Of somebody's module of the same constructor: positions, and what differs from the defaults."""
        usual: dict[str, Any] = {"num_layers": 1, "bias": True, "bidirectional": False}
        options = {} if self.layout == "cell" else self.options
        options |= {} if self.bias else {"bias": False}
        return (self.I, self.H), {key: value for key, value in options.items() if value != usual.get(key)}

    # shapes

    @property
    def input(self) -> tuple[int, ...]:
        """The shape of x."""
        return self.T, self.B, self.I

    def row(self, features: int) -> tuple[int, ...]:
        """The shape of a sequence's step, of a state or an output, of so many features."""
        return (features,)

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the initial states."""
        stack = self.layers * self.directions, self.B
        widths = self.kind.widths(self.H, self.R)
        return {f"{s}0": (*stack, *self.row(width)) for s, width in zip(self.kind.states, widths, strict=True)}

    @property
    def others(self) -> dict[str, tuple[float, tuple[int, ...]]]:
        """Of what is given beside x and the states: its scale and its shape."""
        return {}

    @property
    def outputs(self) -> dict[str, int]:
        """The features of what each step yields."""
        return {"y": self.directions * self.R} | ({"cells": self.directions * self.H} if self.return_cells else {})

    def each(self, state: Tensor) -> Sequence[Tensor]:
        """A state, of the shape in `states`, of each layer and direction."""
        return state.unbind()

    def joined(self, states: Sequence[Tensor]) -> Tensor:
        """What `each` took apart."""
        return torch.stack(list(states))

    def handed(self, state: Tensor) -> Tensor | list[Tensor]:
        """A state as a module takes it."""
        return state

    @property
    def bound(self) -> float:
        """Of PyTorch's initial weights."""
        return 1 / math.sqrt(self.H)

    @property
    def flat(self) -> "Case | None":
        """The case of the LSTM family that computes the same, row by row; None where there is none."""
        return self

    @property
    def draws(self) -> int:
        """How often parity draws a small case; its quantities are pooled, so that luck with single numbers evens out.

        Steps don't count: what is summed over them, such as a bias' gradient, stays as few numbers as before.
        """
        return math.ceil(64 / (self.B * self.H))

    # work

    def gemms(self) -> list[tuple[int, int, int, int]]:
        """The matrix products of a forward pass as (how many, rows, inner, columns)."""
        products = []
        columns = len(self.kind.gates) * self.H
        for k in range(self.layers):
            inputs = self.I if k == 0 else self.directions * self.R
            products.append((self.directions, self.rows, inputs, columns))
            products.append((self.directions * self.T, max(1, self.rows // self.T), self.R, columns))
            if self.P:
                products.append((self.directions * self.T, max(1, self.rows // self.T), self.H, self.P))
        return products

    def gflop(self, mode: str) -> float:
        """GFLOP of the matrix products; a backward has twice those of the forward."""
        forward = 2e-9 * sum(count * rows * inner * columns for count, rows, inner, columns in self.gemms())
        return 3 * forward if mode == "train" else forward

    # in tables

    def shape(self) -> str:
        hidden = f"{self.layers} x {self.H}" + (f", P {self.P}" if self.P else "")
        return hidden + (", both ways" if self.bidirectional else "")

    def time(self) -> str:
        return f"{self.lengths[-1]}–{self.lengths[0]}" if self.lengths else str(self.T)

    def batch(self) -> str:
        return str(self.B)
