"""The Numba kernels of attention, called by their addresses as C++ calls them, against the formulas in PyTorch and float64."""

import ctypes
import platform
from copy import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch.backends import cpu as torch_cpu

from fastlstm import backends
from fastlstm.kernels.attention_lstm.cpu import KERNELS, compile_kernel

FLOATS = {"f32": torch.float32, "f64": torch.float64}
X86 = platform.machine() in ("x86_64", "AMD64")
AVX2 = X86 and torch_cpu.get_cpu_capability() in ("AVX2", "AVX512")
# what each is called, LLVM's name of it, and why it is left out
CPUS = {
    "native": (None, False, ""),
    "avx2": ("haswell", not AVX2, "this CPU has no AVX2"),
    "portable": ("x86-64", not X86, "this CPU is of another architecture"),
}


def on(*marked: str) -> pytest.MarkDecorator:
    """On each CPU; `marked` are those whose tests depend on the instructions."""
    marks = {name: [pytest.mark.skipif(why[0], reason=why[1])] for name, (_, *why) in CPUS.items()}
    marks |= {name: [*marks[name], pytest.mark.cpu] for name in marked}
    return pytest.mark.parametrize("cpu", [pytest.param(CPUS[name][0], id=name, marks=marks[name]) for name in CPUS])


# S, A, M
SIZES = [(1, 1, 1), (1, 37, 5), (3, 16, 33), (7, 67, 129), (50, 31, 64), (21, 128, 7), (4, 257, 40)]
on_each_cpu = on()
# a lesser CPU has its own kernels, which PyTorch's error there bounds
PATH = backends.gemm_path()
of_this_cpu = on(*([PATH] if PATH in CPUS else CPUS))
in_each_dtype = pytest.mark.parametrize("suffix", FLOATS)


@cache
def kernel(name: str, of_pass: str, suffix: str, cpu: str | None):
    _, arguments, returns = KERNELS[name, of_pass]
    code = compile_kernel(name, of_pass, suffix, cpu)
    types = [{"p": ctypes.c_void_p, "n": ctypes.c_int64}[letter] for letter in arguments]
    function = ctypes.CFUNCTYPE(ctypes.c_int64 if returns else None, *types)(code.address)
    dtype = FLOATS[suffix]

    def call(*given):
        assert len(given) == len(arguments)
        for tensor in given:
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype == dtype
        return function(*[x.data_ptr() if isinstance(x, torch.Tensor) else x for x in given])

    call.code = code
    return call


def in_a_batch(rows: torch.Tensor, row: int = 1, batch: int = 3) -> torch.Tensor:
    """A row of the batch of an (S, B, *) tensor that has NaN elsewhere: of the same values, and a stride."""
    held = rows.new_full((rows.size(0), batch, rows.size(1)), float("nan"))
    held[:, row] = rows
    return held[:, row]


class Case:
    """What goes into a kernel, in float64 as the kernel's dtype rounds it; T steps for one row of the batch."""

    def __init__(self, suffix, S, A, M, T=1, kind="additive", scale=1.0):
        dtype = FLOATS[suffix]
        self.suffix, self.kind, self.dtype, self.sizes = suffix, kind, dtype, (S, A, M)

        def draw(*shape, scale=1.0):
            return (scale * torch.randn(*shape, dtype=torch.float64)).to(dtype).double()

        self.q, self.k, self.m = draw(T, A, scale=scale), draw(S, A, scale=scale), draw(S, M)
        self.w = draw(A, scale=A**-0.5) if kind == "additive" else None
        self.dc, self.dp = draw(T, M), draw(T, S)

    def oracle(self, dtype=torch.float64, dweights=True):
        """Weights, context, and the gradients of q, k, w and of the scores."""
        own = [self.q, self.k, self.m, *([self.w] if self.kind == "additive" else [])]
        q, k, m, *w = (x.to(dtype, copy=True).requires_grad_() for x in own)
        e = torch.tanh(q[:, None] + k) @ w[0] if w else q @ k.T
        e.retain_grad()
        p = e.softmax(1)
        c = p @ m
        loss = (c * self.dc.to(dtype)).sum() + ((p * self.dp.to(dtype)).sum() if dweights else 0)
        loss.backward()
        return {
            "p": p.detach(),
            "c": c.detach(),
            "de": e.grad,
            "dq": q.grad,
            "dk": k.grad,
            "dw": w[0].grad if w else None,
        }

    def ours(self, cpu=None, dweights=True, prepared=None, memory=None):
        """The same from the kernels."""
        S, A, M = self.sizes
        nan = float("nan")
        name = f"{self.kind}_attention"
        q, dc, dp = (x.to(self.dtype) for x in (self.q, self.dc, self.dp))
        m = in_a_batch(self.m.to(self.dtype)) if memory is None else memory
        k = m if memory is not None else in_a_batch(self.k.to(self.dtype))
        w = self.w.to(self.dtype) if self.kind == "additive" else 0
        scratch = q.new_full((3 * A,), nan)
        fits = 0
        if self.kind == "additive" and prepared != 0:
            own = q.new_full((S, A), nan)
            fits = kernel(name, "prepare", self.suffix, cpu)(k, k.stride(0), S, A, own)
            assert prepared is None or fits == prepared
            k = own
        out = {"p": q.new_full((len(q), S), nan), "c": q.new_full((len(q), M), nan)}
        out |= {"de": torch.full_like(out["p"], nan), "dq": torch.full_like(q, nan)}
        for t in range(len(q)):
            common = (q[t], k, k.stride(0), m, m.stride(0), w, S, A, M, fits, scratch, out["p"][t])
            kernel(name, "fwd", self.suffix, cpu)(*common, out["c"][t])
            given = (dc[t], dp[t] if dweights else 0, int(dweights), out["de"][t], out["dq"][t])
            kernel(name, "bwd", self.suffix, cpu)(*common, *given)
        if self.kind == "additive":
            out["dk"], out["dw"] = q.new_full((S, A), nan), q.new_full((A,), nan)
            rows, de = in_a_batch(q), in_a_batch(out["de"])
            kernel(name, "keys", self.suffix, cpu)(
                rows, rows.stride(0), len(q), k, k.stride(0), w, S, A, fits, scratch, de, de.stride(0), out["dk"], out["dw"]
            )  # fmt: skip
        return out


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def allowed(case: Case, dweights: bool) -> dict[str, float]:
    """Twice PyTorch's error and a rounding; in float64, of the same in float32, times the ratio of the roundings."""
    eps, narrow = torch.finfo(case.dtype).eps, copy(case)
    for name in ("q", "k", "m", "w", "dc", "dp"):
        if (value := getattr(case, name)) is not None:
            setattr(narrow, name, value.float().double())
    exact, peer = narrow.oracle(dweights=dweights), narrow.oracle(torch.float32, dweights)
    ratio = eps / torch.finfo(torch.float32).eps
    return {name: 2 * ratio * error(peer[name], exact[name]) + eps for name in exact if exact[name] is not None}


def assert_exact_enough(case: Case, got: dict, dweights: bool = True, times: int = 1) -> None:
    """Where an exact 0 is due, as of a single slot's scores, what is there is what its terms' roundings leave."""
    exact, limits = case.oracle(dweights=dweights), allowed(case, dweights)
    for name, value in got.items():
        if case.sizes[0] == 1 and name not in ("p", "c"):
            assert value.abs().max() <= 20 * torch.finfo(case.dtype).eps * case.sizes[2], name
        else:
            found = error(value, exact[name])
            assert found <= times * limits[name], f"{name}: {found:.2e}, allowed {limits[name]:.2e}"


@of_this_cpu
@in_each_dtype
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("prepared", [1, 0])
@pytest.mark.parametrize("dweights", [True, False])
def test_additive(sizes, suffix, cpu, prepared, dweights):
    case = Case(suffix, *sizes, T=19)
    assert_exact_enough(case, case.ours(cpu, dweights, prepared), dweights)


@of_this_cpu
@in_each_dtype
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dweights", [True, False])
def test_dot(sizes, suffix, cpu, dweights):
    case = Case(suffix, *sizes, T=20, kind="dot", scale=sizes[1] ** -0.25)
    assert_exact_enough(case, case.ours(cpu, dweights), dweights)


@on_each_cpu
@in_each_dtype
def test_dot_over_the_memory_itself(suffix, cpu):
    case = Case(suffix, 13, 21, 21, T=20, kind="dot", scale=0.5)
    case.m = case.k
    assert_exact_enough(case, case.ours(cpu, memory=in_a_batch(case.k.to(case.dtype))))


@pytest.mark.parametrize("scale", [0.1, 0.3, 3.0])
@in_each_dtype
def test_additive_at_other_scales(suffix, scale):
    """1 - 2 r is not as exact as tanh where all are near 0."""
    case = Case(suffix, 30, 200, 100, T=7, scale=scale)
    assert_exact_enough(case, case.ours(prepared=1), times=2 if scale < 0.3 else 1)


@on_each_cpu
@in_each_dtype
def test_tanh_saturates(suffix, cpu):
    """q and k of up to 1e4 and of infinity: beyond the limit of what is prepared, and within it."""
    case = Case(suffix, 6, 40, 10, T=8)
    for t, q in enumerate([50.0, -50.0, 1e4, -1e4, 30.0, -30.0, 20.0, 3.0]):
        case.q[t] = q
        case.q[t, ::3] = case.q[t, 0] / 50
    for prepared, ks in ((1, [16.9, -16.9, 9.0, -9.0, 0.0, 3.0]), (0, [50.0, -50.0, 1e4, -1e4, 0.0, 3.0])):
        case.k[:, ::2] = torch.tensor(ks, dtype=torch.float64)[:, None]
        case.k = case.k.to(case.dtype).double()
        assert_exact_enough(case, case.ours(cpu, prepared=prepared), times=2)  # PyTorch's tanh is exactly 1 there
    ends = case.ours(cpu)
    for t, q in enumerate([float("inf"), -float("inf")]):
        case.q[t] = q
    assert all(torch.isfinite(value).all() for value in case.ours(cpu).values())
    assert ends["p"].shape == (8, 6)


@on_each_cpu
@in_each_dtype
def test_all_saturated_slots_weigh_the_same(suffix, cpu):
    case = Case(suffix, 9, 19, 5, T=2)
    case.q[0], case.q[1] = 60.0, -60.0
    got = case.ours(cpu, prepared=1)
    torch.testing.assert_close(got["p"], torch.full_like(got["p"], 1 / 9), rtol=1e-6, atol=0)
    assert not got["dq"].any()


@on_each_cpu
@in_each_dtype
@pytest.mark.parametrize("kind", ["additive", "dot"])
def test_scores_of_any_size(suffix, cpu, kind):
    """The softmax is exact where scores are huge, and however they are ordered."""
    case = Case(suffix, 11, 24, 6, T=2, kind=kind)
    if kind == "additive":
        case.w = case.w.abs() * 1e30
    else:
        case.q *= 1e30
    exact, got = case.oracle(), case.ours(cpu)
    assert sorted(exact["p"][0].tolist()) == [0] * 10 + [1]
    torch.testing.assert_close(got["p"].double(), exact["p"], rtol=0, atol=0)
    torch.testing.assert_close(got["c"].double(), exact["c"], rtol=0, atol=0)


@on_each_cpu
@in_each_dtype
@pytest.mark.parametrize("order", [1, -1])
def test_dot_takes_slots_by_tiles(suffix, cpu, order):
    """Of a memory as wide as this there are 16 slots in each; the maximum may be the first tile's or grow with each."""
    for apart in (0.01, 1.0, 10.0):
        case = Case(suffix, 50, 1, 2500, kind="dot")
        case.q[:], case.k[:, 0] = 1.0, order * apart * torch.arange(50.0) - 500
        case.k = case.k.to(case.dtype).double()
        exact, got = case.oracle(), case.ours(cpu)
        for name in ("p", "c"):
            assert error(got[name], exact[name]) <= 10 * torch.finfo(case.dtype).eps


@on_each_cpu
@in_each_dtype
@pytest.mark.parametrize(
    ("kind", "where"), [("additive", "q"), ("additive", "k"), ("additive", "w"), ("dot", "q"), ("dot", "k")]
)
def test_nan_stays_nan(suffix, cpu, kind, where):
    case = Case(suffix, 10, 40, 6, T=2, kind=kind)
    getattr(case, where)[..., 3] = float("nan")
    got = case.ours(cpu, prepared=0 if where == "k" else None)
    assert got["p"].isnan().all()
    assert got["c"].isnan().all()
    assert got["dq"].isnan().all()


@in_each_dtype
def test_prepare_says_whether_keys_are_in_range(suffix):
    prepare = kernel("additive_attention", "prepare", suffix, None)
    k = in_a_batch(torch.randn(5, 33, dtype=FLOATS[suffix]))
    out = torch.full((5, 33), float("nan"), dtype=FLOATS[suffix])
    assert prepare(k, k.stride(0), 5, 33, out) == 1
    torch.testing.assert_close(out.double(), (2 * k.double()).exp(), rtol=2 * torch.finfo(k.dtype).eps, atol=0)
    for bad in (25.0, -25.0, float("inf"), float("nan")):
        k[2, 31] = bad
        assert prepare(k, k.stride(0), 5, 33, out) == 0
        torch.testing.assert_close(out, k.contiguous(), rtol=0, atol=0, equal_nan=True)


@on_each_cpu
@in_each_dtype
@pytest.mark.parametrize("count", [1, 16, 77])
def test_output(suffix, cpu, count):
    z, d = torch.randn(2, count, dtype=FLOATS[suffix])
    a, da = z.clone(), d.clone()
    kernel("output", "fwd", suffix, cpu)(a, count)
    kernel("output", "bwd", suffix, cpu)(a, da, count)
    torch.testing.assert_close(a.double(), z.double().tanh(), rtol=3 * torch.finfo(z.dtype).eps, atol=0)
    torch.testing.assert_close(da, d * (1 - a * a))


@pytest.mark.skipif(not X86, reason="reads x86 assembly")
@pytest.mark.parametrize(("cpu", "register"), [("haswell", "ymm"), ("skylake-avx512", "zmm")])
def test_inner_loops_are_of_whole_vectors(monkeypatch, cpu, register):
    """In float32 reciprocals are looked up, and libm is not called; compiled only, so that any x86 does."""
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    for of_pass in ("fwd", "bwd", "keys"):
        code = kernel("additive_attention", of_pass, "f32", cpu).code
        if code.cache_hits:  # what is read from a file has no text
            code = compile_kernel("additive_attention", of_pass, "f32", cpu)
        lines = code._library.get_asm_str().splitlines()
        assert any("vrcp" in line and register in line for line in lines)
        assert sum("vfmadd" in line and register in line for line in lines) > 4
        assert not any(f"{name}f" in line for name in ("exp", "tanh") for line in lines if "call" in line)
        assert np.unique([line.split()[0] for line in lines if "vdivps" in line and register in line]).size <= 1
