"""Attention of all steps at once by products of queries and keys: PyTorch's own ops."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastlstm.kernels.attention_lstm.reference import attend_reference
from fastlstm.ops.derivatives import beyond_kernels
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
    """The context of every step, and the weights: `(context, alignments)`.

    Arguments and results are those of `fastlstm.ops.attend.attend`, but for `memory`, and `keys`, which are zero beyond
    `memory_lengths`; without `keys` they are the memory. The scores are products with `scale` * `query`.
    """
    plain = return_alignments or backend == "reference" or beyond_kernels()
    if plain or torch._C._are_functorch_transforms_active():
        return by_reference(_explicit, query, memory, keys, memory_lengths, scale, return_alignments)
    mask = None
    if memory_lengths is not None:
        # an empty memory is attended at its first slot, which is zero, so that nothing is NaN
        mask = torch.arange(memory.shape[0], device="cpu") < memory_lengths.clamp(min=1)[:, None]
        mask = mask.to(memory.device)[:, None, None]
    query, keys, values = (t.transpose(0, 1).unsqueeze(1) for t in (query, memory if keys is None else keys, memory))
    context = scaled_dot_product_attention(query, keys, values, mask, scale=scale)
    return context.squeeze(1).transpose(0, 1), query.new_empty(0)


def _explicit(
    query: Tensor, memory: Tensor, keys: Tensor | None, memory_lengths: Tensor | None, scale: float, weights: bool
) -> tuple[Tensor, Tensor]:
    return attend_reference(query * scale, memory, keys, memory_lengths, None, weights)
