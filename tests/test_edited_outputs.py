"""What a module returns is the caller's: edits in place before the backward give the gradients of what was computed with it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import VARIANTS, B, H, I, T, assert_same, random
from torch import Tensor, nn

import fastlstm
from fastlstm import backends
from fastlstm.modules import build

built = pytest.mark.skipif(backends.extension_status() != "built", reason="needs the C++ extension")
REST = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)  # 1 - done, of B


def no_last(y: Tensor) -> Tensor:
    return torch.cat([y[:-1], torch.zeros_like(y[-1:])])


def without_last(y: Tensor) -> Tensor:
    y[-1] = 0
    return y


# the edit, and what it computes
EDITS = {
    "y.relu_()": (Tensor.relu_, Tensor.relu),
    "y.mul_(mask)": (lambda y: y.mul_(mask(y)), lambda y: y * mask(y)),
    "y[-1] = 0": (without_last, no_last),
}


def mask(y: Tensor) -> Tensor:
    return (torch.arange(y.numel()).view(y.shape) % 3).double()


def tensors(results: object) -> Iterator[Tensor]:
    if isinstance(results, Tensor):
        yield results
    elif results is not None:
        for result in results:  # type: ignore[attr-defined]
            yield from tensors(result)


def gradients(results: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weights = [torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view(t.shape) for t in results]
    loss = sum((t.sin() * w).sum() for t, w in zip(results, weights, strict=True))
    return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def check(run: Callable[[], object], leaves: list[Tensor]) -> None:
    """Each result is edited in turn, and then all of them at once."""
    count = len(list(tensors(run())))
    for edit, meaning in EDITS.values():
        for edited in (*[{k} for k in range(count)], set(range(count))):
            found = []
            for change in (edit, meaning):
                results = [change(t) if k in edited else t for k, t in enumerate(tensors(run()))]
                found.append(gradients(results, leaves))
            assert_same(*found)


OPTIONS = {
    "dense": ({}, {}),
    "lengths": ({}, {"lengths": [3, 6, 0, 4]}),
    "reset, reverse too": ({"bidirectional": True}, {"reset": torch.arange(T * B).view(T, B) % 5 == 0}),
    "layers": ({"num_layers": 2, "batch_first": True}, {}),
    "projection": ({"proj_size": 2}, {"lengths": [3, 6, 1, 4]}),
    "cells": ({}, {"return_cells": True}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_sequences(variant: str, options: str) -> None:
    if variant == "gru" and options in ("projection", "cells"):
        pytest.skip("a GRU has none")
    made, called = OPTIONS[options]
    module, x = build(variant, I, H, dtype=torch.float64, **made), random(T, B, I).requires_grad_()
    check(lambda: module(x.transpose(0, 1) if module.batch_first else x, **called), [x, *module.parameters()])


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_sequence_of_many_steps_and_of_one(variant: str) -> None:
    """Few rows go through products of their own."""
    module = build(variant, I, H, dtype=torch.float64)
    for steps in (1, 7, 300):
        x = random(steps, I).requires_grad_()
        check(lambda x=x: module(x), [x, *module.parameters()])


CELLS = [fastlstm.LSTMCell, fastlstm.GRUCell, fastlstm.PeepholeLSTMCell, fastlstm.CIFGLSTMCell]


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_states_between_the_steps_of_a_loop(kind: type[nn.Module], backend: str) -> None:
    """`h *= 1 - done`, as reinforcement learning does between steps."""
    cell, x = kind(I, H, dtype=torch.float64, backend=backend), random(T, B, I).requires_grad_()
    found = []
    for in_place in (True, False):
        state: object = None
        outputs = []
        for x_t in x:
            states = list(tensors(cell(x_t, state)))
            outputs.append(states[0].clone())
            for k, s in enumerate(states):
                states[k] = s.mul_(REST[:, None]) if in_place else s * REST[:, None]
            state = states[0] if len(states) == 1 else tuple(states)
        found.append(gradients(outputs, [x, *cell.parameters()]))
    assert_same(*found)


@pytest.mark.parametrize("options", [{}, {"peephole": "channel", "coupled": True}, {"checkpoint": True}])
def test_conv_lstm(options: dict) -> None:
    module = fastlstm.ConvLSTM2d(2, 3, 3, num_layers=2, dtype=torch.float64, **options)
    x = random(5, 2, 2, 4, 3).requires_grad_()
    check(lambda: module(x, lengths=[5, 3]), [x, *module.parameters()])


@pytest.mark.parametrize("checkpoint", [False, True])
def test_every_layer_of_a_conv_lstm(checkpoint: bool) -> None:
    """The output of a layer is the next one's input, which its backward needs."""
    module = fastlstm.ConvLSTM2d(2, 3, 3, num_layers=2, bidirectional=True, checkpoint=checkpoint, dtype=torch.float64)
    x = random(3, 2, 2, 4, 3).requires_grad_()
    results = module(x, return_all_layers=True, return_cells=True)
    assert len(list(tensors(results))) == 2 + 2 + 2  # outputs and cells by their layers, and the final states
    check(lambda: module(x, return_all_layers=True, return_cells=True), [x, *module.parameters()])


ATTENTION = {
    "fed": {},
    "context fed": {"feed": "context", "attention": "general"},
    "nothing fed": {"feed": None},
    "nothing fed, products": {"feed": None, "attention": "general"},
}


@pytest.mark.parametrize("options", ATTENTION)
def test_attention_lstm(options: str) -> None:
    module = fastlstm.AttentionLSTM(I, H, memory_size=6, dtype=torch.float64, **ATTENTION[options])
    x, memory = random(T, B, I).requires_grad_(), random(5, B, 6).requires_grad_()
    check(lambda: module(x, memory, need_weights=True), [x, memory, *module.parameters()])


def test_attention_pooling() -> None:
    module, memory = fastlstm.AttentionPooling(6, dtype=torch.float64), random(5, B, 6).requires_grad_()
    check(lambda: module(memory, [5, 3, 0, 2]), [memory, *module.parameters()])


@built
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variant", VARIANTS)
def test_h_has_the_bits_that_it_had(variant: str, dtype: torch.dtype) -> None:
    """The backward of three steps finds the first one's h again; one of the last two alone is given it, as their h0."""
    module = build(variant, 3, 40, dtype=dtype)
    x, upstream = torch.randn(3, 1, 3).to(dtype), torch.randn(1, 40).to(dtype)
    if "c" in module.variant.states:
        whole, _, cells = module(x, return_cells=True)
        state = whole[:1].detach(), cells[:1].detach()
    else:
        whole, _ = module(x)
        state = whole[:1].detach()
    alone = module(x[1:], state)[0]
    assert torch.equal(alone, whole[1:])
    (of_whole,) = torch.autograd.grad(whole[1], module.weight_hh_l0, upstream)
    (of_alone,) = torch.autograd.grad(alone[0], module.weight_hh_l0, upstream)
    assert of_whole.any()
    assert torch.equal(of_whole, of_alone)


@built
@pytest.mark.parametrize("projected", [0, 6])
def test_the_backward_reads_nothing_that_was_returned(projected: int) -> None:
    """Not even what PyTorch doesn't notice: an edit of `.data`."""
    module, x = fastlstm.LSTM(6, 40, proj_size=projected), torch.randn(30, 26, 6)
    y, finals = module(x, lengths=[30 - n % 7 for n in range(26)])
    loss = (y * torch.randn_like(y)).sum() + sum(s.sum() for s in finals)
    expected = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    for t in (y, *finals):
        t.data.fill_(torch.nan)
    assert_same(torch.autograd.grad(loss, list(module.parameters())), expected)
