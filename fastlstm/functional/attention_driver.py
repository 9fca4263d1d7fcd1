"""What the functions of the Attention LSTM run. Checks are made here, and nowhere below."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastlstm import backends, checks, onnx
from fastlstm.call import AttentionCall, Call
from fastlstm.functional.attention_runs import Plan, precompute, run_at_once, run_steps
from fastlstm.functional.attention_values import AttentionState, AttentionWeights, Precomputed
from fastlstm.kernels.attention_lstm import PARAMETERS
from fastlstm.sequences import Batch, Lengths, autocast, time_major

Weights = Sequence[Sequence[Tensor]]
States = tuple[Tensor, Tensor, Tensor | None]


def decode(
    input: Tensor,
    memory: Tensor,
    weights: Weights,
    beside: AttentionWeights,
    hx: Any,
    memory_lengths: Lengths,
    call: Call,
    more: AttentionCall,
) -> Any:
    """`(output, state)`, or `(output, state, alignments)`: what `fastlstm.functional.attention_lstm` describes."""
    checks.check_dense("input", input)
    checks.check_dense("memory", memory)
    if memory is input and torch.compiler.is_compiling():  # no argument of a Function may be there twice
        memory = memory.clone()
    plan, I = _plan(weights, beside, call, more)
    w_ih = plan.layers[0]["w_ih"]
    if hx is not None:
        checks.check_decoder_hx(hx, more.attention.feed)
    x, memory, *given = autocast(input, memory, *([] if hx is None else hx))
    checks.check_decoder_input(x, w_ih, I)
    checks.check_memory(memory, w_ih, plan.M, call.batch_first)
    batch = time_major(x, x, call.batch_first, call.lengths, None)
    rows, lengths = _time_major(memory, memory_lengths, call.batch_first)
    checks.check_memory_fits(memory, rows.shape[1], x, batch.B)
    states = _initial(plan, given, batch.x, batch.batched)
    if batch.order is not None and batch.cpu_order is not None:
        rows = rows.index_select(1, batch.order)
        lengths = None if lengths is None else lengths.index_select(0, batch.cpu_order)
        states = AttentionState(*states).index_select(batch.order)
    with _without_autocast(x):
        precomputed = precompute(plan, rows, lengths, for_one_call=True)
        if more.attention.at_once:
            run = run_at_once(plan, batch, states[:2], precomputed)
        else:
            run = run_steps(plan, batch.x, batch.batch_sizes, states, precomputed)
    state = _finals(batch, run.h_n, run.c_n, run.fed_n)
    output: Any = batch.output(run.y)
    return (output, state, batch.output(run.alignments)) if more.need_weights else (output, state)


def project(
    memory: Tensor, weights: Weights, beside: AttentionWeights, memory_lengths: Lengths, call: Call, more: AttentionCall
) -> Precomputed:
    """What `fastlstm.functional.attention_lstm_memory` describes."""
    checks.check_dense("memory", memory)
    plan, _ = _plan(weights, beside, call, more)
    (memory,) = autocast(memory)
    checks.check_memory(memory, plan.layers[0]["w_ih"], plan.M, call.batch_first)
    rows, lengths = _time_major(memory, memory_lengths, call.batch_first)
    with _without_autocast(rows):
        return precompute(plan, rows, lengths)


def decode_step(
    input: Tensor,
    precomputed: Precomputed,
    weights: Weights,
    beside: AttentionWeights,
    hx: Any,
    call: Call,
    more: AttentionCall,
) -> Any:
    """`(output, state)`, or `(output, state, alignments)`, of one step: a loop of a user's own runs this each step."""
    checks.check_dense("input", input)
    checks.check_precomputed(precomputed, Precomputed)
    plan, I = _plan(weights, beside, call, more)
    w_ih = plan.layers[0]["w_ih"]
    if hx is not None:
        checks.check_decoder_hx(hx, more.attention.feed)
    x, *tensors = autocast(input, *precomputed, *([] if hx is None else hx))
    checks.check_decoder_input(x, w_ih, I, step=True)
    batched = x.dim() == 2
    x = x.unsqueeze(0) if batched else x[None, None]
    memory, keys, lengths = tensors[:3]
    checks.check_memory(memory, w_ih, plan.M, False)
    checks.check_keys(keys, memory, plan.beside["w_key"])
    checks.check_memory_batch(memory.shape[1], x.shape[1])
    states = _initial(plan, tensors[3:], x, batched)
    with _without_autocast(x):
        run = run_steps(plan, x, None, states, Precomputed(memory, keys, lengths))
    y, h_n, c_n, fed_n, alignments = run
    if batched:
        results = y.squeeze(0), AttentionState(h_n, c_n, fed_n)
    else:
        fed_n = None if fed_n is None else fed_n.squeeze(0)
        results = y[0, 0], AttentionState(h_n.squeeze(1), c_n.squeeze(1), fed_n)
    return (*results, alignments.squeeze(0) if batched else alignments[0, 0]) if more.need_weights else results


def _plan(weights: Weights, beside: AttentionWeights, call: Call, more: AttentionCall) -> tuple[Plan, int]:
    """What fits together, in the dtype to compute in; and I."""
    if onnx.exporting_anyhow():
        raise NotImplementedError(
            "an AttentionLSTM is to be exported to ONNX, expected another module: ONNX has no such node; "
            "torch.export takes it"
        )
    checks.check_bool("need_weights", more.need_weights)
    checks.check_bool("coupled", more.coupled)
    backends.check_backend(call.backend)
    checks.check_dropout(call.dropout)
    checks.check_dropout(more.output_dropout, "output_dropout")
    checks.check_value("attention_weights", beside, AttentionWeights, "those that are not recurrent, by name")
    named: dict[str, Tensor | None] = dict(zip(PARAMETERS, beside, strict=True))
    sizes, layers = checks.check_decoder_weights(weights, named, more.attention, more.coupled)
    query_layer = checks.check_query_layer(more.query_layer, len(layers))
    if torch._C._is_any_autocast_enabled():
        first = layers[0]["w_ih"]
        layers = [dict(zip(w, autocast(first, *w.values())[1:], strict=True)) for w in layers]
        named = dict(zip(named, autocast(first, *named.values())[1:], strict=True))
    return Plan(sizes.cell, layers, named, sizes.H, sizes.M, query_layer, call, more), sizes.I


def _without_autocast(like: Tensor) -> AbstractContextManager:
    """What was cast once is in the dtype to compute in; what is wider is so on purpose."""
    if not torch._C._is_any_autocast_enabled():
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def _time_major(memory: Tensor, lengths: Lengths, batch_first: bool) -> tuple[Tensor, Tensor | None]:
    """(S, B, M), and lengths (B,) or None."""
    batched = memory.dim() == 3
    if not batched:
        memory = memory.unsqueeze(1)
    elif batch_first:
        memory = memory.transpose(0, 1)
    S, B = memory.shape[:2]
    return memory, None if lengths is None else checks.check_memory_lengths(lengths, S, B, batched)


def _initial(plan: Plan, given: Sequence[Tensor | None], x: Tensor, batched: bool) -> States:
    """Those given, or zeros, in the order given; `x` is (T, B, I)."""
    L, B, H = len(plan.layers), x.shape[1], plan.H
    F = plan.more.attention.fed(H, plan.M)
    h, c, fed = (*given, None, None, None)[:3]
    checks.check_decoder_states((h, c, fed), x, batched, L, B, H, F)
    # Two tensors: PyTorch's compiler takes no Function of which two arguments are one
    c = c.clone() if c is not None and c is h and torch.compiler.is_compiling() else c
    h = x.new_zeros(L, B, H) if h is None else h if batched else h.unsqueeze(1)
    c = x.new_zeros(L, B, H) if c is None else c if batched else c.unsqueeze(1)
    if fed is None:
        return h, c, x.new_zeros(B, F) if F else None
    return h, c, fed if batched else fed.unsqueeze(0)


def _finals(batch: Batch, h: Tensor, c: Tensor, fed: Tensor | None) -> AttentionState:
    """In the order that the initial ones had."""
    h, c = batch.finals((h, c))
    if fed is not None and batch.restore is not None:
        fed = fed.index_select(0, batch.restore)
    return AttentionState(h, c, fed if fed is None or batch.batched else fed.squeeze(0))
