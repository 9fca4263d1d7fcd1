"""`PeepholeLSTM` and `CIFGLSTM` as objects: what `nn.LSTM` has, and `weight_peephole` in its place."""

import copy
import inspect
import pickle
from itertools import chain

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.modules import build

I, H = 3, 5
GATES = {"peephole_lstm": 4, "cifg_lstm": 3, "cifg_peephole_lstm": 3}
PEEPHOLES = {"peephole_lstm": 3, "cifg_lstm": 0, "cifg_peephole_lstm": 2}
OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "two layers, two directions": {"num_layers": 2, "bidirectional": True},
    "everything": {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True, "dropout": 0.25},
}

each_variant = pytest.mark.parametrize("variant", GATES)
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def expected_shapes(variant: str, options: dict) -> dict[str, tuple[int, ...]]:
    """Those of `nn.LSTM` with so many gates, and the peepholes at the end of each layer and direction."""
    shapes: dict[str, tuple[int, ...]] = {}
    for names in nn.LSTM(I, H, **options)._all_weights:
        for name in names:
            shape = getattr(nn.LSTM(I, H, **options), name).shape
            shapes[name] = shape if name.startswith("weight_hr") else (GATES[variant] * H, *shape[1:])
        if PEEPHOLES[variant]:
            shapes[names[0].replace("_ih", "_peephole")] = (PEEPHOLES[variant], H)
    return shapes


@each_variant
@each_option
def test_parameters(variant, options):
    ours, shapes = build(variant, I, H, **options), expected_shapes(variant, options)
    assert {name: tuple(w.shape) for name, w in ours.state_dict().items()} == {n: tuple(s) for n, s in shapes.items()}
    assert list(ours.state_dict()) == list(shapes)
    assert [name for name, _ in ours.named_parameters()] == list(shapes)
    assert [name for names in ours._all_weights for name in names] == list(shapes)
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    assert all(a is b for a, b in zip(chain(*ours.all_weights), ours.parameters(), strict=True))


def test_a_peephole_of_the_second_layers_reverse():
    ours = fastlstm.CIFGLSTM(I, H, 2, bidirectional=True, peephole=True)
    assert ours.weight_peephole_l1_reverse.shape == (2, H)
    assert ours.all_weights[3][-1] is ours.weight_peephole_l1_reverse


@each_variant
@each_option
def test_attributes(variant, options):
    ours, lstm = build(variant, I, H, **options), nn.LSTM(I, H, **options)
    assert isinstance(ours, nn.RNNBase)
    for name in ("input_size", "hidden_size", "num_layers", "proj_size", "mode", "bidirectional", "bias", "dropout"):
        assert getattr(ours, name) == getattr(lstm, name)
    assert ours.batch_first == lstm.batch_first
    assert ours.flatten_parameters() is None
    peephole = ", peephole=True" if variant == "cifg_peephole_lstm" else ""
    assert repr(ours) == repr(lstm).replace("LSTM", type(ours).__name__).replace(")", peephole + ")")


@pytest.mark.parametrize("cls", [fastlstm.PeepholeLSTM, fastlstm.CIFGLSTM])
def test_constructor_takes_what_pytorch_takes(cls):
    ours = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    theirs = list(inspect.signature(nn.RNNBase).parameters.values())[1:]
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
    module = cls(3, 5, 2, False, True, 0.25, True, 2, "meta", torch.bfloat16, backend="reference")
    assert repr(module) == repr(nn.LSTM(3, 5, 2, False, True, 0.25, True, 2)).replace("LSTM", cls.__name__).replace(
        "bidirectional=True", "bidirectional=True, backend='reference'"
    )
    assert {(w.device.type, w.dtype) for w in module.parameters()} == {("meta", torch.bfloat16)}


@each_variant
def test_initial_weights_are_uniform(variant):
    """In ±1/sqrt(H), as PyTorch's: the extremes and the variance of thousands of numbers."""
    bound = 400**-0.5
    ours = build(variant, 7, 400, bidirectional=True)
    for w in ours.parameters():
        assert bound * 0.97 < w.abs().max() <= bound
        assert w.var().item() == pytest.approx(bound**2 / 3, rel=0.15)
    torch.manual_seed(7)
    ours.reset_parameters()
    torch.manual_seed(7)
    assert all(map(torch.equal, build(variant, 7, 400, bidirectional=True).parameters(), ours.parameters()))


@each_variant
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_own_their_weights(variant, copied):
    ours = build(variant, I, H, num_layers=2, backend="numba")
    other = copied(ours)
    assert repr(other) == repr(ours)
    torch.testing.assert_close(other.state_dict(), ours.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        for w in other._flat_weights:
            w.zero_()
    assert not any(w.any() for w in other.parameters())
    assert all(w.any() for w in ours.parameters())


@each_variant
def test_casts_and_devices(variant):
    ours = build(variant, I, H, num_layers=2)
    for cast, dtype in ((ours.double, torch.float64), (ours.half, torch.float16), (ours.bfloat16, torch.bfloat16)):
        assert {w.dtype for w in cast()._flat_weights} == {dtype}
    with torch.device("meta"):
        ghost = build(variant, I, H, num_layers=2, dtype=torch.float64)
    assert {w.device.type for w in ghost._flat_weights} == {"meta"}
    ghost.to_empty(device="cpu").load_state_dict(ours.double().state_dict())
    x = torch.randn(4, 2, I, dtype=torch.float64)
    torch.testing.assert_close(ghost(x), ours(x), rtol=0, atol=0)


@each_variant
def test_a_replaced_weight_is_used(variant):
    ours, x = build(variant, I, H), torch.randn(4, 2, I)
    name = "weight_peephole_l0" if PEEPHOLES[variant] else "weight_hh_l0"
    before = ours(x)[0]
    setattr(ours, name, nn.Parameter(getattr(ours, name).detach() * 5))
    other = build(variant, I, H)
    other.load_state_dict(ours.state_dict())
    assert not torch.equal(ours(x)[0], before)
    torch.testing.assert_close(ours(x), other(x), rtol=0, atol=0)


def test_state_dicts_of_other_variants_are_refused():
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_peephole_l0"):
        fastlstm.PeepholeLSTM(I, H).load_state_dict(nn.LSTM(I, H).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        fastlstm.CIFGLSTM(I, H).load_state_dict(nn.LSTM(I, H).state_dict())
