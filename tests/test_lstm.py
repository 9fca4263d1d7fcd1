"""`fastlstm.LSTM` gives the values and gradients of `nn.LSTM`, whatever the shape, the layout and the options."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import functional

I, H, T, B = 3, 5, 6, 4
LENGTHS = [3, 6, 1, 4]

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "two directions": {"bidirectional": True},
    "three layers, two directions, batch first": {"num_layers": 3, "bidirectional": True, "batch_first": True},
    "projection": {"proj_size": 2},
    "projection to 1, two layers, two directions": {"proj_size": 1, "num_layers": 2, "bidirectional": True},
    "projection, no bias, batch first": {"proj_size": 4, "bias": False, "batch_first": True},
}
LAYOUTS = ("dense", "packed", "packed unsorted", "lengths", "unbatched")


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS)
def options(request) -> dict:
    return request.param


def pair(*sizes: int, **options) -> tuple[nn.LSTM, fastlstm.LSTM]:
    """PyTorch's module and ours with the same weights."""
    torch.manual_seed(1)
    theirs = nn.LSTM(*(sizes or (I, H)), dtype=torch.float64, **options)
    ours = fastlstm.LSTM(*(sizes or (I, H)), dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def states(module: nn.RNNBase, *batch: int) -> tuple[Tensor, Tensor]:
    K = module.num_layers * (2 if module.bidirectional else 1)
    return tuple(
        torch.randn(K, *batch, size, dtype=torch.float64) for size in (module.proj_size or module.hidden_size, H)
    )


def run(module: nn.RNNBase, layout: str, x: Tensor, hx: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Output, final states and every gradient of a module on `x` (T, B, I) in one of LAYOUTS."""
    x, *hx = (t.clone().requires_grad_() for t in (x, *hx))
    first = module.batch_first
    if layout == "unbatched":
        y, finals = module(x[:, 0], tuple(s[:, 0] for s in hx))
    elif layout == "dense":
        y, finals = module(x.transpose(0, 1) if first else x, tuple(hx))
    elif layout == "lengths" and isinstance(module, fastlstm.LSTM):
        y, finals = module(x.transpose(0, 1) if first else x, tuple(hx), lengths=LENGTHS)
    else:
        given, lengths = x, torch.tensor(LENGTHS)
        if layout == "packed":
            lengths = lengths.sort(descending=True).values
        packed = pack_padded_sequence(given, lengths, enforce_sorted=layout == "packed")
        y, finals = module(packed, tuple(hx))
        if layout == "lengths":
            y, _ = pad_packed_sequence(y, batch_first=first, total_length=T)
        else:
            assert isinstance(y, PackedSequence)
            for ours, theirs in zip(y[1:], packed[1:], strict=True):
                assert (ours is None and theirs is None) or torch.equal(ours, theirs)
            y = y.data
    outputs = [y, *finals]
    torch.manual_seed(2)
    leaves = [x, *hx, *module.parameters()]
    gradients = torch.autograd.grad(outputs, leaves, [torch.randn(t.shape, dtype=t.dtype) for t in outputs])
    return [*outputs, *gradients]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lstm(options, layout):
    theirs, ours = pair(**options)
    x, hx = torch.randn(T, B, I, dtype=torch.float64), states(ours, B)
    assert_same(run(ours, layout, x, hx), run(theirs, layout, x, hx))
