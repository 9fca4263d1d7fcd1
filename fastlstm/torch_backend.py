"""A whole stack by PyTorch's own ops, as `fastlstm.stack` would run it: what "auto" falls back to without kernels of ours."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastlstm.call import Call
from fastlstm.kernels.variant import Variant
from fastlstm.sequences import Batch
from fastlstm.stack import Results


def run(
    variant: Variant, batch: Batch, states: Sequence[Tensor], weights: Sequence[Mapping[str, Tensor]], call: Call
) -> Results:
    """The outputs of the last layer, and the final states, which are stacked as the initial ones are."""
    x, batch_sizes = batch.x, batch.batch_sizes
    op = getattr(torch._VF, variant.op)
    hx = tuple(states) if len(states) > 1 else states[0]
    flat = [w for layer in weights for w in layer.values()]
    # the flag also keeps what a backward needs, which may follow in evaluation mode too
    train = call.drop > 0 or torch.is_grad_enabled()
    options = "b_ih" in weights[0], len(weights) // call.directions, call.drop, train, call.bidirectional
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
