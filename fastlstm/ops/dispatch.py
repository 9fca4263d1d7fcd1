"""How an op is called: with autograd or without, and what the reference does with half precision."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastlstm import backends


def differentiable(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a gradient may be asked for: by autograd, or by a transform of `torch.func`."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return True
    # `requires_grad` says nothing under a transform
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def apply(function: type[Function], *args: Any) -> tuple:
    """`function.apply`, which asks at every call what defaults arguments have: ours have none, and a cell takes no longer."""
    if torch.compiler.is_compiling():
        return function.apply(*_apart(args))
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    dead = torch._C._functorch.unwrap_if_dead  # a tensor that outlived the transform that it was made in
    return super(Function, function).apply(*[dead(a) if isinstance(a, Tensor) else a for a in args])  # type: ignore[misc]


def _apart(args: Sequence[Any]) -> list[Any]:
    """The same, none twice: PyTorch's compiler takes no Function of which two arguments are one tensor. Nor of one memory: see
    `sequences.each`."""
    found: list[Any] = []
    for a in args:
        found.append(a.clone() if isinstance(a, Tensor) and any(a is b for b in found) else a)
    return found


def by_reference(reference: Callable[..., tuple[Tensor, ...]], x: Tensor, *others: Any) -> Any:
    """What the reference returns; in float32 for half dtypes, as the arithmetic of every backend is."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        return reference(x, *others)
    wide = [t.float() if isinstance(t, Tensor) and t.is_floating_point() else t for t in others]
    return tuple(t.to(x.dtype) for t in reference(x.float(), *wide))


def saved_like(y: Tensor, units: int, slots: int, save: bool, projected: int = 0) -> Tensor:
    """An empty tensor like the one that a forward saves for its backward: a record for each row of `y`, or of x, and
    what `projected` is the width of."""
    rows = math.prod(y.shape[:-1])
    panel = backends.panel()
    shape = (rows if save else 0, (units + panel - 1) // panel * slots * panel + projected)
    return y.new_empty(shape, dtype=torch.float64 if y.dtype == torch.float64 else torch.float32)
