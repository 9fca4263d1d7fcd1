"""An Attention LSTM as naive as can be, in float64: sequence by sequence, step by step, slot by slot, from the papers.

Additive scores: Bahdanau, Cho & Bengio (2014), appendix A.1.2; the others and input feeding: Luong, Pham & Manning (2015),
sections 3.1 and 3.3; normalised scores: Salimans & Kingma (2016). The cells: Hochreiter & Schmidhuber (1997), Gers &
Schmidhuber (2000), Greff et al. (2017).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def score(module: nn.Module, query: Tensor, slot: Tensor) -> Tensor:
    """Of one slot (M) of the memory."""
    if module.attention == "dot":
        return torch.dot(query, slot)
    if module.attention == "scaled_dot":
        return torch.dot(query, slot) / math.sqrt(module.hidden_size)
    if module.attention == "general":
        return torch.dot(query, torch.mv(module.weight_key, slot))
    inside = torch.mv(module.weight_query, query) + torch.mv(module.weight_key, slot)
    v = module.weight_score
    if module.attention == "normalized_additive":
        inside = inside + module.bias_score
        v = module.gain_score * v / torch.sqrt((v * v).sum())
    return (v * torch.tanh(inside)).sum()


def attend(module: nn.Module, query: Tensor, memory: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The context (M), and the weights of all slots (S)."""
    if length == 0:
        return torch.zeros_like(memory[0]), memory.new_zeros(len(memory))
    e = torch.stack([score(module, query, memory[s]) for s in range(length)])
    exponentials = torch.exp(e - e.max().detach())
    weights = exponentials / exponentials.sum()
    context = sum(weights[s] * memory[s] for s in range(length))
    return context, torch.cat([weights, memory.new_zeros(len(memory) - length)])


def cell(module: nn.Module, k: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    H = module.hidden_size
    w_ih, w_hh = getattr(module, f"weight_ih_l{k}"), getattr(module, f"weight_hh_l{k}")
    a = torch.mv(w_ih, x) + torch.mv(w_hh, h)
    if module.bias:
        a = a + getattr(module, f"bias_ih_l{k}") + getattr(module, f"bias_hh_l{k}")
    p = getattr(module, f"weight_peephole_l{k}", None)
    i = torch.sigmoid(a[:H] + (0 if p is None else p[0] * c))
    f = 1 - i if module.coupled else torch.sigmoid(a[H : 2 * H] + (0 if p is None else p[1] * c))
    c = f * c + i * torch.tanh(a[-2 * H : -H])
    return torch.sigmoid(a[-H:] + (0 if p is None else p[-1] * c)) * torch.tanh(c), c


def produced(module: nn.Module, context: Tensor, h: Tensor) -> Tensor:
    if module.output == "hidden":
        return h
    a = torch.mv(module.weight_out, torch.cat([context, h]))
    if module.bias_out is not None:
        a = a + module.bias_out
    return torch.tanh(a) if module.output == "tanh" else a


def sequence(
    module: nn.Module,
    x: Tensor,
    memory: Tensor,
    h: Sequence[Tensor],
    c: Sequence[Tensor],
    fed: Tensor | None,
    length: int,
    memory_length: int,
    masks: dict[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """One sequence (T, I) over one memory (S, M): y, h_n, c_n, what was fed last, and the weights."""
    h, c = list(h), list(c)
    y, alignments = [], []
    for t in range(len(x)):
        if t >= length:
            y.append(x.new_zeros(module.hidden_size))
            alignments.append(memory.new_zeros(len(memory)))
            continue
        below = x[t]
        if module.attend == "before":
            context, weights = attend(module, h[module.query_layer], memory, memory_length)
            below = torch.cat([below, context])
        elif fed is not None:
            below = torch.cat([below, fed])
        for k in range(module.num_layers):
            h[k], c[k] = cell(module, k, below, h[k], c[k])
            below = h[k] * masks["layers"][k, t] if "layers" in masks and k < module.num_layers - 1 else h[k]
        if module.attend == "after":
            context, weights = attend(module, h[module.query_layer], memory, memory_length)
        out = produced(module, context, h[-1])
        if "output" in masks:
            out = out * masks["output"][t]
        if module.feed == "attentional":
            fed = out
        elif module.feed == "context":
            fed = context * masks["fed"][t] if "fed" in masks else context
        y.append(out)
        alignments.append(weights)
    return torch.stack(y), torch.stack(h), torch.stack(c), fed, torch.stack(alignments)


def oracle(
    module: nn.Module,
    x: Tensor,
    memory: Tensor,
    state: Sequence[Tensor | None],
    lengths: Sequence[int] | None = None,
    memory_lengths: Sequence[int] | None = None,
    masks: dict[str, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor | None], Tensor]:
    """`(y, (h_n, c_n, fed_n), alignments)`, from `x` (T, B, I), `memory` (S, B, M) and the state as a module takes it.

    `masks` are scaled ones of dropout, by the names "layers" (L - 1, T, B, H), "output" (T, B, H) and "fed" (T, B, M).
    """
    (T, B), S = x.shape[:2], len(memory)
    h0, c0, fed0 = state
    runs = []
    for b in range(B):
        of_sequence = {name: mask[..., b, :] for name, mask in (masks or {}).items()}
        runs.append(
            sequence(
                module,
                x[:, b],
                memory[:, b],
                h0[:, b],
                c0[:, b],
                None if fed0 is None else fed0[b],
                T if lengths is None else lengths[b],
                S if memory_lengths is None else memory_lengths[b],
                of_sequence,
            )
        )
    y, h, c, fed, alignments = zip(*runs, strict=True)
    state = torch.stack(h, 1), torch.stack(c, 1), None if fed0 is None else torch.stack(fed)
    return torch.stack(y, 1), state, torch.stack(alignments, 1)
