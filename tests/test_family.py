"""`PeepholeLSTM` and `CIFGLSTM`: the kernels against the reference, and what the equations say they are equal to."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import fastlstm
from fastlstm.modules import build

I, H, T, B = 3, 5, 6, 4
LENGTHS = [3, 6, 1, 4]

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "three layers, two directions, batch first": {"num_layers": 3, "bidirectional": True, "batch_first": True},
    "projection": {"proj_size": 2},
    "projection to 1, two layers, two directions": {"proj_size": 1, "num_layers": 2, "bidirectional": True},
    "projection, no bias, batch first": {"proj_size": 4, "bias": False, "batch_first": True},
}

each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
each_variant = pytest.mark.parametrize("variant", ["peephole_lstm", "cifg_lstm", "cifg_peephole_lstm"])


def module(variant: str, **options) -> nn.RNNBase:
    return build(variant, I, H, dtype=torch.float64, **options)


def twins(variant: str, **options) -> tuple[nn.RNNBase, nn.RNNBase]:
    """The reference and the kernels, of the same weights."""
    pair = module(variant, backend="reference", **options), module(variant, backend="numba", **options)
    pair[1].load_state_dict(pair[0].state_dict())
    return pair


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def assert_same(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@each_variant
@each_option
def test_kernels_are_the_reference(run, random_states, variant, options, layout):
    reference, ours = twins(variant, **options)
    x, hx = random(T, B, I), random_states(ours, B)
    assert_same(run(ours, layout, LENGTHS, x, hx), run(reference, layout, LENGTHS, x, hx))


@each_variant
def test_lengths_may_be_zero(run, random_states, variant):
    """As a batch of those that are not; whose are, keep their states."""
    reference, ours = twins(variant, num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    lengths, some = [0, 4, 0, 6], [1, 3]
    poisoned = x.masked_fill(torch.arange(T)[:, None, None] >= torch.tensor(lengths)[:, None], torch.nan)
    y, h_n, c_n, dx, dh0, dc0, *_ = run(ours, "lengths", lengths, poisoned, hx)
    picked, *finals = reference(x[:, some], tuple(s[:, some] for s in hx), lengths=[4, 6])
    assert_same([y[:, some], (h_n[:, some], c_n[:, some])], [picked, *finals])
    assert not y[:, ::2].any()
    assert not dx[:, ::2].any()
    assert_same([h_n[:, ::2], c_n[:, ::2]], [s[:, ::2] for s in hx])
    assert dh0[:, ::2].all()
    assert dc0[:, ::2].all()


STRIDES = {
    "expanded": lambda *shape: random(*shape[:-2], 1, shape[-1]).expand(shape),
    "transposed": lambda *shape: random(*reversed(shape)).permute(*reversed(range(len(shape)))),
    "every other": lambda *shape: random(*shape[:-1], 2 * shape[-1])[..., ::2],
}


@each_variant
@pytest.mark.parametrize("strided", STRIDES.values(), ids=STRIDES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_strides(call, variant, strided, batch_first):
    reference, ours = twins(variant, num_layers=2, batch_first=batch_first)
    leaves = [t.requires_grad_() for t in (strided(T, B, I), strided(2, B, H), strided(2, B, H))]
    if "peephole" in variant:
        ours.weight_peephole_l0 = nn.Parameter(ours.weight_peephole_l0.detach().t().contiguous().t())
    outputs = [call(m, "dense", [], leaves[0], leaves[1:]) for m in (ours, reference)]
    assert_same(*outputs)
    assert_same(*[torch.autograd.grad([t.square().sum() for t in outs], leaves) for outs in outputs])


@each_option
@pytest.mark.parametrize(("variant", "plain"), [("peephole_lstm", "lstm"), ("cifg_peephole_lstm", "cifg_lstm")])
def test_zero_peepholes_change_no_bit(run, random_states, variant, plain, options, layout):
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
    ours = build("cifg_peephole_lstm" if coupled else "peephole_lstm", 1, 1, dtype=torch.float64, backend=backend)
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
def test_coupled_gates_are_those_of_an_lstm(random_states, options, peephole):
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


@each_variant
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"proj_size": 2}], ids=str)
def test_two_halves_are_the_whole(random_states, variant, options):
    ours = module(variant, **options)
    x, hx = random(T, B, I).requires_grad_(), random_states(ours, B)
    whole, finals = ours(x, hx)
    first, between = ours(x[: T // 2], hx)
    second, last = ours(x[T // 2 :], between)
    results = []
    for y, (h_n, c_n) in ((whole, finals), (torch.cat([first, second]), last)):
        goal = y.square().sum() + h_n.sin().sum() + c_n.cos().sum()
        results.append([y, h_n, c_n, *torch.autograd.grad(goal, [x, *ours.parameters()])])
    assert_same(*results)


@each_variant
def test_two_directions_are_two_runs_and_a_flip(random_states, variant):
    both = module(variant, bidirectional=True)
    forward, reverse = module(variant), module(variant)
    for one, suffix in ((forward, "_l0"), (reverse, "_l0_reverse")):
        one.load_state_dict({name: getattr(both, name.replace("_l0", suffix)).detach() for name in one.state_dict()})
    x, (h0, c0) = random(T, B, I), random_states(both, B)
    y, (h_n, c_n) = both(x, (h0, c0))
    there, back = forward(x, (h0[:1], c0[:1])), reverse(x.flip(0), (h0[1:], c0[1:]))
    assert_same(y, torch.cat([there[0], back[0].flip(0)], dim=-1))
    assert_same([h_n, c_n], [torch.cat(s) for s in zip(there[1], back[1], strict=True)])


@each_variant
def test_layers_are_stacked(random_states, variant):
    stacked, layers = module(variant, num_layers=2), [module(variant), build(variant, H, H, dtype=torch.float64)]
    for k, layer in enumerate(layers):
        layer.load_state_dict(
            {name: getattr(stacked, name.replace("_l0", f"_l{k}")).detach() for name in layer.state_dict()}
        )
    y, hx = random(T, B, I), random_states(stacked, B)
    result, finals = stacked(y, hx)
    lasts = []
    for k, layer in enumerate(layers):
        y, last = layer(y, tuple(s[k : k + 1] for s in hx))
        lasts.append(last)
    assert_same([result, *finals], [y, *(torch.cat(s) for s in zip(*lasts, strict=True))])


@each_variant
def test_dropout_is_the_references(variant):
    """The same numbers are dropped, forward and backward: both draw them between layers."""
    results = []
    for ours in twins(variant, num_layers=3, dropout=0.5):
        torch.manual_seed(4)
        y, finals = ours(torch.ones(T, B, I, dtype=torch.float64))
        results.append([y, *finals, *torch.autograd.grad(y.square().sum(), list(ours.parameters()))])
        assert not torch.equal(ours.eval()(torch.ones(T, B, I, dtype=torch.float64))[0], y)
    assert_same(*results)


@pytest.mark.cpu
@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(call, random_states, variant, dtype):
    oracle, ours = twins(variant, num_layers=2, bidirectional=True)
    x, *hx = (t.to(dtype) for t in (random(T, B, I), *random_states(ours, B)))
    oracle.to(dtype).double(), ours.to(dtype)
    expected = call(oracle, "dense", [], x.double(), [s.double() for s in hx])
    for got, want in zip(call(ours, "dense", [], x, hx), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.cpu
@each_variant
def test_autocast(run, random_states, variant, layout):
    ours = module(variant, num_layers=2).float()
    x, hx = torch.randn(T, B, I), [s.float() for s in random_states(ours, B)]
    wanted = run(ours, layout, LENGTHS, x, hx)
    with torch.autocast("cpu", torch.bfloat16):
        results = run(ours, layout, LENGTHS, x, hx)
    assert [t.dtype for t in results[:3]] == [torch.bfloat16] * 3
    assert all(t.dtype == torch.float32 for t in results[3:])
    for got, want in zip(results, wanted, strict=True):
        assert (got.float() - want).norm() <= 0.03 * want.norm()


@each_variant
@each_option
def test_an_empty_batch(run, random_states, variant, options):
    reference, ours = twins(variant, **options)
    x, hx = random(T, 0, I), random_states(ours, 0)
    assert_same(run(ours, "dense", [], x, hx), run(reference, "dense", [], x, hx))
    assert_same(run(ours, "lengths", [], x, hx), run(reference, "dense", [], x, hx))


@pytest.mark.parametrize("variant", ["peephole_lstm", "cifg_peephole_lstm"])
def test_only_the_peepholes_are_trained(variant):
    grads = []
    for ours in twins(variant, num_layers=2):
        for name, w in ours.named_parameters():
            w.requires_grad_("peephole" in name)
        y, _ = ours(torch.ones(T, B, I, dtype=torch.float64))
        y.square().sum().backward()
        assert all((w.grad is not None) == ("peephole" in name) for name, w in ours.named_parameters())
        grads.append([ours.weight_peephole_l0.grad, ours.weight_peephole_l1.grad])
    assert_same(*grads)
    assert all(g.any() for g in grads[0])
