"""A first state of zeros takes no part in products; nothing else changes."""

import pytest
import torch
from torch import nn

import fastlstm


def _run(ours: nn.Module, x: torch.Tensor, h0: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y, state = ours(x, (h0, torch.ones_like(h0)) if isinstance(ours, fastlstm.LSTM) else h0)
    h_n = state[0] if isinstance(state, tuple) else state
    found = torch.autograd.grad(y.sin().sum() + h_n.square().sum(), [x, *ours.parameters()])
    return [y.detach(), h_n.detach(), *found]


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("B", [1, 4, 8, 20, 70])
@pytest.mark.parametrize("T", [1, 2, 3, 9])
@pytest.mark.parametrize("H", [37, 67])
@pytest.mark.parametrize("kind", [fastlstm.LSTM, fastlstm.GRU])
def test_a_state_of_zeros_is_as_one_of_almost_zeros(kind, H, T, B, dtype):
    ours = kind(19, H).to(dtype)
    x, h0 = torch.randn(T, B, 19, dtype=dtype), torch.zeros(1, B, H, dtype=dtype)
    zero = _run(ours, x, h0)
    h0[0, -1, -1] = 1e-30
    for found, expected in zip(zero, _run(ours, x, h0), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-25)
    if T == 1:
        assert not dict(zip(dict(ours.named_parameters()), zero[3:], strict=True))["weight_hh_l0"].any()
