"""`backends.set_float32_precision`: products of float32 by parts of bfloat16 (products/split.h)."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from helpers import assert_threads_change_no_bit
from test_paths import needs_extension
from torch import Tensor

import fastlstm
from fastlstm import backends
from fastlstm.benchmarks.contenders import contender
from fastlstm.benchmarks.work import Work, make_work
from fastlstm.case import parse

BITS = {"high": 16, "medium": 8}
needs_amx = pytest.mark.skipif(
    backends.gemm_path() != "avx512+amx", reason="without AMX, products are taken as they are"
)
each_precision = pytest.mark.parametrize("precision", BITS)

# Odd sizes, rows that fill no tile, sums that fill no block, each kind of gates, one step of many rows
LINES = [
    "lstm T9 B33 I13 H65 L2 bi lengths:1-9",
    "lstm T4 B40 I300 H64 bi packed:1-4",
    "lstm T3 B100 I64 H128 resets:0.2",
    "lstm T1 B70 I33 H90",
    "lstm T40 B16 I32 H64",
    "gru T9 B16 I7 H67 L2",
    "gru T5 B49 I33 H129 resets:0.1",
    "gru T1 B64 I40 H80",
    "peephole_lstm T9 B33 I32 H96",
    "cifg_lstm T5 B40 I16 H70 P33 resets:0.2",
    "cifg_peephole_lstm T12 B17 I17 H72 resets:0.2",
    "attention_lstm T5 B17 S7 I12 H66 M24",
]
each_line = pytest.mark.parametrize("line", LINES)


def work_of(line: str) -> Work:
    return make_work(dataclasses.replace(parse(line), dtype="fp32", mode="train"))


def results(work: Work, precision: str = "highest") -> list[Tensor]:
    """Ours: output, final states and all gradients."""
    backends.set_float32_precision(precision)
    return [t.detach().clone() for t in contender("ours", work).step()]


def rounded(x: Tensor, bits: int) -> Tensor:
    fraction, exponent = torch.frexp(x.detach())
    return torch.ldexp((fraction * 2**bits).round(), exponent - bits)


def reference(work: Work, bits: int = 53) -> list[Tensor]:
    """The same in float64, of inputs and weights that are rounded to so many bits."""
    work = work.to(torch.float64)
    with torch.no_grad():
        for p in work.module.parameters():
            p.copy_(rounded(p, bits))
    memory = None if work.memory is None else rounded(work.memory, bits)
    states = tuple(rounded(s, bits) for s in work.states)
    work = dataclasses.replace(work, x=rounded(work.x, bits), memory=memory, states=states)
    return [t.detach() for t in contender("reference", work).step()]


def size(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def test_it_is_what_was_set():
    assert backends.float32_precision() == "highest"
    with pytest.raises(ValueError, match="precision is 'fast', expected one of 'highest', 'high', 'medium'"):
        backends.set_float32_precision("fast")
    assert backends.float32_precision() == "highest"


@needs_extension
@needs_amx
@each_precision
@each_line
def test_errors_are_those_of_rounded_factors(line, precision):
    """At most a few times what the same rounding of inputs and weights does to the reference: h and dG are rounded as well."""
    work = work_of(line)
    exact, rough, ours = reference(work), reference(work, BITS[precision]), results(work, precision)
    for one, other, precise, found in zip(exact, rough, results(work), ours, strict=True):
        allowed = 4 * size(other - one) + 2 * size(precise.double() - one)
        assert size(found.double() - one) <= allowed
    assert any(not torch.equal(a, b) for a, b in zip(ours, results(work), strict=True))


@needs_extension
@needs_amx
@each_precision
@each_line
def test_threads_change_no_bit(line, precision):
    work = work_of(line)
    assert_threads_change_no_bit(lambda: results(work, precision))


@needs_extension
@pytest.mark.parametrize(
    "line", ["lstm T9 B15 I13 H70", "lstm T1 B63 I13 H70", "gru T5 B2 I16 H64", "lstm T5 B40 I80 H63"]
)
def test_few_rows_and_units_are_multiplied_as_they_are(line):
    work = work_of(line)
    torch.testing.assert_close(results(work, "medium"), results(work), rtol=0, atol=0)


@needs_extension
@pytest.mark.parametrize("path", ["avx512+bf16", "avx512", "avx2", "portable"])
def test_nothing_changes_without_amx(path):
    try:
        backends.force_path(path)
    except RuntimeError as error:
        pytest.skip(str(error))
    work = work_of("lstm T5 B33 I13 H70")
    torch.testing.assert_close(results(work, "medium"), results(work), rtol=0, atol=0)


@needs_extension
@needs_amx
@each_precision
def test_a_sequence_in_parts_has_its_bits(precision):
    backends.set_float32_precision(precision)
    module, x = fastlstm.LSTM(20, 72, num_layers=2), torch.randn(7, 19, 20)
    with torch.inference_mode():
        whole, _ = module(x)
        first, state = module(x[:3])
        rest, _ = module(x[3:], state)
        stream = fastlstm.Stream(module, batch_size=19)
        streamed = torch.cat([stream.step(x[0])[None], stream.run(x[1:6]), stream.step(x[6])[None]])
    torch.testing.assert_close(torch.cat([first, rest]), whole, rtol=0, atol=0)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=0)


@needs_extension
@needs_amx
@each_precision
@pytest.mark.parametrize("kind", [fastlstm.LSTM, fastlstm.GRU])
@pytest.mark.parametrize("value", [torch.inf, torch.finfo(torch.float32).min])
def test_huge_factors_are_multiplied_as_in_float32(kind, value, precision):
    """Infinity has no second part, and is the bfloat16 nearest to the largest numbers: their sums would be no numbers."""
    module, x, h = kind(40, 65), torch.randn(5, 37, 40), torch.randn(1, 37, 65)
    x[1, 3, 7], x[2, 36, 39], x[3, 20, 0], h[0, 30, 4] = value, -value, torch.nan, value
    hx = h if kind is fastlstm.GRU else (h, torch.zeros_like(h))

    def both() -> list[Tensor]:
        found = []
        for one in ("highest", precision):
            backends.set_float32_precision(one)
            found.append(module(x, hx)[0])
        return found

    close = {"rtol": 0, "atol": 1e-4 if precision == "high" else 0.02, "equal_nan": True}
    with torch.inference_mode():
        expected, found = both()
        torch.testing.assert_close(found, expected, **close)
        assert found[:, 3].isfinite().all() or kind is fastlstm.GRU
        assert found[3:, 20].isnan().all()
        module.weight_ih_l0[5, 2], module.weight_hh_l0[3, 7] = value, value
        expected, found = both()
        torch.testing.assert_close(found[0], expected[0], **close)


@needs_extension
def test_few_sequences_are_multiplied_as_they_are_in_second_derivatives():
    module, x = fastlstm.LSTM(12, 64), torch.randn(4, 10, 12, requires_grad=True)
    found = []
    for one in ("highest", "medium"):
        backends.set_float32_precision(one)
        (gradient,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@needs_extension
@needs_amx
def test_derivatives_of_derivatives_and_maps():
    torch.manual_seed(0)
    module, x = fastlstm.GRU(12, 68), torch.randn(4, 20, 12, requires_grad=True)

    def penalty() -> Tensor:
        (gradient,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), module.weight_hh_l0)[0]

    def mapped() -> Tensor:
        return torch.func.vmap(lambda one: module(one)[0])(x.detach().expand(3, -1, -1, -1))

    expected = penalty(), mapped()
    backends.set_float32_precision("high")
    for found, one in zip((penalty(), mapped()), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=0, atol=1e-4 * size(one))


@needs_extension
@needs_amx
def test_amx_is_asked_for_when_it_is_used():
    """Linux wants larger stacks for signals from a process that has asked."""
    program = """if True:
        import torch, fastlstm
        from fastlstm import backends
        def asked():
            import ctypes
            states = ctypes.c_uint64()
            ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(states))
            return bool(states.value >> 18 & 1)
        module, x = fastlstm.LSTM(8, 64), torch.randn(3, 20, 8)
        module(x)
        assert not asked()
        backends.set_float32_precision("high")
        assert not asked()
        module(x)
        assert asked()
    """
    subprocess.run([sys.executable, "-c", program], check=True)
