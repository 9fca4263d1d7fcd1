"""The op pair at its edges: transforms that see past `requires_grad`, foreign shapes, infinities, empty inputs, memory."""

import os
import platform
import re
import subprocess
import sys

import pytest
import torch
from numba.core import caching
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap

import fastlstm
from fastlstm import backends
from fastlstm.kernels.gru import cpu as gru_cpu
from fastlstm.kernels.lstm import cpu as lstm_cpu


@pytest.fixture(params=["LSTM", "GRU"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def module(kind) -> nn.RNNBase:
    return getattr(fastlstm, kind)(3, 17, dtype=torch.float64)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 5, 2, 3, dtype=torch.float64)


def loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    frozen = {name: p.detach() for name, p in module.named_parameters()}
    return functional_call(module, frozen, (x,))[0].square().sum()


def test_grad_of_vmap(kind, module, x):
    peer = getattr(nn, kind)(3, 17, dtype=torch.float64)
    peer.load_state_dict(module.state_dict())
    mapped = grad(lambda xs: vmap(lambda x: loss(module, x))(xs).sum())(x)
    expected = torch.stack([torch.autograd.grad(loss(peer, one), one)[0] for one in x.requires_grad_().unbind()])
    torch.testing.assert_close(mapped, expected, rtol=1e-12, atol=1e-12)


def test_vmap_of_nothing(module, x):
    with pytest.raises(ValueError, match="dimension of size 0"):
        vmap(lambda x: loss(module, x))(x[:0])


def test_saved_tensors_of_other_strides(module, x):
    x = x[0].requires_grad_()
    (expected,) = torch.autograd.grad(module(x)[0].sum(), x)
    with saved_tensors_hooks(
        lambda t: t.t().contiguous() if t.dim() == 2 else t, lambda t: t.t() if t.dim() == 2 else t
    ):
        y = module(x)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


def test_no_inputs(kind):
    """I = 0: the recurrence alone."""
    gates = 64 if kind == "LSTM" else 48
    weights = [torch.zeros(gates, 0).double(), torch.randn(gates, 16, dtype=torch.float64, requires_grad=True)]
    states = torch.randn(1, 8, 16, dtype=torch.float64), torch.randn(1, 8, 16, dtype=torch.float64)
    run, hx = (fastlstm.functional.lstm, states) if kind == "LSTM" else (fastlstm.functional.gru, states[0])
    results = []
    for backend in ("numba", "reference"):
        y, _ = run(torch.zeros(5, 8, 0, dtype=torch.float64), [weights], hx, backend=backend)
        results += [y, *torch.autograd.grad(y.sum(), weights[1])]
    for ours, expected in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_infinite_input_stays_where_it_is(kind):
    """Units that pad the last panel don't turn infinity into NaN."""
    ours, peer = getattr(fastlstm, kind)(1, 5), getattr(nn, kind)(1, 5)
    peer.load_state_dict(ours.state_dict())
    x = torch.zeros(5, 3, 1)
    x[2, 1] = float("inf")
    for module in (ours, peer):
        module(x)[0].sum().backward()
    for got, expected in zip(list(ours.parameters())[1:], list(peer.parameters())[1:], strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


# Sizes: T = 3, B = 2, I = 5, H = 4; the LSTM has peepholes. None: no such argument is given.
GIVEN = {
    "lstm": {
        "x": (3, 2, 5), "batch_sizes": None, "reset": None, "h0": (2, 4), "c0": (2, 4), "w_ih": (16, 5), "w_hh": (16, 4),
        "b_ih": (16,), "b_hh": (16,), "w_hr": None, "w_peephole": (3, 4),
    },
    "gru": {
        "x": (3, 2, 5), "batch_sizes": None, "reset": None, "h0": (2, 4), "w_ih": (12, 5), "w_hh": (12, 4),
        "b_ih": (12,), "b_hh": (12,),
    },
}  # fmt: skip
FORWARD_FLAGS = {"lstm": (False, False, False), "gru": (False,)}
# a shape that doesn't fit, and what is said; where nothing is, the argument's own shape
NOT_LIKE_X = "reset must be bool, contiguous, on the CPU, and have the leading dimensions of x"
FOREIGN = [
    ("lstm", "h0", (2, 5), ""),
    ("lstm", "c0", (3, 4), ""),
    ("lstm", "w_ih", (16, 5, 1), ""),
    ("lstm", "w_hh", (15, 4), ""),
    ("lstm", "w_ih", (16, 6), ""),
    ("lstm", "b_ih", (15,), ""),
    ("lstm", "b_hh", (16, 1), ""),
    ("lstm", "w_hr", (4, 5), ""),
    ("lstm", "w_peephole", (2, 4), ""),
    ("lstm", "w_peephole", (3, 5), ""),
    ("lstm", "reset", (3, 3), NOT_LIKE_X),
    ("lstm", "reset", (2,), NOT_LIKE_X),
    ("gru", "h0", (3, 4), "x and h0 differ in their batch size"),
    ("gru", "h0", (2, 5), "w_ih has shape (12, 5), expected (15, 5)"),
    ("gru", "w_ih", (12, 5, 1), ""),
    ("gru", "w_hh", (16, 4), ""),
    ("gru", "w_ih", (12, 6), ""),
    ("gru", "b_ih", (15,), ""),
    ("gru", "b_hh", (12, 1), ""),
    ("gru", "reset", (3, 3), NOT_LIKE_X),
    ("gru", "reset", (2,), NOT_LIKE_X),
]


def op(name: str):
    return getattr(torch.ops.fastlstm, name).default


def given(variant: str, **foreign: tuple[int, ...]) -> dict[str, torch.Tensor | None]:
    shapes = GIVEN[variant] | foreign
    return {k: s and (torch.zeros(s, dtype=torch.bool) if k == "reset" else torch.randn(s)) for k, s in shapes.items()}


@pytest.mark.parametrize(("variant", "name", "shape", "words"), FOREIGN)
def test_foreign_shapes_in_the_forward(variant, name, shape, words):
    with pytest.raises(RuntimeError, match=re.escape(words) or rf"{name} has shape .*, expected"):
        op(f"{variant}_fwd")(*given(variant, **{name: shape}).values(), *FORWARD_FLAGS[variant], False)


@pytest.mark.parametrize(
    ("variant", "place"), [("lstm", 0), ("lstm", 1), ("lstm", 2), ("lstm", 3), ("gru", 0), ("gru", 1)]
)
def test_foreign_shapes_in_the_backward(variant, place):
    """`place` counts dy, dh_n, dc_n and dcells."""
    args = given(variant)
    *outputs, saved = op(f"{variant}_fwd")(*args.values(), *FORWARD_FLAGS[variant], True)
    args = [t for name, t in args.items() if not name.startswith("b_")]
    flags = (False, False) if variant == "lstm" else (False,)
    gradients = [torch.randn(1, 1) if i == place else None for i in range(len(outputs))]
    bwd = op(f"{variant}_bwd")
    with pytest.raises(RuntimeError, match=r"has shape \(1, 1\), expected"):
        bwd(*gradients, *args, saved, *flags, True, True, True)
    with pytest.raises(RuntimeError, match=f"saved is not what {variant}_fwd returned"):
        bwd(*[None] * len(outputs), *args, saved[1:], *flags, True, True, True)


@pytest.mark.parametrize(("cpu", "variant"), [(lstm_cpu, "lstm"), (gru_cpu, "gru")])
def test_nowhere_to_cache(monkeypatch, cpu, variant):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert cpu.compile_kernel(backends.VARIANTS[variant], "fwd", "f32").address


def test_numba_that_does_not_import():
    """auto falls back, with the reason; an explicit request says what to do."""
    code = """if True:
        import sys, torch, fastlstm
        from fastlstm import backends
        sys.modules["numba"] = None
        assert backends.explain(backends.VARIANTS["lstm"], "cpu", torch.float32).backend == "torch"
        assert backends.explain(backends.VARIANTS["peephole_lstm"], "cpu", torch.float32).backend == "reference"
        fastlstm.LSTM(3, 4)(torch.randn(2, 1, 3))
        fastlstm.PeepholeLSTM(3, 4)(torch.randn(2, 1, 3))
        fastlstm.LSTM(3, 4, backend="numba")(torch.randn(2, 1, 3))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "LSTM" not in run.stdout
    assert "backend 'numba' can't run lstm here: numba can't be imported" in run.stderr
    assert "lstm in torch.float32 on cpu runs on PyTorch's own op" in run.stderr
    assert "peephole_lstm in torch.float32 on cpu runs on the reference, a loop in Python" in run.stderr


def test_pool_gives_back(module):
    """Results stay right when the memory of earlier calls is used again, or was returned."""
    sizes = [(40, 64), (90, 64), (40, 64), (10, 64)]
    inputs = [torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True) for T, B in sizes]
    rounds = []
    for _ in range(2):
        rounds.append([torch.autograd.grad(module(x)[0].sum(), x)[0] for x in inputs])
        backends.empty_pool()
    for first, second in zip(*rounds, strict=True):
        assert torch.equal(first, second)


def test_chunks_of_steps_that_empty_sequences_lack():
    """200 of 256 sequences in each step: a chunk has 400 rows."""
    lengths = [4] * 200 + [0] * 56
    module, x = fastlstm.LSTM(3, 20), torch.randn(4, 256, 3, requires_grad=True)
    results = []
    for of, lengths_of in ((x, lengths), (x[:, :200], None)):
        y, _ = module(of, lengths=lengths_of)
        results.append([y[:, :200], *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_pool_gives_parts_of_blocks():
    """Gradients that are held take parts of what the first calls have left; none has been written over when all are done."""
    sizes = [(300, 40, 90), (20, 300, 60), (60, 8, 200), (100, 30, 100), (2, 500, 30)]
    modules = [fastlstm.GRU(H, H) for _, _, H in sizes]
    inputs = [torch.randn(T, B, H, requires_grad=True) for T, B, H in sizes]

    def gradients(k: int) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(modules[k](inputs[k])[0].sum(), [inputs[k], *modules[k].parameters()])

    expected = []
    for k in range(len(sizes)):
        backends.empty_pool()
        expected.append([g.clone() for g in gradients(k)])
    held = []
    for k in (0, 1, 2, 3, 4, 2, 1, 3, 0, 4, 2, 3):
        held = [*held[-3:], (k, gradients(k))]
        for j, found in held:
            assert all(torch.equal(*pair) for pair in zip(found, expected[j], strict=True)), (j, k)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets the thresholds of glibc's malloc")
def test_memory_of_earlier_calls_is_used_again():
    """What the forward saves is 1.2 to 5 MB here: were it new at every call, the system would have to clear it first."""
    code = """if True:
        import statistics, torch, fastlstm
        from resource import RUSAGE_SELF, getrusage
        torch.set_num_threads(1)
        for T in (60, 90, 120, 150, 180, 210, 240):
            gru, x, upstream = fastlstm.GRU(2, 2), torch.randn(T, 64, 2, requires_grad=True), torch.ones(T, 64, 2)
            faults = []
            for _ in range(50):
                before = getrusage(RUSAGE_SELF).ru_minflt
                gru(x)[0].backward(upstream)
                faults.append(getrusage(RUSAGE_SELF).ru_minflt - before)
            print(T, statistics.median(faults))
    """
    # fixed: the first keeps all that is small, the other returns nothing of it
    thresholds = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | thresholds
    )
    assert [line.split()[1] for line in run.stdout.splitlines()] == ["0.0"] * 7, run.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_steps_give_zero_gradients(dtype):
    """The functions refuse T = 0; the ops define it: final states are the initial ones, weights have no gradient."""
    x, w_ih, w_hh = (torch.randn(s).to(dtype) for s in ((0, 2, 4), (12, 4), (12, 4)))
    h0 = torch.randn(2, 4).to(dtype)
    _, h_n, saved = torch.ops.fastlstm.gru_fwd.default(x, None, None, h0, w_ih, w_hh, None, None, False, True)
    assert torch.equal(h_n, h0)
    gradients = torch.ops.fastlstm.gru_bwd.default(
        None, h0, x, None, None, h0, w_ih, w_hh, saved, False, True, True, True
    )
    assert torch.equal(gradients[1], h0)
    assert not any(g.any() for g in gradients[2:])


def test_biases_of_a_large_batch_are_summed_exactly():
    """One step of many rows: float32 sums of tens of thousands of terms would lose three digits."""
    x, h0, w_ih, w_hh = torch.randn(40000, 2), torch.randn(40000, 2), torch.randn(6, 2), torch.randn(6, 2)
    biases = torch.zeros(6, requires_grad=True), torch.zeros(6, requires_grad=True)
    upstream = torch.rand(40000, 2)
    results = []
    for dtype in (torch.float32, torch.float64):
        given = [t.to(dtype) for t in (x, h0, w_ih, w_hh, *biases)]
        h = fastlstm.functional.gru_cell(*given)
        results.append(torch.autograd.grad(h, biases, upstream.to(dtype)))
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 1e-6 * want.norm()
