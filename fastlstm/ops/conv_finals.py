"""The final states of several layers and directions as one tensor of each, into which the CPU's kernels write them.

`torch.stack` would copy them: large maps, for which it takes all of PyTorch's threads, and waits where other processes have
their CPUs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """The place of a layer and direction in the final states of several, h and c."""

    wholes: tuple[Tensor, ...]
    k: int

    def parts(self) -> list[Tensor]:
        # detached: no views for autograd, whose history would be that of the whole
        return [whole[self.k].detach() for whole in self.wholes]


def places(like: Tensor, count: int, shape: Sequence[int], channels_last: bool) -> list[Place]:
    """Of `count` states (B, *S', H) each, which lie so, or with channels before *S' in memory."""
    B, *image, H = shape
    sizes = (count, B, *image, H) if channels_last else (count, B, H, *image)
    wholes = [like.new_empty(sizes) for _ in range(2)]
    if not channels_last:
        wholes = [whole.movedim(2, -1) for whole in wholes]
    return [Place(tuple(wholes), k) for k in range(count)]


def joined(places: Sequence[Place], states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """h and c of all, from those of each, which are there already."""
    wholes = places[0].wholes
    return [Joined.apply((whole,), *parts) for whole, parts in zip(wholes, zip(*states, strict=True), strict=True)]


class Joined(torch.autograd.Function):
    """A tensor, in a tuple as it is none of what it is made from: its parts, which it holds."""

    @staticmethod
    def forward(whole: tuple[Tensor], *parts: Tensor) -> Tensor:
        return whole[0].detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return None, *grad.unbind(0)
