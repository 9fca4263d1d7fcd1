"""`torch.vmap` over an op that has no batch dimension to spare: one call per element, results stacked."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def vmap_by_loop(op: Callable, info: Any, in_dims: tuple, args: tuple) -> tuple[tuple, tuple]:
    """The vmap rule of `op`, for any combination of mapped arguments (per-sample gradients, ensembles of weights)."""
    if info.batch_size == 0:
        raise ValueError(
            "vmap over a dimension of size 0, expected at least 1: results take their shapes from the calls"
        )
    calls = []
    for i in range(info.batch_size):
        # of a list of numbers, in_dims has a list
        picked = [
            a.select(d, i) if isinstance(a, Tensor) and d is not None else a for a, d in zip(args, in_dims, strict=True)
        ]
        calls.append(op(*picked))
    return tuple(torch.stack(results) for results in zip(*calls, strict=True)), (0,) * len(calls[0])
