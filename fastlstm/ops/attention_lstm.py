"""The Attention LSTM over all layers and steps, differentiable: one call for the whole sequence."""

from torch import Tensor

from fastlstm.kernels.attention_lstm.reference import attention_lstm_reference
from fastlstm.ops.dispatch import by_reference


def attention_lstm(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    fed0: Tensor | None,
    memory: Tensor,
    keys: Tensor | None,
    memory_lengths: Tensor | None,
    dropped_layers: Tensor | None,
    dropped_output: Tensor | None,
    dropped_fed: Tensor | None,
    w_ih: Tensor,
    w_ih_above: Tensor | None,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_peephole: Tensor | None,
    w_query: Tensor | None,
    b_query: Tensor | None,
    w_score: Tensor | None,
    w_out: Tensor | None,
    b_out: Tensor | None,
    *,
    coupled: bool,
    before: bool,
    feed: int,
    query_layer: int,
    tanh: bool,
    scale: float,
    return_alignments: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The outputs of every step, the final states, what was fed last, and the weights: `(y, h_n, c_n, fed_n, alignments)`.

    Sizes: T target steps, B batch, I input, H hidden, L layers, G gates (4; 3 where `coupled`), S memory slots, M memory,
    A attention, F what is fed: H where `feed` is 1 (attentional), M where it is 2 (context), 0 where it is 0.

    `x` (T, B, I), of any strides. `batch_sizes` (T,), int64 on the CPU, or None: step t reads and writes its first
    `batch_sizes[t]` sequences; it does not increase, and may hold zeros. `y` and `alignments` are zero elsewhere.
    `h0`, `c0` (L, B, H), `fed0` (B, F) or None. `memory` (S, B, M), `keys` (S, B, A), or None where they are the memory;
    `memory_lengths` (B,), int64 on the CPU, from 0 to S, or None: what lies beyond is not read.
    Scaled masks of dropout, or None: `dropped_layers` (L - 1, T, B, H) of a layer's output to the one above,
    `dropped_output` (T, B, H), `dropped_fed` (T, B, M) of a context that is fed.
    `w_ih` (G*H, I + F), or (G*H, I + M) where `before`; `w_ih_above` (L - 1, G*H, H), `w_hh` (L, G*H, H), `b_ih` and `b_hh`
    (L, G*H), `w_peephole` (L, G - 1, H). Additive scores have `w_query` (A, H), `b_query` (A) or None, and `w_score` (A);
    without it scores are products of keys and the query, `scale` * h, A = H. `w_out` (H, M + H) and `b_out` (H); without
    them `y` is the last layer's h; `tanh` is taken of the others.
    `before`: the query is the old h of `query_layer`, from 0 to L - 1, and the context joins the input of the same step.
    `y` (T, B, H), `h_n`, `c_n` (L, B, H), `fed_n` (B, F), empty where nothing is fed, `alignments` (T, B, S), empty unless
    `return_alignments`. Arguments are checked in `fastlstm.functional`.
    """
    tensors = (
        x, batch_sizes, h0, c0, fed0, memory, keys, memory_lengths, dropped_layers, dropped_output, dropped_fed, w_ih,
        w_ih_above, w_hh, b_ih, b_hh, w_peephole, w_query, b_query, w_score, w_out, b_out,
    )  # fmt: skip
    flags = (coupled, before, feed, query_layer, tanh, scale, return_alignments)
    return by_reference(attention_lstm_reference, *tensors, *flags)
