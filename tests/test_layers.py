"""Layers, directions and dropout over any recurrence; and PyTorch's own op in their place."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import backends, layers

T, B, I, H = 6, 4, 3, 5


def decay(x: Tensor, batch_sizes: None, s: Tensor, w: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """A recurrence with one state and one weight: `s = s' / 2 + x w`, whose output is `s`."""
    y = []
    for x_t in x.flip(0) if reverse else x:
        s = s / 2 + x_t @ w
        y.append(s)
    return torch.stack(y[::-1] if reverse else y), s


@pytest.mark.parametrize("directions", [1, 2])
def test_stack_is_layer_after_layer(directions):
    x = torch.randn(T, B, I)
    s0 = torch.randn(3 * directions, B, H)
    weights = [[torch.randn(I if k < directions else H * directions, H)] for k in range(3 * directions)]
    y, s_n = layers.stack(decay, x, None, [s0], weights, directions=directions, dropout=0.0)

    finals = []
    for _ in range(3):
        runs = []
        for reverse in range(directions):
            k = len(finals)
            runs.append(decay(x, None, s0[k], *weights[k], reverse=bool(reverse)))
            finals.append(runs[-1][1])
        x = torch.cat([run[0] for run in runs], dim=-1)
    torch.testing.assert_close(y, x, rtol=0, atol=0)
    torch.testing.assert_close(s_n, torch.stack(finals), rtol=0, atol=0)


def test_dropout_is_between_layers():
    x, s0, weights = torch.randn(T, B, I), torch.zeros(2, B, H), [[torch.randn(I, H)], [torch.randn(H, H)]]
    torch.manual_seed(4)
    y, _ = layers.stack(decay, x, None, [s0], weights, directions=1, dropout=0.5)
    torch.manual_seed(4)
    between = dropout(decay(x, None, s0[0], *weights[0], reverse=False)[0], 0.5)
    assert (between == 0).any()
    torch.testing.assert_close(y, decay(between, None, s0[1], *weights[1], reverse=False)[0], rtol=0, atol=0)


def test_dropout_only_in_training_and_repeatable():
    module = fastlstm.LSTM(I, H, num_layers=3, dropout=0.5)
    plain = fastlstm.LSTM(I, H, num_layers=3)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(T, B, I)
    torch.testing.assert_close(module.eval()(x), plain(x), rtol=0, atol=0)
    module.train()
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        y, (h_n, _) = module(x)
        results.append([y, *torch.autograd.grad(y.sum(), list(module.parameters()))])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert not torch.equal(y, plain(x)[0])
    assert torch.equal(h_n[0], plain(x)[1][0][0])
    assert (y != 0).all()


def test_dropout_of_everything_is_pytorchs():
    theirs = nn.LSTM(I, H, num_layers=2, dropout=1.0, dtype=torch.float64)
    ours = fastlstm.LSTM(I, H, num_layers=2, dropout=1.0, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


OPTIONS = {
    "plain": {},
    "two layers, no bias": {"num_layers": 2, "bias": False},
    "two directions, batch first": {"bidirectional": True, "batch_first": True},
    "projection, two layers": {"proj_size": 2, "num_layers": 2},
}


@pytest.fixture
def by_torch(monkeypatch):
    """Where no kernel covers a case, "auto" chooses PyTorch's op."""
    choose = backends.choose

    def auto_is_torch(variant, device, dtype, requested="auto"):
        if requested == "auto":
            return backends.Choice("torch", "the test wants it")
        return choose(variant, device, dtype, requested)

    monkeypatch.setattr(backends, "choose", auto_is_torch)


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("lengths", [None, [3, 6, 1, 4], [0, 6, 2, 0], [0, 0, 0, 0]], ids=str)
def test_lstm_by_torch_is_ours(options, lengths):
    module = fastlstm.LSTM(I, H, **options, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    poisoned = x
    if lengths:
        poisoned = x.masked_fill(torch.arange(T)[:, None, None] >= torch.tensor(lengths)[:, None], torch.nan)
    K = module.num_layers * (1 + module.bidirectional)
    hx = [torch.randn(K, B, size, dtype=torch.float64) for size in (module.proj_size or H, H)]
    results = []
    for module.backend, given in (("auto", poisoned), ("reference", x)):
        leaves = [t.detach().requires_grad_() for t in (given, *hx)]
        y, finals = module(leaves[0].transpose(0, 1) if module.batch_first else leaves[0], leaves[1:], lengths=lengths)
        outputs = [y, *finals]
        gradients = torch.autograd.grad([(t**2).sum() for t in outputs], [*leaves, *module.parameters()])
        results.append([*outputs, *gradients])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_packed_lstm_by_torch(options):
    theirs, ours = nn.LSTM(I, H, **options), fastlstm.LSTM(I, H, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, I)
    packed = pack_padded_sequence(x, torch.tensor([3, 6, 1, 4]), enforce_sorted=False)
    (y, finals), (expected, expected_finals) = ours(packed), theirs(packed)
    torch.testing.assert_close(y.data, expected.data, rtol=0, atol=0)
    torch.testing.assert_close(finals, expected_finals, rtol=0, atol=0)


@pytest.mark.usefixtures("by_torch")
def test_lstm_by_torch_drops_out_and_trains_in_evaluation_mode():
    theirs, ours = nn.LSTM(I, H, 2, dropout=0.5), fastlstm.LSTM(I, H, 2, dropout=0.5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, I)
    results = []
    for module in (theirs, ours):
        torch.manual_seed(6)
        trained, _ = module.train()(x)
        y, _ = module.eval()(x)
        results.append([trained, y, *torch.autograd.grad(y.sum(), list(module.parameters()))])
    torch.testing.assert_close(*results, rtol=0, atol=0)
