"""Additive attention of all steps at once, differentiable: for a recurrence that does not depend on it."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastlstm.kernels.attention_lstm.reference import attend_reference
from fastlstm.ops.derivatives import beyond_kernels
from fastlstm.ops.dispatch import by_reference

ELEMENTS = 1 << 20  # of a chunk of steps, (t, S, B, A)


def attend(
    query: Tensor,
    memory: Tensor,
    keys: Tensor,
    memory_lengths: Tensor | None,
    w_score: Tensor,
    *,
    return_alignments: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The context of every step, and the weights: `(context, alignments)`.

    Sizes: T target steps, B batch, S memory slots, M memory, A attention. `query` (T, B, A), `memory` (S, B, M),
    `keys` (S, B, A), `memory_lengths` (B,), int64 on the CPU, from 0 to S, or None: what lies beyond is not read.
    `w_score` (A). `context` (T, B, M), zero where the memory is empty; `alignments` (T, B, S), empty unless
    `return_alignments`. Arguments are checked in `fastlstm.functional`.
    """
    others = (memory, keys, memory_lengths, w_score, return_alignments)
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return by_reference(attend_reference, query, *others)
    # (T, S, B, A) as a whole is never there: nor is it kept for the backward, which computes a chunk's again
    steps = max(1, ELEMENTS // max(1, keys.numel()))
    found = [_chunk(part, *others) for part in query.split(steps)]
    context, alignments = zip(*found, strict=True)
    return torch.cat(context), torch.cat(alignments)


def _chunk(query: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    if beyond_kernels() or torch._C._are_functorch_transforms_active() or not torch.is_grad_enabled():
        return by_reference(attend_reference, query, *others)
    return checkpoint(by_reference, attend_reference, query, *others, use_reentrant=False, preserve_rng_state=False)
