"""The ConvLSTM with less memory: its forward keeps a state now and then and no gates, its backward computes these again.

The steps are cut into about √T segments of about √T steps. From the state that each began with, the backward runs the forward
once more, keeping gates, and then the backward of that segment alone: the last one first. What it finds is what it would have
found at once, but for the rounding of sums over segments. (Chen et al. 2016, https://arxiv.org/abs/1604.06174.)
"""

from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("fastlstm", "FRAGMENT")  # kept: its ops live as long as it does
_WEIGHTS = "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_peephole"
_ARGUMENTS = f"Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, Tensor c0, {_WEIGHTS}"
_FLAGS = "int[] stride, int[] padding, int[] dilation, bool coupled, bool fresh, bool reverse"
LIBRARY.define(
    f"conv_lstm_checkpoint_fwd({_ARGUMENTS}, {_FLAGS}, bool return_cells, bool save) "
    "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor saved)"
)
LIBRARY.define(
    "conv_lstm_checkpoint_bwd(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, "
    f"{_ARGUMENTS}, Tensor saved, {_FLAGS}, bool need_dx, bool need_dw) "
    "-> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, Tensor dw_hh, Tensor db, Tensor dw_peephole)"
)


def checkpoint_fwd(*args: Any) -> tuple[Tensor, ...]:
    """`saved` is (2, segments - 1, B, *S', H): y and c of the step before each segment but the one that is run first."""
    *others, reverse, return_cells, save = args
    y, h_n, c_n, cells, _ = torch.ops.fastlstm.conv_lstm_fwd(*others, reverse, return_cells or save, False)
    befores = [before for *_, before in segments(len(y), reverse)[1:]] if save else []
    saved = torch.stack([y[befores], cells[befores]]) if befores else y.new_empty(2, 0, *h_n.shape)
    return y, h_n, c_n, cells if return_cells else y.new_empty(0), saved


def checkpoint_bwd(
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    dcells: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_peephole: Tensor | None,
    saved: Tensor,
    *flags: Any,
) -> tuple[Tensor, ...]:
    *geometry, coupled, fresh, reverse, need_dx, need_dw = flags
    steps, summed = dict[int, Tensor](), list[Tensor]()
    parts = segments(len(x), reverse)
    for k, (a, b, before) in reversed(list(enumerate(parts))):
        of_segment = [None if t is None else t[a:b] for t in (x, batch_sizes, reset)]
        first = fresh and k == 0
        h, c, cut = h0, c0, None
        if k:
            # those who begin in this segment do so from h0 and c0, the others where they were
            n = len(h0) if batch_sizes is None else int(batch_sizes[before])
            h, c = (torch.cat([s[:n], s0[n:]]) for s, s0 in zip(saved[:, k - 1], (h0, c0), strict=True))
            if reverse and reset is not None:  # it tells of cuts before a step: of this one, in another segment
                cut = (reset[before] & (torch.arange(len(h0), device=x.device) < n)).view(-1, *[1] * (h.dim() - 1))
                h, c = h.masked_fill(cut, 0), c.masked_fill(cut, 0)
        shared = (*geometry, coupled, first, reverse)
        *_, gates = torch.ops.fastlstm.conv_lstm_fwd(
            *of_segment, h, c, w_ih, w_hh, b_ih, b_hh, w_peephole, *shared, False, True, return_y=False
        )
        d_steps = [None if d is None else d[a:b] for d in (dy, dcells)]
        steps[a], dh, dc, *dw = torch.ops.fastlstm.conv_lstm_bwd(
            d_steps[0], dh, dc, d_steps[1], *of_segment, h, c, w_ih, w_hh, w_peephole, gates, *shared, need_dx, need_dw
        )  # fmt: skip
        if cut is not None:
            dh, dc = dh.masked_fill(cut, 0), dc.masked_fill(cut, 0)
        wide = [d if d.dtype == torch.float64 else d.float() for d in dw]
        summed = [total.add_(d) for total, d in zip(summed, wide, strict=True)] if summed else wide
    dx = torch.cat([steps[a] for a in sorted(steps)]) if need_dx else x.new_empty(0)
    assert dh is not None and dc is not None  # noqa: PT018
    return dx, dh, dc, *[d.to(x.dtype) for d in summed]


def segments(T: int, reverse: bool) -> list[tuple[int, int, int]]:
    """In the order in which they are run: the first step of each, that beyond its last, and the one that is run before it."""
    size = length(T)
    parts = [(a, min(a + size, T)) for a in range(0, max(T, 1), size)]
    return [(a, b, b) for a, b in reversed(parts)] if reverse else [(a, b, a - 1) for a, b in parts]


def length(T: int) -> int:
    """The steps of a segment: √T, also of a symbolic T."""
    return torch.sym_max(1, torch.sym_int(T**0.5))


def segment_count(T: int) -> int:
    return torch.sym_max(1, (T - 1) // length(T) + 1)


LIBRARY.impl("conv_lstm_checkpoint_fwd", checkpoint_fwd, "CompositeExplicitAutograd")
LIBRARY.impl("conv_lstm_checkpoint_bwd", checkpoint_bwd, "CompositeExplicitAutograd")
