"""The LSTM family over one layer and one direction, differentiable: one call for the whole sequence."""

import inspect
from typing import Any

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.gpu import lstm as gpu_lstm
from fastlstm.kernels.lstm.reference import lstm_reference
from fastlstm.ops.dispatch import by_reference, differentiable, saved_like
from fastlstm.ops.vmap import vmap_by_loop


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
    if backend == "reference":
        return by_reference(lstm_reference, *tensors, coupled, reverse)
    if differentiable(tensors):
        return LSTMFunction.apply(*tensors, coupled, reverse, return_cells)[:4]
    return lstm_fwd(*tensors, coupled, reverse, return_cells, False)[:4]


class LSTMFunction(torch.autograd.Function):
    """`lstm_fwd` and `lstm_bwd` as one differentiable function; `saved` is its own business and has no gradient."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return lstm_fwd(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, batch_sizes, reset, h0, c0, w_ih, w_hh, _, _, w_hr, w_peephole, ctx.coupled, ctx.reverse, ctx.cells = inputs
        y, _, _, no_cells, saved = output
        ctx.mark_non_differentiable(*((saved,) if ctx.cells else (no_cells, saved)))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, batch_sizes, reset, h0, c0, w_ih, w_hh, w_hr, w_peephole, y, saved)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, dcells: Tensor | None, _: None):
        need_dx, _, _, _, _, *need_dw, _, _, _ = ctx.needs_input_grad
        # Gradients are enabled here where a gradient of the gradient may be asked for. (A compiled backward refuses by itself.)
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        flags = ctx.coupled, ctx.reverse, need_dx, any(need_dw)
        # a compiled backward has an empty gradient for the cells that nobody asked for
        dcells = dcells if ctx.cells else None
        dx, dh0, dc0, dw_ih, dw_hh, db, dw_hr, dw_peephole = (LSTMBackward.apply if twice else lstm_bwd)(
            dy, dh_n, dc_n, dcells, *ctx.saved_tensors, *flags
        )
        need_ih, need_hh, need_b_ih, need_b_hh, need_hr, need_peephole = need_dw
        return (
            dx if need_dx else None,
            None,
            None,
            dh0,
            dc0,
            dw_ih if need_ih else None,
            dw_hh if need_hh else None,
            db if need_b_ih else None,
            (db.clone() if need_b_ih else db) if need_b_hh else None,
            dw_hr if need_hr else None,
            dw_peephole if need_peephole else None,
            None,
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return vmap_by_loop(LSTMFunction.apply, info, in_dims, args)


class LSTMBackward(torch.autograd.Function):
    """`lstm_bwd`, which can't be differentiated: says so, where an op without a formula would count as a constant."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return lstm_bwd(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError("the LSTM's kernels can't be differentiated twice; backend='reference' can")

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return vmap_by_loop(LSTMBackward.apply, info, in_dims, args)


# PyTorch asks for it at every call, and would take 10 microseconds to find out.
LSTMFunction.forward.__signature__ = inspect.signature(LSTMFunction.forward)  # type: ignore[attr-defined]


def _register() -> None:
    """The ops on a GPU; and what C++ can't say about them: the shapes of their results, and how they are mapped."""
    torch.library.impl("fastlstm::lstm_fwd", "CUDA")(gpu_lstm.lstm_fwd)
    torch.library.impl("fastlstm::lstm_bwd", "CUDA")(gpu_lstm.lstm_bwd)

    @torch.library.register_fake("fastlstm::lstm_fwd")
    def _(
        x, batch_sizes, reset, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_peephole, coupled, reverse, return_cells, save
    ):
        y = x.new_empty(*x.shape[:-1], h0.shape[1])
        cells = x.new_empty(*x.shape[:-1], c0.shape[1]) if return_cells else x.new_empty(0)
        if x.is_cuda:
            saved = gpu_lstm.saved_like(x, c0.shape[1], w_ih.shape[0], w_hr is not None, save)
        else:
            saved = saved_like(x, c0.shape[1], 4 + (not coupled) + (w_hr is not None), save)
        return y, x.new_empty(h0.shape), x.new_empty(c0.shape), cells, saved

    @torch.library.register_fake("fastlstm::lstm_bwd")
    def _(
        dy, dh_n, dc_n, dcells, x, batch_sizes, reset, h0, c0, w_ih, w_hh, w_hr, w_peephole, y, saved,
        coupled, reverse, need_dx, need_dw,
    ):  # fmt: skip
        def empty_like(t, wanted=True):
            return x.new_empty(t.shape if wanted and t is not None else (0,))

        return (
            empty_like(x, need_dx),
            empty_like(h0),
            empty_like(c0),
            empty_like(w_ih, need_dw),
            empty_like(w_hh, need_dw),
            x.new_empty(w_ih.shape[0] if need_dw else 0),
            empty_like(w_hr, need_dw),
            empty_like(w_peephole, need_dw),
        )

    @torch.library.register_vmap("fastlstm::lstm_fwd")
    def _(info, in_dims, *args):
        return vmap_by_loop(lstm_fwd, info, in_dims, args)

    @torch.library.register_vmap("fastlstm::lstm_bwd")
    def _(info, in_dims, *args):
        return vmap_by_loop(lstm_bwd, info, in_dims, args)


if backends.extension_status() == "built":
    lstm_fwd = torch.ops.fastlstm.lstm_fwd.default
    lstm_bwd = torch.ops.fastlstm.lstm_bwd.default
    _register()
