"""What users do with a module: copy, save, cast, edit, reparametrise it, and transform its function."""

import copy
import io
import pickle

import pytest
import torch
from helpers import B, H, I, T, assert_same, call, each_variant, random, random_states
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize

from fastlstm.modules import build

LENGTHS = torch.tensor([3, 6, 0, 4])


each_kind = pytest.mark.parametrize("kind", ["LSTM", "GRU"])


def module(variant: str, **options) -> nn.RNNBase:
    torch.manual_seed(1)
    return build(variant, I, H, num_layers=2, bidirectional=True, dtype=torch.float64, **options)


def pair(kind: str) -> tuple[nn.RNNBase, nn.RNNBase]:
    """PyTorch's module and ours, of the same weights."""
    torch.manual_seed(1)
    theirs = getattr(nn, kind)(I, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    return theirs, module(kind.lower())


def through_pickle(lstm: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(lstm))


def through_file(lstm: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(lstm, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def through_weights_file(lstm: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(lstm.state_dict(), file)
    fresh = copy.deepcopy(lstm)
    fresh.reset_parameters()
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return fresh


def through_meta(lstm: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(lstm).to("meta")
    assert fresh(torch.empty(T, B, I, dtype=torch.float64, device="meta"))[0].device.type == "meta"
    fresh.to_empty(device="cpu")
    fresh.load_state_dict(lstm.state_dict())
    return fresh


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "torch.save": through_file,
    "state_dict, weights_only": through_weights_file,
    "meta and to_empty": through_meta,
    "to": lambda lstm: copy.deepcopy(lstm).to("cpu", torch.float64),
    "half and back": lambda lstm: lstm.half().double(),
    "share_memory": lambda lstm: copy.deepcopy(lstm).share_memory(),
}


@each_variant
@pytest.mark.parametrize("through", COPIES.values(), ids=COPIES)
def test_copies_compute_the_same(variant, through):
    ours = module(variant, backend="auto").eval()
    copied = through(ours)
    assert type(copied) is type(ours)
    assert repr(copied) == repr(ours)
    assert list(copied.state_dict()) == list(ours.state_dict())
    x = random(T, B, I)
    assert_same(copied(x), ours(x))
    assert_same(copied._flat_weights, list(copied.parameters()))


@each_variant
def test_copies_keep_their_backend(variant):
    assert copy.deepcopy(module(variant, backend="reference")).backend == "reference"
    assert through_pickle(module(variant, backend="reference")).backend == "reference"


@each_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_casting_casts_the_results(variant, dtype):
    ours = module(variant).to(dtype)
    y, finals = ours(torch.randn(T, B, I, dtype=dtype))
    assert {t.dtype for t in (y, *finals)} == {dtype}


@each_kind
def test_edited_data_is_used_at_the_next_call(kind):
    theirs, ours = pair(kind)
    x = random(T, B, I)
    ours(x)
    with torch.no_grad():
        ours(x)
        for lstm in (theirs, ours):
            lstm.weight_hh_l0.data.mul_(2)
            lstm.bias_ih_l1.data = torch.ones_like(lstm.bias_ih_l1)
            lstm.weight_ih_l1_reverse.add_(0.5)
            lstm.weight_ih_l0[0] = 0
    assert_same(ours(x), theirs(x))


@each_kind
def test_an_optimizer_step_is_used_at_the_next_call(kind):
    theirs, ours = pair(kind)
    x = random(T, B, I)
    for lstm in (theirs, ours):
        optimizer = torch.optim.SGD(lstm.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            lstm(x)[0].square().sum().backward()
            optimizer.step()
    assert_same(ours(x), theirs(x))


@each_variant
def test_functional_call(variant):
    ours, other = module(variant), module(variant)
    other.reset_parameters()
    x = random(T, B, I)
    before = ours(x)
    assert_same(functional_call(ours, dict(other.named_parameters()), (x,)), other(x))
    assert_same(ours(x), before)


@each_kind
def test_a_parameter_replaced_by_a_plain_tensor(kind):
    theirs, ours = pair(kind)
    x = random(T, B, I)
    for lstm in (theirs, ours):
        w = lstm.weight_hh_l0.detach() * 2
        del lstm.weight_hh_l0
        lstm.weight_hh_l0 = w.requires_grad_()
        lstm(x)[0].sum().backward()
    assert_same(ours(x), theirs(x))
    assert_same(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


def old_weight_norm(lstm: nn.Module, name: str) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(lstm, name)


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w * 2


REPARAMETRISED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": lambda lstm, name: parametrizations.spectral_norm(lstm, name).eval(),
    "orthogonal": parametrizations.orthogonal,
    "a class of one's own": lambda lstm, name: parametrize.register_parametrization(lstm, name, Doubled()),
    "weight_norm as a hook": old_weight_norm,
}


@each_variant
@pytest.mark.parametrize("reparametrise", REPARAMETRISED.values(), ids=REPARAMETRISED)
def test_reparametrised_weights(variant, reparametrise):
    plain, ours = module(variant), module(variant)
    x = random(T, B, I)
    reparametrise(ours, "weight_peephole_l0" if "peephole" in variant else "weight_hh_l0")
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    ours(x)[0].square().sum().backward()
    assert sum(p.grad is not None for p in ours.parameters()) == len(optimizer.param_groups[0]["params"])
    optimizer.step()
    result = ours(x)
    plain.load_state_dict({name: getattr(ours, name).detach() for name in plain.state_dict()})
    assert_same(result, plain(x))


@each_variant
def test_gradcheck(variant):
    projected = {} if variant == "gru" else {"proj_size": 2}
    ours = module(variant, batch_first=True, **projected)
    inputs = [t.requires_grad_() for t in (random(2, 3, I), *random_states(ours, 2))]

    def run(options, x, *rest):
        hx, weights = rest[: len(inputs) - 1], dict(zip(ours.state_dict(), rest[len(inputs) - 1 :], strict=True))
        y, finals = functional_call(ours, weights, (x, hx[0] if variant == "gru" else hx), options)
        return (y, finals) if variant == "gru" else (y, *finals)

    for options in ({}, {"lengths": [1, 3]}, {"lengths": [0, 2]}):
        assert torch.autograd.gradcheck(run, (options, *inputs, *ours.parameters()), fast_mode=True)


@each_variant
def test_second_derivatives_of_the_reference_are_right(variant):
    """Those of the kernels: `test_derivatives.py`."""
    ours = module(variant, backend="reference")
    inputs = [t.requires_grad_() for t in (random(3, 2, I), *random_states(ours, 2))]
    assert torch.autograd.gradgradcheck(lambda x, *hx: call(ours, "dense", [], x, list(hx))[0], inputs, fast_mode=True)


def loss(weights: dict[str, Tensor], lstm: nn.Module, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    y, finals = functional_call(lstm, weights, (x,), {"lengths": lengths})
    h_n, c_n = (finals, finals) if isinstance(finals, Tensor) else finals
    return y.square().sum() + h_n.sum() + c_n.sin().sum()


@each_variant
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "lengths"])
def test_func_grad(variant, lengths):
    ours = module(variant)
    x, weights = random(T, B, I), dict(ours.named_parameters())
    expected = torch.autograd.grad(loss(weights, ours, x, lengths), list(weights.values()))
    detached = {name: w.detach() for name, w in weights.items()}
    assert_same(list(torch.func.grad(loss)(detached, ours, x, lengths).values()), list(expected))


@each_variant
def test_vmap_of_grad_is_the_gradient_of_each_sample(variant):
    ours = module(variant)
    x, weights = random(7, T, B, I), {name: w.detach() for name, w in ours.named_parameters()}
    grads = torch.vmap(torch.func.grad(loss), (None, None, 0))(weights, ours, x)
    for n in range(len(x)):
        assert_same({name: g[n] for name, g in grads.items()}, torch.func.grad(loss)(weights, ours, x[n]))


@each_variant
def test_vmap_over_weights_is_an_ensemble(variant):
    members = [build(variant, I, H, dtype=torch.float64) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(members)
    x = random(T, B, I)
    y, finals = torch.vmap(lambda w: functional_call(members[0], w, (x,)))(weights)
    for n, member in enumerate(members):
        expected_finals = member(x)[1]
        assert_same(y[n], member(x)[0])
        if variant == "gru":
            assert_same(finals[n], expected_finals)
        else:
            assert_same([s[n] for s in finals], list(expected_finals))
