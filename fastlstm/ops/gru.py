"""The GRU over one layer and one direction, differentiable: one call for the whole sequence."""

from typing import Any

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.gpu import gru as gpu_gru
from fastlstm.kernels.gru.reference import gru_reference
from fastlstm.ops import per_sample
from fastlstm.ops.derivatives import beyond_kernels
from fastlstm.ops.dispatch import apply, by_reference, differentiable, saved_like
from fastlstm.ops.pair import OpPair
from fastlstm.ops.vmap import ROWS


def gru(
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The outputs of every step and the final state: `(y, h_n)`.

    Layouts, `batch_sizes`, `reset` and `reverse` are those of `fastlstm.ops.lstm.lstm`.
    Sizes: B batch, I input, H hidden. `h0` (B, H), `w_ih` (3H, I), `w_hh` (3H, H), `b_ih` and `b_hh` (3H) or None.
    """
    tensors = (x, batch_sizes, reset, h0, w_ih, w_hh, b_ih, b_hh)
    if backend == "reference" or beyond_kernels():
        return by_reference(gru_reference, *tensors, reverse)
    if differentiable(tensors):
        return apply(GRUFunction, *tensors, reverse)[:2]
    return OPS.fwd(*tensors, reverse, False)[:2]


class GRUFunction(torch.autograd.Function):
    """`gru_fwd` and `gru_bwd` as one differentiable function."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return OPS.fwd(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        OPS.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return OPS.backward(ctx, GRUBackward.apply, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return OPS.vmap(GRUFunction.apply, info, in_dims, args)


class GRUBackward(torch.autograd.Function):
    """`gru_bwd` as a differentiable function, of the biases too."""

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
        return OPS.vmap_backward(GRUBackward.apply, GRUFunction.apply, info, in_dims, args)


def _fake_fwd(x, batch_sizes, reset, h0, w_ih, w_hh, b_ih, b_hh, reverse, save):
    y = x.new_empty(*x.shape[:-1], h0.shape[-1])
    saved = gpu_gru.saved_like(x, h0.shape[-1], save) if x.is_cuda else saved_like(x, h0.shape[-1], 5, save)
    return y, x.new_empty(h0.shape), saved


if backends.extension_status() == "built":
    OPS = OpPair("gru", gru_reference, ROWS, per_sample.gru)
    OPS.register((gpu_gru.gru_fwd, gpu_gru.gru_bwd), _fake_fwd)
