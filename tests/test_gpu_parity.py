"""The GPU's ops held to the oracles without a GPU: C++ launches through a double of libcuda, Triton's interpreter runs.

All that is not run is the code that Triton generates for a GPU; see test_gpu_compile.py for that.
"""

import pytest
import torch
from gpu_interpreter import LITTLE, MANY, Interpreter

import fastlstm
from fastlstm import backends, parity
from fastlstm.gpu import gru as gpu_gru
from fastlstm.gpu import launch, plan
from fastlstm.parity import CASES

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")

OF_EACH_VARIANT = (
    "h16", "packed", "padded_reverse", "reset_packed", "reset_reverse", "cells_padded_reset", "step",
)  # fmt: skip
OF_TWO = (
    "b33", "zero_state", "no_bias", "strided", "reverse", "padded_zeros", "only_h_n", "frozen_input", "frozen_weights",
    "stack_packed", "projection_stack", "reset_stack", "cells",
)  # fmt: skip
OF_LSTM = ("three", "b65", "saturated", "projection_reverse", "projection_packed", "only_c_n", "frozen_recurrence")


def of(cases: tuple[str, ...], variants: tuple[str, ...] = tuple(backends.VARIANTS)) -> list[str]:
    """The names of the cases of these variants, as far as they have them."""
    names = [f"{variant}_{case}" for variant in variants for case in cases]
    return [name for name in names if name in CASES]


@pytest.mark.parametrize("case", [*of(OF_EACH_VARIANT), *of(OF_TWO, ("lstm", "gru")), *of(OF_LSTM, ("lstm",))])
def test_one_launch_per_step(case: str, interpreter: Interpreter) -> None:
    missed = [row for row in parity.check(case, "fp32", "numba") if not row.ok]
    assert not missed
    assert interpreter.launched
    assert not any(cooperative for *_, cooperative in interpreter.launched)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("case", of(("h16", "padded_reverse", "reset_packed")))
def test_half_precision(case: str, dtype: str, interpreter: Interpreter) -> None:
    missed = [row for row in parity.check(case, dtype, "numba") if not row.ok]
    assert not missed


@pytest.mark.parametrize("case", of(("h16", "packed", "padded_reverse", "reset_reverse", "cells_padded_reset")))
def test_all_steps_in_one_launch(case: str, interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    # the interpreter runs programs one after another: one that waits for others would wait for ever
    monkeypatch.setattr(launch, "gpu", lambda device: MANY)
    monkeypatch.setattr(plan, "tile", lambda *args, **_: plan.Tile(16, 32, 128, 0, keep=True, warps=4, stages=1))
    missed = [row for row in parity.check(case, "fp32", "numba") if not row.ok]
    assert not missed
    assert all(cooperative and grid == (1, 1) for *_, grid, cooperative in interpreter.launched)


@pytest.mark.parametrize("case", ["lstm_h65", "gru_h65", "cifg_peephole_lstm_h65", "lstm_projection"])
def test_weights_in_blocks(case: str, interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpu", lambda device: LITTLE)
    missed = [row for row in parity.check(case, "fp32", "numba") if not row.ok]
    assert not missed
    kept = {dict(spec.constants).get("KEEP", False) for spec in interpreter.specs}
    assert kept == {False}


@pytest.mark.parametrize(
    "module",
    [fastlstm.LSTM(3, 5), fastlstm.LSTM(3, 5, proj_size=2), fastlstm.GRU(3, 5), fastlstm.ConvLSTM2d(3, 5, 3)],
    ids=["lstm", "projection", "gru", "conv_lstm"],
)
def test_edited_outputs(module: torch.nn.Module, interpreter: Interpreter) -> None:
    """What is returned is the caller's: the backward takes h from what was saved."""
    x, found = torch.randn(4, 2, 3, *[4, 3] * isinstance(module, fastlstm.ConvLSTM2d)), []
    for edit in (lambda y: y * 2, lambda y: y.mul_(2)):
        y, finals = module(x, lengths=[4, 3])
        h_n, *_ = [finals] if isinstance(finals, torch.Tensor) else finals
        loss = edit(y).sin().sum() + edit(h_n).sum()
        found.append(torch.autograd.grad(loss, list(module.parameters())))
    assert interpreter.launched
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_frozen_weights_without_a_projection(interpreter: Interpreter) -> None:
    """Where no gradient needs h, the backward has nowhere to write it."""
    module, x, found = fastlstm.LSTM(3, 5), torch.randn(4, 2, 3, requires_grad=True), []
    for trained in (True, False):
        y, _ = module.requires_grad_(trained)(x)
        found += torch.autograd.grad(y.sin().sum(), x)
    assert interpreter.launched
    assert torch.equal(*found)


@pytest.mark.parametrize("variant", ["LSTM", "GRU"])
def test_an_empty_batch_launches_nothing(variant: str, interpreter: Interpreter) -> None:
    module = getattr(fastlstm, variant)(3, 5)
    x = torch.randn(4, 0, 3, requires_grad=True)
    y, finals = module(x)
    assert y.shape == (4, 0, 5)
    (y.sum() + sum(f.sum() for f in finals)).backward()
    assert x.grad.shape == x.shape
    assert all(not p.grad.any() for p in module.parameters())
    assert not interpreter.launched


def test_no_steps_launch_nothing(interpreter: Interpreter) -> None:
    h, w_ih, w_hh = torch.randn(2, 5), torch.randn(15, 3), torch.randn(15, 5)
    y, h_n, saved = gpu_gru.gru_fwd(torch.randn(0, 2, 3), None, None, h, w_ih, w_hh, None, None, False, True)
    assert y.shape == (0, 2, 5)
    assert torch.equal(h_n, h)
    dx, dh0, *_ = gpu_gru.gru_bwd(
        None, h, torch.randn(0, 2, 3), None, None, h, w_ih, w_hh, saved, False, True, True, True
    )
    assert dx.shape == (0, 2, 3)
    assert torch.equal(dh0, h)
    assert not interpreter.launched


@pytest.mark.parametrize("variant", ["LSTM", "GRU"])
@pytest.mark.parametrize("T", [3, 1])
def test_states_may_be_strided(variant: str, T: int, interpreter: Interpreter) -> None:
    """Results are not, which kernels write row by row."""
    module, found = getattr(fastlstm, variant)(3, 5), []
    x, h = torch.randn(T, 4, 3), torch.randn(2, 1, 4, 5)
    for states in (h, h.transpose(2, 3).contiguous().transpose(2, 3)):
        given = states.clone(memory_format=torch.preserve_format).requires_grad_()
        hx = (given[0], given[1]) if variant == "LSTM" else given[0]
        y, finals = module(x, hx)
        outputs = [y, *(finals if isinstance(finals, tuple) else [finals])]
        loss = sum((t.sin() * t).sum() for t in outputs)
        found.append([*outputs, *torch.autograd.grad(loss, [given, *module.parameters()])])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
