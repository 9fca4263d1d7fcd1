"""Attention on a GPU: its launches, in a loop or of all steps at once, and the gradients of memory and keys over all steps.

The ops `fastlstm::attend_fwd` and `attend_bwd` are additive attention whose queries are all there.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fastlstm.gpu import launch, plan
from fastlstm.gpu.arrays import Block, aligned, nothing, on_gpu
from fastlstm.gpu.loop import Given, Loop
from fastlstm.gpu.rows import Rows, copied
from fastlstm.kernels.gpu_compile import Spec

KEY_TILE = 16, 64  # slots and columns of a program that has keys over all steps


class Attention:
    """Over `memory` (S, B, M) by `keys` (S, B, A), which are the memory where they are None; additive with a `w_score`.

    `H` is the width of the rows that ask.
    """

    def __init__(
        self, rows: Rows, memory: Tensor, keys: Tensor | None, lengths: Tensor | None, w_score: Tensor | None,
        H: int, scale: float,
    ) -> None:  # fmt: skip
        self.rows, self.dtype, (self.S, self.B, self.M) = rows, memory.dtype, memory.shape
        self.A = self.M if keys is None else keys.shape[2]
        self.scale, self.w_score, self.has_keys = scale, w_score, keys is not None
        # an array of no slots has no address
        arrays = [None if a is None else aligned(a if self.S else a.new_zeros(1, *a.shape[1:])) for a in (memory, keys)]
        self.memory, self.keys = arrays
        self.lengths = None if lengths is None else copied(lengths, (), memory.device, [lengths].copy)[0]
        self.H = H
        self.flags: dict[str, Any] = {
            "H": H, "A": self.A, "M": self.M, "SCALE": 1.0 if self.additive else scale, "ADDITIVE": self.additive,
            "SHARED": keys is None, "LENGTHS": lengths is not None, "VARIABLE": rows.steps is not None,
        }  # fmt: skip

    @property
    def additive(self) -> bool:
        return self.w_score is not None

    def add(self, loop: Loop, name: str, given: Given, flags: dict[str, Any], steps: int = 1) -> None:
        """A launch for the rows of so many steps of a loop. `given` are the arrays that a kernel has beside these."""
        wide = self.H if flags["OUTPUT"] else 1
        BS, warps = plan.slot_tile(self.A, self.M, wide)
        if name == "attend_backward":  # it has twice as many sums in registers
            BS = max(BS // 2, 1)
        constants = self.flags | flags | {"BS": BS, "BA": plan.power_of_two(self.A), "BM": plan.power_of_two(self.M)}
        if name == "attend_forward":
            constants["BH"] = plan.power_of_two(wide)
        spec = Spec(name, self.dtype, tuple(sorted(constants.items())), warps, stages=1)
        shared = {"memory": self.memory, "keys": self.keys, "lengths": self.lengths, "S": self.S}
        shared["w_score"] = None if self.w_score is None else aligned(self.w_score)
        loop.call(spec, (steps * self.B, 1), shared | given)

    def memory_gradients(
        self, weights: Tensor, dcontext: Tensor, dscores: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`(dmemory, dkeys, dw_score)`, empty where there are none; the arguments are rows of all steps, `query` (N, A)."""
        dmemory = self.over_steps(weights, dcontext)
        dscores = dscores.addcmul(weights, dscores.sum(1, keepdim=True), value=-1)
        if self.w_score is not None:
            return dmemory, *self.additive_gradients(dscores, query, self.w_score)
        dkeys = self.over_steps(dscores * self.scale, query)
        if self.has_keys:
            return dmemory, dkeys, nothing(query)
        return dmemory + dkeys, nothing(query), nothing(query)

    def over_steps(self, of_slots: Tensor, rows: Tensor) -> Tensor:
        """(S, B, C): the sum over steps of (N, S) times (N, C)."""
        T, B = self.rows.T, self.B
        of_slots = of_slots.to(rows.dtype).view(T, B, self.S).permute(1, 2, 0)
        return (of_slots @ rows.view(T, B, rows.shape[-1]).transpose(0, 1)).transpose(0, 1).contiguous()

    def additive_gradients(self, dscores: Tensor, query: Tensor, w_score: Tensor) -> tuple[Tensor, Tensor]:
        """`(dkeys, dw_score)`."""
        BS, BA = KEY_TILE
        grid = -(-self.S // BS) * self.B, -(-self.A // BA)
        dkeys, shares = query.new_empty(self.S, self.B, self.A), query.new_empty(grid[0], self.A, dtype=torch.float32)
        constants = {"A": self.A, "LENGTHS": self.lengths is not None, "BS": BS, "BA": BA}
        given = {
            "dkeys": dkeys, "shares": shares, "keys": self.keys, "lengths": self.lengths, "query": aligned(query),
            "w_score": aligned(w_score), "dscores": dscores, "T": self.rows.T, "B": self.B, "S": self.S,
        }  # fmt: skip
        if grid[0]:
            spec = Spec("attend_keys", self.dtype, tuple(sorted(constants.items())), warps=4, stages=1)
            loop = Loop(self.rows, self.dtype, alone=False)
            loop.call(spec, grid, given)
            launch.run(loop.calls, 1, query.device, resident=False)
        return dkeys, shares.sum(0).to(query.dtype)


@on_gpu
def attend_fwd(
    query: Tensor, memory: Tensor, keys: Tensor, memory_lengths: Tensor | None, w_score: Tensor,
    return_alignments: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`(context, alignments, saved)`; arguments are those of `fastlstm.ops.attend.attend`."""
    rows = Rows(query, None, None, query.shape[1], False)
    attention = Attention(rows, memory, keys, memory_lengths, w_score, query.shape[2], 1.0)
    scored = save or return_alignments
    block = saved_block(rows.N, attention.S * scored, attention.M)
    saved = block.new(query, zero=False)
    scores, sums, context = block.split(saved)
    given: Given = {"hidden": aligned(query), "scores": scores, "sums": sums, "context": context}
    flags = {"SCORES": scored and attention.S > 0, "SAVE": False}
    run_all(attention, "attend_forward", UNUSED_FORWARD | given, NO_FORWARD | flags)
    alignments = nothing(query)
    if return_alignments:
        alignments = weights_of(scores, sums).to(query.dtype).view(*query.shape[:2], attention.S)
    context = context.to(query.dtype, copy=True).view(*query.shape[:2], attention.M)
    return context, alignments, saved if save else nothing(saved)


@on_gpu
def attend_bwd(
    dcontext: Tensor | None, dalignments: Tensor | None, query: Tensor, memory: Tensor, keys: Tensor,
    memory_lengths: Tensor | None, w_score: Tensor, saved: Tensor, need_dx: bool, need_dw: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`(dquery, dmemory, dkeys, dw_score)`, all of them whatever is needed."""
    rows = Rows(query, None, None, query.shape[1], False)
    attention = Attention(rows, memory, keys, memory_lengths, w_score, query.shape[2], 1.0)
    scores, sums, context = saved_block(rows.N, attention.S, attention.M).split(saved)
    dcontexts = query.new_empty(rows.N, attention.M)
    if dcontext is not None:
        dcontexts.copy_(dcontext.reshape(rows.N, attention.M))
    dscores, dquery = scores.new_empty(scores.shape), query.new_empty(rows.N, attention.A)
    given: Given = {
        "hidden": aligned(query), "scores": scores, "sums": sums, "context": context, "dcontext": dcontexts,
        "dscores": dscores, "dquery": dquery, "dweights": None if dalignments is None else aligned(dalignments),
    }  # fmt: skip
    flags = {"GIVEN": dcontext is not None, "WEIGHTS": dalignments is not None}
    run_all(attention, "attend_backward", UNUSED_BACKWARD | given, NO_BACKWARD | flags)
    query = query.reshape(rows.N, attention.A)
    gradients = attention.memory_gradients(weights_of(scores, sums), dcontexts, dscores, query)
    return dquery.view(*rows.leading, attention.A), *gradients


def run_all(attention: Attention, name: str, given: Given, flags: dict[str, Any]) -> None:
    """One launch for the rows of all steps."""
    rows, loop = attention.rows, Loop(attention.rows, attention.dtype, alone=False)
    attention.add(loop, name, given, flags, steps=rows.T)
    if rows.N:
        launch.run(loop.calls, 1, rows.device, resident=False)


def weights_of(scores: Tensor, sums: Tensor) -> Tensor:
    """(N, S) float32: the alignments, from what the forward has of each row."""
    return (scores - sums[:, :1]).exp_().div_(sums[:, 1:])


# What kernels have for loops that feed something, where there is no loop, or nothing is fed
UNUSED_FORWARD: Given = dict.fromkeys((
    "h0", "w_query", "b_query", "query", "fed", "dropped_fed", "top", "w_out", "b_out", "dropped_output", "outputs", "y",
))  # fmt: skip
UNUSED_BACKWARD: Given = dict.fromkeys((
    "h0", "dweights", "dfed", "dropped_fed", "dy", "outputs", "dropped_output", "w_out", "dz",
))  # fmt: skip
NO_FORWARD = dict.fromkeys(("PROJECTED", "OLD", "BIAS", "BIAS_OUT", "OUTPUT", "TANH", "FED", "DROPPED"), False)
NO_BACKWARD = dict.fromkeys(("OLD", "OUTPUT", "TANH", "FED", "DROPPED"), False)


def saved_like(query: Tensor, memory: Tensor, save: bool) -> Tensor:
    """An empty tensor like the one that a forward saves for its backward; sizes may be symbolic."""
    block = saved_block(math.prod(query.shape[:2]), memory.shape[0], memory.shape[2])
    return query.new_empty(block.size if save else 0, dtype=torch.uint8)


def saved_block(N: int, S: int, M: int) -> Block:
    """What the forward saves of each row: scores, their maximum and the sum of exponentials, and the context."""
    return Block(N, [S, 2, M], [torch.float32] * 3)
