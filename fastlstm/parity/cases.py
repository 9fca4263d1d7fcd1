"""The named cases of the LSTM family and the GRU: sizes, layouts and uses at which a kernel may go wrong."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.backends import VARIANTS
from fastlstm.kernels.variant import Variant
from fastlstm.modules import build


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recurrent stack and one use of it. Sizes: T time, B batch, I input, H hidden, P projection (0: none)."""

    variant: str = "lstm"
    T: int = 5
    B: int = 3
    I: int = 4
    H: int = 8
    P: int = 0
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    reverse: bool = False  # one direction, run from the end of each sequence
    layout: str = "dense"  # "packed" or "padded": of variable length, by `lengths`
    lengths: tuple[int, ...] = ()  # B of them, not increasing
    gain: float = 1.0  # scale of the input; a large one saturates the gates
    zero_state: bool = False  # no initial states are given
    strided: bool = False  # inputs and states are not contiguous
    reset: float = 0.0  # the share of steps before which the state is zeroed
    cells: bool = False  # all cell states are asked for
    used: tuple[str, ...] = ("y", "h_n", "c_n", "cells")  # the outputs that a loss looks at, of those that there are
    frozen: tuple[str, ...] = field(default=())  # prefixes of the tensors that need no gradient

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def kind(self) -> Variant:
        return VARIANTS[self.variant]

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
        widths = self.kind.widths(self.H, self.P or self.H)
        return {f"{s}0": (*stack, *self.row(width)) for s, width in zip(self.kind.states, widths, strict=True)}

    @property
    def others(self) -> dict[str, tuple[float, tuple[int, ...]]]:
        """Of what is given beside x and the states: its scale and its shape."""
        return {}

    @property
    def outputs(self) -> dict[str, int]:
        """The features of what each step yields."""
        return {"y": self.directions * (self.P or self.H)} | ({"cells": self.directions * self.H} if self.cells else {})

    @property
    def bound(self) -> float:
        """Of PyTorch's initial weights."""
        return 1 / math.sqrt(self.H)

    def module(self, **more: Any) -> nn.Module:
        """A module of ours."""
        return build(self.variant, self.I, self.H, **self.options, **more)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of a module, of ours or of PyTorch's, after the two sizes."""
        some = {"num_layers": self.layers, "bias": self.bias, "bidirectional": self.bidirectional}
        return some | ({"proj_size": self.P} if self.P else {})

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
    def flat(self) -> "Case | None":
        """The case of the LSTM family that computes the same, row by row; None where there is none."""
        return self

    @property
    def draws(self) -> int:
        """How often a small case is drawn; its quantities are pooled, so that luck with single numbers evens out.

        Steps don't count: what is summed over them, such as a bias' gradient, stays as few numbers as before.
        """
        return math.ceil(64 / (self.B * self.H))


ROWWISE = {
    "one": Case(T=1, B=1, I=1, H=1),
    "three": Case(T=3, B=3, I=3, H=3),
    "step": Case(T=1, B=1, I=16, H=32),
    "h16": Case(H=16),
    "h17": Case(H=17),
    "h64": Case(H=64, I=64),
    "h65": Case(H=65, I=65),
    "h128": Case(T=12, B=16, I=32, H=128),
    "h512": Case(T=4, B=8, I=512, H=512),
    "b1": Case(B=1, I=17, H=33),
    "one_row": Case(T=20, B=1, I=17, H=33),
    "two_rows": Case(T=20, B=2, I=17, H=33),
    "b6": Case(B=6, I=8, H=32),
    "b7": Case(B=7, I=8, H=32),
    "b33": Case(B=33, I=8, H=32),
    "b65": Case(T=3, B=65, I=3, H=17),
    "wide_input": Case(I=300, H=8),
    "long": Case(T=400, B=5, I=3, H=5),
    "longer": Case(T=1000, B=8, I=3, H=8),
    "saturated": Case(T=12, B=16, I=16, H=16, gain=100.0),
    "zero_state": Case(zero_state=True),
    "no_bias": Case(bias=False),
    "strided": Case(I=17, H=16, strided=True),
    "reverse": Case(T=9, H=17, reverse=True),
    "packed": Case(T=9, B=7, H=17, layout="packed", lengths=(9, 9, 6, 5, 5, 2, 1)),
    "packed_equal": Case(T=4, B=6, H=16, layout="packed", lengths=(4,) * 6),
    "packed_reverse": Case(T=9, B=7, H=17, layout="packed", lengths=(9, 8, 6, 5, 5, 2, 1), reverse=True),
    "padded": Case(T=11, B=7, H=17, layout="padded", lengths=(9, 9, 6, 5, 5, 2, 1)),
    "padded_reverse": Case(T=11, B=7, H=17, layout="padded", lengths=(9, 8, 6, 5, 5, 2, 1), reverse=True),
    "padded_zeros": Case(T=6, B=5, H=17, layout="padded", lengths=(6, 4, 1, 0, 0)),
    "bidirectional": Case(T=7, H=17, bidirectional=True),
    "two_layers": Case(T=7, H=17, layers=2),
    "stack": Case(T=7, B=6, I=5, H=16, layers=3, bidirectional=True),
    "stack_packed": Case(T=7, B=4, H=9, layers=2, bidirectional=True, layout="packed", lengths=(7, 4, 4, 2)),
    "stack_padded": Case(T=8, B=4, H=9, layers=2, bidirectional=True, layout="padded", lengths=(7, 4, 4, 0)),
    "projection": Case(B=7, H=33, P=17),
    "projection_wide": Case(T=8, B=8, I=80, H=512, P=256),
    "projection_one": Case(H=17, P=1),
    "projection_reverse": Case(H=16, P=8, reverse=True),
    "projection_packed": Case(B=4, H=16, P=5, layout="packed", lengths=(5, 5, 3, 1)),
    "projection_stack": Case(B=4, H=16, P=5, layers=2, bidirectional=True),
    "only_y": Case(H=17, used=("y",)),
    "only_h_n": Case(H=17, used=("h_n",)),
    "only_c_n": Case(H=17, P=5, used=("c_n",)),
    "frozen_input": Case(H=17, frozen=("x",)),
    "frozen_states": Case(H=17, frozen=("h0", "c0")),
    "frozen_weights": Case(H=17, P=5, frozen=("weight", "bias")),
    "frozen_biases": Case(H=17, frozen=("bias",)),
    "frozen_recurrence": Case(H=17, frozen=("weight_hh", "x", "h0")),
    "reset": Case(T=9, B=7, H=17, reset=0.2),
    "reset_reverse": Case(T=9, B=7, H=17, reset=0.2, reverse=True),
    "reset_packed": Case(T=9, B=7, H=17, reset=0.2, layout="packed", lengths=(9, 9, 6, 5, 5, 2, 1)),
    "reset_stack": Case(T=8, B=4, H=9, reset=0.2, layers=2, bidirectional=True, layout="padded", lengths=(7, 4, 4, 0)),
    "cells": Case(T=9, B=7, H=17, cells=True),
    "cells_stack": Case(T=7, B=4, H=9, P=5, cells=True, layers=2, bidirectional=True),
    "cells_padded_reset": Case(T=7, B=4, H=16, cells=True, reset=0.2, layout="padded", lengths=(7, 4, 4, 0)),
}
OF_EVERY_VARIANT = (
    "one", "step", "h16", "h65", "h128", "b1", "b33", "long", "saturated", "zero_state", "no_bias", "strided", "reverse",
    "packed", "padded_reverse", "padded_zeros", "stack", "stack_packed", "projection_stack", "only_h_n", "frozen_input",
    "frozen_weights", "frozen_recurrence", "reset_reverse", "reset_packed", "reset_stack", "cells", "cells_stack",
    "cells_padded_reset",
)  # fmt: skip


def possible(variant: Variant, case: Case) -> bool:
    """Whether the variant has what the case is about."""
    return (variant.projects or not case.P) and ("c" in variant.states or not case.cells)


ROWWISE |= {
    f"{variant}_{name}": replace(ROWWISE[name], variant=variant)
    for variant in VARIANTS
    for name in OF_EVERY_VARIANT
    if variant != "lstm" and possible(VARIANTS[variant], ROWWISE[name])
}
