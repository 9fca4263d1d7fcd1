"""What a stream is given: a batch of one step or of several, and which of its rows."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastlstm.checks.conv_options import is_int
from fastlstm.checks.input import check_strided
from fastlstm.checks.weights import check_alike


def check_steps_of_stream(x: Any, shape: tuple[int, ...], sizes: str, like: Tensor) -> Tensor:
    """`x` as the loop reads it, contiguous. `shape` has -1 where any size is right; `like`: its dtype, its device."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is of type {type(x).__name__}, expected a Tensor {sizes}")
    check_strided("x", x, "its features are read as dense rows", "a batch of one length")
    if x.dim() != len(shape) or any(n not in (-1, m) for n, m in zip(shape, x.shape, strict=True)):
        expected = tuple("any" if n == -1 else n for n in shape)
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected {str(expected).replace(chr(39), '')}: {sizes}, of the stream's batch_size "
            "and the module's input_size"
        )
    check_alike(x, like)
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "x requires a gradient, and a stream gives none, it is for inference: call the module, or step in torch.no_grad()"
        )
    return x.detach().resolve_neg().contiguous()


def check_rows(rows: Any, B: int) -> list[int]:
    """The rows of a batch of `B` that are meant by None (all), a bool tensor (B,), or integers."""
    if rows is None:
        return list(range(B))
    if isinstance(rows, Tensor) and rows.dtype == torch.bool:
        if rows.shape != (B,):
            raise ValueError(
                f"rows has shape {tuple(rows.shape)}, expected {(B,)}: a bool for each sequence of the stream"
            )
        return rows.nonzero().flatten().tolist()
    numbers = rows.tolist() if isinstance(rows, Tensor) and rows.dim() == 1 else rows
    if isinstance(numbers, (str, bytes, Tensor)) or not isinstance(numbers, Iterable):
        raise TypeError(f"rows is of type {type(rows).__name__}, expected None, integers, or a bool Tensor {(B,)}")
    found = list(numbers)
    for b in found:
        if not is_int(b):
            raise TypeError(f"rows holds {b!r}, expected integers, or a bool Tensor {(B,)}")
        if not 0 <= b < B:
            raise IndexError(f"rows holds {b}, expected values from 0 to {B - 1}: the stream's batch_size is {B}")
    return found
