"""Layers, directions and dropout over any recurrence; and PyTorch's own op in their place."""

import pytest
import torch
from helpers import call, random_states
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import backends, stack
from fastlstm.modules import build

T, B, I, H = 6, 4, 3, 5


def decay(
    x: Tensor, batch_sizes: None, states: list[Tensor], weights: list[Tensor], *, reverse: bool, last: bool
) -> stack.Results:
    """A recurrence with one state and one weight: `s = s' / 2 + x w`, whose output is `s`; the last layer yields -s too."""
    (s,), (w,) = states, weights
    y = []
    for x_t in x.flip(0) if reverse else x:
        s = s / 2 + x_t @ w
        y.append(s)
    y = torch.stack(y[::-1] if reverse else y)
    return (y, -y) if last else (y,), (s,)


@pytest.mark.parametrize("directions", [1, 2])
def test_stack_is_layer_after_layer(directions):
    x = torch.randn(T, B, I)
    s0 = torch.randn(3 * directions, B, H)
    weights = [[torch.randn(I if k < directions else H * directions, H)] for k in range(3 * directions)]
    options = {"directions": directions, "dropout": 0.0}
    [(y, minus_y)], ends = stack.stack(decay, x, None, [(s,) for s in s0], weights, **options)
    every, _ = stack.stack(decay, x, None, [(s,) for s in s0], weights, **options, every_layer=True)

    finals = []
    for _ in range(3):
        runs = []
        for reverse in range(directions):
            k = len(finals)
            (y_k,), (s_k,) = decay(x, None, [s0[k]], weights[k], reverse=bool(reverse), last=False)
            runs.append(y_k)
            finals.append(s_k)
        x = torch.cat(runs, dim=-1)
        assert torch.equal(every.pop(0)[0], x)
    assert not every
    torch.testing.assert_close(y, x, rtol=0, atol=0)
    torch.testing.assert_close(minus_y, -x, rtol=0, atol=0)
    torch.testing.assert_close([s for (s,) in ends], finals, rtol=0, atol=0)


def test_dropout_is_between_layers():
    x, s0, weights = torch.randn(T, B, I), torch.zeros(2, B, H), [[torch.randn(I, H)], [torch.randn(H, H)]]
    torch.manual_seed(4)
    [(y, _)], _ = stack.stack(decay, x, None, [(s,) for s in s0], weights, directions=1, dropout=0.5)
    torch.manual_seed(4)
    (first,), _ = decay(x, None, [s0[0]], weights[0], reverse=False, last=False)
    between = dropout(first, 0.5)
    assert (between == 0).any()
    (expected, _), _ = decay(between, None, [s0[1]], weights[1], reverse=False, last=True)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("variant", backends.VARIANTS)
def test_dropout_only_in_training_and_repeatable(variant):
    module = build(variant, I, H, num_layers=3, dropout=0.5)
    plain = build(variant, I, H, num_layers=3)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(T, B, I)
    torch.testing.assert_close(module.eval()(x), plain(x), rtol=0, atol=0)
    module.train()
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        y, finals = module(x)
        results.append([y, *torch.autograd.grad(y.sum(), list(module.parameters()))])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert not torch.equal(y, plain(x)[0])
    h_n, expected = (f if variant == "gru" else f[0] for f in (finals, plain(x)[1]))
    assert torch.equal(h_n[0], expected[0])
    assert (y != 0).all()


each_kind = pytest.mark.parametrize("kind", ["LSTM", "GRU"])


def pair(kind: str, **options) -> tuple[nn.RNNBase, nn.RNNBase]:
    """PyTorch's module and ours, of the same weights."""
    theirs, ours = getattr(nn, kind)(I, H, **options), getattr(fastlstm, kind)(I, H, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@each_kind
def test_dropout_of_everything_is_pytorchs(kind):
    theirs, ours = pair(kind, num_layers=2, dropout=1.0, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


OPTIONS = {
    "plain": {},
    "two layers, no bias": {"num_layers": 2, "bias": False},
    "two directions, batch first": {"bidirectional": True, "batch_first": True},
    "projection, two layers": {"proj_size": 2, "num_layers": 2},
}
# a GRU has no projection
each_case = pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(kind, options, id=f"{kind}, {name}")
        for kind in ("LSTM", "GRU")
        for name, options in OPTIONS.items()
        if kind == "LSTM" or "proj_size" not in options
    ],
)


@pytest.fixture
def by_pytorch(monkeypatch):
    """Where no kernel covers a case, "auto" chooses PyTorch's op."""
    choose = backends.choose

    def auto_is_torch(variant, device, dtype, requested="auto", beyond_torch=False):
        if requested == "auto" and not beyond_torch:
            return backends.Choice("torch", "the test wants it")
        return choose(variant, device, dtype, requested, beyond_torch)

    monkeypatch.setattr(backends, "choose", auto_is_torch)
    monkeypatch.setattr("fastlstm.functional.quick.is_usual", lambda: False)  # it asks for kernels, and nothing else


@pytest.mark.usefixtures("by_pytorch")
@each_case
@pytest.mark.parametrize("lengths", [None, [3, 6, 1, 4], [0, 6, 2, 0], [0, 0, 0, 0]], ids=str)
def test_by_torch_is_ours(kind, options, lengths):
    module = getattr(fastlstm, kind)(I, H, **options, dtype=torch.float64)
    x, hx = torch.randn(T, B, I, dtype=torch.float64), random_states(module, B)
    poisoned = x
    if lengths:
        poisoned = x.masked_fill(torch.arange(T)[:, None, None] >= torch.tensor(lengths)[:, None], torch.nan)
    results = []
    for module.backend, given in (("auto", poisoned), ("reference", x)):
        leaves = [t.detach().requires_grad_() for t in (given, *hx)]
        outputs = call(module, "lengths" if lengths else "dense", lengths, leaves[0], leaves[1:])
        gradients = torch.autograd.grad([(t**2).sum() for t in outputs], [*leaves, *module.parameters()])
        results.append([*outputs, *gradients])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("by_pytorch")
@each_case
def test_packed_by_torch(kind, options):
    theirs, ours = pair(kind, **options)
    x = torch.randn(T, B, I)
    packed = pack_padded_sequence(x, torch.tensor([3, 6, 1, 4]), enforce_sorted=False)
    (y, finals), (expected, expected_finals) = ours(packed), theirs(packed)
    torch.testing.assert_close(y.data, expected.data, rtol=0, atol=0)
    torch.testing.assert_close(finals, expected_finals, rtol=0, atol=0)


@pytest.mark.usefixtures("by_pytorch")
@each_kind
def test_by_torch_drops_out_and_trains_in_evaluation_mode(kind):
    theirs, ours = pair(kind, num_layers=2, dropout=0.5)
    x = torch.randn(T, B, I)
    results = []
    for module in (theirs, ours):
        torch.manual_seed(6)
        trained, _ = module.train()(x)
        y, _ = module.eval()(x)
        results.append([trained, y, *torch.autograd.grad(y.sum(), list(module.parameters()))])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_what_pytorch_cannot_do_is_not_given_to_it():
    """Resets and cells: where there are no kernels, "auto" runs the reference."""
    cpu, other = torch.device("cpu"), torch.device("xpu")
    for variant in backends.VARIANTS.values():
        assert backends.choose(variant, cpu, torch.float32, beyond_torch=True).backend == "numba"
        assert backends.choose(variant, other, torch.float32, beyond_torch=True).backend == "reference"
        in_pytorch = variant.name in ("lstm", "gru")
        assert backends.choose(variant, other, torch.float32).backend == ("torch" if in_pytorch else "reference")
