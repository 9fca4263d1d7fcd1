"""`torch.vmap` over an op: what is mapped becomes rows of its batch, in one call; where weights are mapped, an
op that takes all elements, or a call per element.

Rows are taken sequence by sequence, and of each all elements: sequences of one length stay side by side, in falling order, and
rows of packed data stay packed. Where lengths are mapped they are sorted once more.

What a forward saves is its own business, and not mapped: its rows are those of the whole batch. The backward tells by what else
is mapped that it was so. The gradients of weights are each element's own: see `per_sample`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from fastlstm.ops.dispatch import differentiable

# The dimension of the batch of an LSTM's and a GRU's arguments and results, in any of their layouts
ROWS = {"x": -2, "reset": -1, "h0": 0, "c0": 0, "y": -2, "h_n": 0, "c_n": 0, "cells": -2}


def vmap_by_loop(op: Callable, info: Any, in_dims: tuple, args: tuple) -> tuple[tuple, tuple]:
    """The vmap rule of `op`, for any combination of mapped arguments (ensembles of weights): results stacked."""
    n = count(info)
    first = op(*element(args, in_dims, 0))
    if any(t.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(t) for t in first):
        calls = [first, *[op(*element(args, in_dims, i)) for i in range(1, n)]]
        return tuple(torch.stack(results) for results in zip(*calls, strict=True)), (0,) * len(first)
    # each is copied while it is in the cache, and its memory serves the next
    found = tuple([t.new_empty(n, *t.shape) for t in first])
    for i in range(n):
        for whole, one in zip(found, first if i == 0 else op(*element(args, in_dims, i)), strict=True):
            whole[i] = one
    return found, (0,) * len(found)


def of_values(args: Sequence[Any]) -> bool:
    """Whether nothing else is asked of these arguments than the results: no graph, no other level; and C++ can read them."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    return not differentiable(tuple(tensors)) and all(
        type(t) in (Tensor, Parameter) and t.device.type == "cpu" and not torch._C._functorch.is_legacy_batchedtensor(t)
        for t in tensors
    )


def vmap_by_op(each: Callable, info: Any, in_dims: Sequence[Any], args: Sequence[Any]) -> tuple[tuple, tuple]:
    """The same by the op that takes all elements, one by one or several beside each other (`csrc/ops/each.h`)."""
    dims = [-1 if d is None or a is None else d for a, d in zip(args, in_dims, strict=True)]
    results = each(*args, count(info), dims)
    return tuple(results), (0,) * len(results)


def count(info: Any) -> int:
    if info.batch_size == 0:
        raise ValueError(
            "vmap over a dimension of size 0, expected at least 1: results take their shapes from the calls"
        )
    return info.batch_size


def element(args: Sequence[Any], in_dims: Sequence[Any], i: int) -> list[Any]:
    """The arguments of one call. (Of a list of numbers, `in_dims` has a list.)"""
    return [
        a.select(d, i) if isinstance(a, Tensor) and d is not None else a for a, d in zip(args, in_dims, strict=True)
    ]


class Given(NamedTuple):
    """Arguments by their names, and where they are mapped; `rows` has the dimension of the batch of those that have one."""

    args: Mapping[str, Any]
    dims: Mapping[str, int | None]
    rows: Mapping[str, int]

    @classmethod
    def of(cls, names: Sequence[str], args: Sequence[Any], in_dims: Sequence[Any], rows: Mapping[str, int]) -> "Given":
        dims = [d if isinstance(a, Tensor) else None for a, d in zip(args, in_dims, strict=True)]
        return cls(dict(zip(names, args, strict=True)), dict(zip(names, dims, strict=True)), rows)

    def packed(self) -> bool:
        return self.args["x"].dim() - (self.dims["x"] is not None) == 2

    def mapped(self, names: Sequence[str]) -> bool:
        return any(self.dims.get(name) is not None for name in names)


class Folded:
    """Rows of one batch, made of N elements and their B sequences each: `fold` and `unfold` lead there and back."""

    def __init__(self, given: Given, N: int) -> None:
        self.given, self.N = given, N
        self.order = self.restore = self.sizes = None
        sizes, dim = given.args.get("batch_sizes"), given.dims.get("batch_sizes")
        if sizes is None:
            return
        if dim is None:
            self.sizes = sizes * N
            return
        self.sizes = sizes.sum(dim)
        h0, h0_dim = given.args["h0"], given.dims["h0"]
        B = (h0 if h0_dim is None else h0.select(h0_dim, 0)).shape[given.rows["h0"]]
        lengths = (sizes.movedim(dim, -1) > torch.arange(B, device="cpu")[:, None, None]).sum(1)  # (B, N)
        self.order = lengths.flatten().argsort(descending=True, stable=True)
        self.restore = self.order.argsort()

    def arguments(self, names: Sequence[str]) -> list[Any]:
        return [self.sizes if name == "batch_sizes" else self.fold(name, self.given.args[name]) for name in names]

    def fold(self, name: str, tensor: Any) -> Any:
        """An argument, or the gradient of a result by its name d..., as rows; what has no rows stays."""
        row, dim = self.row(name), self.given.dims[name]
        if row is None or tensor is None:
            return tensor
        rank = tensor.dim() - (dim is not None)
        at = row % rank + 1
        wide = (
            tensor.movedim(dim, at)
            if dim is not None
            else tensor.unsqueeze(at).expand(*[-1] * at, self.N, *[-1] * (rank - at))
        )
        rows = wide.flatten(at - 1, at)
        if name == "reset":  # of one sequence each it is a view
            rows = rows.contiguous()
        return rows if self.order is None else rows.index_select(at - 1, self.order.to(rows.device))

    def unfold(self, name: str, result: Tensor) -> tuple[Tensor, int | None]:
        """A result, or the gradient of an argument by its name d..., and where it is mapped; not where it is empty."""
        row = self.row(name)
        if row is None or result.dim() < 2:
            return result, None
        at = row % result.dim()
        if self.restore is not None:
            result = result.index_select(at, self.restore.to(result.device))
        return result.unflatten(at, (result.shape[at] // self.N, self.N)), at + 1

    def unfold_all(self, names: Sequence[str], results: Sequence[Tensor]) -> tuple[tuple, tuple]:
        found = [self.unfold(name, result) for name, result in zip(names, results, strict=True)]
        return tuple([t for t, _ in found]), tuple([d for _, d in found])

    def row(self, name: str) -> int | None:
        rows = self.given.rows
        return rows.get(name, rows.get(name[1:]) if name.startswith("d") else None)
