"""A ConvLSTM as naive as can be, in float64: sequence by sequence, cut into pieces, step by step, tap by tap."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def pairs(padding, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        return [(d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for k, d in zip(kernel, dilation, strict=True)]
    each = [padding] * len(kernel) if isinstance(padding, int) else padding
    return [(p, p) if isinstance(p, int) else p for p in each]


def tuple_of(value, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else value


def correlate(
    x: Tensor, w: Tensor, stride: Sequence[int], padding: list[tuple[int, int]], dilation: Sequence[int]
) -> Tensor:
    """`x` (C, *S) and `w` (F, C, *k) to (F, *S')."""
    padded = x.new_zeros(x.shape[0], *[s + a + b for s, (a, b) in zip(x.shape[1:], padding, strict=True)])
    padded[:, *[slice(a, a + s) for s, (a, _) in zip(x.shape[1:], padding, strict=True)]] = x
    ends = [s - d * (k - 1) for s, k, d in zip(padded.shape[1:], w.shape[2:], dilation, strict=True)]
    terms = []
    for tap in itertools.product(*map(range, w.shape[2:])):
        seen = [slice(t * d, t * d + end, s) for t, d, end, s in zip(tap, dilation, ends, stride, strict=True)]
        terms.append(torch.einsum("fc,c...->f...", w[:, :, *tap], padded[:, *seen]))
    return sum(terms)


def piece(
    module: nn.Module, k: int, suffix: str, steps: list[Tensor], h: Tensor, c: Tensor
) -> tuple[list, Tensor, Tensor]:
    """Steps (C, *S) that nothing cuts, in the order in which they are run: y and c of each, and the last h and c."""
    w_ih, w_hh = getattr(module, f"weight_ih{suffix}"), getattr(module, f"weight_hh{suffix}")
    n, H = w_ih.dim() - 2, w_hh.shape[1]
    ones = (1,) * n
    stride, dilation = (tuple_of(v, n) for v in ((module.stride, module.dilation) if k == 0 else (1, 1)))
    padding = pairs(module.padding if k == 0 else "same", w_ih.shape[2:], dilation)
    found = []
    for x in steps:
        a = correlate(h, w_hh, ones, pairs("same", w_hh.shape[2:], ones), ones)
        if x.shape[0]:
            a = a + correlate(x, w_ih, stride, padding, dilation)
        if module.bias:
            biases = getattr(module, f"bias_ih{suffix}") + getattr(module, f"bias_hh{suffix}")
            a = a + biases.view(-1, *ones)
        p = getattr(module, f"weight_peephole{suffix}", None)
        i = torch.sigmoid(a[:H] + (0 if p is None else p[0] * c))
        f = 1 - i if module.coupled else torch.sigmoid(a[H : 2 * H] + (0 if p is None else p[1] * c))
        c = f * c + i * torch.tanh(a[-2 * H : -H])
        h = torch.sigmoid(a[-H:] + (0 if p is None else p[-1] * c)) * torch.tanh(c)
        found.append((h, c))
    return found, h, c


def sequence(module, k, suffix, x, h, c, length, cut, reverse) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One sequence (T, C, *S), one layer, one direction: y and cells (T, H, *S'), zero beyond its length, and the last h, c."""
    starts = sorted({0, *[t for t in range(1, length) if cut[t]]})
    parts = [list(range(a, b)) for a, b in itertools.pairwise([*starts, length])]
    y = [torch.zeros_like(h)] * len(x)
    cells = list(y)
    for k_part, part in enumerate(reversed(parts) if reverse else parts):
        if k_part or (not reverse and cut[0] and part):
            h, c = torch.zeros_like(h), torch.zeros_like(c)
        order = part[::-1] if reverse else part
        found, h, c = piece(module, k, suffix, [x[t] for t in order], h, c)
        for t, (y_t, c_t) in zip(order, found, strict=True):
            y[t], cells[t] = y_t, c_t
    return torch.stack(y), torch.stack(cells), h, c


def oracle(
    module: nn.Module, x: Tensor, hx: Sequence[Sequence[Tensor]], lengths: Sequence[int] | None, reset: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Of each layer, from `x` (T, B, C, *S) and two lists of states (D, B, H, *S'): y, cells, h_n and c_n."""
    T, B, D = *x.shape[:2], 2 if module.bidirectional else 1
    results = [], [], [], []
    for k in range(module.num_layers):
        sides = []
        for d in range(D):
            suffix = f"_l{k}" + "_reverse" * d
            runs = []
            for b in range(B):
                cut = [False] * T if reset is None else reset[:, b].tolist()
                n = T if lengths is None else lengths[b]
                runs.append(sequence(module, k, suffix, x[:, b], hx[0][k][d, b], hx[1][k][d, b], n, cut, d == 1))
            y, cells, h, c = zip(*runs, strict=True)
            sides.append((torch.stack(y, 1), torch.stack(cells, 1), torch.stack(h), torch.stack(c)))
        y, cells, h, c = zip(*sides, strict=True)
        x = torch.cat(y, 2)
        for result, of_layer in zip(results, (x, torch.cat(cells, 2), torch.stack(h), torch.stack(c)), strict=True):
            result.append(of_layer)
    return results
