"""Attention of all steps at once by products of queries and keys: PyTorch's own ops."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastlstm.kernels.attention_lstm.reference import attend_reference
from fastlstm.ops import program
from fastlstm.ops.attend import attend
from fastlstm.ops.derivatives import beyond_kernels, gradients
from fastlstm.ops.dispatch import by_reference


def dot_attend(
    query: Tensor,
    memory: Tensor,
    keys: Tensor | None,
    memory_lengths: Tensor | None,
    scale: float,
    *,
    return_alignments: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The context of every step, and the weights: `(context, alignments)`, by kernels of ours where they are, on the CPU.

    Arguments and results are those of `fastlstm.ops.attend.attend`, but for `memory`, and `keys`, which are zero beyond
    `memory_lengths`; without `keys` they are the memory. The scores are products with `scale` * `query`.
    """
    if query.is_cpu and backend == "numba" and not program.is_made():
        scaled = query if scale == 1 else scale * query
        return attend(scaled, memory, keys, memory_lengths, None, return_alignments=return_alignments, backend=backend)
    plain = return_alignments or backend == "reference" or beyond_kernels()
    if plain or torch._C._are_functorch_transforms_active():
        return by_reference(_explicit, query, memory, keys, memory_lengths, scale, return_alignments)
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:  # a program has no second derivative
        context = _at_once(query, memory, keys, memory_lengths, scale)
    else:
        context = _AtOnce.apply(query, memory, keys, memory_lengths, scale)
    return context, query.new_empty(0)


def _at_once(query: Tensor, memory: Tensor, keys: Tensor | None, memory_lengths: Tensor | None, scale: float) -> Tensor:
    mask = None
    if memory_lengths is not None:
        # an empty memory is attended at its first slot, which is zero, so that nothing is NaN
        mask = torch.arange(memory.shape[0], device="cpu") < memory_lengths.clamp(min=1)[:, None]
        mask = mask.to(memory.device)[:, None, None]
    query, keys, values = (t.transpose(0, 1).unsqueeze(1) for t in (query, memory if keys is None else keys, memory))
    context = scaled_dot_product_attention(query, keys, values, mask, scale=scale)
    return context.squeeze(1).transpose(0, 1)


class _AtOnce(torch.autograd.Function):
    """PyTorch's attention, whose gradients have none themselves: for them the explicit one is differentiated."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, memory: Tensor, keys: Tensor | None, memory_lengths: Tensor | None, scale: float
    ) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(query, memory, keys, memory_lengths)
        leaves: Any = [t if t is None else t.detach().requires_grad_(t.requires_grad) for t in (query, memory, keys)]
        with torch.enable_grad():
            context = _at_once(leaves[0], leaves[1], leaves[2], memory_lengths, scale)
        ctx.graph = context, leaves
        return context.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, memory_lengths = ctx.saved_tensors  # raises where they were freed
        graph, ctx.graph = ctx.graph, None  # once: what it keeps is freed with it
        asked = [k for k in range(3) if ctx.needs_input_grad[k]]
        if graph is None or torch.is_grad_enabled():
            found = gradients(_context, [grad], [*tensors, memory_lengths, ctx.scale], asked)
        else:
            context, leaves = graph
            found = torch.autograd.grad(context, [leaves[k] for k in asked], grad)
        results = dict(zip(asked, found, strict=True))
        return *(results.get(k) for k in range(3)), None, None


def _context(
    query: Tensor, memory: Tensor, keys: Tensor | None, memory_lengths: Tensor | None, scale: float
) -> tuple[Tensor]:
    return (_explicit(query, memory, keys, memory_lengths, scale, False)[0],)


def _explicit(
    query: Tensor, memory: Tensor, keys: Tensor | None, memory_lengths: Tensor | None, scale: float, weights: bool
) -> tuple[Tensor, Tensor]:
    return attend_reference(query * scale, memory, keys, memory_lengths, None, weights)
