"""Second derivatives by kernels, a forward and a backward over dual numbers, held to those of PyTorch's ops."""

import pytest
import torch
from helpers import VARIANTS, as_hx, as_list, assert_same, module, random, random_states
from torch import Tensor, nn

from fastlstm import backends
from fastlstm.ops import pair

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(backends.extension_status() != "built", reason="the kernels need the C++ extension"),
]
T, B, I = 5, 4, 3
USES: dict[str, tuple[dict, dict]] = {
    "dense": ({}, {}),
    "layers, directions": ({"num_layers": 2, "bidirectional": True, "bias": False}, {}),
    "lengths, resets": (
        {"bidirectional": True, "batch_first": True},
        {"lengths": torch.tensor([2, 5, 0, 3]), "reset": torch.arange(B * T).view(B, T) % 3 == 1},
    ),
    "projection": ({"proj_size": 2}, {"lengths": torch.tensor([5, 5, 1, 2])}),
    "cells": ({}, {"return_cells": True}),
}
CASES = [(v, use) for v in VARIANTS for use in USES if v != "gru" or use not in ("projection", "cells")]


def results(ours: nn.Module, x: Tensor, states: list[Tensor], options: dict) -> list[Tensor]:
    y, finals, *more = ours(x, as_hx(states), **options)
    return [y, *as_list(finals), *more]


def gradients_of_inputs(ours: nn.Module, given: list[Tensor], options: dict) -> tuple[list[Tensor], list[Tensor]]:
    """With a graph, and what came from above."""
    x, *states = given
    found = results(ours, x, states, options)
    torch.manual_seed(5)
    upstream = [torch.randn_like(t).requires_grad_() for t in found]
    return list(torch.autograd.grad(found, given, upstream, create_graph=True)), upstream


@pytest.fixture
def no_ops(monkeypatch: pytest.MonkeyPatch):
    """PyTorch's ops are not to be run."""

    def refuse(*args: object) -> None:
        raise AssertionError("PyTorch's ops ran")

    return lambda: monkeypatch.setattr(pair, "gradients_of_gradients", refuse)


@pytest.mark.parametrize("H", [3, 17, 32])
@pytest.mark.parametrize(("variant", "use"), CASES)
def test_of_all_arguments(variant: str, use: str, H: int, no_ops) -> None:
    made, options = USES[use]
    ours = module(variant, I, H, **made)
    x = random(*((B, T) if ours.batch_first else (T, B)), I)
    given = [t.requires_grad_() for t in (x, *random_states(ours, B))]
    first, upstream = gradients_of_inputs(ours, given, options)
    goal = sum(d.sin().sum() for d in first)
    wanted = [*given, *upstream, *ours.parameters()]
    want = torch.autograd.grad(goal, wanted, create_graph=True, materialize_grads=True)
    no_ops()
    found = torch.autograd.grad(goal, wanted, retain_graph=True, materialize_grads=True)
    assert_same(found, want)
    for k in (0, len(given), len(wanted) - 1):  # and where one alone is wanted
        (alone,) = torch.autograd.grad(goal, wanted[k : k + 1], retain_graph=True, materialize_grads=True)
        assert torch.equal(alone, found[k])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, 5), (40, 13)])
def test_the_same_bits_for_any_number_of_threads(variant: str, steps: int, batch: int, no_ops) -> None:
    """Rows are shared among threads and tiles, and pairs of them are not parted; some sequences are shorter."""
    ours = module(variant, I, 40).float()
    lengths = (steps - torch.arange(batch) % 5).clamp(min=0)
    x = torch.randn(steps, batch, I)
    found = []
    no_ops()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        states = [torch.zeros(1, batch, 40) for _ in range(VARIANTS[variant].states)]
        given = [t.clone().requires_grad_() for t in (x, *states)]
        first, upstream = gradients_of_inputs(ours, given, {"lengths": lengths})
        found.append(torch.autograd.grad(sum(d.sin().sum() for d in first), [*given, *upstream, *ours.parameters()]))
    torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_as_exact_as_pytorch_s_ops(variant: str) -> None:
    """Beside float64, twice their error and a rounding, as parity allows."""
    exact, ours = module(variant, I, 24), module(variant, I, 24).float()
    ours.load_state_dict(exact.state_dict())
    exact.load_state_dict(ours.state_dict())
    x = torch.randn(20, B, I)
    found = {}
    for name, run, graph in (("exact", exact, True), ("ops", ours, True), ("ours", ours, False)):
        given = x.to(run.weight_ih_l0.dtype).requires_grad_()
        (dx,) = torch.autograd.grad(run(given)[0].sin().sum(), given, create_graph=True)
        found[name] = torch.autograd.grad(dx.square().sum(), list(run.parameters()), create_graph=graph)
    for got, ops, want in zip(found["ours"], found["ops"], found["exact"], strict=True):
        allowed = 2 * (ops - want).norm() / want.norm() + torch.finfo(torch.float32).eps
        assert (got - want).norm() / want.norm() <= allowed


def test_gradients_of_weights_that_are_differentiated_take_pytorch_s_ops() -> None:
    """A gradient of W moves W, which no row does."""
    ours, x = module("lstm", I, 3), random(T, B, I)
    first = torch.autograd.grad(ours(x)[0].sum(), list(ours.parameters()), create_graph=True)
    assert torch.autograd.grad(first[0].sum(), ours.weight_hh_l0)[0].any()


def test_an_odd_number_of_rows_is_refused() -> None:
    x, h, w_ih, w_hh = torch.randn(2, 3, 4), torch.randn(3, 5), torch.randn(20, 4), torch.randn(20, 5)
    run = torch.ops.fastlstm.pairs_bwd
    for given, message in (
        ((x, None, None, h, h), "a row has no other beside it"),
        ((x.half(), None, None, h.half(), h.half()), "a row has no other|dtype must be float32 or float64"),
        ((torch.randn(2, 4, 4), None, None, torch.randn(4, 5), h), "c0 has shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(*[None] * 4, *given, w_ih, w_hh, *[None] * 2, *[False] * 6)
