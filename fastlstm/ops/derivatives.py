"""Derivatives that no kernel has, through PyTorch's ops, which have all of them: the reference is run, and differentiated.

What is computed here can be differentiated again, in any mode and under any transform.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastlstm.ops.dispatch import by_reference


def beyond_kernels() -> bool:
    """Whether a call has to run the reference: under forward-mode AD, at any level, and where a transform is compiled.

    A `jvp` on the Functions would need another on their backward, and so on. What Dynamo makes of a Function has no second
    derivative, and a compiled `torch.func.grad` doesn't say whether one will be asked for: it would be zero.
    """
    if forward_ad._current_level >= 0:
        return True
    return torch._C._are_functorch_transforms_active() and torch.compiler.is_compiling()


def vjp(
    f: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients of `f(*inputs)`, a partial one of each input: an input that was computed from another is held as it is."""
    if torch._C._is_any_autocast_enabled():  # the backward of our ops knows nothing of it
        with torch.autocast(inputs[0].device.type, enabled=False):
            return vjp(f, inputs, cotangents)
    # Transforms forbid requires_grad_; in a plain call, they would cost each op more
    if torch._C._are_functorch_transforms_active():
        return torch.func.vjp(lambda *moved: tuple(f(*moved)), *inputs)[1](tuple(cotangents))
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        moved = [t.view_as(t) if t.requires_grad else t.view_as(t).requires_grad_() for t in inputs]
        reached = [(y, dy) for y, dy in zip(f(*moved), cotangents, strict=True) if y.requires_grad]
        if not reached:
            return tuple([torch.zeros_like(t) for t in inputs])
        y, dy = zip(*reached, strict=True)
        return torch.autograd.grad(y, moved, dy, create_graph=again, materialize_grads=True)


def gradients(
    reference: Callable[..., tuple[Tensor, ...]],
    upstream: Sequence[Tensor | None],
    arguments: Sequence[Any],
    asked: Sequence[int],
) -> tuple[Tensor, ...]:
    """The gradients of the reference's arguments at the places `asked`, from those of its results, None where there is none."""
    given = [k for k, d in enumerate(upstream) if d is not None]

    def f(*moved: Tensor) -> list[Tensor]:
        results = by_reference(reference, *_with(arguments, asked, moved))
        return [results[k] for k in given]

    return vjp(f, [arguments[k] for k in asked], [d for d in upstream if d is not None])


def gradients_of_gradients(
    reference: Callable[..., tuple[Tensor, ...]],
    upstream: Sequence[Tensor | None],
    arguments: Sequence[Any],
    cotangents: Sequence[Tensor | None],
    needed: Sequence[int],
) -> tuple[Tensor, ...]:
    """Those of upstream gradients and arguments, counted together, at the places `needed`.

    `cotangents` are the gradients of the arguments' gradients, None where there is none.
    """
    asked = [k for k, d in enumerate(cotangents) if d is not None]
    everything = [*upstream, *arguments]

    def f(*moved: Tensor) -> tuple[Tensor, ...]:
        now = _with(everything, needed, moved)
        return gradients(reference, now[: len(upstream)], now[len(upstream) :], asked)

    return vjp(f, [everything[k] for k in needed], [d for d in cotangents if d is not None])


def _with(arguments: Sequence[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    changed = list(arguments)
    for k, value in zip(places, values, strict=True):
        changed[k] = value
    return changed
