"""Stacked x bidirectional x variable length, written once, over any recurrence."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from fastlstm.gpu.streams import side_by_side

# What each step yields (y, then what else is wanted of it), and the final states
Results = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def stack(
    recurrence: Callable[..., Results],
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Sequence[Tensor | None]],
    *,
    directions: int,
    dropout: float,
) -> Results:
    """The last layer's outputs, and the final states of all layers.

    `recurrence(x, batch_sizes, states, weights, reverse=..., last=...)` runs one layer in one direction; `last` tells whether
    it is the last layer, whose outputs are the results.
    Sizes: T time, B batch, L layers, D directions, R the features of one recurrence's output.
    `x` and `batch_sizes` are one of the layouts of `fastlstm.ops`: dense, packed or padded; outputs have the leading
    dimensions of `x` and D * R features. Each of `states` and of the final states is (L * D, B, *), layer by layer, forward
    before reverse; `weights` has one entry per layer and direction in the same order. `dropout` acts between layers, not
    after the last.
    """
    initials = list(zip(*[s.unbind(0) for s in states], strict=True))
    finals: list[Sequence[Tensor]] = []
    outputs: tuple[Tensor, ...] = (x,)
    while len(finals) < len(weights):
        x = drop(outputs[0], dropout) if finals and dropout else outputs[0]
        last = len(finals) + directions >= len(weights)
        run = partial(_run, recurrence, batch_sizes, last)
        inputs = [(x, initials[k], weights[k], k > len(finals)) for k in range(len(finals), len(finals) + directions)]
        sides = (run(*inputs[0]),) if directions == 1 else side_by_side(run, *inputs)
        finals += [final for _, final in sides]
        steps = [step for step, _ in sides]
        outputs = steps[0] if directions == 1 else tuple(torch.cat(pair, dim=-1) for pair in zip(*steps, strict=True))
    return outputs, tuple(torch.stack(s) for s in zip(*finals, strict=True))


def _run(recurrence: Callable, batch_sizes: Tensor | None, last: bool, *inputs: Any) -> Results:
    x, states, weights, reverse = inputs
    return recurrence(x, batch_sizes, states, weights, reverse=reverse, last=last)
