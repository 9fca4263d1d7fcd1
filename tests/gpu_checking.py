"""What checks that need a GPU are made of: modules and batches on it, their results, and what is demanded of these."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

import fastlstm
from fastlstm.gpu import launch, plan
from fastlstm.gpu.loop import forms
from fastlstm.parity import difference

I, H, T, B = 64, 128, 24, 16
KINDS, FORMS = ("LSTM", "GRU"), ("resident", "steps")
Run = Callable[..., tuple]


class Skip(Exception):
    """There is nothing to check here; the message says why."""


def module(kind: str, I: int = I, H: int = H, dtype: torch.dtype = torch.bfloat16, **options) -> nn.RNNBase:
    """A module of ours on the GPU; the same weights at every call."""
    torch.manual_seed(0)
    return getattr(fastlstm, kind)(I, H, dtype=dtype, device="cuda", **({"backend": "triton"} | options))


def twin(kind: str, ours: nn.RNNBase, dtype: torch.dtype) -> nn.RNNBase:
    """PyTorch's module of the same weights."""
    theirs = getattr(nn, kind)(ours.input_size, ours.hidden_size, dtype=dtype, device="cuda")
    theirs.load_state_dict(ours.state_dict())
    return theirs


def batch(*shape: int, seed: int = 1, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(shape or (T, B, I), dtype=dtype, device="cuda", requires_grad=True)


def infer(run: Run, x: Tensor, **given) -> list[Tensor]:
    """The outputs: y and the final states."""
    with torch.no_grad():
        y, finals = run(x, **given)
    return [y, *(finals if isinstance(finals, tuple) else [finals])]


def train(run: Run, x: Tensor, weights: nn.Module | None = None, **given) -> list[Tensor]:
    """The outputs, and the gradients of x and of the weights of `run`, if that is a module."""
    y, finals = run(x, **given)
    outputs = [y, *(finals if isinstance(finals, tuple) else [finals])]
    goal = sum(t.double().sin().sum() for t in outputs)
    wanted = [x, *(weights or run).parameters()]
    return [*(t.detach() for t in outputs), *torch.autograd.grad(goal, wanted)]


def same(results: list[Tensor], expected: list[Tensor]) -> None:
    """Bit by bit."""
    for k, (one, other) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(one, other), f"result {k} differs by {difference(one, other):.1e}"


def close(results: list[Tensor], expected: list[Tensor]) -> None:
    """To a few roundings, for sums that are taken in another order."""
    for k, (one, other) in enumerate(zip(results, expected, strict=True)):
        error, allowed = difference(one, other), 4 * torch.finfo(one.dtype).eps
        assert error <= allowed, f"result {k} differs by {error:.1e}, allowed is {allowed:.1e}"


def as_exact(results: list[Tensor], peers: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    """The rule of `fastlstm.parity`: twice the error of PyTorch's module, plus one rounding."""
    for k, (one, peer, oracle) in enumerate(zip(results, peers, exact, strict=True)):
        error, allowed = difference(one, oracle), 2 * difference(peer, oracle) + torch.finfo(dtype).eps
        assert error <= allowed, f"the error of result {k} is {error:.1e}, allowed is {allowed:.1e}"


@contextmanager
def refused(kind: type[Exception], words: str) -> Iterator[None]:
    """What is inside raises such an exception, which says so."""
    try:
        yield
    except kind as error:
        if words not in str(error):
            raise AssertionError(f"the error does not say {words!r}") from error
    else:
        raise AssertionError(f"no {kind.__name__} was raised")


@contextmanager
def form(name: str) -> Iterator[None]:
    """All loops inside are one resident launch ("resident"), or a launch per step ("steps")."""
    wanted, seen, run = name == "resident", [], launch.run

    def noted(*args, resident: bool) -> bool:
        seen.append(resident)
        return run(*args, resident=resident)

    forms.cache_clear()
    with patch.object(plan, "resident", lambda *_: wanted), patch.object(launch, "run", noted):
        yield
    forms.cache_clear()
    assert seen, "no loop was launched"
    assert set(seen) == {wanted}, f"not every loop ran in the form {name!r}"
