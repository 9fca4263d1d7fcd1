"""The drop-in modules as objects: constructor, attributes, parameters, state_dict, and what autograd sees of them."""

import doctest
import inspect

import pytest
import torch
from torch import Tensor, nn

import fastlstm
from fastlstm import cells, functional
from fastlstm.modules import cells as cell_modules
from fastlstm.modules import recurrent

I, H, T, B = 3, 5, 6, 4

each_kind = pytest.mark.parametrize("kind", ["LSTM", "GRU"])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def assert_same(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_attributes(pair, case):
    kind, options = case
    theirs, ours = pair(kind, **options)
    assert isinstance(ours, nn.RNNBase)
    assert not isinstance(ours, (nn.LSTM, nn.GRU))
    sizes = ("input_size", "hidden_size", "num_layers", "proj_size")
    for name in (*sizes, "mode", "bidirectional", "batch_first", "bias", "dropout"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours._all_weights == theirs._all_weights
    assert_same(ours.all_weights, theirs.all_weights)
    assert_same(ours._flat_weights, theirs._flat_weights)
    assert ours.flatten_parameters() is None
    assert repr(ours) == repr(theirs)


@each_kind
def test_constructor_takes_what_pytorch_takes(kind):
    signature = inspect.signature(getattr(fastlstm, kind))
    ours = [p for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    theirs = list(inspect.signature(nn.RNNBase).parameters.values())[1:]
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
    args = (3, 5, 2, False, True, 0.25, True, 2 if kind == "LSTM" else 0)
    module = getattr(fastlstm, kind)(*args, "meta", torch.bfloat16, backend="reference")
    assert repr(module) == repr(getattr(nn, kind)(*args)).replace(
        "bidirectional=True", "bidirectional=True, backend='reference'"
    )
    assert (module.weight_ih_l0.device.type, module.weight_ih_l0.dtype) == ("meta", torch.bfloat16)


def test_the_same_seed_gives_the_same_weights(case):
    kind, options = case
    modules = []
    for library in (nn, fastlstm):
        torch.manual_seed(7)
        modules.append(getattr(library, kind)(I, H, **options))
    torch.testing.assert_close(modules[1].state_dict(), modules[0].state_dict(), rtol=0, atol=0)
    assert list(modules[1].state_dict()) == list(modules[0].state_dict())


def test_state_dict_loads_both_ways(pair, case):
    kind, options = case
    theirs, ours = pair(kind, **options)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    x = random(T, B, I)
    assert_same(ours(x), theirs(x))


@each_kind
def test_frozen_parameters(call, pair, random_states, kind):
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    for module in (theirs, ours):
        for name, w in module.named_parameters():
            w.requires_grad_("l1" in name)
        call(module, "dense", [], x, hx)[0].sum().backward()
    assert ours.weight_ih_l0.grad is None
    assert_same([w.grad for w in ours.parameters()], [w.grad for w in theirs.parameters()])


@pytest.mark.parametrize(("kind", "options"), [("LSTM", {"proj_size": 2}), ("GRU", {})])
def test_only_the_input_needs_a_gradient(pair, kind, options):
    theirs, ours = pair(kind, **options)
    grads = []
    for module in (theirs.requires_grad_(False), ours.requires_grad_(False)):
        x = torch.ones(T, B, I, dtype=torch.float64, requires_grad=True)
        module(x)[0].sum().backward()
        grads.append(x.grad)
    assert_same(*grads)


@pytest.mark.parametrize(("kind", "k"), [("LSTM", 0), ("LSTM", 1), ("LSTM", 2), ("GRU", 0), ("GRU", 1)])
def test_gradient_of_one_output_only(call, pair, random_states, kind, k):
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    grads = []
    for module in (theirs, ours):
        call(module, "dense", [], x, hx)[k].sum().backward()
        grads.append([torch.zeros_like(w) if w.grad is None else w.grad for w in module.parameters()])
    assert_same(*grads)


@each_kind
def test_no_grad_saves_nothing(pair, kind):
    _, ours = pair(kind)
    saved = []
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


@each_kind
def test_backward_in_evaluation_mode_and_twice(pair, kind):
    theirs, ours = pair(kind, num_layers=2)
    theirs.eval(), ours.eval()
    x = random(T, B, I)
    (ours(x)[0] ** 2).sum().backward()
    (theirs(x)[0] ** 2).sum().backward()
    assert_same([w.grad for w in ours.parameters()], [w.grad for w in theirs.parameters()])
    loss = (ours(x)[0] ** 2).sum()
    first = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(ours.parameters()))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


@pytest.mark.parametrize("documented", [functional, cells, recurrent, cell_modules])
def test_examples_in_docstrings_run(documented):
    results = doctest.testmod(documented, extraglobs={"torch": torch})
    assert results.attempted
    assert not results.failed
