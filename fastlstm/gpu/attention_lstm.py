"""The ops of an LSTM that attends on a GPU: `fastlstm::attention_lstm_fwd` and `attention_lstm_bwd`, all layers.

A step is a launch for each layer's cells and one for the attention, which takes the output too where that is fed; in the
backward one more leads back to what was fed. What waits for no step is taken by PyTorch's products, before and after the loop.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastlstm.gpu import plan
from fastlstm.gpu.arrays import (
    bias_gradient,
    input_gates,
    nothing,
    on_gpu,
    or_new,
    or_zeros,
    recurrent_gradient,
    state,
    sum_of,
)
from fastlstm.gpu.attend import weights_of
from fastlstm.gpu.attention_loop import NOTHING, Gradients, Problem, backward_loop, forward_loop
from fastlstm.gpu.attention_saved import Kept, saved_like, widths
from fastlstm.gpu.rows import Rows

__all__ = ["attention_lstm_bwd", "attention_lstm_fwd", "saved_like"]


@on_gpu
def attention_lstm_fwd(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, fed0: Tensor | None, memory: Tensor,
    keys: Tensor | None, memory_lengths: Tensor | None, dropped_layers: Tensor | None, dropped_output: Tensor | None,
    dropped_fed: Tensor | None, w_ih: Tensor, w_ih_above: Tensor | None, w_hh: Tensor, b_ih: Tensor | None,
    b_hh: Tensor | None, w_peephole: Tensor | None, w_query: Tensor | None, b_query: Tensor | None,
    w_score: Tensor | None, w_out: Tensor | None, b_out: Tensor | None,
    coupled: bool, before: bool, feed: int, query_layer: int, tanh: bool, scale: float,
    return_alignments: bool, save: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`(y, h_n, c_n, fed_n, alignments, saved)`; arguments are those of `fastlstm.ops.attention_lstm.attention_lstm`."""
    p = Problem(
        x, batch_sizes, h0, c0, fed0, memory, keys, memory_lengths, dropped_layers, dropped_output, dropped_fed,
        w_ih, w_ih_above, w_hh, w_peephole, w_query, w_score, w_out, coupled, before, feed, query_layer, tanh, scale,
    )  # fmt: skip
    rows, (_, B, H), F = p.rows(), h0.shape, p.joins.shape[1]
    attention, scored = p.attention(rows), save or return_alignments
    needed = widths(h0, memory, w_hh, w_query, w_out, save=save, scores=return_alignments)
    saved = needed.block(rows.N, x.dtype).new(x, zero=rows.padded)
    kept = needed.split(rows.N, x.dtype, saved)
    for l, gates in enumerate(kept.gates):
        biases = [None if b is None else b[l] for b in (b_ih, b_hh)]
        if l == 0:
            input_gates(gates, x, w_ih[:, : x.shape[-1]], *biases)
        else:
            bias = sum_of(*biases)
            gates.zero_() if bias is None else gates.copy_(bias)
    passed = [h if dropped_layers is None else h.new_zeros(h.shape) for h in kept.hidden[:-1]]
    c, fed = [state(c_l) for c_l in c0], x.new_empty(rows.N, F)
    forward_loop(p, attention, kept, passed, fed, c, b_query, b_out, scores=scored, save=save)

    y = fed if p.feeds_output else output(p, kept, rows, b_out)
    h_n = torch.stack([rows.take("last", h, h_l) for h, h_l in zip(kept.hidden, h0, strict=True)])
    fed_n = rows.take("last", fed, or_new(fed0, x, B, F)) if feed != NOTHING else nothing(x)
    alignments = nothing(x)
    if return_alignments:
        alignments = weights_of(kept.scores, kept.sums).to(x.dtype).view(*rows.leading, attention.S)
    c_n = torch.stack(c).to(x.dtype)
    return y.view(*rows.leading, H), h_n, c_n, fed_n, alignments, saved if save else nothing(saved)


def output(p: Problem, kept: Kept, rows: Rows, b_out: Tensor | None) -> Tensor:
    """y of all steps (N, H), where nothing waits for it."""
    y = kept.hidden[-1]
    if p.w_out is not None:
        y = linear(seen_by_output(kept), p.w_out, b_out)
        y = y.tanh_() if p.tanh else y
        if kept.outputs.shape[1]:
            kept.outputs.copy_(y)
    y = y.clone() if p.dropped_output is None else y * p.dropped_output.reshape(y.shape)
    return rows.owned(y.view(*rows.leading, y.shape[1]))


def seen_by_output(kept: Kept) -> Tensor:
    """(N, M + H): context and h."""
    h = kept.hidden[-1]
    return torch.cat([kept.context.to(h.dtype), h], 1)


@on_gpu
def attention_lstm_bwd(
    dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, dfed_n: Tensor | None, dalignments: Tensor | None,
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, fed0: Tensor | None, memory: Tensor,
    keys: Tensor | None, memory_lengths: Tensor | None, dropped_layers: Tensor | None, dropped_output: Tensor | None,
    dropped_fed: Tensor | None, w_ih: Tensor, w_ih_above: Tensor | None, w_hh: Tensor, w_peephole: Tensor | None,
    w_query: Tensor | None, w_score: Tensor | None, w_out: Tensor | None, saved: Tensor,
    coupled: bool, before: bool, feed: int, query_layer: int, tanh: bool, scale: float, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`(dx, dh0, dc0, dfed0, dmemory, dkeys, dw_ih, dw_ih_above, dw_hh, db, dw_peephole, dw_query, db_query, dw_score, dw_out,
    db_out)`, empty where there are none or where they are not needed."""
    p = Problem(
        x, batch_sizes, h0, c0, fed0, memory, keys, memory_lengths, dropped_layers, dropped_output, dropped_fed,
        w_ih, w_ih_above, w_hh, w_peephole, w_query, w_score, w_out, coupled, before, feed, query_layer, tanh, scale,
    )  # fmt: skip
    rows, (L, B, H), F = p.rows(), h0.shape, p.joins.shape[1]
    attention = p.attention(rows)
    kept = widths(h0, memory, w_hh, w_query, w_out, save=True, scores=True).split(rows.N, x.dtype, saved)
    dy, dh_n = or_new(dy, x, *rows.leading, H), or_zeros(dh_n, h0)
    d = buffers(p, rows, kept, dy, or_zeros(dc_n, c0), attention.A)
    backward_loop(p, attention, kept, d, dy, dh_n, dfed_n, dalignments)

    query = kept.query
    if w_query is None:
        query = kept.hidden[query_layer]
        query = rows.before(query, h0[query_layer]) if before else query
    dmemory, dkeys, dw_score = attention.memory_gradients(
        weights_of(kept.scores, kept.sums), d.dcontext, d.dscores, query
    )
    dx = (d.dgates[0] @ w_ih[:, : x.shape[-1]]).view(x.shape) if need_dx else nothing(x)
    dh0 = [rows.to_initial(d.dgates[l], partial(back, w_hh[l]), dh_n[l]) for l in range(L)]
    if before:
        asked = rows.take("first", d.dquery, d.dquery.new_zeros(B, attention.A))
        dh0[query_layer] = dh0[query_layer] + (asked if w_query is None else asked @ w_query)
    dfed0 = nothing(x)
    if feed != NOTHING:
        dfed0 = rows.to_initial(d.dgates[0], partial(back, p.joins), or_new(dfed_n, x, B, F))
    states = torch.stack(dh0), torch.stack(d.dc).to(x.dtype), dfed0
    weights = weight_gradients(p, rows, kept, d, dw_score) if need_dw else [nothing(x)] * 10
    return dx, *states, dmemory, dkeys, *weights


def back(w: Tensor, dgates: Tensor) -> Tensor:
    return dgates @ w


def buffers(p: Problem, rows: Rows, kept: Kept, dy: Tensor, dc_n: Tensor, A: int) -> Gradients:
    """What the backward loop writes and, of the output where that is not fed, reads."""
    x, (L, B, H), M = p.x, p.h0.shape, p.memory.shape[2]
    dz, dcontext, dh = x.new_empty(rows.N, H), x.new_empty(rows.N, M), None
    if not p.feeds_output:
        wide = rows.owned(dy).float()
        if p.dropped_output is not None:
            wide = wide * p.dropped_output.reshape(wide.shape)
        if p.w_out is not None and p.tanh:
            wide = wide * (1 - kept.outputs.float().square())
        dz = dh = wide.to(x.dtype)
        if p.w_out is not None:
            dcontext, dh = (part.contiguous() for part in (dz @ p.w_out).split([M, H], 1))
    *dgates, dfed = (
        rows.new(columns, x).view(rows.N, columns) for columns in (*[p.w_hh.shape[1]] * L, p.joins.shape[1])
    )
    P = p.w_peephole
    dpeephole = [
        None if P is None else P.new_zeros(plan.batch_tiles(B), *P.shape[1:], dtype=torch.float64) for _ in range(L)
    ]
    dc, dscores = [state(dc) for dc in dc_n], kept.scores.new_empty(kept.scores.shape)
    return Gradients(dgates, dc, dpeephole, dz, dcontext, dh, dfed, dscores, x.new_empty(rows.N, A))


def weight_gradients(p: Problem, rows: Rows, kept: Kept, d: Gradients, dw_score: Tensor) -> list[Tensor]:
    """From dw_ih on, in the order of the results."""
    x, L = p.x, len(p.h0)
    of_x = d.dgates[0].t() @ rows.owned(x)
    if p.before:
        joined = d.dgates[0].t() @ kept.context.to(x.dtype)
    elif p.feed != NOTHING:
        fed, dropped = (kept.outputs, p.dropped_output) if p.feeds_output else (kept.context, p.dropped_fed)
        fed = (fed if dropped is None else fed * dropped.reshape(fed.shape)).to(x.dtype)
        joined = recurrent_gradient(d.dgates[0], rows, fed, or_new(p.fed0, x, p.h0.shape[1], fed.shape[1]))
    else:
        joined = of_x[:, :0]
    above = []
    for l in range(1, L):
        h, dropped = kept.hidden[l - 1], p.dropped_above(l - 1)
        above.append(d.dgates[l].t() @ (h if dropped is None else h * dropped.view(h.shape)))
    w_hh = [recurrent_gradient(d.dgates[l], rows, kept.hidden[l], p.h0[l]) for l in range(L)]
    dw_query = db_query = dw_out = db_out = nothing(x)
    if p.w_query is not None:
        asked, h0 = kept.hidden[p.query_layer], p.h0[p.query_layer]
        dw_query = recurrent_gradient(d.dquery, rows, asked, h0) if p.before else d.dquery.t() @ asked
        db_query = bias_gradient(d.dquery)
    if p.w_out is not None:
        dw_out, db_out = d.dz.t() @ seen_by_output(kept), bias_gradient(d.dz)
    peepholes = [dp.sum(0).to(x.dtype) for dp in d.dpeephole if dp is not None]
    return [
        torch.cat([of_x, joined], 1),
        torch.stack(above) if above else nothing(x),
        torch.stack(w_hh),
        torch.stack([bias_gradient(dgates) for dgates in d.dgates]),
        torch.stack(peepholes) if peepholes else nothing(x),
        dw_query,
        db_query,
        dw_score,
        dw_out,
        db_out,
    ]
