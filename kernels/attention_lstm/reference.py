"""The Attention LSTM written from its equations in plain PyTorch: any dtype, any device. The oracle of every other backend.

Sources: Bahdanau, Cho & Bengio (2014), https://arxiv.org/abs/1409.0473; Luong, Pham & Manning (2015),
https://arxiv.org/abs/1508.04025; the cell is that of the LSTM family, gate order i, f, g, o (i, g, o where coupled).
"""

import torch
from torch import Tensor
from torch.nn.functional import linear


def attention_lstm_reference(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    fed0: Tensor | None,
    memory: Tensor,
    keys: Tensor | None,
    memory_lengths: Tensor | None,
    dropped_layers: Tensor | None,
    dropped_output: Tensor | None,
    dropped_fed: Tensor | None,
    w_ih: Tensor,
    w_ih_above: Tensor | None,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_peephole: Tensor | None,
    w_query: Tensor | None,
    b_query: Tensor | None,
    w_score: Tensor | None,
    w_out: Tensor | None,
    b_out: Tensor | None,
    coupled: bool,
    before: bool,
    feed: int,
    query_layer: int,
    tanh: bool,
    scale: float,
    return_alignments: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`(y, h_n, c_n, fed_n, alignments)`: arguments and results are those of `fastlstm.ops.attention_lstm.attention_lstm`."""
    L, B, _ = h0.shape
    keys, memory, beyond = rows_of_memory(keys, memory, memory_lengths)

    def attend(h: Tensor) -> tuple[Tensor, Tensor]:
        query = h * scale if w_score is None else linear(h, w_query, b_query)  # type: ignore[arg-type]
        weights = masked_softmax(scores(query[:, None], keys, w_score), beyond)[:, 0]
        return (weights[:, None] @ memory)[:, 0], weights

    w_ih_of = [w_ih, *([] if w_ih_above is None else w_ih_above.unbind(0))]
    h, c, fed = list(h0.unbind(0)), list(c0.unbind(0)), fed0
    y, alignments = [], []
    running = None
    if batch_sizes is not None:
        running = (torch.arange(B, device="cpu") < batch_sizes[:, None]).to(x.device).unsqueeze(-1)
        x = x.masked_fill(~running, 0)  # a NaN in a branch not taken would come back in the backward
    for t, x_t in enumerate(x.unbind(0)):
        still = None if running is None else ~running[t]
        if before:
            context, weights = attend(h[query_layer])
            below = torch.cat([x_t, context], 1)
        else:
            below = x_t if fed is None else torch.cat([x_t, fed], 1)
        for k in range(L):
            a = linear(below, w_ih_of[k], None if b_ih is None else b_ih[k])
            a = a + linear(h[k], w_hh[k], None if b_hh is None else b_hh[k])
            h_k, c_k = cell(a, c[k], None if w_peephole is None else w_peephole[k], coupled)
            h[k], c[k] = kept(h_k, h[k], still), kept(c_k, c[k], still)
            below = h[k] if dropped_layers is None or k == L - 1 else h[k] * dropped_layers[k, t]
        if not before:
            context, weights = attend(h[query_layer])
        a = h[-1]
        if w_out is not None:
            a = linear(torch.cat([context, a], 1), w_out, b_out)
            a = a.tanh() if tanh else a
        a = a if dropped_output is None else a * dropped_output[t]
        if feed:
            assert fed is not None
            new = a if feed == 1 else context if dropped_fed is None else context * dropped_fed[t]
            fed = kept(new, fed, still)
        y.append(a if still is None else a.masked_fill(still, 0))
        alignments.append(weights if still is None else weights.masked_fill(still, 0))
    return (
        torch.stack(y),
        torch.stack(h),
        torch.stack(c),
        x.new_empty(0) if fed is None else fed.clone(),  # a caller may edit it in place
        torch.stack(alignments) if return_alignments else x.new_empty(0),
    )


def attend_reference(
    query: Tensor,
    memory: Tensor,
    keys: Tensor | None,
    memory_lengths: Tensor | None,
    w_score: Tensor | None,
    return_alignments: bool,
) -> tuple[Tensor, Tensor]:
    """All steps at once: `(context, alignments)`, of the arguments and results of `fastlstm.ops.attend.attend`.

    Without `w_score` scores are products of queries, scaled already, and keys; without `keys` these are the memory.
    """
    keys, memory, beyond = rows_of_memory(keys, memory, memory_lengths)
    weights = masked_softmax(scores(query.transpose(0, 1), keys, w_score), beyond)
    context = (weights @ memory).transpose(0, 1)
    return context, weights.transpose(0, 1) if return_alignments else query.new_empty(0)


def rows_of_memory(
    keys: Tensor | None, memory: Tensor, memory_lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys (B, S, A) and memory (B, S, M) without what lies beyond a length, and where that is, (B, S)."""
    beyond = None
    if memory_lengths is not None:
        beyond = (torch.arange(memory.shape[0], device="cpu") >= memory_lengths[:, None]).to(memory.device)
    rows = [t.transpose(0, 1) for t in (memory, *([] if keys is None else [keys]))]
    if beyond is not None:
        rows = [t.masked_fill(beyond[..., None], 0) for t in rows]
    return rows[-1], rows[0], beyond


def scores(query: Tensor, keys: Tensor, w_score: Tensor | None) -> Tensor:
    """(B, T, S), of queries (B, T, A) and keys (B, S, A)."""
    if w_score is None:
        return query @ keys.transpose(1, 2)
    return (query[:, :, None] + keys[:, None]).tanh() @ w_score


def masked_softmax(e: Tensor, beyond: Tensor | None) -> Tensor:
    """Over the last dimension of scores (B, T, S): zero where `beyond` (B, S), everywhere in an empty row."""
    if beyond is None:
        return e.softmax(-1)
    beyond = beyond[:, None]
    # Of an empty row nothing is masked: all minus infinity would be NaN, and NaN in the backward
    empty = beyond.all(-1, keepdim=True)
    return e.masked_fill(beyond & ~empty, -torch.inf).softmax(-1).masked_fill(beyond, 0)


def cell(a: Tensor, c_prev: Tensor, w_peephole: Tensor | None, coupled: bool) -> tuple[Tensor, Tensor]:
    """`(h, c)` from pre-activations: that of `kernels/lstm/reference.py`."""
    if coupled:
        a_i, a_g, a_o = a.chunk(3, dim=1)
    else:
        a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
    if w_peephole is not None:
        a_i = a_i + w_peephole[0] * c_prev
        if not coupled:
            a_f = a_f + w_peephole[1] * c_prev
    i = a_i.sigmoid()
    f = 1 - i if coupled else a_f.sigmoid()
    c = f * c_prev + i * a_g.tanh()
    if w_peephole is not None:
        a_o = a_o + w_peephole[-1] * c
    return a_o.sigmoid() * c.tanh(), c


def kept(new: Tensor, old: Tensor, still: Tensor | None) -> Tensor:
    """`old` where a sequence is over, (B, 1)."""
    return new if still is None else torch.where(still, old, new)
