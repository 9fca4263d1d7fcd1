"""The modules as objects: constructor, attributes, parameters, state_dict, copies, and what autograd sees of them."""

import copy
import doctest
import importlib
import inspect
import pickle
import re
from itertools import chain

import pytest
import torch
from helpers import (
    IN_PYTORCH,
    OPTIONS,
    VARIANTS,
    B,
    H,
    I,
    T,
    assert_same,
    call,
    each_case,
    each_variant,
    module,
    pair,
    random,
    random_states,
)
from torch import nn

import fastlstm
from fastlstm import backends
from fastlstm.modules import build

BOTH = {"num_layers": 2, "bidirectional": True}
MORE = OPTIONS | {"dropout": BOTH | {"dropout": 0.25}}


def peer(variant: str, **options) -> nn.RNNBase:
    """PyTorch's module, of the variant or of the kind that it varies."""
    return (VARIANTS[variant].torch or nn.LSTM)(I, H, **options)


def expected_shapes(variant: str, options: dict) -> dict[str, tuple[int, ...]]:
    """Those of PyTorch's module with so many gates, and the peepholes at the end of each layer and direction."""
    shapes: dict[str, tuple[int, ...]] = {}
    theirs = peer(variant, **options)
    for names in theirs._all_weights:
        for name in names:
            shape = getattr(theirs, name).shape
            shapes[name] = shape if name.startswith("weight_hr") else (VARIANTS[variant].gates * H, *shape[1:])
        if VARIANTS[variant].peepholes:
            shapes[names[0].replace("_ih", "_peephole")] = (VARIANTS[variant].peepholes, H)
    return {name: tuple(shape) for name, shape in shapes.items()}


def test_every_variant_is_tested():
    assert list(VARIANTS) == list(backends.VARIANTS)


@each_case(MORE)
def test_parameters(variant, options):
    ours, shapes = module(variant, **options), expected_shapes(variant, options)
    assert {name: tuple(w.shape) for name, w in ours.state_dict().items()} == shapes
    assert list(ours.state_dict()) == list(shapes)
    assert [name for name, _ in ours.named_parameters()] == list(shapes)
    assert [name for names in ours._all_weights for name in names] == list(shapes)
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    assert all(a is b for a, b in zip(chain(*ours.all_weights), ours.parameters(), strict=True))


def test_a_peephole_of_the_second_layers_reverse():
    ours = fastlstm.CIFGLSTM(I, H, 2, bidirectional=True, peephole=True)
    assert ours.weight_peephole_l1_reverse.shape == (2, H)
    assert ours.all_weights[3][-1] is ours.weight_peephole_l1_reverse


@each_case(MORE)
def test_attributes(variant, options):
    ours, theirs = module(variant, **options), peer(variant, **options)
    assert isinstance(ours, nn.RNNBase)
    assert not isinstance(ours, (nn.LSTM, nn.GRU))
    sizes = ("input_size", "hidden_size", "num_layers", "proj_size")
    for name in (*sizes, "mode", "bidirectional", "batch_first", "bias", "dropout"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.flatten_parameters() is None
    peephole = ", peephole=True" if variant == "cifg_peephole_lstm" else ""
    kind = type(theirs).__name__
    assert repr(ours) == repr(theirs).replace(kind, f"fastlstm.{type(ours).__name__}").replace(")", peephole + ")")


@each_variant
def test_methods_of_pytorchs_modules(variant):
    """Others call what PyTorch's forward is made of."""
    theirs, ours = peer(variant, **BOTH), build(variant, I, H, **BOTH)
    assert not [name for name in dir(theirs) if not hasattr(ours, name)]
    x, states = torch.randn(T, B, I), [s.float() for s in random_states(ours, B)]
    hx = states[0] if len(states) == 1 else tuple(states)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order), rtol=0, atol=0)
    ours.check_forward_args(x, hx, None)
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    if len(states) == 2:
        assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None) == (4, B, H)
        hx = states[0], states[1][:, 1:]
        with pytest.raises(RuntimeError, match=re.escape("Expected hidden[1] size (4, 4, 5), got [4, 3, 5]")):
            ours.check_forward_args(x, hx, None)


@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.GRU, fastlstm.PeepholeLSTM, fastlstm.CIFGLSTM])
def test_constructor_takes_what_pytorch_takes(cls):
    ours = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    theirs = list(inspect.signature(nn.RNNBase).parameters.values())[1:]
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
    kind = nn.GRU if cls is fastlstm.GRU else nn.LSTM
    args = (3, 5, 2, False, True, 0.25, True, 0 if kind is nn.GRU else 2)
    module = cls(*args, "meta", torch.bfloat16, backend="reference")
    expected = repr(kind(*args)).replace(kind.__name__, f"fastlstm.{cls.__name__}")
    assert repr(module) == expected.replace("bidirectional=True", "bidirectional=True, backend='reference'")
    assert {(w.device.type, w.dtype) for w in module.parameters()} == {("meta", torch.bfloat16)}


@each_case(variants=IN_PYTORCH)
def test_the_same_seed_gives_the_same_weights(variant, options):
    torch.manual_seed(7)
    theirs = peer(variant, **options)
    torch.manual_seed(7)
    ours = build(variant, I, H, **options)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


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


@each_case(variants=IN_PYTORCH)
def test_state_dict_loads_both_ways(variant, options):
    theirs, ours = pair(variant, **options)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    x = random(T, B, I)
    assert_same(ours(x), theirs(x))


def test_state_dicts_of_other_variants_are_refused():
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_peephole_l0"):
        fastlstm.PeepholeLSTM(I, H).load_state_dict(nn.LSTM(I, H).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        fastlstm.CIFGLSTM(I, H).load_state_dict(nn.LSTM(I, H).state_dict())


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


@pytest.mark.parametrize("made", [fastlstm.CIFGLSTM, fastlstm.CIFGLSTMCell])
@pytest.mark.parametrize("peephole", [False, True])
def test_a_pickle_from_before_variants_were_values(made, peephole):
    """It has a number of peepholes, and no variant."""
    ours, x = made(I, H, peephole=peephole), torch.randn(4, I)
    state = {name: value for name, value in vars(ours).items() if name != "variant"}
    old = made.__new__(made)
    old.__setstate__(state | {"peepholes": 2 if peephole else 0})
    assert repr(old) == repr(ours)
    torch.testing.assert_close(old(x), ours(x), rtol=0, atol=0)


@each_variant
def test_casts_and_devices(variant):
    ours = build(variant, I, H, num_layers=2)
    for cast, dtype in ((ours.double, torch.float64), (ours.half, torch.float16), (ours.bfloat16, torch.bfloat16)):
        assert {w.dtype for w in cast()._flat_weights} == {dtype}
    with torch.device("meta"):
        ghost = module(variant, num_layers=2)
    assert {w.device.type for w in ghost._flat_weights} == {"meta"}
    ghost.to_empty(device="cpu").load_state_dict(ours.double().state_dict())
    x = random(4, 2, I)
    torch.testing.assert_close(ghost(x), ours(x), rtol=0, atol=0)


@each_variant
def test_a_replaced_weight_is_used(variant):
    ours, x = build(variant, I, H), torch.randn(4, 2, I)
    name = "weight_peephole_l0" if VARIANTS[variant].peepholes else "weight_hh_l0"
    before = ours(x)[0]
    setattr(ours, name, nn.Parameter(getattr(ours, name).detach() * 5))
    other = build(variant, I, H)
    other.load_state_dict(ours.state_dict())
    assert not torch.equal(ours(x)[0], before)
    torch.testing.assert_close(ours(x), other(x), rtol=0, atol=0)


@each_variant
def test_frozen_parameters(variant):
    oracle, ours = pair(variant, **BOTH)
    x, hx = random(T, B, I), random_states(ours, B)
    for m in (oracle, ours):
        for name, w in m.named_parameters():
            w.requires_grad_("l1" in name)
        call(m, "dense", [], x, hx)[0].sum().backward()
    assert ours.weight_ih_l0.grad is None
    assert_same([w.grad for w in ours.parameters()], [w.grad for w in oracle.parameters()])


@each_case({"plain": {}, "projection": {"proj_size": 2}})
def test_only_the_input_needs_a_gradient(variant, options):
    grads = []
    for m in pair(variant, **options):
        x = torch.ones(T, B, I, dtype=torch.float64, requires_grad=True)
        m.requires_grad_(False)(x)[0].sum().backward()
        grads.append(x.grad)
    assert_same(*grads)


@pytest.mark.parametrize(("variant", "k"), [(v, k) for v in VARIANTS for k in range(1 + VARIANTS[v].states)])
def test_gradient_of_one_output_only(variant, k):
    oracle, ours = pair(variant, **BOTH)
    x, hx = random(T, B, I), random_states(ours, B)
    grads = []
    for m in (oracle, ours):
        call(m, "dense", [], x, hx)[k].sum().backward()
        grads.append([torch.zeros_like(w) if w.grad is None else w.grad for w in m.parameters()])
    assert_same(*grads)


@each_variant
def test_no_grad_saves_nothing(variant):
    ours, saved = module(variant), []
    x = random(T, B, I).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        with torch.no_grad():
            y, _ = ours(x)
        assert not saved
        ours(x)
        assert saved
    assert y.grad_fn is None
    with torch.inference_mode():
        assert_same(ours(x)[0].clone(), y)


@each_variant
def test_backward_in_evaluation_mode_and_twice(variant):
    oracle, ours = (m.eval() for m in pair(variant, num_layers=2))
    x = random(T, B, I)
    (ours(x)[0] ** 2).sum().backward()
    (oracle(x)[0] ** 2).sum().backward()
    assert_same([w.grad for w in ours.parameters()], [w.grad for w in oracle.parameters()])
    loss = (ours(x)[0] ** 2).sum()
    first = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(ours.parameters()))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


@pytest.mark.parametrize(
    "documented",
    [
        "functional.lstm",
        "functional.gru",
        "functional.steps",
        "functional.attention_lstm",
        "functional.attention_values",
        "modules.recurrent",
        "modules.cells",
        "modules.attention",
    ],
)
def test_examples_in_docstrings_run(documented):
    results = doctest.testmod(importlib.import_module(f"fastlstm.{documented}"), extraglobs={"torch": torch})
    assert results.attempted
    assert not results.failed
