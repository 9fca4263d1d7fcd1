"""The launches of an LSTM that attends on a GPU, forward and backward: of each layer's cells, the attention, what is fed."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm.gpu import launch, plan
from fastlstm.gpu.arrays import aligned, or_new
from fastlstm.gpu.attend import Attention
from fastlstm.gpu.attention_saved import Kept
from fastlstm.gpu.loop import Given, Loop
from fastlstm.gpu.rows import Rows
from fastlstm.kernels.gpu_compile import Spec, saved_dtype

NOTHING, ATTENTIONAL, CONTEXT = range(3)  # what is fed


class Problem(NamedTuple):
    """The arguments that both ops have, in their order."""

    x: Tensor
    batch_sizes: Tensor | None
    h0: Tensor
    c0: Tensor
    fed0: Tensor | None
    memory: Tensor
    keys: Tensor | None
    memory_lengths: Tensor | None
    dropped_layers: Tensor | None
    dropped_output: Tensor | None
    dropped_fed: Tensor | None
    w_ih: Tensor
    w_ih_above: Tensor | None
    w_hh: Tensor
    w_peephole: Tensor | None
    w_query: Tensor | None
    w_score: Tensor | None
    w_out: Tensor | None
    coupled: bool
    before: bool
    feed: int
    query_layer: int
    tanh: bool
    scale: float

    @property
    def feeds_output(self) -> bool:
        """Whether the output is taken in the loop."""
        return self.feed == ATTENTIONAL

    @property
    def joins_context(self) -> bool:
        """Whether the context joins the input, of its own step or of the next one."""
        return self.before or self.feed == CONTEXT

    @property
    def joins(self) -> Tensor:
        """(G*H, F): the columns of W_ih for what joins x."""
        return self.w_ih[:, self.x.shape[-1] :]

    def rows(self) -> Rows:
        return Rows(self.x, self.batch_sizes, None, self.h0.shape[1], False)

    def attention(self, rows: Rows) -> Attention:
        H = self.h0.shape[2]
        return Attention(rows, self.memory, self.keys, self.memory_lengths, self.w_score, H, self.scale)

    def above(self, l: int) -> Tensor:
        """The weights of the input of layer `l` > 0."""
        assert self.w_ih_above is not None
        return self.w_ih_above[l - 1]

    def dropped_above(self, l: int) -> Tensor | None:
        """What h of layer `l` is multiplied with on its way up."""
        if self.dropped_layers is None or l == len(self.h0) - 1:
            return None
        return aligned(self.dropped_layers[l])

    def attention_flags(self) -> dict[str, Any]:
        """What the attention's kernels have to know of the loop, forward and backward."""
        dropped = self.dropped_output if self.feeds_output else self.dropped_fed
        return {
            "OUTPUT": self.feeds_output, "TANH": self.feeds_output and self.tanh, "FED": self.joins_context,
            "DROPPED": dropped is not None,
        }  # fmt: skip

    def cell_flags(self) -> dict[str, Any]:
        return {"COUPLED": self.coupled, "PEEPHOLE": self.w_peephole is not None}


def forward_loop(
    p: Problem, attention: Attention, kept: Kept, passed: list[Tensor], fed: Tensor, c: list[Tensor],
    b_query: Tensor | None, b_out: Tensor | None, *, scores: bool, save: bool,
) -> None:  # fmt: skip
    """`passed`: h of each layer but the top one, on its way up. `fed` (N, F) is what joins x, or the output. `c` are states."""
    rows, (L, B, H), F = attention.rows, p.h0.shape, fed.shape[1]
    loop = Loop(rows, p.x.dtype, alone=False)

    def attend() -> None:
        given: Given = {
            "hidden": kept.hidden[p.query_layer], "h0": aligned(p.h0[p.query_layer]), "query": kept.query,
            "w_query": None if p.w_query is None else aligned(p.w_query.t()), "b_query": some(b_query),
            "scores": kept.scores, "sums": kept.sums, "context": kept.context, "fed": fed, "y": fed,
            "dropped_fed": some(p.dropped_fed), "top": kept.hidden[-1], "w_out": some(p.w_out), "b_out": some(b_out),
            "dropped_output": some(p.dropped_output), "outputs": kept.outputs,
        }  # fmt: skip
        flags = {
            "PROJECTED": p.w_query is not None, "OLD": p.before, "BIAS": b_query is not None,
            "BIAS_OUT": p.feeds_output and b_out is not None, "SCORES": scores and attention.S > 0, "SAVE": save,
        }  # fmt: skip
        attention.add(loop, "attend_forward", given, p.attention_flags() | flags)

    if p.before:
        attend()
    for l in range(L):
        below, w_below = (fed, p.joins) if l == 0 else (passed[l - 1], p.above(l))
        KB, later, dropped = w_below.shape[1], l == 0 and p.feed != NOTHING, p.dropped_above(l)
        given: Given = {
            "gates": kept.gates[l], "hidden": kept.hidden[l], "cells": kept.cells[l], "dropped": dropped,
            "passed": None if dropped is None else passed[l], "h0": aligned(p.h0[l]), "c_state": c[l], "below": below,
            "below0": aligned(or_new(p.fed0, p.x, B, F)) if later else None, "w": aligned(p.w_hh[l]),
            "w_below": aligned(w_below),
        }  # fmt: skip
        flags = {
            "KB": KB, "LATER": later, "SAVE": save, "DROPPED": dropped is not None, "ALIGN": row_bytes(H, p.x),
            "ALIGN_BELOW": row_bytes(KB, p.x),
        }  # fmt: skip
        add_cells(loop, "attention_lstm_forward", p, l, H, 4, given, flags, KB)
    if not p.before:
        attend()
    loop.run()


class Gradients(NamedTuple):
    """Rows of all steps that the backward loop finds; and what it is given, where a comment says so."""

    dgates: list[Tensor]  # (N, G*H), of each layer
    dc: list[Tensor]  # (B, H) float32: of the final c of each layer, given, and then of the first
    dpeephole: list[Tensor | None]  # (tiles, P, H) float64, zeros
    dz: Tensor  # (N, H): before the output's tanh; given where the output is not fed
    dcontext: Tensor  # (N, M): what is known of it, given, and then all of it
    dh: Tensor | None  # (N, H): of h of the top layer, where the output is not fed; given
    dfed: Tensor  # (N, F): of what joined x; where the output is fed, that of y and of what it fed together
    dscores: Tensor  # (N, S) float32
    dquery: Tensor  # (N, A); of h where nothing projects it


def backward_loop(
    p: Problem, attention: Attention, kept: Kept, d: Gradients, dy: Tensor, dh_n: Tensor, dfed_n: Tensor | None,
    dalignments: Tensor | None,
) -> None:  # fmt: skip
    rows, (L, B, H), M = attention.rows, p.h0.shape, attention.M
    G, dtype = p.w_hh.shape[1], p.x.dtype
    loop = Loop(rows, dtype, alone=False)

    def attend() -> None:
        given: Given = {
            "hidden": kept.hidden[p.query_layer] if p.w_query is None else kept.query, "h0": aligned(p.h0[p.query_layer]),
            "scores": kept.scores, "sums": kept.sums, "context": kept.context, "dweights": some(dalignments),
            "dcontext": d.dcontext, "dfed": d.dfed, "dropped_fed": some(p.dropped_fed), "dy": d.dfed,
            "outputs": kept.outputs, "dropped_output": some(p.dropped_output), "w_out": some(p.w_out), "dz": d.dz,
            "dscores": d.dscores, "dquery": d.dquery,
        }  # fmt: skip
        flags = {
            "OLD": p.before and p.w_query is None, "GIVEN": not p.feeds_output and p.w_out is not None,
            "WEIGHTS": dalignments is not None and attention.S > 0,
        }  # fmt: skip
        attention.add(loop, "attend_backward", given, p.attention_flags() | flags)

    if p.feed != NOTHING:
        known = aligned(dy).view(d.dz.shape) if p.feeds_output else torch.zeros_like(d.dfed)
        add_fed_gradient(loop, p, d, known, aligned(or_new(dfed_n, p.x, B, d.dfed.shape[1])))
    if not p.before:
        attend()
    for l in reversed(range(L)):
        top, asks, dropped = l == L - 1, l == p.query_layer, p.dropped_above(l)
        given: Given = {
            "dgates": d.dgates[l], "above": None if top else d.dgates[l + 1], "dropped": dropped, "dh": d.dh, "dz": d.dz,
            "dquery": d.dquery, "gates": kept.gates[l], "cells": kept.cells[l], "c0": aligned(p.c0[l]),
            "dh_n": aligned(dh_n[l]), "dc_state": d.dc[l], "dpeephole": d.dpeephole[l], "w": aligned(p.w_hh[l].t()),
            "w_above": None if top else aligned(p.above(l + 1).t()),
            "w_out": None if p.w_out is None else aligned(p.w_out[:, M:].t()),
            "w_query": None if p.w_query is None else aligned(p.w_query.t()),
        }  # fmt: skip
        flags = {
            "A": attention.A, "ABOVE": not top, "DROPPED": dropped is not None, "GIVEN": top and d.dh is not None,
            "OUTPUT": top and p.feeds_output, "QUERY": 0 if not asks else 1 if p.w_query is None else 2,
            "BEFORE": p.before,
        }  # fmt: skip
        others = (H,) * flags["OUTPUT"] + (attention.A,) * (flags["QUERY"] == 2)
        add_cells(loop, "attention_lstm_backward", p, l, G, 1, given, flags, *others)
    if p.before:
        add_fed_gradient(loop, p, d, None, None)
        attend()
    loop.run()


def add_cells(
    loop: Loop, name: str, p: Problem, l: int, K: int, slots: int, given: Given, flags: dict[str, Any], *others: int
) -> None:
    """A launch of layer `l`'s cells: a product of K features with `slots` columns per unit, and others of so many features."""
    rows, dtype, H = loop.rows, loop.dtype, p.h0.shape[2]
    precision = launch.precision(dtype, rows.device, "matmul")
    tile = plan.tile(rows.B, H, K, slots, dtype, precision, launch.gpu(rows.device), may_keep=False)
    # no product is a single block, which would not be streamed but pass through registers
    most = [max(16, plan.power_of_two(features) // 2) for features in others if features]
    tile = tile._replace(BK=min([tile.BK, *most]))
    if any(features * dtype.itemsize % 16 for features in others):
        tile = tile._replace(stages=1)
    constants = flags | p.cell_flags() | {
        "H": H, "K": K, "VARIABLE": rows.steps is not None, "SAVED": saved_dtype(dtype), "PRECISION": precision,
        "BM": tile.BM, "BH": tile.BH, "BK": tile.BK,
    }  # fmt: skip
    spec = Spec(name, dtype, tuple(sorted(constants.items())), tile.warps, tile.stages)
    peephole = None if p.w_peephole is None else p.w_peephole[l].contiguous()
    loop.call(spec, plan.grid(rows.B, H, tile), given | {"peephole": peephole})


def add_fed_gradient(loop: Loop, p: Problem, d: Gradients, dy: Tensor | None, dfed_n: Tensor | None) -> None:
    """A launch that finds a row of `dfed` by the gates' gradients of its own step; or, where there is a `dy`, by those of the
    step after, to which that is added, and `dfed_n` at the end."""
    rows, dtype, (G, F) = loop.rows, loop.dtype, p.joins.shape
    precision = launch.precision(dtype, rows.device, "matmul")
    tile = plan.tile(rows.B, F, G, 1, dtype, precision, launch.gpu(rows.device), may_keep=False)
    constants = {
        "R": F, "K": G, "BACKWARD": dy is not None, "REVERSE": dy is None, "VARIABLE": rows.steps is not None,
        "RESET": False, "ALIGN": row_bytes(G, p.x), "PRECISION": precision, "BM": tile.BM, "BH": tile.BH, "BK": tile.BK,
    }  # fmt: skip
    spec = Spec("project", dtype, tuple(sorted(constants.items())), tile.warps, tile.stages)
    given = {"out": d.dfed, "a": d.dgates[0], "w": aligned(p.joins.t()), "dy": dy, "dh_n": dfed_n}
    loop.call(spec, plan.grid(rows.B, F, tile), given)


def some(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else aligned(tensor)


def row_bytes(features: int, like: Tensor) -> int:
    """Bytes, up to those of the widest load, that divide those of a row."""
    return math.gcd(16, features * like.dtype.itemsize)
