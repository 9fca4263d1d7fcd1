"""A whole stack by PyTorch's own ops, as `fastlstm.stack` would run it: what "auto" falls back to without kernels of ours."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastlstm.sequences import Batch
from fastlstm.stack import Results

Weights = Sequence[Sequence[Tensor]]


def lstm(batch: Batch, states: Sequence[Tensor], weights: Weights, directions: int, dropout: float) -> Results:
    return _run(torch._VF.lstm, batch, states, tuple(states), weights, len(weights[0]) > 3, directions, dropout)


def gru(batch: Batch, h0: Tensor, weights: Weights, directions: int, dropout: float) -> Results:
    return _run(torch._VF.gru, batch, (h0,), h0, weights, len(weights[0]) > 2, directions, dropout)


def _run(
    op: Callable[..., Sequence[Tensor]],
    batch: Batch,
    states: Sequence[Tensor],
    hx: Tensor | tuple[Tensor, ...],  # the states as the op wants them
    weights: Weights,
    bias: bool,
    directions: int,
    dropout: float,
) -> Results:
    x, batch_sizes = batch.x, batch.batch_sizes
    flat = [w for layer in weights for w in layer]
    # the flag also keeps what a backward needs, which may follow in evaluation mode too
    train = dropout > 0 or torch.is_grad_enabled()
    options = bias, len(weights) // directions, dropout, train, directions == 2
    if batch_sizes is None:
        y, *finals = op(x, hx, flat, *options, False)
        return (y,), tuple(finals)
    if x.dim() == 2:
        y, *finals = op(x, batch_sizes, hx, flat, *options)
        return (y,), tuple(finals)
    # PyTorch can't pack an empty sequence: here it runs one step on zeros, and nothing of that is kept
    lengths = (batch_sizes[:, None] > torch.arange(x.shape[1], device="cpu")).sum(0)
    empty = (lengths == 0).to(x.device)[:, None]
    packed = pack_padded_sequence(x.masked_fill(empty, 0), lengths.clamp(min=1))
    y, *finals = op(packed.data, packed.batch_sizes, hx, flat, *options)
    y, _ = pad_packed_sequence(PackedSequence(y, packed.batch_sizes), total_length=x.shape[0])
    kept = tuple(torch.where(empty, s0, s) for s0, s in zip(states, finals, strict=True))
    return (y.masked_fill(empty, 0),), kept
