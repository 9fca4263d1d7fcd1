"""The ConvLSTM's ops for a GPU held to the oracles without one, as test_gpu_parity.py does."""

import pytest
import torch
from gpu_interpreter import LITTLE, Interpreter

import fastlstm
from fastlstm import backends, parity
from fastlstm.gpu import conv_lstm as gpu_conv_lstm
from fastlstm.gpu import launch

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")

OF_CONV = (
    "wider_kernel", "1d_even", "3d_even", "stride", "padding", "strided", "padded_reverse", "blind_no_bias", "only_h_n",
    "frozen_input", "frozen_weights", "reset_reverse", "cells_padded_reset",
)  # fmt: skip
OF_OTHERS = (
    "peephole_conv_lstm_conv", "peephole_conv_lstm_hadamard_cells_padded_reset", "cifg_conv_lstm_no_bias",
    "cifg_peephole_conv_lstm_only_c_n", "cifg_peephole_conv_lstm_hadamard_stride",
)  # fmt: skip
IN_HALF = ("conv_lstm_even", "cifg_peephole_conv_lstm_hadamard_conv")


@pytest.mark.parametrize("case", [*(f"conv_lstm_{name}" for name in OF_CONV), *OF_OTHERS])
def test_one_launch_per_step(case: str, interpreter: Interpreter) -> None:
    missed = [row for row in parity.check(case, "fp32", "numba") if not row.ok]
    assert not missed
    assert interpreter.launched


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("case", IN_HALF)
def test_half_precision(case: str, dtype: str, interpreter: Interpreter) -> None:
    missed = [row for row in parity.check(case, dtype, "numba") if not row.ok]
    assert not missed


def test_channels_in_blocks(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpu", lambda device: LITTLE)
    missed = [row for row in parity.check("conv_lstm_1d_even", "fp32", "numba") if not row.ok]
    assert not missed
    blocks = [dict(spec.constants) for spec in interpreter.specs]
    assert {(block["K"], block["BK"]) for block in blocks} == {(17, 16), (68, 16)}


def test_the_first_step_of_fresh_states_takes_no_product(interpreter: Interpreter) -> None:
    """Weights that are no numbers do no harm where nothing was to remember."""
    layer = fastlstm.ConvLSTM2d(2, 3, 3)
    torch.nn.init.constant_(layer.weight_hh_l0, torch.nan)
    x = torch.randn(2, 2, 2, 3, 4)
    with torch.no_grad():
        y, _ = layer(x)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


@pytest.mark.parametrize(("T", "B"), [(4, 0), (0, 2)])
def test_nothing_to_run_launches_nothing(T: int, B: int, interpreter: Interpreter) -> None:
    S, H = (3, 4), 5
    x, states = torch.randn(T, B, *S, 2), torch.randn(B, *S, H)
    w_ih, w_hh = torch.randn(4 * H, 3, 3, 2), torch.randn(4 * H, 2, 2, H)
    flags = ((1, 1), (1, 1, 1, 1), (1, 1), False, False, False)
    y, h_n, c_n, _, saved = gpu_conv_lstm.conv_lstm_fwd(
        x, None, None, states, states, w_ih, w_hh, None, None, None, *flags, False, True
    )
    assert y.shape == (T, B, *S, H)
    assert torch.equal(h_n, states)
    assert torch.equal(c_n, states)
    dx, dh0, dc0, dw_ih, dw_hh, db, _ = gpu_conv_lstm.conv_lstm_bwd(
        y, h_n, c_n, None, x, None, None, states, states, w_ih, w_hh, None, saved, *flags, True, True
    )
    assert dx.shape == x.shape
    assert torch.equal(dh0, states)
    assert torch.equal(dc0, states)
    assert dw_ih.shape == w_ih.shape
    assert dw_hh.shape == w_hh.shape
    assert not any(d.any() for d in (dw_ih, dw_hh, db))
    assert not interpreter.launched
