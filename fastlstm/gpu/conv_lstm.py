"""The ConvLSTM's ops on a GPU: `fastlstm::conv_lstm_fwd` and `conv_lstm_bwd`, one layer and direction.

A step is a launch, and what all steps share are PyTorch's convolutions. `Rows` counts frames here, the maps of one step of a
sequence: its arrays are (T * B, all of a frame). For the kernels a row is a pixel, of the same memory.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm.gpu import launch, plan
from fastlstm.gpu.arrays import Block, aligned, bias_gradient, nothing, on_gpu, or_new, or_zeros, state, sum_of
from fastlstm.gpu.convolution import Convolution
from fastlstm.gpu.loop import Given, Loop
from fastlstm.gpu.rows import Rows
from fastlstm.kernels.gpu_compile import Spec, saved_dtype


@on_gpu
def conv_lstm_fwd(
    x: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None, b_hh: Tensor | None, w_peephole: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    coupled: bool, fresh: bool, reverse: bool, return_cells: bool, save: bool, moved: bool = False, return_y: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`(y, h_n, c_n, cells, saved)`; arguments are those of `fastlstm.ops.conv_lstm.conv_lstm`."""
    rows, (G, H), keep = frames(x, batch_sizes, reset, h0, reverse), (w_ih.shape[0], h0.shape[-1]), save or return_cells
    y, c, bias = rows.new(math.prod(h0.shape[1:]), x).view(*rows.leading, *h0.shape[1:]), state(c0), sum_of(b_ih, b_hh)
    if x.shape[-1]:
        inputs = Convolution(stride, padding, dilation).forward(x.flatten(0, 1), w_ih, bias)
    else:
        inputs = aligned((x.new_zeros(G) if bias is None else bias).expand(*y.shape[:-1], G))
    saved = saved_block(y, G, keep).new(x, zero=rows.padded and return_cells)
    cells, gates = saved_block(y, G, keep).split(saved)
    given: Given = {
        "inputs": inputs, "gates": gates, "hidden": y, "cells": cells, "h0": aligned(h0), "c_state": c,
        "w": aligned(w_hh.movedim(0, -2)),
    }  # fmt: skip
    step = Step(rows, w_hh, h0, x.dtype, H, 4)
    step.run("conv_lstm_forward", given, w_peephole, {"COUPLED": coupled, "SAVE": keep}, fresh=int(fresh))
    h_n = rows.take("last", y.flatten(2), h0.flatten(1)).view(h0.shape)
    every = cells.view(y.shape).to(x.dtype, copy=True) if return_cells else nothing(x)
    c = c.to(x.dtype)
    if moved:
        y, h_n, c = [_moved(t, h0.dim() - 2) for t in (y, h_n, c)]
        every = _moved(every, h0.dim() - 2) if return_cells else every
    return y if return_y else nothing(x), h_n, c, every, saved if save else nothing(saved)


def _moved(t: Tensor, n: int) -> Tensor:
    """`t` (..., *S', H), S' of n dimensions, in memory with channels before the image."""
    return t.movedim(-1, -n - 1).contiguous().movedim(-n - 1, -1)


@on_gpu
def conv_lstm_bwd(
    dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, dcells: Tensor | None,
    x: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor,
    w_peephole: Tensor | None, saved: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    coupled: bool, fresh: bool, reverse: bool, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`(dx, dh0, dc0, dw_ih, dw_hh, db, dw_peephole)`, empty where not needed."""
    rows, G, image = frames(x, batch_sizes, reset, h0, reverse), w_ih.shape[0], h0.shape[1:-1]
    dy = or_new(dy, x, *rows.leading, *h0.shape[1:])
    cells, gates = saved_block(dy, G, True).split(saved)
    dgates, dc = rows.new(math.prod(image) * G, x), state(or_zeros(dc_n, c0))
    dh_n = aligned(or_zeros(dh_n, h0))
    step = Step(rows, w_hh, h0, x.dtype, G, 1)
    dpeephole = step.peephole_sums(w_peephole)
    given: Given = {
        "dgates": dgates, "dh": aligned(dy), "gates": gates, "cells": cells, "c0": aligned(c0), "dh_n": dh_n,
        "dc_state": dc, "dpeephole": dpeephole, "dcells": None if dcells is None else aligned(dcells),
        "w": aligned(w_hh.movedim(0, -1)),
    }  # fmt: skip
    step.run("conv_lstm_backward", given, w_peephole, {"COUPLED": coupled, "CELLS": dcells is not None})

    of_input, recurrent = Convolution(stride, padding, dilation), Convolution.same(w_hh.shape[1:-1])
    maps, fed = dgates.view(rows.N, *image, G), x.shape[-1] > 0
    dx = x.new_empty(x.shape) if need_dx else nothing(x)
    if need_dx and fed:
        dx = of_input.input_gradient(maps, w_ih, x.shape[2:-1]).view(x.shape)
    dh0, dc0 = nothing(x), nothing(x)
    if not fresh:
        dc0 = dc.to(x.dtype)
        dh0 = rows.to_initial(
            maps.flatten(1),
            lambda first: recurrent.input_gradient(first.view(len(h0), *maps.shape[1:]), w_hh, image).flatten(1),
            dh_n.flatten(1),
        ).view(h0.shape)
    if not need_dw:
        return dx, dh0, dc0, *(nothing(x) for _ in range(4))
    dw_ih = of_input.weight_gradient(maps, rows.owned(x), w_ih) if fed else torch.zeros_like(w_ih)
    dw_hh = recurrent_gradient(recurrent, maps, rows, hidden(cells, gates).view(dy.shape), h0, w_hh, fresh=fresh)
    db, dw_peephole = bias_gradient(maps.view(-1, G)), nothing(x)
    if w_peephole is not None and dpeephole is not None:
        dw_peephole = dpeephole.sum(0 if w_peephole.dim() == 2 else 1).to(x.dtype).view(w_peephole.shape)
    return dx, dh0, dc0, dw_ih, dw_hh, db, dw_peephole


def recurrent_gradient(
    convolution: Convolution, dgates: Tensor, rows: Rows, y: Tensor, h0: Tensor, w: Tensor, *, fresh: bool
) -> Tensor:
    """That of W_hh: the sum over steps of what the h that they saw has a part in; `fresh` says that h0 is zeros."""
    h = y.flatten(0, 1)
    if (shifted := rows.shifted()) is None:
        seen = rows.before(h.flatten(1), h0.flatten(1)).view(h.shape)
        return convolution.weight_gradient(dgates, seen, w)
    first, others, before = shifted
    dw = convolution.weight_gradient(dgates[others], h[before], w)
    return dw if fresh else dw + convolution.weight_gradient(dgates[first], h0, w)


class Step:
    """The launch of a step: its tile, and what its kernel has to know of maps. Rows, as kernels count them: B * M of a step.

    `K`: the features of a row that the product sums over, at each tap; `slots`: its columns per unit.
    """

    def __init__(self, rows: Rows, w_hh: Tensor, h0: Tensor, dtype: torch.dtype, K: int, slots: int) -> None:
        self.rows, self.dtype, self.K = rows, dtype, K
        self.B, *image, self.H = h0.shape
        unused = [1] * (3 - len(image))
        self.image, self.kernel = [*unused, *image], [*unused, *w_hh.shape[1:-1]]
        self.count = self.B * math.prod(image)
        self.precision = launch.precision(dtype, rows.device, "conv")
        self.tile = plan.pixel_tile(self.count, self.H, K, slots, dtype, self.precision, launch.gpu(rows.device))

    def peephole_sums(self, peephole: Tensor | None) -> Tensor | None:
        """Zeros to sum the gradients of peepholes in: for each tile of rows, or where each pixel has its own, for each row."""
        if peephole is None:
            return None
        of_all = peephole.dim() == 2
        tiles, _ = plan.grid(self.count, self.H, self.tile)
        shape = (tiles, *peephole.shape) if of_all else (len(peephole), self.B, *peephole.shape[1:])
        return peephole.new_zeros(shape, dtype=torch.float64)

    def run(self, name: str, given: Given, peephole: Tensor | None, flags: dict[str, Any], **more: int) -> None:
        rows, tile = self.rows, self.tile
        constants = flags | {
            "H": self.H,
            "K": self.K,
            **dict(zip(("KZ", "KY", "KX"), self.kernel, strict=True)),
            "PEEPHOLE": peephole is not None,
            "HADAMARD": peephole is not None and peephole.dim() > 2,
            "REVERSE": rows.reverse,
            "VARIABLE": rows.steps is not None,
            "RESET": rows.reset is not None,
            "SAVED": saved_dtype(self.dtype),
            "ALIGN": math.gcd(16, self.K * self.dtype.itemsize),
            "PRECISION": self.precision,
            "BM": tile.BM,
            "BH": tile.BH,
            "BK": tile.BK,
        }
        spec = Spec(name, self.dtype, tuple(sorted(constants.items())), tile.warps, tile.stages)
        sizes = dict(zip(("depth", "height", "width"), self.image, strict=True))
        arrays = given | {"peephole": None if peephole is None else peephole.contiguous()}
        loop = Loop(rows, self.dtype, alone=False)
        loop.call(spec, plan.grid(self.count, self.H, tile), {**arrays, **sizes, **more})
        loop.run()


def frames(x: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, h0: Tensor, reverse: bool) -> Rows:
    """The frames of `x` (T, B, ...)."""
    return Rows(x.new_empty(*x.shape[:2], 0), batch_sizes, reset, len(h0), reverse)


def saved_like(y: Tensor, gates: int, save: bool) -> Tensor:
    """An empty tensor like the one that a forward saves for its backward; sizes may be symbolic."""
    return y.new_empty(saved_block(y, gates, True).size if save else 0, dtype=torch.uint8)


def saved_block(y: Tensor, gates: int, save: bool) -> Block:
    """What the forward saves of the pixels of `y`, by the columns of each: c in float32, and the activated gates."""
    columns = [y.shape[-1] * save, gates * save]
    return Block(math.prod(y.shape[:-1]), columns, [torch.float32, y.dtype])


def hidden(cells: Tensor, gates: Tensor) -> Tensor:
    """h = o * tanh(c) of every row, from what is saved: what was returned is the caller's, who may have edited it."""
    o = gates[..., -cells.shape[-1] :]
    exact = o if o.dtype == torch.float32 else o.view(torch.float16)  # whatever the dtype: see `saved_dtype`
    return torch.mul(exact, cells.tanh(), out=torch.empty_like(o))
