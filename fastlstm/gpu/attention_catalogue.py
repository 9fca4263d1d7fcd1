"""The kernels of an LSTM that attends, for the catalogue: those that a training step would launch."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm.gpu import launch
from fastlstm.gpu.attend import attend_bwd, attend_fwd
from fastlstm.gpu.attention_loop import ATTENTIONAL, CONTEXT, NOTHING
from fastlstm.gpu.attention_lstm import attention_lstm_bwd, attention_lstm_fwd
from fastlstm.gpu.plan import Gpu
from fastlstm.kernels.gpu_compile import Spec


class Decoder(NamedTuple):
    """One, by its sizes (M memory, A attention, which is None where scores are products) and by what it does."""

    B: int
    H: int
    M: int
    A: int | None
    feed: int = ATTENTIONAL
    before: bool = False
    everything: bool = (
        False  # two layers, peepholes, coupled gates, lengths, what is dropped, gradients of the alignments
    )


# few sequences; many, whose context joins the input of its own step; and sizes that fit nothing, with everything
DECODERS = (
    Decoder(16, 512, 512, 512),
    Decoder(256, 1024, 1024, None, NOTHING, before=True),
    Decoder(3, 37, 29, 19, CONTEXT, everything=True),
)


def decoder_launched(decoder: Decoder, dtype: torch.dtype, precision: str, gpu: Gpu) -> list[Spec]:
    """Of the ops of a loop, and where the attention is additive of those of all steps at once."""
    B, H, M, A, feed, before, everything = decoder
    T, S, I, L, G = 2, 50, H, 1 + everything, (3 if everything else 4) * H
    joins = M if before else (0, H, M)[feed]
    lengths = (torch.full((T,), B), torch.full((B,), S)) if everything else (None, None)

    def some(wanted: bool, *shape: int) -> Tensor | None:
        return torch.empty(shape, dtype=dtype, device="meta") if wanted else None

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    state, memory, keys, w_score = (
        empty(L, B, H),
        empty(S, B, M),
        some(A is not None, S, B, A or 0),
        some(A is not None, A or 0),
    )
    batch = empty(T, B, I), lengths[0], state, state, some(feed > 0, B, joins), memory, keys, lengths[1]
    dropped = some(L > 1, L - 1, T, B, H), some(everything, T, B, H), some(everything and feed == CONTEXT, T, B, M)
    cells = empty(G, I + joins), some(L > 1, L - 1, G, H), empty(L, G, H)
    biases, peephole, w_query = (empty(L, G), empty(L, G)), some(everything, L, 2, H), some(A is not None, A or 0, H)
    w_out, flags = empty(H, M + H), (everything, before, feed, 0, True, 1.0)
    with launch.recorded(gpu, precision) as calls:
        *results, saved = attention_lstm_fwd(
            *batch, *dropped, *cells, *biases, peephole, w_query, some(A is not None, A or 0), w_score, w_out, empty(H),
            *flags, everything, True,
        )  # fmt: skip
        given = results if everything else [*results[:3], results[3] if feed else None, None]
        attention_lstm_bwd(
            *given, *batch, *dropped, *cells, peephole, w_query, w_score, w_out, saved, *flags, True, True
        )
        if keys is not None and w_score is not None and not everything:
            query, of_keys = empty(T, B, keys.shape[2]), (memory, keys, lengths[1], w_score)
            context, weights, saved = attend_fwd(query, *of_keys, True, True)
            attend_bwd(context, weights, query, *of_keys, saved, True, True)
    return [call.spec for call in calls]
