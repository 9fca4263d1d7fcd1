"""Two recurrences in flight at once on a GPU."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

_sides: set[int] = set()  # handles of the streams made here


def side_by_side(run: Callable[..., Any], first: tuple, second: tuple) -> tuple[Any, Any]:
    """`run(*first), run(*second)`; on a GPU the second runs on a stream of its own, which the current one then waits for.

    Autograd runs the backward of each where its forward ran. A graph that is being traced, or mapped, has one stream.
    """
    device = next(tensors(first)).device
    if device.type != "cuda" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return run(*first), run(*second)
    here = torch.cuda.current_stream(device)
    there = side_stream(here)
    # views made here: gradients of what both use are then summed here, after both backwards were launched
    second = mapped(second, lambda t: t.view_as(t) if t.requires_grad else t)
    for tensor in tensors(second):  # read there, by the backward too
        tensor.record_stream(there)
    there.wait_stream(here)
    results = run(*first)
    try:
        with torch.cuda.stream(there):
            others = run(*second)
    finally:
        here.wait_stream(there)
    for tensor in tensors(others):
        tensor.record_stream(here)
    return results, others


def hold(*given: Tensor | None) -> None:
    """Keep the memory of tensors from being used again before the current stream, if it is one of ours, is done with them."""
    if not _sides or not given or given[0] is None or not given[0].is_cuda:
        return
    current = torch.cuda.current_stream(given[0].device)
    if current.cuda_stream in _sides:
        for tensor in given:
            if tensor is not None and tensor.is_cuda:
                tensor.record_stream(current)


@cache
def side_stream(beside: torch.cuda.Stream) -> torch.cuda.Stream:
    """The stream beside another: each has its own, so that work on two streams stays independent."""
    stream = torch.cuda.Stream(beside.device, priority=beside.priority)
    _sides.add(stream.cuda_stream)
    return stream


def tensors(nested: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        yield from tensors(nested.values())
    elif isinstance(nested, Iterable):
        for part in nested:
            yield from tensors(part)


def mapped(nested: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting, as tuples and dicts, of f of the tensors."""
    if isinstance(nested, Tensor):
        return f(nested)
    if isinstance(nested, dict):
        return {key: mapped(value, f) for key, value in nested.items()}
    return tuple(mapped(part, f) for part in nested) if isinstance(nested, (tuple, list)) else nested
