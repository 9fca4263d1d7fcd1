"""The LSTM family's ops on a GPU: `fastlstm::lstm_fwd` and `lstm_bwd`, one layer and direction."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastlstm.gpu import plan
from fastlstm.gpu.arrays import (
    Block,
    aligned,
    bias_gradient,
    contiguous,
    nothing,
    on_gpu,
    or_new,
    or_zeros,
    present,
    recurrent_gradient,
)
from fastlstm.gpu.loop import Given, Loop
from fastlstm.gpu.rows import Rows


@on_gpu
def lstm_fwd(
    x: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None, b_hh: Tensor | None, w_hr: Tensor | None, w_peephole: Tensor | None,
    coupled: bool, reverse: bool, return_cells: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`(y, h_n, c_n, cells, saved)`; arguments are those of `fastlstm.ops.lstm.lstm`."""
    (B, R), H, G, projected = h0.shape, c0.shape[1], w_ih.shape[0], w_hr is not None
    rows, keep = Rows(x, batch_sizes, reset, B, reverse), save or return_cells
    block = known_block(rows.N, x.dtype, H * keep, G, H * projected)
    saved = block.new(x, zero=rows.padded and (projected or return_cells))
    cells, gates, m = block.split(saved)
    torch.mm(x.reshape(rows.N, x.shape[-1]), w_ih.t(), out=gates)
    y, loop, c_n = rows.new(R, x), Loop(rows, x.dtype, alone=not projected), c0.new_empty(B, H)
    # where all sequences end at the last step its h is written to both
    final = not projected and rows.steps is None
    h_n, biases = h0.new_empty(B, R) if final else None, [b.contiguous() for b in (b_ih, b_hh) if b is not None]
    given: Given = {
        "gates": gates, "hidden": y, "m": m if projected else y, "cells": cells, "h0": aligned(h0), "c0": aligned(c0),
        "h_n": h_n, "c_n": c_n, "c_state": None, "w": aligned(w_hh), "peephole": contiguous(w_peephole),
        **dict(zip(("bias", "more_bias"), (*biases, None, None), strict=False)),
    }  # fmt: skip
    flags = {
        "COUPLED": coupled, "PEEPHOLE": w_peephole is not None, "SAVE": keep, "BIASES": len(biases), "FINAL": final,
    }  # fmt: skip
    loop.add("lstm_forward", H, R, 4, given, flags)
    if w_hr is not None:
        given = {"out": y, "a": m, "w": aligned(w_hr), "dy": None, "dh_n": None}
        loop.add("project", R, H, 1, given, {"R": R, "BACKWARD": False})
    loop.run()
    if loop.empty:
        h_n, c_n = h0.clone(), c0.clone()
    every = cells.view(*rows.leading, H).to(x.dtype, copy=True) if return_cells else nothing(x)
    return y, rows.take("last", y, h0) if h_n is None else h_n, c_n, every, saved if save else nothing(saved)


@on_gpu
def lstm_bwd(
    dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, dcells: Tensor | None,
    x: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor,
    w_hr: Tensor | None, w_peephole: Tensor | None, saved: Tensor,
    coupled: bool, reverse: bool, need_dx: bool, need_dw: bool, need_dh: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`(dx, dh0, dc0, dw_ih, dw_hh, db, dw_hr, dw_peephole)`, empty where not needed."""
    (B, R), H, G = h0.shape, c0.shape[1], w_ih.shape[0]
    projected = w_hr is not None
    rows = Rows(x, batch_sizes, reset, B, reverse)
    cells, gates, m = known_block(rows.N, x.dtype, H, G, H * projected).split(saved)
    dgates, dc0, loop = rows.new(G, x), c0.new_empty(B, H), Loop(rows, x.dtype, alone=not projected)
    # h of every step once more: what was returned is the caller's, who may have edited it
    h = rows.new(H, x) if (needs_h := need_dw and not projected) else nothing(x)
    upstream = [None if d is None else aligned(d) for d in (dy, dh_n, dc_n, dcells)]
    dh = upstream[0]
    given: Given
    if projected:
        dh, w = rows.new(R, x), aligned(w_hh.t())
        dy, dh_n = or_new(upstream[0], x, *rows.leading, R), or_zeros(upstream[1], h0)
        given = {"out": dh, "a": dgates, "w": w, "dy": dy, "dh_n": dh_n}
        loop.add("project", R, G, 1, given, {"R": R, "BACKWARD": True})
    dpeephole = None
    if w_peephole is not None:
        dpeephole = x.new_zeros(plan.batch_tiles(B), *w_peephole.shape, dtype=torch.float64)
    given = {
        "dgates": dgates, "gates": gates, "cells": cells, "c0": aligned(c0), "dc0": dc0, "dc_state": None,
        "dpeephole": dpeephole, "dcells": upstream[3], "peephole": contiguous(w_peephole),
        "w": aligned((w_hh if w_hr is None else w_hr).t()),
        **present(dgates, dh=dh, dh_n=upstream[1], dc_n=upstream[2], m=h if needs_h else None),
    }  # fmt: skip
    flags = {
        "COUPLED": coupled, "PEEPHOLE": w_peephole is not None, "CELLS": dcells is not None, "PROJECTED": projected,
    }  # fmt: skip
    loop.add("lstm_backward", H, R if projected else G, 1, given, flags)
    loop.run()
    if loop.empty:
        dc0 = or_zeros(dc_n, c0).clone()

    dgates = dgates.view(rows.N, G)
    dx = (dgates @ w_ih).view(x.shape) if need_dx else nothing(x)
    dh0, dc0 = (rows.to_initial(dgates, lambda first: first @ w_hh, dh_n), dc0) if need_dh else (nothing(x), nothing(x))
    if not need_dw:
        return dx, dh0, dc0, *(nothing(x) for _ in range(5))
    return (
        dx,
        dh0,
        dc0,
        dgates.t() @ rows.owned(x),
        recurrent_gradient(dgates, rows, m @ w_hr.t() if w_hr is not None else h.view(rows.N, H), h0),
        bias_gradient(dgates),
        dh.view(rows.N, R).t() @ m if projected and dh is not None else nothing(x),
        dpeephole.sum(0).to(x.dtype) if dpeephole is not None else nothing(x),
    )


def saved_like(x: Tensor, H: int, gates: int, projected: bool, save: bool) -> Tensor:
    """An empty tensor like the one that a forward saves for its backward; sizes may be symbolic."""
    block = saved_block(math.prod(x.shape[:-1]), x.dtype, H, gates, H * projected)
    return x.new_empty(block.size if save else 0, dtype=torch.uint8)


def saved_block(N: int, dtype: torch.dtype, cells: int, gates: int, m: int) -> Block:
    """What the forward saves, by the columns of each: c in float32, the activated gates, and o * tanh(c) of a projection."""
    return Block(N, [cells, gates, m], [torch.float32, dtype, dtype])


known_block = lru_cache(maxsize=1024)(saved_block)  # of sizes that are numbers
