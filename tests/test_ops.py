"""The op pair at its edges: transforms that see past `requires_grad`, foreign shapes, infinities, empty inputs, memory."""

import subprocess
import sys

import pytest
import torch
from numba.core import caching
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jvp, vmap

import fastlstm
from fastlstm import backends
from fastlstm.kernels.lstm import cpu

fwd, bwd = torch.ops.fastlstm.lstm_fwd.default, torch.ops.fastlstm.lstm_bwd.default


@pytest.fixture
def lstm() -> fastlstm.LSTM:
    return fastlstm.LSTM(3, 17, dtype=torch.float64)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 5, 2, 3, dtype=torch.float64)


def loss(lstm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    frozen = {name: p.detach() for name, p in lstm.named_parameters()}
    return functional_call(lstm, frozen, (x,))[0].square().sum()


def test_double_backward_raises(lstm, x):
    x = x[0].requires_grad_()
    value = lstm(x)[0].square().sum()
    (dx,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="can't be differentiated twice"):
        torch.autograd.grad(value + dx.square().sum(), list(lstm.parameters()))
    with pytest.raises(RuntimeError, match="can't be differentiated twice"):
        grad(lambda x: grad(lambda x: loss(lstm, x))(x).square().sum())(x.detach())


def penalty(f, x):
    (dx,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    dx.square().sum().backward()


SECOND = {
    "penalty": penalty,
    "hessian": lambda f, x: torch.autograd.functional.hessian(lambda x: f(x).sum(), x),
    "jvp": lambda f, x: torch.autograd.functional.jvp(f, x, x.detach()),
}


@pytest.mark.parametrize("derive", SECOND.values(), ids=SECOND)
def test_second_derivative_of_a_sum_raises(lstm, x, derive):
    """The gradient of a sum is a constant: nothing that reaches the backward requires a gradient but its inputs."""
    with pytest.raises(RuntimeError, match="can't be differentiated twice"):
        derive(lambda x: lstm(x)[0], x[0].requires_grad_())


def test_grad_of_vmap(lstm, x):
    peer = nn.LSTM(3, 17, dtype=torch.float64)
    peer.load_state_dict(lstm.state_dict())
    mapped = grad(lambda xs: vmap(lambda x: loss(lstm, x))(xs).sum())(x)
    expected = torch.stack([torch.autograd.grad(loss(peer, one), one)[0] for one in x.requires_grad_().unbind()])
    torch.testing.assert_close(mapped, expected, rtol=1e-12, atol=1e-12)


def test_vmap_of_nothing(lstm, x):
    with pytest.raises(ValueError, match="dimension of size 0"):
        vmap(lambda x: loss(lstm, x))(x[:0])


# torch.jit.script, which PyTorch's forward mode uses itself, is deprecated
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_forward_mode_raises(lstm, x):
    with pytest.raises(NotImplementedError, match="jvp"):
        jvp(lambda x: loss(lstm, x), (x[0],), (x[0],))
    lstm.requires_grad_(False)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        lstm(forward_ad.make_dual(x[0], x[0]))


def test_saved_tensors_of_other_strides(lstm, x):
    x = x[0].requires_grad_()
    (expected,) = torch.autograd.grad(lstm(x)[0].sum(), x)
    with saved_tensors_hooks(
        lambda t: t.t().contiguous() if t.dim() == 2 else t, lambda t: t.t() if t.dim() == 2 else t
    ):
        y = lstm(x)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


def test_no_inputs():
    """I = 0: the recurrence alone."""
    weights = [torch.zeros(64, 0, dtype=torch.float64), torch.randn(64, 16, dtype=torch.float64, requires_grad=True)]
    states = torch.randn(1, 8, 16, dtype=torch.float64), torch.randn(1, 8, 16, dtype=torch.float64)
    results = []
    for backend in ("numba", "reference"):
        y, _ = fastlstm.functional.lstm(torch.zeros(5, 8, 0, dtype=torch.float64), [weights], states, backend=backend)
        results += [y, *torch.autograd.grad(y.sum(), weights[1])]
    for ours, expected in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_infinite_input_stays_where_it_is():
    """Units that pad the last panel don't turn infinity into NaN."""
    lstm, peer = fastlstm.LSTM(1, 5), nn.LSTM(1, 5)
    peer.load_state_dict(lstm.state_dict())
    x = torch.zeros(5, 3, 1)
    x[2, 1] = float("inf")
    for module in (lstm, peer):
        module(x)[0].sum().backward()
    for ours, expected in zip(list(lstm.parameters())[1:], list(peer.parameters())[1:], strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


GIVEN = {"x": (3, 2, 5), "batch_sizes": None, "h0": (2, 4), "c0": (2, 4), "w_ih": (16, 5), "w_hh": (16, 4)}


@pytest.mark.parametrize(
    ("name", "shape"),
    [("h0", (2, 5)), ("c0", (3, 4)), ("w_ih", (16, 5, 1)), ("w_hh", (15, 4)), ("w_ih", (16, 6))],
)
def test_foreign_shapes_in_the_forward(name, shape):
    given = [s and torch.randn(shape if key == name else s) for key, s in GIVEN.items()]
    with pytest.raises(RuntimeError, match=rf"{name} has shape .*, expected"):
        fwd(*given, None, None, None, False, False)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["dy", "dh_n", "dc_n"])
def test_foreign_shapes_in_the_backward(place):
    given = [s and torch.randn(s) for s in GIVEN.values()]
    y, _, _, saved = fwd(*given, None, None, None, False, True)
    gradients = [torch.randn(1, 1) if i == place else None for i in range(3)]
    with pytest.raises(RuntimeError, match=r"has shape \(1, 1\), expected"):
        bwd(*gradients, *given, None, y, saved, False, True, True)
    with pytest.raises(RuntimeError, match="saved is not what lstm_fwd returned"):
        bwd(None, None, None, *given, None, y, saved[1:], False, True, True)


def test_nowhere_to_cache(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert cpu.compile_kernel("lstm_fwd_f32").address


def test_numba_that_does_not_import():
    """auto falls back, with the reason; an explicit request says what to do."""
    code = """if True:
        import sys, torch, fastlstm
        from fastlstm import backends
        sys.modules["numba"] = None
        assert backends.explain("lstm", "cpu", torch.float32).backend == "torch"
        fastlstm.LSTM(3, 4)(torch.randn(2, 1, 3))
        fastlstm.LSTM(3, 4, backend="numba")(torch.randn(2, 1, 3))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "LSTM" not in run.stdout
    assert "backend 'numba' can't run lstm here: numba can't be imported" in run.stderr
    assert "runs on PyTorch's own op" in run.stderr


def test_pool_gives_back(lstm):
    """Results stay right when the memory of earlier calls is used again, or was returned."""
    sizes = [(40, 64), (90, 64), (40, 64), (10, 64)]
    inputs = [torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True) for T, B in sizes]
    rounds = []
    for _ in range(2):
        rounds.append([torch.autograd.grad(lstm(x)[0].sum(), x)[0] for x in inputs])
        backends.empty_pool()
    for first, second in zip(*rounds, strict=True):
        assert torch.equal(first, second)
