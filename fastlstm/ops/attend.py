"""Attention of all steps at once, differentiable: for a recurrence that does not depend on it."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastlstm import backends
from fastlstm.gpu import attend as gpu_attend
from fastlstm.kernels.attention_lstm.reference import attend_reference
from fastlstm.ops.derivatives import beyond_kernels
from fastlstm.ops.dispatch import apply, by_reference, differentiable
from fastlstm.ops.pair import OpPair

ELEMENTS = 1 << 20  # of a chunk of steps, (t, S, B, A)


def attend(
    query: Tensor,
    memory: Tensor,
    keys: Tensor | None,
    memory_lengths: Tensor | None,
    w_score: Tensor | None,
    *,
    return_alignments: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The context of every step, and the weights: `(context, alignments)`.

    Sizes: T target steps, B batch, S memory slots, M memory, A attention. `query` (T, B, A), `memory` (S, B, M),
    `keys` (S, B, A), `memory_lengths` (B,), int64 on the CPU, from 0 to S, or None: what lies beyond is not read.
    `w_score` (A), of additive scores; without it they are products with the queries, of keys, or where there are none of the
    memory, and that is for the CPU. `context` (T, B, M), zero where the memory is empty; `alignments` (T, B, S), empty unless
    `return_alignments`. Arguments are checked in `fastlstm.functional`.
    """
    tensors = (query, memory, keys, memory_lengths, w_score)
    if backend == "reference" or beyond_kernels():
        return _by_reference(query, *tensors[1:], return_alignments)
    if query.dtype in (torch.float16, torch.bfloat16) and not query.is_cuda:  # the CPU's loop has float32 and float64
        return by_reference(_kernels, *tensors, return_alignments)
    return _kernels(*tensors, return_alignments)


def _kernels(*args: Any) -> tuple[Tensor, Tensor]:
    if differentiable(args[:-1]):
        return apply(AttendFunction, *args)[:2]
    return OPS.fwd(*args, False)[:2]


class AttendFunction(torch.autograd.Function):
    """`attend_fwd` and `attend_bwd` as one differentiable function."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return OPS.fwd(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        OPS.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return OPS.backward(ctx, AttendBackward.apply, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return OPS.vmap(AttendFunction.apply, info, in_dims, args)


class AttendBackward(torch.autograd.Function):
    """`attend_bwd` as a differentiable function."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return OPS.bwd(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        OPS.setup_second(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return OPS.second(ctx, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return OPS.vmap_backward(AttendBackward.apply, AttendFunction.apply, info, in_dims, args)


def _by_reference(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    memory, keys = others[:2]
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return by_reference(attend_reference, query, *others)
    # (T, S, B, A) as a whole is never there: nor is it kept for the backward, which computes a chunk's again
    steps = max(1, ELEMENTS // max(1, (memory if keys is None else keys).numel()))
    found = [_chunk(part, *others) for part in query.split(steps)]
    context, alignments = zip(*found, strict=True)
    return torch.cat(context), torch.cat(alignments)


def _chunk(query: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    if beyond_kernels() or torch._C._are_functorch_transforms_active() or not torch.is_grad_enabled():
        return by_reference(attend_reference, query, *others)
    return checkpoint(by_reference, attend_reference, query, *others, use_reentrant=False, preserve_rng_state=False)


def _reference(*args: Any) -> tuple[Tensor, ...]:
    return attend_reference(*args, return_alignments=True)


def _fake_fwd(query, memory, keys, memory_lengths, w_score, return_alignments, save):
    (T, B, _), (S, _, M) = query.shape, memory.shape
    alignments = query.new_empty((T, B, S) if return_alignments else (0,))
    like = query.new_empty(T * B if save else 0, S)
    saved = gpu_attend.saved_like(query, memory, save) if query.is_cuda else like
    return query.new_empty(T, B, M), alignments, saved


ROWS = {"query": 1, "memory": 1, "keys": 1, "memory_lengths": 0, "context": 1, "alignments": 1}

if backends.extension_status() == "built":
    OPS = OpPair("attend", _reference, ROWS)
    OPS.register((gpu_attend.attend_fwd, gpu_attend.attend_bwd), _fake_fwd)
