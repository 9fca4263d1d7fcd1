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
    states: Sequence[Any],
    weights: Sequence[Any],
    *,
    directions: int,
    dropout: float,
    every_layer: bool = False,
) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    """The outputs of the last layer, or of `every_layer`, and the final states.

    `recurrence(x, batch_sizes, states, weights, reverse=..., last=...)` runs one layer in one direction; `last` tells whether
    it is the last layer, whose outputs are the results.
    `states` and `weights` have one entry per layer and direction, forward before reverse, which the recurrence gets as it is;
    so have the final states. Layers need not be of the same size. The outputs have an entry per layer.
    `x` and `batch_sizes` are one of the layouts of `fastlstm.ops`; outputs have the leading dimensions of `x`, and features
    last, those of both directions one after the other. `dropout` acts between layers, not after the last.
    """
    finals: list[tuple[Tensor, ...]] = []
    outputs: list[tuple[Tensor, ...]] = []
    for k in range(0, len(weights), directions):
        if k:
            x = drop(outputs[-1][0], dropout) if dropout else outputs[-1][0]
        last = k + directions >= len(weights)
        if directions == 1:
            steps, final = recurrence(x, batch_sizes, states[k], weights[k], reverse=False, last=last)
            finals.append(final)
        else:
            run = partial(_run, recurrence, batch_sizes, last)
            sides = side_by_side(run, (x, states[k], weights[k], False), (x, states[k + 1], weights[k + 1], True))
            steps = tuple([torch.cat(pair, dim=-1) for pair in zip(*[step for step, _ in sides], strict=True)])
            finals += [final for _, final in sides]
        outputs = [*outputs, steps] if every_layer else [steps]
    return outputs, finals


def _run(recurrence: Callable, batch_sizes: Tensor | None, last: bool, *inputs: Any) -> Results:
    x, states, weights, reverse = inputs
    return recurrence(x, batch_sizes, states, weights, reverse=reverse, last=last)
