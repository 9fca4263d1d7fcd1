"""Keras's AdditiveAttention, an oracle that nobody here wrote: alignments, contexts and the gradients behind them.

Keras has no decoder with attention: with nothing fed our h is nn.LSTM's, Keras attends to it, and a weight_out of [1, 0] lets
the context through. Alignments are compared in float64. Keras 3 multiplies matrices in float32 whatever it is given: contexts
agree in half of its digits, which is what `fastlstm bench` asks of a peer.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import fastlstm
from fastlstm.benchmarks.conv_loops import load_keras
from fastlstm.parity import difference

T, B, I, H, S = 5, 4, 3, 6, 7
LENGTHS = torch.tensor([7, 1, 4, 5])
HALF = torch.finfo(torch.float32).eps ** 0.5
RECURRENT = [f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
WEIGHTS = [*RECURRENT, "weight_query", "weight_key", "weight_score"]


def make() -> nn.Module:
    module = fastlstm.AttentionLSTM(I, H, H, feed=None, output="linear", dtype=torch.float64)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_()
        module.weight_out.copy_(torch.cat([torch.eye(H), torch.zeros(H, H)], 1))
        module.bias_out.zero_()
    return module


def by_keras(module: nn.Module, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts (T, B, H) and alignments (T, B, S)."""
    keras = load_keras()
    lstm = nn.LSTM(I, H, dtype=torch.float64)
    h, _ = torch.func.functional_call(lstm, {name: getattr(module, name) for name in RECURRENT}, (x,))
    query, keys = linear(h, module.weight_query), linear(memory, module.weight_key)
    with keras.device("cpu"):
        layer = keras.layers.AdditiveAttention(use_scale=False, dtype="float64")
        given = [t.transpose(0, 1) for t in (query, memory, keys)]
        layer.build([t.shape for t in given])
        layer.use_scale, layer.scale = True, module.weight_score  # a variable of Keras's would be cut off from ours
        mask = [None, torch.arange(S) < LENGTHS[:, None]]
        context, alignments = layer(given, mask=mask, return_attention_scores=True)
    return context.transpose(0, 1), alignments.transpose(0, 1)


def test_all_steps() -> None:
    module = make()
    x, memory = torch.randn(T, B, I).double().requires_grad_(), torch.randn(S, B, H).double().requires_grad_()
    wanted = [x, memory, *(getattr(module, name) for name in WEIGHTS)]
    y, _, alignments = module(x, memory, memory_lengths=LENGTHS, need_weights=True)
    context, weights = by_keras(module, x, memory)
    assert difference(y.detach(), context.detach()) < HALF
    torch.testing.assert_close(alignments, weights, rtol=1e-12, atol=1e-12)
    upstream, d_weights = torch.randn(T, B, H).double(), torch.randn(T, B, S).double()
    of_y = torch.autograd.grad(y, wanted, upstream, retain_graph=True)
    of_context = torch.autograd.grad(context, wanted, upstream.to(context.dtype), retain_graph=True)
    for name, one, other in zip(["x", "memory", *WEIGHTS], of_y, of_context, strict=True):
        assert difference(one, other) < HALF, name
    ours, theirs = (torch.autograd.grad(of, wanted, d_weights) for of in (alignments, weights))
    for name, one, other in zip(["x", "memory", *WEIGHTS], ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def test_steps() -> None:
    module = make()
    x, memory = torch.randn(T, B, I).double(), torch.randn(S, B, H).double()
    with torch.no_grad():
        contexts, alignments = by_keras(module, x, memory)
        precomputed, state = module.precompute(memory, LENGTHS), None
        for t, x_t in enumerate(x):
            y, state, weights = module.step(x_t, precomputed, state, need_weights=True)
            assert difference(y, contexts[t]) < HALF
            torch.testing.assert_close(weights, alignments[t], rtol=1e-12, atol=1e-12)
