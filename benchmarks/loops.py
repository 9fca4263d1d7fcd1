"""What one writes by hand: a Python loop over time, layer by layer, over PyTorch's cell or over the equations."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from fastlstm.benchmarks.work import Work, refuse
from fastlstm.kernels.variant import Variant


def gates(variant: Variant, a: Tensor, c_prev: Tensor, p: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`h, c` of the LSTM family from its pre-activations (B, G*H, ...) and peepholes, as users write it."""
    if variant.coupled:
        a_i, a_g, a_o = a.chunk(3, dim=1)
    else:
        a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
    i = torch.sigmoid(a_i if p is None else a_i + p[0] * c_prev)
    if variant.coupled:
        f = 1 - i
    else:
        f = torch.sigmoid(a_f if p is None else a_f + p[1] * c_prev)
    c = f * c_prev + i * torch.tanh(a_g)
    o = torch.sigmoid(a_o if p is None else a_o + p[-1] * c)
    return o * torch.tanh(c), c


class EquationCell(nn.Module):
    """One step of a Peephole or CIFG LSTM; PyTorch has no cell for them. `weights` as in `all_weights`."""

    def __init__(self, variant: Variant, weights: list[Tensor]) -> None:
        super().__init__()
        self.variant = variant
        self.weights = nn.ParameterList(nn.Parameter(w.detach().clone()) for w in weights)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c_prev = state
        w_ih, w_hh, b_ih, b_hh, *p = self.weights
        return gates(self.variant, linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh), c_prev, *p)


def cell_of(work: Work, weights: list[Tensor]) -> nn.Module:
    if not work.variant.counterpart:
        return EquationCell(work.variant, weights)
    kind = getattr(nn, f"{work.variant.counterpart}Cell")
    cell = kind(weights[0].shape[1], work.case.H, dtype=work.dtype, device=work.x.device)
    for own, weight in zip(cell.parameters(), weights, strict=True):
        own.data.copy_(weight.data)
    return cell


class CellLoop(nn.Module):
    """Layers and directions over a cell."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        if work.case.P:
            raise NotImplementedError("PyTorch's cells know no projection")
        if work.reset is not None:
            raise NotImplementedError("resets are measured against cutting")
        if work.case.layout == "cell":
            raise NotImplementedError("one step is no loop")
        refuse(work.case, "this loop", ("bias",))
        self.directions = work.case.directions
        self.cells = nn.ModuleList([cell_of(work, weights) for weights in work.module.all_weights])

    def forward(self, x: PackedSequence | Tensor, *states: Tensor) -> tuple:
        packed = isinstance(x, PackedSequence)
        layer = list(x.data.split(x.batch_sizes.tolist())) if packed else list(x)
        finals: list[tuple[Tensor, ...]] = []
        for k in range(0, len(self.cells), self.directions):
            sides = []
            for d in range(self.directions):
                y, state = self.run(self.cells[k + d], layer, tuple(s[k + d] for s in states), reverse=d == 1)
                sides.append(y)
                finals.append(state)
            layer = [torch.cat(pair, dim=1) for pair in zip(*sides, strict=True)]
        y = PackedSequence(torch.cat(layer), x.batch_sizes) if packed else torch.stack(layer)
        return y, *[torch.stack(s) for s in zip(*finals, strict=True)]

    def run(self, cell: nn.Module, x: list[Tensor], state: tuple[Tensor, ...], reverse: bool) -> tuple:
        y = [x[0]] * len(x)
        for t in reversed(range(len(x))) if reverse else range(len(x)):
            n, rows = len(x[t]), len(state[0])
            before = state if n == rows else tuple(s[:n] for s in state)
            after = cell(x[t], before) if len(state) == 2 else (cell(x[t], before[0]),)
            y[t] = after[0]
            state = after if n == rows else tuple(torch.cat([a, s[n:]]) for a, s in zip(after, state, strict=True))
        return y, state


class Cutting(nn.Module):
    """Resets as reinforcement learning does them today: PyTorch's module on every run of steps between two resets, whoever has
    them, and the states zeroed in between."""

    def __init__(self, work: Work, module: nn.Module) -> None:
        super().__init__()
        self.module, self.reset = module, work.reset
        starts = [0, *(t for t in range(1, work.case.T) if work.reset[t].any()), work.case.T]
        self.pieces = list(pairwise(starts))

    def forward(self, x: Tensor, *states: Tensor) -> tuple:
        outputs = []
        for begin, end in self.pieces:
            keep = (~self.reset[begin]).to(x.dtype)[None, :, None]
            states = tuple(s * keep for s in states)
            y, finals = self.module(x[begin:end], states if len(states) == 2 else states[0])
            states = finals if isinstance(finals, tuple) else (finals,)
            outputs.append(y)
        return torch.cat(outputs), *states
