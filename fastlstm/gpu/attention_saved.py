"""What the loop of an LSTM that attends keeps on a GPU, in one tensor of bytes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm.gpu.arrays import Block


class Kept(NamedTuple):
    """Arrays of N = T * B rows."""

    cells: list[Tensor]  # (N, H) float32, of each layer
    gates: list[Tensor]  # (N, G*H)
    hidden: list[Tensor]  # (N, H)
    query: Tensor  # (N, A), where it is a product
    scores: Tensor  # (N, S) float32
    sums: Tensor  # (N, 2) float32: their maximum and the sum of exponentials
    context: Tensor  # (N, M) float32
    outputs: Tensor  # (N, H): before what is dropped, where there is a W_out


class Widths(NamedTuple):
    """The columns of each array, 0 where it isn't there; they may be symbolic."""

    layers: int
    cells: int
    gates: int
    hidden: int
    query: int
    scores: int
    context: int
    outputs: int

    def block(self, N: int, dtype: torch.dtype) -> Block:
        L, wide = self.layers, torch.float32
        columns = [*[self.cells] * L, *[self.gates] * L, *[self.hidden] * L]
        columns += [self.query, self.scores, 2, self.context, self.outputs]
        return Block(N, columns, [*[wide] * L, *[dtype] * (2 * L + 1), wide, wide, wide, dtype])

    def split(self, N: int, dtype: torch.dtype, saved: Tensor) -> Kept:
        L, parts = self.layers, self.block(N, dtype).split(saved)
        return Kept(parts[:L], parts[L : 2 * L], parts[2 * L : 3 * L], *parts[3 * L :])


def widths(
    h0: Tensor, memory: Tensor, w_hh: Tensor, w_query: Tensor | None, w_out: Tensor | None, *, save: bool, scores: bool
) -> Widths:
    """What a forward needs, or where it saves it for its backward all there is."""
    L, H = h0.shape[0], h0.shape[2]
    query = 0 if w_query is None else w_query.shape[0]
    S, M = memory.shape[0], memory.shape[2]
    return Widths(
        L, H * save, w_hh.shape[1], H, query * save, S * (save or scores), M, H * (save and w_out is not None)
    )


def saved_like(
    x: Tensor, h0: Tensor, memory: Tensor, w_hh: Tensor, w_query: Tensor | None, w_out: Tensor | None, save: bool
) -> Tensor:
    """An empty tensor like the one that a forward saves for its backward; sizes may be symbolic."""
    block = widths(h0, memory, w_hh, w_query, w_out, save=True, scores=True).block(math.prod(x.shape[:2]), x.dtype)
    return x.new_empty(block.size if save else 0, dtype=torch.uint8)
