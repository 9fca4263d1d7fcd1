"""What is run: the input, where its sequences end, where they are cut, and dropout."""

from collections.abc import Mapping, Sequence, Set
from numbers import Real
from reprlib import repr as short_repr
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def check_input(x: Tensor, packed: bool, name: str) -> None:
    """`x` is the input, or the data of the packed input: its type, dimensions and layout."""
    if not isinstance(x, Tensor):
        raise TypeError(f"input is of type {type(x).__name__}, expected a Tensor or a PackedSequence")
    check_strided("input", x, "the steps are read as dense rows")
    if packed and x.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}: packed data is (sum of lengths, input_size)")
    if x.dim() not in (2, 3):
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {x.dim()}D instead")


def check_strided(name: str, t: Tensor, read: str, lengths: str = "lengths=") -> None:
    """A dense tensor; `read` says why."""
    if t.is_nested:
        raise RuntimeError(
            f"{name} is a nested tensor, expected a padded one, which torch.nested.to_padded_tensor({name}, 0.0) makes, and "
            f"its sizes as {lengths}: {read}"
        )
    if t.layout is not torch.strided:
        raise RuntimeError(f"{name} has layout {t.layout}, expected torch.strided: {read}")


def check_steps(T: int) -> None:
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def check_packed(packed: PackedSequence) -> None:
    """The steps of a packed input are consistent: only hand-made ones are not."""
    N, batch_sizes, order = packed.data.shape[0], packed.batch_sizes, packed.sorted_indices
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
        raise ValueError(
            f"batch_sizes has dtype {batch_sizes.dtype} and shape {tuple(batch_sizes.shape)}, "
            "expected torch.int64 and (T,): the number of sequences at each step"
        )
    check_steps(len(batch_sizes))
    if torch.compiler.is_compiling():
        return
    sizes = batch_sizes.tolist()
    if sizes[-1] < 0 or sizes != sorted(sizes, reverse=True):
        raise ValueError(f"batch_sizes is {_short(sizes)}, expected not to increase: the longest sequences come first")
    if sum(sizes) != N:
        raise ValueError(f"batch_sizes sums to {sum(sizes)}, expected {N}: the rows of the packed data")
    if order is not None and order.shape != (sizes[0],):
        raise ValueError(
            f"sorted_indices has shape {tuple(order.shape)}, expected {(sizes[0],)}: one index for each sequence"
        )


def check_lengths(
    lengths: Tensor | Sequence[int],
    T: int,
    B: int,
    name: str = "lengths",
    counts: str = "time steps",
    of: str = "input",
) -> Tensor:
    """`lengths` as an int64 tensor on the CPU."""
    lengths = lengths_tensor(name, lengths, counts)
    if lengths.shape != (B,):
        raise ValueError(
            f"{name} has shape {tuple(lengths.shape)}, expected {(B,)}: one length for each sequence of the batch"
        )
    if B and (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool):
        raise TypeError(f"{name} has dtype {lengths.dtype}, expected integers: each is a number of {counts}")
    if lengths.is_meta:
        raise ValueError(f"{name} is on the device meta, expected one that holds values: they say where sequences end")
    lengths = lengths.to("cpu", torch.int64)
    if not torch.compiler.is_compiling():
        for n in numbers(lengths):
            if not 0 <= n <= T:
                raise ValueError(f"{name} holds {n}, expected values from 0 to {T}: the number of {counts} of {of}")
    return lengths


def numbers(lengths: Tensor) -> list[int]:
    """All of them, those of every element where a transform of `torch.func` maps them."""
    while torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        lengths = torch._C._functorch.get_unwrapped(lengths)
    return lengths.flatten().tolist()


def lengths_tensor(name: str, lengths: Any, counts: str) -> Tensor:
    """What was given as lengths, as a tensor."""
    if isinstance(lengths, Tensor):
        return lengths
    try:
        if isinstance(lengths, (str, bytes, Mapping, Set)):
            raise TypeError
        return torch.as_tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} is {short_repr(lengths)}, expected a Tensor or a list of integers: each is a number of {counts}"
        ) from None


def check_no_lengths(lengths: object, why: str) -> None:
    if lengths is not None:
        raise ValueError(f"lengths is given, expected None: {why}")


def check_reset(reset: Tensor, T: int, B: int | None, batch_first: bool, x: Tensor) -> None:
    """B is None for an unbatched input, `x`."""
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset is of type {type(reset).__name__}, expected a Tensor of bool")
    shape = (T,) if B is None else (B, T) if batch_first else (T, B)
    if reset.shape != shape:
        raise ValueError(f"reset has shape {tuple(reset.shape)}, expected {shape}: the steps and the batch of input")
    if reset.dtype != torch.bool:
        raise TypeError(
            f"reset has dtype {reset.dtype}, expected torch.bool: it tells before which steps the state is zeroed"
        )
    if reset.is_meta and not x.is_meta:
        raise ValueError(f"reset is on the device meta, expected one that holds values, as {x.device}, that of input")


def check_dropout(dropout: float, name: str = "dropout") -> None:
    if not isinstance(dropout, Real) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of an element being zeroed, "
            f"got {dropout!r}"
        )


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 12 else f"{str(values[:12])[:-1]}, ...]"
