"""Stacked x bidirectional x variable length, written once, over any recurrence."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop


def stack(
    recurrence: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Sequence[Tensor | None]],
    *,
    directions: int,
    dropout: float,
) -> tuple[Tensor, ...]:
    """The last layer's outputs, then the final states of all layers: `(y, *finals)`.

    `recurrence(x, batch_sizes, *states, *weights, reverse=...)` runs one layer in one direction and returns `(y, *finals)`.
    Sizes: T time, B batch, L layers, D directions, R the features of one recurrence's output.
    `x` and `batch_sizes` are one of the layouts of `fastlstm.ops`: dense, packed or padded; `y` has the leading dimensions
    of `x` and D * R features. Each of `states` and `finals` is (L * D, B, *), layer by layer, forward before reverse;
    `weights` has one entry per layer and direction in the same order. `dropout` acts between layers, not after the last.
    """
    initials = list(zip(*[s.unbind(0) for s in states], strict=True))
    finals: list[Sequence[Tensor]] = []
    while len(finals) < len(weights):
        if finals and dropout:
            x = drop(x, dropout)
        outputs = []
        for reverse in (False, True)[:directions]:
            k = len(finals)
            y, *final = recurrence(x, batch_sizes, *initials[k], *weights[k], reverse=reverse)
            outputs.append(y)
            finals.append(final)
        x = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    return x, *[torch.stack(s) for s in zip(*finals, strict=True)]
