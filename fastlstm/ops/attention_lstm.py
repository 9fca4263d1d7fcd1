"""The Attention LSTM over all layers and steps, differentiable: one call for the whole sequence."""

import inspect
from typing import Any

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.gpu import attention_lstm as gpu_attention_lstm
from fastlstm.kernels.attention_lstm.reference import attention_lstm_reference
from fastlstm.ops.derivatives import beyond_kernels
from fastlstm.ops.dispatch import apply, by_reference, differentiable
from fastlstm.ops.pair import OpPair

FLAGS = 7  # of the forward's arguments, those that are no tensors
HALVES = (torch.float16, torch.bfloat16)


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
    others = (
        batch_sizes, h0, c0, fed0, memory, keys, memory_lengths, dropped_layers, dropped_output, dropped_fed, w_ih,
        w_ih_above, w_hh, b_ih, b_hh, w_peephole, w_query, b_query, w_score, w_out, b_out,
        coupled, before, feed, query_layer, tanh, scale, return_alignments,
    )  # fmt: skip
    if backend == "reference" or beyond_kernels():
        return by_reference(attention_lstm_reference, x, *others)
    if x.dtype in HALVES and not x.is_cuda and not _multiplies_pairs(x, h0, memory, w_query):
        return by_reference(_kernels, x, *others)
    return _kernels(x, *others)


def _multiplies_pairs(x: Tensor, h0: Tensor, memory: Tensor, w_query: Tensor | None) -> bool:
    """Whether the CPU's loop takes x as it is: bfloat16 where the CPU multiplies pairs of it, and rows are whole pairs."""
    sizes = (h0.shape[2], memory.shape[2], 0 if w_query is None else w_query.shape[0])
    return x.dtype == torch.bfloat16 and all(n % 2 == 0 for n in sizes) and backends.multiplies_pairs()


def _kernels(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if differentiable(args[:-FLAGS]):
        return apply(AttentionLSTMFunction, *args)[:5]
    return OPS.fwd(*args, False)[:5]


class AttentionLSTMFunction(torch.autograd.Function):
    """`attention_lstm_fwd` and `attention_lstm_bwd` as one differentiable function."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return OPS.fwd(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        OPS.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return OPS.backward(ctx, AttentionLSTMBackward.apply, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return OPS.vmap(AttentionLSTMFunction.apply, info, in_dims, args)


class AttentionLSTMBackward(torch.autograd.Function):
    """`attention_lstm_bwd` as a differentiable function, of the biases too."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return OPS.bwd(*args[len(OPS.biases) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        OPS.setup_second(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return OPS.second(ctx, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return OPS.vmap_backward(AttentionLSTMBackward.apply, AttentionLSTMFunction.apply, info, in_dims, args)


# PyTorch asks for it at every call, and would take 10 microseconds to find out.
AttentionLSTMFunction.forward.__signature__ = inspect.signature(AttentionLSTMFunction.forward)  # type: ignore[attr-defined]


def _reference(*args: Any) -> tuple[Tensor, ...]:
    return attention_lstm_reference(*args, return_alignments=True)


def _fake_fwd(
    x, batch_sizes, h0, c0, fed0, memory, keys, memory_lengths, dropped_layers, dropped_output, dropped_fed, w_ih, w_ih_above,
    w_hh, b_ih, b_hh, w_peephole, w_query, b_query, w_score, w_out, b_out, coupled, before, feed, query_layer, tanh, scale,
    return_alignments, save,
):  # fmt: skip
    (T, B, _), (L, _, H), (S, _, M) = x.shape, h0.shape, memory.shape
    if x.is_cuda:
        saved = gpu_attention_lstm.saved_like(x, h0, memory, w_hh, w_query, w_out, save)
    else:  # what csrc/attention/decoder.h keeps of all steps, and a panel at its end
        panel = backends.panel()
        A = H if w_query is None else w_query.shape[0]
        record = (H + panel - 1) // panel * panel * (5 - coupled)
        own_queries = w_query is not None or before or scale != 1
        exact = T * B * ((A if own_queries else 0) + S + (0 if w_out is None else H) + L * record)
        half = x.dtype in HALVES
        rounded = [M, *[H] * (L - 1) * (1 if dropped_layers is None else 2)]  # the last layer's h is made again
        size = exact + sum((T * B * n + 1) // 2 if half else T * B * n for n in rounded) + panel
        saved = x.new_empty(1 if save else 0, size, dtype=torch.float32 if half else x.dtype)
    alignments = x.new_empty((T, B, S) if return_alignments else (0,))
    fed_n = x.new_empty((0,) if fed0 is None else fed0.shape)
    return x.new_empty(T, B, H), x.new_empty(h0.shape), x.new_empty(c0.shape), fed_n, alignments, saved


ROWS = {
    "x": 1, "h0": 1, "c0": 1, "fed0": 0, "memory": 1, "keys": 1, "memory_lengths": 0, "dropped_layers": 2, "dropped_output": 1,
    "dropped_fed": 1, "y": 1, "h_n": 1, "c_n": 1, "fed_n": 0, "alignments": 1,
}  # fmt: skip

if backends.extension_status() == "built":
    OPS = OpPair("attention_lstm", _reference, ROWS)
    OPS.register(
        (gpu_attention_lstm.attention_lstm_fwd, gpu_attention_lstm.attention_lstm_bwd),
        _fake_fwd,
        {"b": ("w_hh", 2), "b_query": ("w_query", 1), "b_out": ("w_out", 1)},
    )
