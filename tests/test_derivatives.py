"""Derivatives beyond the first, and forward mode: the reference's, and PyTorch's, of every variant in every use."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers import (
    IN_PYTORCH,
    WITH_CELLS,
    as_hx,
    as_list,
    assert_same,
    each_variant,
    module,
    pair,
    random,
    random_states,
)
from torch import Tensor, nn
from torch.autograd import forward_ad, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

import fastlstm

I, H, T, B = 2, 3, 3, 2
CELLS = {
    "lstm": fastlstm.LSTMCell,
    "gru": fastlstm.GRUCell,
    "peephole_lstm": fastlstm.PeepholeLSTMCell,
    "cifg_lstm": fastlstm.CIFGLSTMCell,
    "cifg_peephole_lstm": partial(fastlstm.CIFGLSTMCell, peephole=True),
}
# torch.jit.script, which PyTorch's forward mode uses itself, is deprecated
deprecated = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
BOTH = pytest.mark.parametrize("kind", ["LSTM", "GRU"])

# options of the module; lengths; resets
USES: dict[str, tuple[dict, list[int] | None, bool]] = {
    "dense": ({}, None, False),
    "no bias, one layer": ({"bias": False}, None, False),
    "two layers, two directions": ({"num_layers": 2, "bidirectional": True}, None, False),
    "resets": ({}, None, True),
    "resets and lengths": ({"bidirectional": True}, [2, 3], True),
    "projection": ({"proj_size": 2}, [2, 3], False),
}
CASES = {
    f"{variant}, {name}": (variant, *use)
    for variant in ["lstm", "gru", "peephole_lstm", "cifg_lstm", "cifg_peephole_lstm"]
    for name, use in USES.items()
    if variant != "gru" or "proj_size" not in use[0]
}
each_use = pytest.mark.parametrize(("variant", "options", "lengths", "resets"), CASES.values(), ids=CASES)


def function(ours: nn.Module, lengths: list[int] | None, resets: bool, packed: bool = False) -> Callable[..., tuple]:
    """A module as a function of input, states and weights, which yields all of its results."""
    names, n = [name for name, _ in ours.named_parameters()], 1 if ours.mode == "GRU" else 2
    reset = torch.tensor([[False, True], [True, False], [False, True]]) if resets else None
    cells = {"return_cells": True} if n == 2 else {}

    def f(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        hx, weights = as_hx(rest[:n]), dict(zip(names, rest[n:], strict=True))
        if packed:
            x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]))
        y, finals, *more = functional_call(ours, weights, (x, hx), {"lengths": lengths, "reset": reset} | cells)
        steps = [t.data if packed else t for t in (y, *more)]
        return (*steps, *as_list(finals))

    return f


def leaves(ours: nn.Module) -> list[Tensor]:
    given = random(T, B, I), *random_states(ours, B), *[p.detach() for p in ours.parameters()]
    return [t.clone().requires_grad_() for t in given]


def second(f: Callable[..., tuple], given: list[Tensor]) -> list[Tensor]:
    """Gradients, gradients of a function of them, and of those once more."""
    torch.manual_seed(4)
    results = f(*given)
    upstream = [random(*t.shape).requires_grad_() for t in results]
    first = torch.autograd.grad(results, given, upstream, create_graph=True)
    goal = sum(d.sin().sum() for d in first)
    again = torch.autograd.grad(goal, [*given, *upstream], create_graph=True)
    return [*first, *again, *torch.autograd.grad(sum(d.square().sum() for d in again), [*given, *upstream])]


@each_use
def test_second_and_third_derivatives_are_the_reference_s(variant, options, lengths, resets):
    found = []
    for backend in ("numba", "reference"):
        torch.manual_seed(1)
        ours = module(variant, I, H, backend=backend, **options)
        found.append(second(function(ours, lengths, resets), leaves(ours)))
    assert_same(*found)


@each_use
def test_gradgradcheck(variant, options, lengths, resets):
    ours = module(variant, I, H, backend="numba", **options)
    assert gradgradcheck(function(ours, lengths, resets), leaves(ours), fast_mode=True)


@each_variant
def test_gradgradcheck_packed(variant):
    ours = module(variant, I, H, bidirectional=True, backend="numba")
    assert gradgradcheck(function(ours, None, False, packed=True), leaves(ours), fast_mode=True)


@deprecated
@each_use
def test_forward_mode_is_the_reference_s(variant, options, lengths, resets):
    found = []
    for backend in ("numba", "reference"):
        torch.manual_seed(1)
        ours = module(variant, I, H, backend=backend, **options)
        given = tuple(t.detach() for t in leaves(ours))
        found.append(jvp(function(ours, lengths, resets), given, tuple(t.cos() for t in given)))
    assert_same(*found)


def total(ours: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: sum(t.sin().sum() for t in (ours(x)[0], *as_list(ours(x)[1])))


def by_dual_numbers(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent


def forward_over_reverse(f, x):
    """The graph is made before there are dual numbers."""
    x = x.clone().requires_grad_()
    y = f(x)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(y), torch.full_like(y, 0.3))
        return forward_ad.unpack_dual(torch.autograd.grad(y, x, upstream)[0]).tangent


def vector_jacobian(f, x):
    """As `hessian(vectorize=True)` does: the gradient of a gradient, mapped."""
    x = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(f(x), x, create_graph=True)
    every = torch.eye(x.numel(), dtype=x.dtype).view(x.numel(), *x.shape)
    return torch.autograd.grad(dx, x, every, is_grads_batched=True)[0]


functional = torch.autograd.functional
# a scalar function of x, differentiated
WAYS = {
    "hessian": lambda f, x: hessian(f)(x),
    "jacrev of jacrev": lambda f, x: jacrev(jacrev(f))(x),
    "jacfwd of jacfwd": lambda f, x: jacfwd(jacfwd(f))(x),
    "jacrev of jacfwd": lambda f, x: jacrev(jacfwd(f))(x),
    "jvp of grad": lambda f, x: jvp(grad(f), (x,), (x.cos(),))[1],
    "grad of grad": lambda f, x: grad(lambda x: grad(f)(x).square().sum())(x),
    "vmap of a penalty's grad": lambda f, x: vmap(grad(lambda x: grad(f)(x).square().sum()))(torch.stack([x, x.cos()])),
    "autograd's hessian": lambda f, x: functional.hessian(f, x),
    "autograd's hessian, mapped": lambda f, x: functional.hessian(f, x, vectorize=True),
    "autograd's hessian, forward mode": lambda f, x: functional.hessian(
        f, x, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "autograd's jvp": lambda f, x: functional.jvp(f, x, x.cos())[1],
    "is_grads_batched": vector_jacobian,
    "dual numbers": by_dual_numbers,
    "dual numbers of a graph": forward_over_reverse,
}


@deprecated
@each_variant
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_to_a_derivative(variant, way):
    ours, oracle = (module(variant, I, H, bidirectional=True, backend=name) for name in ("auto", "reference"))
    oracle.load_state_dict(ours.state_dict())
    x = random(T, B, I)
    assert_same(way(total(ours), x), way(total(oracle), x))


@deprecated
@each_variant
def test_cells(variant):
    ours, oracle = (CELLS[variant](I, H, dtype=torch.float64, backend=name) for name in ("numba", "reference"))
    oracle.load_state_dict(ours.state_dict())
    given = [
        t.requires_grad_() for t in (random(B, I), *[random(B, H) for _ in range(2 if variant in WITH_CELLS else 1)])
    ]

    def f(cell: nn.Module) -> Callable[..., tuple]:
        return lambda x, *hx: tuple(as_list(cell(x, as_hx(hx))))

    assert gradgradcheck(f(ours), given)
    x, *hx = (t.detach() for t in given)

    def all_of(cell: nn.Module) -> list[Tensor]:
        whole = hessian(lambda x: sum(t.sin().sum() for t in f(cell)(x, *hx)))(x)
        return [*second(f(cell), given), *jvp(f(cell), (x, *hx), (x, *hx))[1], whole]

    assert_same(all_of(ours), all_of(oracle))


def penalised(critic: nn.Module, fake: Tensor, real: Tensor) -> Tensor:
    """The loss of a WGAN-GP's critic."""
    mix = (fake + real).div(2).requires_grad_()
    (dx,) = torch.autograd.grad(critic(mix)[0][-1].sum(), mix, create_graph=True)
    return critic(fake)[0].mean() - critic(real)[0].mean() + 10 * (dx.norm(dim=(0, 2)) - 1).square().mean()


def test_gradient_penalty_is_pytorch_s():
    for variant in IN_PYTORCH:
        results = []
        torch.manual_seed(2)
        fake, real, *critics = random(T, B, I), random(T, B, I), *pair(variant, I, H, num_layers=2)
        for critic in critics:
            loss = penalised(critic, fake, real)
            results.append([loss, *torch.autograd.grad(loss, list(critic.parameters()))])
        assert_same(*results)


def test_meta_learning_is_pytorch_s():
    """MAML: a step of gradient descent, and a gradient through it."""
    for variant in IN_PYTORCH:
        found, x = [], random(T, B, I)
        for learner in pair(variant, I, H):
            weights = dict(learner.named_parameters())
            for _ in range(2):
                loss = functional_call(learner, weights, (x,))[0].square().sum()
                steps = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
                weights = {name: w - 0.5 * d for (name, w), d in zip(weights.items(), steps, strict=True)}
            outer = functional_call(learner, weights, (x.cos(),))[0].sin().sum()
            found.append(torch.autograd.grad(outer, list(learner.parameters())))
        assert_same(*found)


def checkpointed(reentrant: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda ours, x: checkpoint(lambda x: ours(x)[0], x, use_reentrant=reentrant)


def offloaded(ours: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
        return ours(x)[0]


@BOTH
@pytest.mark.parametrize("run", [checkpointed(False), offloaded], ids=["checkpoint", "saved_tensors_hooks"])
def test_double_backward_of_what_was_saved_elsewhere(kind, run):
    ours, x = getattr(fastlstm, kind)(I, H, dtype=torch.float64), random(T, B, I).requires_grad_()
    results = []
    for y in (run(ours, x), ours(x)[0]):
        (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), [x, *ours.parameters()]))
    assert_same(*results)


@BOTH
def test_retain_graph_and_anomaly_mode(kind):
    ours, x = getattr(fastlstm, kind)(I, H, dtype=torch.float64), random(T, B, I).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        (dx,) = torch.autograd.grad(ours(x)[0].sin().sum(), x, create_graph=True)
        first, again = (torch.autograd.grad(dx.square().sum(), x, retain_graph=True) for _ in range(2))
    assert_same(first, again)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_penalty_in_other_dtypes_and_under_autocast(kind, dtype):
    """PyTorch's ops compute in float32, whatever autocast is on around the backward."""
    ours = getattr(fastlstm, kind)(I, H)
    exact = getattr(fastlstm, kind)(I, H, dtype=torch.float64)
    exact.load_state_dict(ours.to(dtype).state_dict())
    x, results = torch.randn(T, B, I).to(dtype), []
    for run in (ours, exact):
        given = x.to(run.weight_ih_l0.dtype).requires_grad_()
        y = run(given)[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=run is ours):
            (dx,) = torch.autograd.grad(y, given, torch.ones_like(y), create_graph=True)
            results.append([d.double() for d in torch.autograd.grad(dx, list(run.parameters()), torch.ones_like(dx))])
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= (1e-5 if dtype == torch.float32 else 0.03) * want.norm()


@BOTH
def test_a_bias_edited_before_the_backward(kind):
    """The first derivatives don't depend on it; the second do, and say so."""
    for twice in (False, True):
        ours, x = getattr(fastlstm, kind)(I, H), torch.randn(T, B, I).requires_grad_()
        loss = ours(x)[0].square().sum()
        (expected,) = torch.autograd.grad(loss, x, retain_graph=True)
        with torch.no_grad():
            ours.bias_ih_l0.add_(1)
        assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)
        if twice:
            with pytest.raises(RuntimeError, match="a bias, which a gradient of the gradient depends on"):
                torch.autograd.grad(loss, x, create_graph=True)


@BOTH
def test_only_what_is_needed(kind):
    """Frozen weights, and an input that needs no gradient."""
    for frozen in ("weights", "input"):
        results = []
        for ours in pair(kind.lower(), I, H):
            x = torch.linspace(-1, 1, T * B * I, dtype=torch.float64).view(T, B, I)
            needed = [x.requires_grad_()] if frozen == "weights" else list(ours.parameters())
            ours.requires_grad_(frozen == "input")
            first = torch.autograd.grad(ours(x)[0].sin().sum(), needed, create_graph=True)
            results.append(torch.autograd.grad(sum(d.square().sum() for d in first), needed))
        assert_same(*results)
