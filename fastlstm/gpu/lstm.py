"""The LSTM family's ops on a GPU: `fastlstm::lstm_fwd` and `lstm_bwd`, one layer and direction."""

import math

import torch
from torch import Tensor

from fastlstm.gpu import plan
from fastlstm.gpu.arrays import (
    Block,
    aligned,
    bias_gradient,
    input_gates,
    nothing,
    on_gpu,
    or_new,
    or_zeros,
    recurrent_gradient,
    state,
)
from fastlstm.gpu.loop import Given, Loop
from fastlstm.gpu.rows import Rows
from fastlstm.kernels.gpu_compile import saved_dtype


@on_gpu
def lstm_fwd(
    x: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None, b_hh: Tensor | None, w_hr: Tensor | None, w_peephole: Tensor | None,
    coupled: bool, reverse: bool, return_cells: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`(y, h_n, c_n, cells, saved)`; arguments are those of `fastlstm.ops.lstm.lstm`."""
    (B, R), H, G = h0.shape, c0.shape[1], w_ih.shape[0]
    rows, keep = Rows(x, batch_sizes, reset, B, reverse), save or return_cells
    block = saved_block(rows.N, x.dtype, H * keep, G, H * (w_hr is not None))
    saved = block.new(x, zero=rows.padded)
    cells, gates, m = block.split(saved)
    input_gates(gates, x, w_ih, b_ih, b_hh)
    y, c = rows.new(R, x), state(c0)
    loop = Loop(rows, x.dtype, alone=w_hr is None)
    given: Given = {
        "gates": gates,
        "hidden": y,
        "m": y if w_hr is None else m,
        "cells": cells,
        "h0": aligned(h0),
        "c_state": c,
    }
    flags = {"COUPLED": coupled, "PEEPHOLE": w_peephole is not None, "SAVE": keep, "SAVED": saved_dtype(x.dtype)}
    loop.add("lstm_forward", H, R, 4, given | weights(w_hh, w_peephole), flags)
    if w_hr is not None:
        given = {"out": y, "a": m, "w": aligned(w_hr), "dy": None, "dh_n": None}
        loop.add("project", R, H, 1, given, {"R": R, "BACKWARD": False})
    loop.run()
    every = cells.view(*rows.leading, H).to(x.dtype, copy=True) if return_cells else nothing(x)
    return y, rows.take("last", y, h0), c.to(x.dtype), every, saved if save else nothing(saved)


@on_gpu
def lstm_bwd(
    dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, dcells: Tensor | None,
    x: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor,
    w_hr: Tensor | None, w_peephole: Tensor | None, saved: Tensor,
    coupled: bool, reverse: bool, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`(dx, dh0, dc0, dw_ih, dw_hh, db, dw_hr, dw_peephole)`, empty where not needed."""
    (B, R), H, G = h0.shape, c0.shape[1], w_ih.shape[0]
    projected = w_hr is not None
    rows = Rows(x, batch_sizes, reset, B, reverse)
    cells, gates, m = saved_block(rows.N, x.dtype, H, G, H * projected).split(saved)
    dgates, dc = rows.new(G, x), state(or_zeros(dc_n, c0))
    dy, dh_n = aligned(or_new(dy, x, *rows.leading, R)), aligned(or_zeros(dh_n, h0))
    dh = rows.new(R, x) if projected else dy
    loop = Loop(rows, x.dtype, alone=not projected)
    given: Given
    if projected:
        given = {"out": dh, "a": dgates, "w": aligned(w_hh.t()), "dy": dy, "dh_n": dh_n}
        loop.add("project", R, G, 1, given, {"R": R, "BACKWARD": True})
    dpeephole = None
    if w_peephole is not None:
        dpeephole = x.new_zeros(plan.batch_tiles(B), *w_peephole.shape, dtype=torch.float64)
    given = {
        "dgates": dgates, "dh": dh, "gates": gates, "cells": cells, "c0": state(c0), "dh_n": dh_n, "dc_state": dc,
        "dpeephole": dpeephole, "dcells": None if dcells is None else aligned(dcells),
    }  # fmt: skip
    flags = {
        "COUPLED": coupled, "PEEPHOLE": w_peephole is not None, "CELLS": dcells is not None,
        "PROJECTED": projected, "SAVED": saved_dtype(x.dtype),
    }  # fmt: skip
    w = weights(w_hr.t() if w_hr is not None else w_hh.t(), w_peephole)
    loop.add("lstm_backward", H, R if projected else G, 1, given | w, flags)
    loop.run()

    dgates = dgates.view(rows.N, G)
    dx = (dgates @ w_ih).view(x.shape) if need_dx else nothing(x)
    dh0 = rows.to_initial(dgates, lambda first: first @ w_hh, dh_n)
    if not need_dw:
        return dx, dh0, dc.to(x.dtype), *(nothing(x) for _ in range(5))
    return (
        dx,
        dh0,
        dc.to(x.dtype),
        dgates.t() @ rows.owned(x),
        recurrent_gradient(dgates, rows, m @ w_hr.t() if w_hr is not None else hidden(cells, gates), h0),
        bias_gradient(dgates),
        dh.view(rows.N, R).t() @ m if projected else nothing(x),
        dpeephole.sum(0).to(x.dtype) if dpeephole is not None else nothing(x),
    )


def hidden(cells: Tensor, gates: Tensor) -> Tensor:
    """h = o * tanh(c) of every row, from what is saved: what was returned is the caller's, who may have edited it."""
    o = gates[..., -cells.shape[-1] :]
    exact = o if o.dtype == torch.float32 else o.view(torch.float16)  # whatever the dtype: see `saved_dtype`
    return (exact * cells.tanh()).to(o.dtype)


def weights(w: Tensor, peephole: Tensor | None) -> Given:
    return {"w": aligned(w), "peephole": None if peephole is None else peephole.contiguous()}


def saved_like(x: Tensor, H: int, gates: int, projected: bool, save: bool) -> Tensor:
    """An empty tensor like the one that a forward saves for its backward; sizes may be symbolic."""
    block = saved_block(math.prod(x.shape[:-1]), x.dtype, H, gates, H * projected)
    return x.new_empty(block.size if save else 0, dtype=torch.uint8)


def saved_block(N: int, dtype: torch.dtype, cells: int, gates: int, m: int) -> Block:
    """What the forward saves, by the columns of each: c in float32, the activated gates, and o * tanh(c) of a projection."""
    return Block(N, [cells, gates, m], [torch.float32, dtype, dtype])
