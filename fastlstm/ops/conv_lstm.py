"""The ConvLSTM over one layer and one direction, differentiable: one call for the whole sequence."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.gpu import conv_lstm as gpu_conv_lstm
from fastlstm.kernels.conv_lstm.reference import conv_lstm_reference
from fastlstm.ops import conv_checkpoint
from fastlstm.ops.conv_finals import Place
from fastlstm.ops.derivatives import beyond_kernels
from fastlstm.ops.dispatch import apply, by_reference, differentiable, saved_like
from fastlstm.ops.pair import OpPair


def conv_lstm(
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_peephole: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    coupled: bool = False,
    fresh: bool = False,
    reverse: bool = False,
    return_cells: bool = False,
    checkpoint: bool = False,
    moved: bool = False,
    return_y: bool = True,
    place: Place | None = None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of every step, the final states and the cell states of every step: `(y, h_n, c_n, cells)`.

    Sizes: T time, B batch, C channels of the input, S its image (1 to 3 dimensions), H hidden channels, S' their image, k the
    kernel, G gates (4; 3 where `coupled`). Maps and kernels are channels-last.

    `x` (T, B, *S, C), of any strides; where C is 0 there is no input: the first convolution is not run, and S is S'.
    `batch_sizes` (T,), int64 on the CPU, or None: step t reads and writes its first `batch_sizes[t]` sequences, and `y` is zero
    elsewhere; it does not increase, and may hold zeros. `reset` (T, B) bool or None: a sequence is cut before such a step.
    `h0`, `c0` (B, *S', H), `w_ih` (G*H, *k, C), `w_hh` (G*H, *k', H), `b_ih` and `b_hh` (G*H) or None, `w_peephole` (G - 1, H),
    or (G - 1, *S', H), or None.
    `stride` and `dilation` of the first convolution have an int per dimension, `padding` one before and one after each in turn.
    The recurrent convolution keeps the image: it has (k' - 1) // 2 before and k' // 2 after.
    `fresh`: `h0` and `c0` are zeros, and need no gradient. `reverse` runs each sequence from its end.
    `checkpoint`: the backward computes gates again, a segment of the steps at a time; those that the forward had are not kept.
    `y`, `cells` (T, B, *S', H), `h_n`, `c_n` (B, *S', H), contiguous, or if `moved` (the kernels, without `checkpoint`) with
    channels before *S' in memory; `cells` is empty unless `return_cells`. `return_y`: False lets the kernels make no `y` (not
    where gates are computed again, nor on a GPU, where steps read it). `place` (the CPU's kernels, where nothing but autograd
    follows what runs): `h_n` and `c_n` are written there.
    Arguments are checked in `fastlstm.functional`.
    """
    tensors = (x, batch_sizes, reset, h0, c0, w_ih, w_hh, b_ih, b_hh, w_peephole)
    flags = (stride, padding, dilation, coupled, fresh, reverse)
    if backend == "reference" or beyond_kernels():
        return by_reference(conv_lstm_reference, *tensors, *flags)
    if place is not None:
        if differentiable(tensors):
            return PlacedFunction.apply(*tensors, *flags, return_cells, moved, return_y, place)[:4]
        return _into(*tensors, *flags, return_cells, False, moved, return_y, place)[:4]
    if differentiable(tensors):
        if checkpoint:
            return apply(CheckpointFunction, *tensors, *flags, return_cells)[:4]
        return apply(ConvLSTMFunction, *tensors, *flags, return_cells, moved, return_y)[:4]
    return OPS.fwd(*tensors, *flags, return_cells, False, moved, return_y)[:4]


class ConvLSTMFunction(torch.autograd.Function):
    """`conv_lstm_fwd` and `conv_lstm_bwd` as one differentiable function."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *others, moved, return_y = args
        return OPS.fwd(*others, True, moved, return_y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        OPS.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return OPS.backward(ctx, ConvLSTMBackward.apply, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return OPS.vmap(ConvLSTMFunction.apply, info, in_dims, args)


class PlacedFunction(torch.autograd.Function):
    """`ConvLSTMFunction` with a place for the final states."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *others, moved, return_y, place = args
        return _into(*others, True, moved, return_y, place)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        OPS.setup_context(ctx, inputs[:-1], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return *OPS.backward(ctx, ConvLSTMBackward.apply, grads), None


def _into(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *others, place = args
    h_n, c_n = place.parts()
    y, cells, saved = torch.ops.fastlstm.conv_lstm_fwd_into(*others, h_n, c_n)
    return y, h_n, c_n, cells, saved


class ConvLSTMBackward(torch.autograd.Function):
    """`conv_lstm_bwd` as a differentiable function, of the biases too."""

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
        return OPS.vmap_backward(ConvLSTMBackward.apply, ConvLSTMFunction.apply, info, in_dims, args)


class CheckpointFunction(torch.autograd.Function):
    """`conv_lstm_checkpoint_fwd` and `conv_lstm_checkpoint_bwd` as one differentiable function."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return CHECKPOINT.fwd(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        CHECKPOINT.setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return CHECKPOINT.backward(ctx, CheckpointBackward.apply, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return CHECKPOINT.vmap(CheckpointFunction.apply, info, in_dims, args)


class CheckpointBackward(torch.autograd.Function):
    """`conv_lstm_checkpoint_bwd` as a differentiable function."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return CHECKPOINT.bwd(*args[2:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        CHECKPOINT.setup_second(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return CHECKPOINT.second(ctx, grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return CHECKPOINT.vmap_backward(CheckpointBackward.apply, CheckpointFunction.apply, info, in_dims, args)


# PyTorch asks for them at every call, and would take 10 microseconds to find out.
CheckpointFunction.forward.__signature__ = inspect.signature(CheckpointFunction.forward)  # type: ignore[attr-defined]
ConvLSTMFunction.forward.__signature__ = inspect.signature(ConvLSTMFunction.forward)  # type: ignore[attr-defined]
PlacedFunction.forward.__signature__ = inspect.signature(PlacedFunction.forward)  # type: ignore[attr-defined]


def _fake_fwd(
    x, batch_sizes, reset, h0, c0, w_ih, w_hh, b_ih, b_hh, w_peephole, stride, padding, dilation, coupled, fresh, reverse,
    return_cells, save, moved=False, return_y=True,
):  # fmt: skip
    y = _images(x, *x.shape[:2], *h0.shape[1:], moved=moved)
    cells = torch.empty_like(y) if return_cells else x.new_empty(0)
    if x.is_cuda:
        saved = gpu_conv_lstm.saved_like(y, w_ih.shape[0], save)
    else:
        saved = saved_like(_records(y, x, w_ih, stride, padding, dilation), h0.shape[-1], 4 + (not coupled), save)
    h_n, c_n = (_images(x, *h0.shape, moved=moved) for _ in range(2))
    return y if return_y else x.new_empty(0), h_n, c_n, cells, saved


def _images(like: Tensor, *shape: int, moved: bool) -> Tensor:
    """An empty tensor (..., *S', H), in memory with channels before *S' if `moved`."""
    if not moved:
        return like.new_empty(shape)
    n = like.dim() - 3
    return like.new_empty(*shape[: -n - 1], shape[-1], *shape[-n - 1 : -1]).movedim(-n - 1, -1)


def _records(y, x, w_ih, stride, padding, dilation):
    """A tensor whose rows are those of which the CPU's kernels save a record: of pixels, or of pairs of them where they
    take two pixels as one (csrc/ops/pixel_pairs.h). Nothing is asked of a size that may be any: compiled code would keep
    the answer."""
    if 2 * y.shape[-1] > backends.panel() or not stride[-1] == dilation[-1] == 1 or padding[-2] >= w_ih.shape[-2]:
        return y
    width = y.shape[-2]
    both_even = (1 - width % 2) * (1 - x.shape[-2] % 2)
    return y.new_empty(*y.shape[:-2], width - both_even * (width // 2), y.shape[-1])


def _fake_checkpoint_fwd(x, *args):
    *outputs, _ = _fake_fwd(x, *args)
    count = conv_checkpoint.segment_count(x.shape[0]) - 1 if args[-1] else 0
    return *outputs, x.new_empty(2, count, *outputs[1].shape)


class ConvPair(OpPair):
    """Gradients of weights lie as weights do: contiguous, or with channels before the taps, if both are such."""

    def fake_bwd(self, *args: Any) -> tuple[Tensor, ...]:
        found = super().fake_bwd(*args)
        given = dict(zip(self.bwd_inputs, args, strict=True))
        x, weights = given["x"], [given["w_ih"], given["w_hh"]]
        moved = all(w.movedim(-1, 1).is_contiguous() for w in weights) and not all(w.is_contiguous() for w in weights)
        if x.is_cuda or not given["need_dw"] or not moved:
            return found
        named = zip(self.gradients, found, strict=True)
        return tuple([_images(x, *d.shape, moved=True) if name in ("dw_ih", "dw_hh") else d for name, d in named])


ROWS = {"x": 1, "reset": 1, "h0": 0, "c0": 0, "y": 1, "h_n": 0, "c_n": 0, "cells": 1}

if backends.extension_status() == "built":
    OPS = ConvPair("conv_lstm", conv_lstm_reference, ROWS)
    OPS.register((gpu_conv_lstm.conv_lstm_fwd, gpu_conv_lstm.conv_lstm_bwd), _fake_fwd)
    CHECKPOINT = ConvPair("conv_lstm_checkpoint", conv_lstm_reference, ROWS)
    CHECKPOINT.register(None, _fake_checkpoint_fwd)
