"""The Attention LSTM over whole sequences, and a step of it."""

from torch import Tensor

from fastlstm.call import AttentionCall, Call
from fastlstm.functional.attention_driver import Weights, decode, decode_step, project
from fastlstm.functional.attention_values import AttentionState, AttentionWeights, Precomputed
from fastlstm.kernels.attention_lstm import Attention
from fastlstm.sequences import Lengths

AttentionLSTMState = AttentionState | tuple[Tensor, Tensor]
AttentionLSTMResult = tuple[Tensor, AttentionState] | tuple[Tensor, AttentionState, Tensor]


def attention_lstm(
    input: Tensor,
    memory: Tensor,
    weights: Weights,
    attention_weights: AttentionWeights,
    hx: AttentionLSTMState | None = None,
    *,
    memory_lengths: Lengths = None,
    lengths: Lengths = None,
    need_weights: bool = False,
    attention: str = "additive",
    feed: str | None = "attentional",
    attend: str = "after",
    query_layer: int = -1,
    output: str = "tanh",
    coupled: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    output_dropout: float = 0.0,
    training: bool = False,
    backend: str = "auto",
) -> AttentionLSTMResult:
    """An LSTM decoder that attends to a memory (Bahdanau et al. 2014; Luong et al. 2015): `(output, state[, alignments])`.

    With `h', c'` of the step before, in the layers of `fastlstm.functional.lstm`, q the h of `query_layer`:

        h, c = LSTM([x, fed'], h', c')
        e_s = v · tanh(W_q q + W_k m_s)      "additive"; "normalized_additive": g v / |v| for v, and a bias in the tanh
        e_s = q · m_s                        "dot"; "scaled_dot": / sqrt(H)
        e_s = q · W_k m_s                    "general"
        α = softmax(e)  over the slots of the memory within its length      context = Σ α_s m_s
        output = tanh(W_out [context, h] + b_out)         h of the last layer

    and `fed` is the output ("attentional"), the context, or nothing, for the next step; the first is zero. `attend="before"`:
    q is h', and the context joins the input of the same step, `[x, context]`.

    Sizes: T target steps, B batch, I input, H hidden, L layers, S memory slots, M memory, A attention, F fed (H, M or 0).

    input: (T, B, I), or (B, T, I) with `batch_first`, or one unbatched sequence (T, I), whose memory is (S, M).
    memory: (S, B, M), or (B, S, M) with `batch_first`. It is not written to.
    weights: an entry per layer: `w_ih` (4H, I + F), or (4H, I + M) for "before" (4H, H above the first layer), `w_hh` (4H, H),
        then `b_ih` and `b_hh` (4H) or neither, then `w_peephole` (3, H) or not. Gate order i, f, g, o. With `coupled`, three
        gates i, g, o, f = 1 - i, and two peepholes.
    attention_weights: `AttentionWeights`, which describes them.
    hx: `AttentionState`, or a pair (h0, c0), (L, B, H) each, with nothing fed; zeros where None.
    memory_lengths, lengths: (B,) integers, from 0 to S and from 0 to T. What lies beyond has no influence, NaN neither. An
        empty memory gives a zero context. Beyond a target's length `output` and `alignments` are zero; the state is that at
        its own end.
    need_weights: the result ends with `alignments` (T, B, S), or (B, T, S) with `batch_first`: α of every step, exactly 0
        beyond a memory's length, and differentiable.
    query_layer: an index of the layers. output: "tanh", "linear" (without the tanh), or "hidden" (h alone).
    dropout, output_dropout: the probabilities that an element is zeroed, in `training` only: of an output between two layers,
        and of `output` and what is fed. What is fed as "attentional" is the dropped `output` itself.
    backend: "auto", or the name of the one that must run; `fastlstm info` tells which there are.

    With nothing fed and "after" all steps are attended at once; on a GPU, and in programs that are exported, products by
    PyTorch's `scaled_dot_product_attention` unless `need_weights`.
    Raises TypeError, ValueError or RuntimeError for bad arguments, and for options that mean nothing together.

    >>> import torch
    >>> w_ih, w_hh = torch.randn(8, 3 + 2), torch.randn(8, 2)
    >>> more = AttentionWeights(w_key=torch.randn(2, 5), w_out=torch.randn(2, 5 + 2))
    >>> x, memory = torch.randn(7, 4, 3), torch.randn(6, 4, 5)
    >>> output, state = attention_lstm(x, memory, [(w_ih, w_hh)], more, attention="general", memory_lengths=[6, 0, 2, 3])
    >>> output.shape, state.h.shape, state.fed.shape
    (torch.Size([7, 4, 2]), torch.Size([1, 4, 2]), torch.Size([4, 2]))
    """
    call = Call(batch_first=batch_first, dropout=dropout, training=training, lengths=lengths, backend=backend)
    more = AttentionCall(
        Attention(attention, feed, attend, output), query_layer, coupled, output_dropout, need_weights
    )  # fmt: skip
    return decode(input, memory, weights, attention_weights, hx, memory_lengths, call, more)


def attention_lstm_memory(
    memory: Tensor,
    weights: Weights,
    attention_weights: AttentionWeights,
    memory_lengths: Lengths = None,
    *,
    attention: str = "additive",
    feed: str | None = "attentional",
    attend: str = "after",
    output: str = "tanh",
    coupled: bool = False,
    batch_first: bool = False,
) -> Precomputed:
    """A memory for `attention_lstm_cell`, its keys projected once. Arguments are those of `attention_lstm`.

    >>> import torch
    >>> weights, more = [(torch.randn(8, 3 + 2), torch.randn(8, 2))], AttentionWeights(w_out=torch.randn(2, 2 + 2))
    >>> precomputed = attention_lstm_memory(torch.randn(6, 4, 2), weights, more, attention="dot")
    >>> state = None
    >>> for x in torch.randn(7, 4, 3):
    ...     output, state = attention_lstm_cell(x, precomputed, weights, more, state, attention="dot")
    >>> output.shape
    torch.Size([4, 2])
    """
    more = AttentionCall(Attention(attention, feed, attend, output), coupled=coupled)
    return project(memory, weights, attention_weights, memory_lengths, Call(batch_first=batch_first), more)


def attention_lstm_cell(
    input: Tensor,
    precomputed: Precomputed,
    weights: Weights,
    attention_weights: AttentionWeights,
    hx: AttentionLSTMState | None = None,
    *,
    need_weights: bool = False,
    attention: str = "additive",
    feed: str | None = "attentional",
    attend: str = "after",
    query_layer: int = -1,
    output: str = "tanh",
    coupled: bool = False,
    dropout: float = 0.0,
    output_dropout: float = 0.0,
    training: bool = False,
    backend: str = "auto",
) -> AttentionLSTMResult:
    """One step of `attention_lstm`, of all layers: `(output (B, H), state)`, and `alignments` (B, S) if `need_weights`.

    `input` (B, I), or (I) with states alike and the memory of one sequence; `precomputed` of `attention_lstm_memory`.
    """
    call = Call(dropout=dropout, training=training, backend=backend)
    more = AttentionCall(
        Attention(attention, feed, attend, output), query_layer, coupled, output_dropout, need_weights
    )  # fmt: skip
    return decode_step(input, precomputed, weights, attention_weights, hx, call, more)
