"""The LSTM family over one layer and one direction, differentiable: one call for the whole sequence."""

from typing import Any

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.gpu import lstm as gpu_lstm
from fastlstm.kernels.lstm.reference import lstm_reference
from fastlstm.ops import per_sample
from fastlstm.ops.derivatives import beyond_kernels
from fastlstm.ops.dispatch import apply, by_reference, differentiable, saved_like
from fastlstm.ops.pair import OpPair
from fastlstm.ops.vmap import ROWS


def lstm(
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    w_peephole: Tensor | None = None,
    *,
    coupled: bool = False,
    reverse: bool = False,
    return_cells: bool = False,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of every step, the final states and the cell states of every step: `(y, h_n, c_n, cells)`.

    Sizes: T time, B batch, I input, H hidden, G gates (4; 3 where `coupled`), R = P (the projection) where `w_hr` is given,
    else H. `x` is one of four layouts, of any strides, and `y` and `cells` have the same leading dimensions:
    dense (T, B, I) without `batch_sizes`; packed (N, I) with `batch_sizes` (T,), as in a `PackedSequence`;
    padded (T, B, I) with `batch_sizes`: step t reads and writes its first `batch_sizes[t]` rows, and `y` is zero elsewhere;
    one step (B, I) without `batch_sizes`.
    `batch_sizes` is int64, on the CPU, not increasing, and may hold zeros. `reverse` runs each sequence from its end.
    `reset` is bool, of the layout of `x` without I, or None: a sequence is cut before such a step, and goes on from zeros.
    `h0` (B, R), `c0` (B, H), `w_ih` (G*H, I), `w_hh` (G*H, R), `b_ih` and `b_hh` (G*H) or None, `w_hr` (P, H) or None,
    `w_peephole` (G - 1, H) or None. `cells` is empty unless `return_cells`.
    Arguments are checked in `fastlstm.functional`.
    """
    tensors = (x, batch_sizes, reset, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_peephole)
    if backend == "reference" or beyond_kernels():
        return by_reference(lstm_reference, *tensors, coupled, reverse)
    if differentiable(tensors):
        return apply(LSTMFunction, *tensors, coupled, reverse, return_cells)[:4]
    return OPS.fwd(*tensors, coupled, reverse, return_cells, False)[:4]


class LSTMFunction(torch.autograd.Function):
    """`lstm_fwd` and `lstm_bwd` as one differentiable function."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return OPS.fwd(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        OPS.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return OPS.backward(ctx, LSTMBackward.apply, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return OPS.vmap(LSTMFunction.apply, info, in_dims, args)


class LSTMBackward(torch.autograd.Function):
    """`lstm_bwd` as a differentiable function, of the biases too."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return OPS.bwd(*args[2:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        OPS.setup_second(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return OPS.second(ctx, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return OPS.vmap_backward(LSTMBackward.apply, LSTMFunction.apply, info, in_dims, args)


def _fake_fwd(
    x, batch_sizes, reset, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_peephole, coupled, reverse, return_cells, save
):
    y = x.new_empty(*x.shape[:-1], h0.shape[-1])
    cells = x.new_empty(*x.shape[:-1], c0.shape[-1]) if return_cells else x.new_empty(0)
    if x.is_cuda:
        saved = gpu_lstm.saved_like(x, c0.shape[-1], w_ih.shape[0], w_hr is not None, save)
    else:
        projected = 0 if w_hr is None else w_hr.shape[0]
        saved = saved_like(x, c0.shape[-1], 4 + (not coupled) + (w_hr is not None), save, projected)
    return y, x.new_empty(h0.shape), x.new_empty(c0.shape), cells, saved


if backends.extension_status() == "built":
    OPS = OpPair("lstm", lstm_reference, ROWS, per_sample.lstm)
    OPS.register((gpu_lstm.lstm_fwd, gpu_lstm.lstm_bwd), _fake_fwd)
