"""What the equations say is equal: steps and the whole, directions, layers, peepholes of zero, coupled gates and an LSTM's."""

import math

import pytest
import torch
from helpers import (
    LENGTHS,
    OPTIONS,
    VARIANTS,
    B,
    H,
    I,
    T,
    as_hx,
    as_list,
    assert_same,
    call,
    each_case,
    each_layout,
    each_variant,
    module,
    random,
    random_states,
    run,
)
from torch import Tensor, nn
from torch.func import functional_call

import fastlstm
from fastlstm.ops import gru, lstm

each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@each_variant
def test_one_step_at_a_time_is_the_whole_sequence(variant):
    ours = module(variant, num_layers=2)
    x, hx = random(T, B, I), random_states(ours, B)
    whole, *finals = call(ours, "dense", [], x, hx)
    steps = []
    for x_t in x:
        y, *hx = call(ours, "dense", [], x_t[None], hx)
        steps.append(y)
    assert_same((torch.cat(steps), hx), (whole, finals))


@each_case({"plain": {}, "two layers": {"num_layers": 2}, "projection": {"proj_size": 2}})
def test_two_halves_are_the_whole(variant, options):
    ours = module(variant, **options)
    x, hx = random(T, B, I).requires_grad_(), as_hx(random_states(ours, B))
    whole, finals = ours(x, hx)
    first, between = ours(x[: T // 2], hx)
    second, last = ours(x[T // 2 :], between)
    results = []
    for y, states in ((whole, finals), (torch.cat([first, second]), last)):
        goal = y.square().sum() + sum((k + s).sin().sum() for k, s in enumerate(as_list(states)))
        results.append([y, states, *torch.autograd.grad(goal, [x, *ours.parameters()])])
    assert_same(*results)


def part(whole: nn.RNNBase, one: nn.RNNBase, suffix: str) -> nn.RNNBase:
    """`one`, with the weights of a layer and direction of the whole."""
    one.load_state_dict({name: getattr(whole, name.replace("_l0", suffix)).detach() for name in one.state_dict()})
    return one


@each_variant
def test_two_directions_are_two_runs_and_a_flip(variant):
    both = module(variant, bidirectional=True)
    forward, reverse = (part(both, module(variant), suffix) for suffix in ("_l0", "_l0_reverse"))
    x, hx = random(T, B, I), random_states(both, B)
    y, finals = both(x, as_hx(hx))
    there, back = forward(x, as_hx([s[:1] for s in hx])), reverse(x.flip(0), as_hx([s[1:] for s in hx]))
    assert_same(y, torch.cat([there[0], back[0].flip(0)], dim=-1))
    pairs = zip(as_list(there[1]), as_list(back[1]), strict=True)
    assert_same(as_list(finals), [torch.cat(s) for s in pairs])


@each_variant
def test_layers_are_stacked(variant):
    stacked = module(variant, num_layers=2)
    layers = part(stacked, module(variant), "_l0"), part(stacked, module(variant, H), "_l1")
    y, hx = random(T, B, I), random_states(stacked, B)
    result, finals = stacked(y, as_hx(hx))
    lasts = []
    for k, layer in enumerate(layers):
        y, last = layer(y, as_hx([s[k : k + 1] for s in hx]))
        lasts.append(as_list(last))
    assert_same([result, *as_list(finals)], [y, *(torch.cat(s) for s in zip(*lasts, strict=True))])


@each_option
@each_layout
@pytest.mark.parametrize(("variant", "plain"), [("peephole_lstm", "lstm"), ("cifg_peephole_lstm", "cifg_lstm")])
def test_zero_peepholes_change_no_bit(variant, plain, options, layout):
    peeping, other = module(variant, **options), module(plain, **options)
    for name, w in peeping.named_parameters():
        if "peephole" in name:
            nn.init.zeros_(w)
    other.load_state_dict({k: w for k, w in peeping.state_dict().items() if "peephole" not in k})
    x, hx = random(T, B, I), random_states(other, B)
    names = ["y", "h_n", "c_n", "x", "h0", "c0"]
    results = []
    for m in (peeping, other):
        names_m = [*names, *(name for name, _ in m.named_parameters())]
        results.append(dict(zip(names_m, run(m, layout, LENGTHS, x, hx), strict=True)))
    for name, expected in results[1].items():
        torch.testing.assert_close(results[0].pop(name), expected, rtol=0, atol=0)
    assert all("peephole" in name and d.any() for name, d in results[0].items())


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("coupled", [False, True])
def test_two_steps_by_hand(coupled, backend):
    """i and f look at the old cell, o at the new one: one unit that hears nothing but its biases and itself."""
    gates = {"i": (0.3, 2.0), "f": (-0.4, -3.0), "g": (0.7, None), "o": (0.2, 5.0)}  # bias, peephole
    order = "igo" if coupled else "ifgo"
    ours = module("cifg_peephole_lstm" if coupled else "peephole_lstm", 1, 1, backend=backend)
    with torch.no_grad():
        for w in ours.parameters():
            w.zero_()
        ours.bias_ih_l0.copy_(torch.tensor([gates[name][0] for name in order], dtype=torch.float64))
        ours.weight_peephole_l0.copy_(
            torch.tensor([[gates[name][1]] for name in order if name != "g"], dtype=torch.float64)
        )

    def gate(name: str, c: float) -> float:
        bias, peephole = gates[name]
        return 1 / (1 + math.exp(-bias - peephole * c))

    c, expected = 0.25, []
    for _ in range(2):
        i = gate("i", c)
        c = (1 - i if coupled else gate("f", c)) * c + i * math.tanh(gates["g"][0])
        expected.append(gate("o", c) * math.tanh(c))
    y, (_, c_n) = ours(
        torch.zeros(2, 1, 1).double(), (torch.zeros(1, 1, 1).double(), torch.full((1, 1, 1), 0.25).double())
    )
    assert y.flatten().tolist() == pytest.approx(expected, rel=1e-12)
    assert c_n.item() == pytest.approx(c, rel=1e-12)


def uncoupled(name: str, w: Tensor) -> Tensor:
    """The weight of the LSTM that a CIFG LSTM is: 1 - σ(a) = σ(-a), so that f's rows are i's negated."""
    if name.startswith("weight_hr"):
        return w
    if name.startswith("weight_peephole"):
        return torch.stack([w[0], -w[0], w[1]])
    i, g, o = w.chunk(3)
    return torch.cat([i, -i, g, o])


@each_option
@pytest.mark.parametrize("peephole", [False, True])
def test_coupled_gates_are_those_of_an_lstm(options, peephole):
    """Values and gradients; without peepholes that LSTM is PyTorch's."""
    ours = fastlstm.CIFGLSTM(I, H, peephole=peephole, dtype=torch.float64, backend="numba", **options)
    peer = (fastlstm.PeepholeLSTM if peephole else nn.LSTM)(I, H, dtype=torch.float64, **options)
    leaves = [t.requires_grad_() for t in (random(T, B, I), *random_states(ours, T if ours.batch_first else B))]
    weights = {name: uncoupled(name, w) for name, w in ours.named_parameters()}
    results = []
    for y, finals in (ours(leaves[0], leaves[1:]), functional_call(peer, weights, (leaves[0], tuple(leaves[1:])))):
        outputs = [y, *finals]
        results.append(
            [*outputs, *torch.autograd.grad(sum(t.sin().sum() for t in outputs), [*leaves, *ours.parameters()])]
        )
    assert_same(*results)


@pytest.mark.parametrize("variant", [name for name, variant in VARIANTS.items() if variant.peepholes])
def test_only_the_peepholes_are_trained(variant):
    """Their gradients are those that they have beside all others."""
    ours, x, grads = module(variant, num_layers=2), torch.ones(T, B, I, dtype=torch.float64), []
    for frozen in (False, True):
        for name, w in ours.named_parameters():
            w.grad = None
            w.requires_grad_("peephole" in name or not frozen)
        ours(x)[0].square().sum().backward()
        assert all((w.grad is not None) == w.requires_grad for w in ours.parameters())
        grads.append([ours.weight_peephole_l0.grad, ours.weight_peephole_l1.grad])
    assert_same(*grads)
    assert all(g.any() for g in grads[0])


@each_variant
@each_layout
def test_states_without_gradients(variant, layout, monkeypatch):
    """Nobody computes those, and all others have the same bits."""
    ours, ops, asked, grads = module(variant, bidirectional=True), (gru if variant == "gru" else lstm).OPS, [], []
    backward = ops.bwd
    monkeypatch.setattr(ops, "bwd", lambda *args: asked.append(args[-1]) or backward(*args))
    x, hx = random(T, B, I).requires_grad_(), random_states(ours, B)
    for needed in (True, False):
        y, *finals = call(ours, layout, LENGTHS, x, [s.requires_grad_(needed) for s in hx])
        grads.append(torch.autograd.grad(sum(t.sin().sum() for t in (y, *finals)), [x, *ours.parameters()]))
    assert asked == [True, True, False, False]
    assert all(map(torch.equal, *grads))
