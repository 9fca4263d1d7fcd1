"""An Attention LSTM whose arguments were checked: one op for the recurrence, or where it may be, attention all at once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear

from fastlstm import backends, stack, torch_backend
from fastlstm.call import AttentionCall, Call
from fastlstm.functional import quick
from fastlstm.functional.attention_values import Precomputed
from fastlstm.kernels.attention_lstm import ATTENTION_LSTM, FEEDS
from fastlstm.kernels.variant import Variant
from fastlstm.ops import program
from fastlstm.ops.attention_layer import attend_layer, attention_layer
from fastlstm.ops.attention_lstm import HALVES
from fastlstm.ops.attentional import attentional
from fastlstm.ops.derivatives import beyond_kernels
from fastlstm.ops.dispatch import differentiable
from fastlstm.ops.dot_attend import dot_attend
from fastlstm.ops.layer import layer
from fastlstm.sequences import Batch, each, own


class Plan(NamedTuple):
    """What is run on every input alike."""

    cell: Variant
    layers: Sequence[Mapping[str, Tensor]]
    beside: Mapping[str, Tensor | None]  # the attention's weights
    H: int
    M: int
    query_layer: int  # from 0
    call: Call
    more: AttentionCall

    @property
    def output_drop(self) -> float:
        """The dropout that is to be done on outputs, and on what is fed."""
        return self.more.output_dropout if self.call.training else 0.0

    @property
    def last_alone(self) -> bool:
        """Whether only the last layer has to do with the attention, in a step, and the others come before it."""
        attention = self.more.attention
        return not attention.before and attention.feed != "context" and 0 < self.query_layer == len(self.layers) - 1


class Run(NamedTuple):
    """Time-major, and in the order of the batch that was run."""

    y: Tensor
    h_n: Tensor
    c_n: Tensor
    fed_n: Tensor | None
    alignments: Tensor


def precompute(plan: Plan, memory: Tensor, lengths: Tensor | None, for_one_call: bool = False) -> Precomputed:
    """From `memory` (S, B, M), which is left as it is: what lies beyond a length is zero in a copy, of NaN too.

    `for_one_call`: nobody else sees it. Kernels on the CPU don't read what lies beyond; gradients of the keys' weight do.
    """
    w_key = plan.beside["w_key"]
    copied = not for_one_call or _chosen(plan, memory) != "numba" or program.is_made() or beyond_kernels()
    # PyTorch's product by AMX reads on behind a row that fills no tiles, times zero: NaN there would be NaN here
    reads_on = w_key is not None and memory.dtype in HALVES and memory.shape[2] % 32 > 0
    if lengths is not None and (copied or reads_on or (w_key is not None and differentiable((memory, w_key)))):
        beyond = (torch.arange(memory.shape[0], device="cpu")[:, None] >= lengths).to(memory.device)
        memory = memory.masked_fill(beyond.unsqueeze(-1), 0)
    elif reads_on and not (memory.is_contiguous() or memory.transpose(0, 1).is_contiguous()):
        memory = memory.contiguous()  # a part of a wider tensor, of which rows are followed by what isn't the memory's
    return Precomputed(memory, None if w_key is None else linear(memory, w_key), lengths)


def run_steps(
    plan: Plan,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: tuple[Tensor, Tensor, Tensor | None],
    precomputed: Precomputed,
) -> Run:
    """By the op that runs layers and attention of every step."""
    (T, B), L, H = x.shape[:2], len(plan.layers), plan.H
    if T == 1 and batch_sizes is None and plan.last_alone:
        return _run_step(plan, x, states, precomputed)
    attention, beside, more = plan.more.attention, plan.beside, plan.more
    p = plan.output_drop
    w_score, b_query = _score(plan)
    layers = plan.layers
    w_hh, b_ih, b_hh, w_peephole = [
        _stacked([w[name] for w in layers if name in w]) for name in ("w_hh", "b_ih", "b_hh", "w_peephole")
    ]
    assert w_hh is not None
    y, h_n, c_n, fed_n, alignments = attention_layer(
        x, batch_sizes, *states, *precomputed,
        _mask(x, plan.call.drop, (L - 1, T, B, H)) if L > 1 else None,
        _mask(x, p, (T, B, H)),
        _mask(x, p, (T, B, plan.M)) if attention.feed == "context" else None,
        layers[0]["w_ih"], _stacked([w["w_ih"] for w in layers[1:]]), w_hh, b_ih, b_hh, w_peephole,
        beside["w_query"], b_query, w_score, beside["w_out"], beside["b_out"],
        coupled=more.coupled, before=attention.before, feed=FEEDS.index(attention.feed), query_layer=plan.query_layer,
        tanh=attention.output == "tanh", scale=attention.scale(H), return_alignments=more.need_weights,
        backend=_chosen(plan, x),
    )  # fmt: skip
    return Run(y, h_n, c_n, fed_n if attention.feed else None, alignments)


def _run_step(plan: Plan, x: Tensor, states: tuple[Tensor, Tensor, Tensor | None], precomputed: Precomputed) -> Run:
    """One step, of whose layers the op runs the last: it takes the weights of several in one tensor, which costs a copy."""
    h, c, fed = states
    chosen = _chosen(plan, x)
    below = x if fed is None else torch.cat([x, fed.unsqueeze(0)], -1)
    h_n, c_n = [], []
    for k, weights in enumerate(plan.layers[:-1]):
        (below,), (h_k, c_k) = layer(plan.cell, below, None, None, (h[k], c[k]), weights, backend=chosen)
        below = dropout(below, plan.call.drop) if plan.call.drop else below
        h_n.append(h_k)
        c_n.append(c_k)
    more = plan.more._replace(attention=plan.more.attention._replace(feed=None))
    last = plan._replace(layers=plan.layers[-1:], query_layer=0, more=more)
    y, h_k, c_k, _, alignments = run_steps(last, below, None, (h[-1:], c[-1:], None), precomputed)
    h_all, c_all = torch.stack([*h_n, h_k[0]]), torch.stack([*c_n, c_k[0]])
    return Run(
        y, h_all, c_all, None if fed is None else y[0].clone(), alignments
    )  # a caller may edit the output in place


def run_at_once(plan: Plan, batch: Batch, states: tuple[Tensor, Tensor], precomputed: Precomputed) -> Run:
    """Where nothing that was attended to is fed: the stack, and then the attention of all steps."""
    query, h, finals = _run_stack(plan, batch, states)
    attention, beside, need_weights = plan.more.attention, plan.beside, plan.more.need_weights
    memory, keys, lengths = precomputed
    if attention.additive:
        assert keys is not None
        w_score, b_query = _score(plan)
        query = linear(query, beside["w_query"], b_query)  # type: ignore[arg-type]
        context, alignments = attend_layer(
            query, memory, keys, lengths, w_score,
            return_alignments=need_weights, backend=_chosen(plan, h),
        )  # fmt: skip
    else:
        own_kernels = _chosen(plan, h) == "numba"
        context, alignments = dot_attend(
            query, memory, keys, lengths, attention.scale(plan.H),
            return_alignments=need_weights, backend="numba" if own_kernels else plan.call.backend,
        )  # fmt: skip
    y = attentional(context, h, beside["w_out"], beside["b_out"], tanh=attention.output == "tanh")  # type: ignore[arg-type]
    if plan.output_drop:
        y = dropout(y, plan.output_drop)
    if batch.batch_sizes is not None:
        over = (torch.arange(batch.B, device="cpu") >= batch.batch_sizes[:, None]).to(y.device).unsqueeze(-1)
        y = y.masked_fill(over, 0)
        alignments = alignments.masked_fill(over, 0) if need_weights else alignments
    return Run(y, *finals, None, own(alignments))


def _run_stack(plan: Plan, batch: Batch, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """h of every step, of `query_layer` and of the last one; and the final states."""
    x, cell = batch.x, plan.cell
    inner = plan.query_layer < len(plan.layers) - 1
    if not inner and batch.batch_sizes is None and quick.is_usual():
        call = plan.call._replace(batch_first=False, lengths=None)
        if (results := quick.layers(cell, x, [list(w.values()) for w in plan.layers], states, call)) is not None:
            return results[0], *results
    chosen = backends.choose(cell, x.device, x.dtype, plan.call.backend, beyond_torch=inner).backend
    if chosen == "torch":
        (y,), (h_n, c_n) = torch_backend.run(cell, batch, states, plan.layers, plan.call)
        return y, y, (h_n, c_n)

    def run(
        x: Tensor, batch_sizes: Tensor | None, states: tuple, weights: Mapping[str, Tensor], reverse: bool, last: bool
    ) -> stack.Results:
        return layer(cell, x, batch_sizes, None, states, weights, reverse, backend=chosen)

    initials = list(zip(*[each(s) for s in states], strict=True))
    outputs, ends = stack.stack(
        run, x, batch.batch_sizes, initials, plan.layers, directions=1, dropout=plan.call.drop, every_layer=inner
    )
    h_n, c_n = (torch.stack(s) for s in zip(*ends, strict=True))
    return outputs[plan.query_layer if inner else -1][0], outputs[-1][0], (h_n, c_n)


def _chosen(plan: Plan, x: Tensor) -> str:
    return backends.choose(ATTENTION_LSTM, x.device, x.dtype, plan.call.backend).backend


def _score(plan: Plan) -> tuple[Tensor | None, Tensor | None]:
    """`w_score`, and the bias of queries: normalised as Salimans & Kingma (2016) do, gain * v / |v|."""
    v, gain = plan.beside["w_score"], plan.beside["g_score"]
    if v is None or gain is None:
        return v, None
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    return (gain.to(wide.dtype) * wide / wide.norm()).to(v.dtype), plan.beside["b_score"]


def _mask(like: Tensor, p: float, shape: tuple[int, ...]) -> Tensor | None:
    """Of dropout: 0, or 1 / (1 - p)."""
    return dropout(like.new_ones(shape), p) if p else None


def _stacked(tensors: Sequence[Tensor]) -> Tensor | None:
    """One for all layers; a single one is not copied."""
    if len(tensors) <= 1:
        return tensors[0].unsqueeze(0) if tensors else None
    return torch.stack(list(tensors))
