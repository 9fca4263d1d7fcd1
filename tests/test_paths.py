"""`backends.force_path`: micro-kernels and gate kernels of a lesser CPU."""

import os
import platform
import re
import subprocess
import sys

import pytest
import torch

from fastlstm import backends, parity
from fastlstm.kernels.gru import cpu as gru_cpu
from fastlstm.kernels.lstm import cpu as lstm_cpu
from fastlstm.modules import build

PATHS = ("portable", "avx2", "avx512", "avx512+bf16", "avx512+amx")  # each can do what those before it can
FORCED = PATHS[:-1]

needs_extension = pytest.mark.skipif(
    backends.extension_status() != "built", reason="paths are those of the C++ extension"
)


def here() -> list[str]:
    """The paths that this CPU has, and that the run allows."""
    return list(PATHS[: PATHS.index(backends.gemm_path()) + 1])


@needs_extension
@pytest.mark.parametrize("path", FORCED)
def test_a_path_is_used_or_refused(path):
    backends.force_path(None)
    best = backends.gemm_path()
    if path in here():
        backends.force_path(path)
        assert backends.gemm_path() == path
        assert f"({path} matrix products)" in backends.explain(backends.VARIANTS["lstm"], "cpu", torch.float32).reason
    else:
        with pytest.raises(RuntimeError, match=f"path '{path}' can't run here: this CPU is one of '{re.escape(best)}'"):
            backends.force_path(path)
        assert backends.gemm_path() == best
    backends.force_path(None)
    assert backends.gemm_path() == best


@pytest.mark.parametrize("path", ["AVX2", "avx512+amx", "auto", "", 3])
def test_another_path_is_named(path):
    before = backends.gemm_path()
    with pytest.raises(
        ValueError,
        match=rf"path is {re.escape(repr(path))}, expected one of 'avx512\+bf16', 'avx512', 'avx2', 'portable'",
    ):
        backends.force_path(path)
    assert backends.gemm_path() == before


@needs_extension
@pytest.mark.parametrize("path", PATHS[:3])
@pytest.mark.parametrize(
    "case",
    ["lstm_h17", "lstm_one_row", "lstm_two_rows", "gru_h65", "cifg_peephole_lstm_stack_packed", "lstm_projection"],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64"])
def test_parity_on_every_path(path, case, dtype):
    if path not in here():
        pytest.skip(f"this CPU, or this run, has no {path}")
    backends.force_path(path)
    assert [row for row in parity.check(case, dtype, "numba", "module") if not row.ok] == []


@needs_extension
@pytest.mark.parametrize("variant", ["peephole_lstm", "gru"])
def test_vectors_of_any_width_give_the_same_bits(variant):
    """AVX2 and AVX-512 differ in their vectors alone. (The portable path has no fused multiply-adds on x86.)"""
    if "avx512" not in here():
        pytest.skip("this CPU, or this run, has no avx512")
    ours, x, results = build(variant, 40, 72, num_layers=2, bidirectional=True), torch.randn(13, 9, 40), []
    for path in ("avx512", "avx2"):
        backends.force_path(path)
        y = ours(x)[0]
        results.append([y, *torch.autograd.grad(y.square().sum(), list(ours.parameters()))])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@needs_extension
@pytest.mark.parametrize("path", PATHS[:3])
@pytest.mark.parametrize(("variant", "H"), [("lstm", 528), ("gru", 704)])  # sums of over 2048 terms in the backward
def test_rows_of_a_large_layer_have_the_bits_they_have_alone(path, variant, H):
    """However tiles are cut, and where a matrix is taken in parts, which depends on the rows."""
    if path not in here():
        pytest.skip(f"this CPU, or this run, has no {path}")
    backends.force_path(path)
    assert_rows_have_the_bits_they_have_alone(
        build(variant, 24, H), torch.randn(9, 45, 24), [7, 13, 25]
    )  # more than few steps


def assert_rows_have_the_bits_they_have_alone(ours: torch.nn.Module, x: torch.Tensor, some: list[int]) -> None:
    """Outputs and gradients of `x` (T, B, I), whole and in parts of some rows."""
    results = []
    for parts in ([x.shape[1]], some):
        of_parts = []
        for rows in x.split(parts, dim=1):
            rows = rows.clone().requires_grad_()
            y = ours(rows)[0]
            of_parts.append(torch.cat([y, *torch.autograd.grad(y.square().sum(), rows)], dim=-1))
        results.append(torch.cat(of_parts, dim=1))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the other paths are for x86")
@pytest.mark.parametrize("path", FORCED)
@pytest.mark.parametrize(
    ("cpu", "variant", "kernel"), [(lstm_cpu, "peephole_lstm", ("bwd", "f32")), (gru_cpu, "gru", ("fwd", "f64"))]
)
def test_gate_kernels_are_compiled_for_the_path(monkeypatch, path, cpu, variant, kernel):
    """Machine code that was read from a cache can't be looked at: none is kept here."""
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    code = cpu.compile_kernel(backends.VARIANTS[variant], *kernel, backends._CPUS[path])._library.get_asm_str()
    widths = set(re.findall(r"%([xyz])mm", code)) - {"x"}  # which hold a single number, too
    fused = bool(re.search(r"\bvfm?n?madd", code))
    expected = {"portable": (set(), False), "avx2": ({"y"}, True), "avx512": ({"z"}, True)}
    assert (widths, fused) == expected[path.partition("+")[0]]


# How many terms are taken at once there: 16 pairs; 10, as 40 are 20 pairs; 15 and 11, of which nothing divides both
OF_PAIRS = ["lstm T9 B33 I32 H96", "gru T9 B33 I40 H80", "cifg_lstm T300 B1 I32 H64", "lstm T7 B45 I30 H22 packed:3-7"]


def of_bfloat16(path: str) -> None:
    if path not in here():
        pytest.skip(f"this CPU, or this run, has no {path}")
    backends.force_path(None if path == backends.gemm_path() else path)
    assert backends.gemm_path() == path


@needs_extension
@pytest.mark.parametrize("path", PATHS[3:])
@pytest.mark.parametrize("case", OF_PAIRS)
def test_parity_by_instructions_for_bfloat16(path, case):
    of_bfloat16(path)
    assert [row for row in parity.check(case, "bf16", "numba", "module") if not row.ok] == []


@needs_extension
@pytest.mark.parametrize("path", PATHS[3:])
@pytest.mark.parametrize(("variant", "I", "H"), [("lstm", 32, 96), ("gru", 40, 80)])
def test_rows_of_bfloat16_have_the_bits_they_have_alone(path, variant, I, H):
    """However many of a register's rows there are."""
    of_bfloat16(path)
    x = torch.randn(3, 64, I).bfloat16()
    assert_rows_have_the_bits_they_have_alone(build(variant, I, H).bfloat16(), x, [1, 16, 17, 30])


@needs_extension
def test_others_keep_their_registers():
    """Ours and oneDNN's products of bfloat16 in turn, in one thread: both configure registers that are the thread's."""
    ours, theirs = build("lstm", 32, 96).bfloat16(), torch.nn.LSTM(48, 80).bfloat16()
    x, a = torch.randn(4, 19, 32).bfloat16(), torch.randn(4, 25, 48).bfloat16()
    with torch.no_grad():
        alone, other = ours(x)[0], [theirs(a)[0], a[0] @ a[1].T]
        for _ in range(3):
            torch.testing.assert_close([theirs(a)[0], a[0] @ a[1].T], other, rtol=0, atol=0)
            torch.testing.assert_close(ours(x)[0], alone, rtol=0, atol=0)


DENIED = """
import ctypes, torch, fastlstm
from fastlstm import backends
module, x = fastlstm.LSTM(32, 32), torch.randn(3, 2, 32)
with torch.no_grad():
    expected = module(x)[0]
    assert backends.gemm_path() == "avx512+amx"
    memory = ctypes.create_string_buffer(8192)
    stack = (ctypes.c_size_t * 3)(ctypes.addressof(memory), 0, 8192)
    # too small for AMX's registers: refused where the system was asked for them
    assert ctypes.CDLL(None).sigaltstack(stack, None) == 0
    y = module.bfloat16()(x.bfloat16())[0]
    assert backends.gemm_path() == "avx512+bf16"
torch.testing.assert_close(y.float(), expected, rtol=0, atol=0.02)
"""


@needs_extension
def test_the_system_is_asked_by_the_first_call_and_may_deny():
    if here()[-1] != "avx512+amx":
        pytest.skip("this CPU, or this run, has no avx512+amx")
    # its own altstack, and no handler of faults that makes another
    run = subprocess.run(
        [sys.executable, "-c", DENIED], capture_output=True, text=True, env=os.environ | {"PYTHONFAULTHANDLER": ""}
    )
    assert run.returncode == 0, run.stderr
