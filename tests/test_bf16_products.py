"""The recurrent family in bfloat16 by the CPU's instructions for it: any size, peepholes, projections (products/factors.h)."""

import dataclasses

import pytest
import torch
from helpers import assert_threads_change_no_bit
from test_paths import needs_extension, of_bfloat16
from torch import Tensor

from fastlstm import backends, parity
from fastlstm.benchmarks.work import make_work, module_of
from fastlstm.case import parse

pytestmark = needs_extension
PATHS = ("avx512+bf16", "avx512+amx")
each_path = pytest.mark.parametrize("path", PATHS)

# Odd sizes, sizes that fill no whole registers, chunks of an odd number of rows, a single row, many steps
LINES = [
    "lstm T9 B33 I13 H17 L2 bi lengths:0-9",
    "lstm T4 B40 I300 H32 bi packed:1-4",
    "lstm T11 B3 I1 H1 resets:0.2",
    "gru T9 B13 I7 H33 L2",
    "gru T5 B20 I33 H48 resets:0.1",
    "peephole_lstm T9 B33 I32 H96",
    "peephole_lstm T9 B7 I5 H33 L2 bi packed:3-9",
    "cifg_peephole_lstm T12 B5 I17 H48 resets:0.2 return_cells",
    "cifg_peephole_lstm T300 B1 I32 H64",
    "lstm T100 B3 I80 H96 P64",
    "lstm T9 B35 I3 H33 P17 L2 bi lengths:0-9",
    "peephole_lstm T7 B5 I4 H20 P1 L2 packed:2-7",
    "cifg_lstm T5 B40 I16 H50 P49 resets:0.2",
    # A single step, by products/step_backward.h
    "lstm T1 B67 I37 H45 L2",
    "lstm T1 B300 I96 H64",
    "gru T1 B50 I33 H70 bi lengths:0-1",
    "cifg_peephole_lstm T1 B131 I5 H33 resets:0.5",
]
each_line = pytest.mark.parametrize("line", LINES)


def results(line: str) -> dict[str, Tensor]:
    """Output, final states and all gradients, dense and in both directions of time where the case has them."""
    case = dataclasses.replace(parse(line), layout="dense", lengths=(), resets=0.0, reverse=False, return_cells=False)
    torch.manual_seed(1)
    work = make_work(dataclasses.replace(case, dtype="bf16", mode="train"))
    module, x = module_of(work), work.x.detach().requires_grad_()
    y, finals = module(x)
    outputs = [y, *(finals if isinstance(finals, tuple) else (finals,))]
    given = dict(module.named_parameters()) | {"x": x}
    torch.manual_seed(3)
    gradients = torch.autograd.grad(outputs, list(given.values()), [torch.randn(t.shape).bfloat16() for t in outputs])
    named = dict(zip(given, gradients, strict=True))
    return {f"output {i}": t.detach() for i, t in enumerate(outputs)} | named


@each_path
@each_line
def test_parity(path, line):
    of_bfloat16(path)
    assert [row for row in parity.check(line, "bf16", "numba", "module") if not row.ok] == []


@each_path
@each_line
def test_threads_change_no_bit(path, line):
    of_bfloat16(path)
    assert_threads_change_no_bit(lambda: results(line))


@each_path
@each_line
def test_they_are_what_runs(path, line):
    """Every gradient of weights has other bits than float32's products give it: those of one hidden unit may be alike."""
    of_bfloat16(path)
    ours = results(line)
    backends.force_path("avx512")
    of_float32 = results(line)
    for name, gradient in ours.items():
        if gradient.numel() > 256 and gradient.any() and not name.startswith("output"):
            assert not torch.equal(gradient, of_float32[name]), name
            torch.testing.assert_close(
                gradient, of_float32[name], rtol=0.1, atol=0.03 * of_float32[name].abs().max().item()
            )


@each_path
@pytest.mark.parametrize(
    ("variant", "I", "H"), [("lstm", 5, 33), ("peephole_lstm", 47, 16), ("gru", 33, 70), ("cifg_lstm", 1, 7)]
)
def test_a_step_that_rounds_nothing_has_the_bits_of_float32(path, variant, I, H):
    """All sums of a step's products are exact: one wrong weight or term would show."""
    of_bfloat16(path)
    module = parse(f"{variant} T1 B37 I{I} H{H}").module(dtype=torch.bfloat16)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randint(-4, 5, p.shape) / 16)
        x = (torch.randint(-4, 5, (1, 37, I)) / 2).bfloat16()
        hx = tuple((torch.randint(-4, 5, (1, 37, H)) / 4).bfloat16() for _ in "hc")
        found = [module(x, hx[0] if variant == "gru" else hx)]
        backends.force_path("avx512")
        found.append(module(x, hx[0] if variant == "gru" else hx))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@each_path
def test_what_is_beyond_the_features_has_no_part(path):
    """Inputs of an odd size whose rows are followed by NaN."""
    of_bfloat16(path)
    module = parse("lstm T3 B5 I13 H17").module(dtype=torch.bfloat16)
    wide = torch.full((3, 5, 20), float("nan"), dtype=torch.bfloat16)
    wide[..., :13] = torch.randn(3, 5, 13)
    with torch.no_grad():
        torch.testing.assert_close(module(wide[..., :13])[0], module(wide[..., :13].clone())[0], rtol=0, atol=0)
