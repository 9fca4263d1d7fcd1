"""σ and tanh at the ends: exactly 0, 1 and -1 for large arguments, and what a state of that size becomes."""

import ctypes
import platform
import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from numba import carray
from torch import nn

import fastlstm
from fastlstm.kernels import gpu_math
from fastlstm.kernels.cpu_math import PANEL, compile_gates, sigmoid, tanh

INF, NAN = float("inf"), float("nan")
# x, σ, tanh; "f32" and "f64" leave their ranges at ±88.7 and ±709.8
ENDS = {
    "f32": [(-INF, 0, -1), (-3e37, 0, -1), (-3e38, 0, -1), (-500.0, 0, -1), (-89.0, 0, -1), (-88.8, 0, -1)],
    "f64": [(-INF, 0, -1), (-3e37, 0, -1), (-1e308, 0, -1), (-800.0, 0, -1), (-711.0, 0, -1), (-709.9, 0, -1)],
}
NEAR = {"f32": (-89.5, -86.0), "f64": (-711.0, -707.0)}
FLOATS = {"f32": np.float32, "f64": np.float64}


def both(dtype):
    """Slot 0 becomes σ, slot 1 tanh."""

    def kernel(records, rows):
        tile = carray(records, (rows, 2, PANEL), dtype)
        for row in range(rows):
            for u in range(PANEL):
                tile[row, 0, u], tile[row, 1, u] = sigmoid(tile[row, 0, u]), tanh(tile[row, 1, u])

    return kernel


@triton.jit
def both_kernel(x_ptr, sigmoid_ptr, tanh_ptr, N, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + k, mask=k < N, other=0.0)
    tl.store(sigmoid_ptr + k, gpu_math.sigmoid(x), mask=k < N)
    tl.store(tanh_ptr + k, gpu_math.tanh(x), mask=k < N)


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])

    def run(values, suffix: str) -> tuple[np.ndarray, np.ndarray]:
        rows = -(-len(values) // PANEL)
        records = np.zeros((rows, 2, PANEL), FLOATS[suffix])
        for slot in (0, 1):
            records[:, slot] = np.resize(np.asarray(values, FLOATS[suffix]), (rows, PANEL))
        code = compile_gates(both, suffix)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(code.address)(records.ctypes.data, rows)
        return records[:, 0].ravel()[: len(values)], records[:, 1].ravel()[: len(values)]

    return run


def on_gpu(values) -> tuple[np.ndarray, np.ndarray]:
    x = torch.tensor(values, dtype=torch.float32)
    s, t = torch.empty_like(x), torch.empty_like(x)
    with np.errstate(all="ignore"):  # the interpreter computes both branches of a `where` in NumPy
        both_kernel[(1,)](x, s, t, len(x), BLOCK=32)
    return s.numpy(), t.numpy()


def assert_ends(run, suffix: str) -> None:
    below, at_0, at_minus_1 = zip(*ENDS[suffix], strict=True)
    s, t = run(below)
    assert (s == at_0).all()
    assert (t == at_minus_1).all()
    s, t = run([-x for x in below])
    assert (s == 1).all()
    assert (t == 1).all()
    s, t = run([0.0, NAN, -NAN])
    assert (s[0], t[0]) == (0.5, 0)
    assert np.isnan([s[1:], t[1:]]).all()


@pytest.mark.parametrize("suffix", FLOATS)
def test_ends_on_the_cpu(on_cpu, suffix):
    assert_ends(lambda values: on_cpu(values, suffix), suffix)


def test_ends_on_the_gpu():
    assert_ends(on_gpu, "f32")


@pytest.mark.parametrize("suffix", FLOATS)
def test_towards_zero_there_is_no_step_back(on_cpu, suffix):
    """From the smallest normal number on, σ may be 0: what lies between is below that number."""
    x = np.linspace(*NEAR[suffix], 5000).astype(FLOATS[suffix])
    s, _ = on_cpu(x, suffix)
    exact = np.exp(x.astype(np.longdouble))
    tiny = np.finfo(FLOATS[suffix]).tiny
    assert (np.diff(s) >= 0).all()
    assert (np.abs(s - exact) <= np.where(exact < tiny, tiny, 3 * np.finfo(FLOATS[suffix]).eps * exact)).all()


@pytest.mark.parametrize("suffix", FLOATS)
def test_three_units_in_the_last_place(on_cpu, suffix):
    x = np.concatenate([np.linspace(-80, 80, 20001), np.linspace(-1, 1, 20001), np.geomspace(1e-30, 1, 999)])
    x = x.astype(FLOATS[suffix])
    wide = x.astype(np.longdouble)
    for got, exact in zip(on_cpu(x, suffix), (1 / (1 + np.exp(-wide)), np.tanh(wide)), strict=True):
        assert (np.abs(got - exact) <= 3 * np.spacing(np.abs(exact).astype(FLOATS[suffix]))).all()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.parametrize("suffix", FLOATS)
def test_the_loop_is_of_vectors_and_calls_no_libm(monkeypatch, suffix):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    code = compile_gates(both, suffix)._library.get_asm_str()
    assert set(re.findall(r"\bv?div([ps])[sd]\b", code)) == {"p"}
    assert re.findall(r"\b(?:exp|tanh)f?\b", code) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_state_is_forgotten(dtype):
    """z is 0 where its pre-activation is -3e37: of a state of 1e38 nothing is left."""
    peer, ours = nn.GRU(2, 3, dtype=dtype), fastlstm.GRU(2, 3, backend="numba", dtype=dtype)
    with torch.no_grad():
        peer.weight_hh_l0.copy_(
            torch.tensor([[0.0], [-0.3], [0.0]]).repeat_interleave(3, 0) * torch.eye(3).repeat(3, 1)
        )
    ours.load_state_dict(peer.state_dict())
    x, h0 = torch.randn(4, 2, 2, dtype=dtype), torch.full((1, 2, 3), 1e38, dtype=dtype)
    torch.testing.assert_close(ours(x, h0), peer(x, h0))
