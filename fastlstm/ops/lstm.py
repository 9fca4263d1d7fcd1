"""The LSTM over one layer and one direction, differentiable: one call for the whole sequence."""

import inspect
from typing import Any

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.kernels.lstm.reference import lstm_reference
from fastlstm.ops.vmap import vmap_by_loop

PANEL = 16  # hidden units per panel of the saved records


def lstm(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of every step and the final states `(y, h_n, c_n)`.

    Sizes: T time, B batch, I input, H hidden, R = P (the projection) where `w_hr` is given, else H.
    `x` is one of three layouts, of any strides, and `y` has the same leading dimensions:
    dense (T, B, I) without `batch_sizes`; packed (N, I) with `batch_sizes` (T,), as in a `PackedSequence`;
    padded (T, B, I) with `batch_sizes`: step t reads and writes its first `batch_sizes[t]` rows, and `y` is zero elsewhere.
    `batch_sizes` is int64, on the CPU, not increasing, and may hold zeros. `reverse` runs each sequence from its end.
    `h0` (B, R), `c0` (B, H), `w_ih` (4H, I), `w_hh` (4H, R), `b_ih` and `b_hh` (4H) or None, `w_hr` (P, H) or None.
    Arguments are checked in `fastlstm.functional`.
    """
    if backend == "reference":
        return _lstm_by_reference(x, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, reverse)
    tensors = (x, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr)
    if (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)) or _transformed():
        return LSTMFunction.apply(*tensors, reverse)[:3]
    return lstm_fwd(*tensors, reverse, False)[:3]


def _lstm_by_reference(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference; in float32 for half dtypes, as the arithmetic of every backend is."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        return lstm_reference(x, batch_sizes, h0, *others)
    wide = [t.float() if isinstance(t, Tensor) else t for t in others]
    y, h_n, c_n = lstm_reference(x.float(), batch_sizes, h0.float(), *wide)
    return y.to(x.dtype), h_n.to(x.dtype), c_n.to(x.dtype)


def _transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode AD is active: `requires_grad` says nothing then."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


class LSTMFunction(torch.autograd.Function):
    """`lstm_fwd` and `lstm_bwd` as one differentiable function; `saved` is its own business and has no gradient."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return lstm_fwd(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, batch_sizes, h0, c0, w_ih, w_hh, _, _, w_hr, ctx.reverse = inputs
        y, _, _, saved = output
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, batch_sizes, h0, c0, w_ih, w_hh, w_hr, y, saved)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, _: None):
        x, batch_sizes, h0, c0, w_ih, w_hh, w_hr, y, saved = ctx.saved_tensors
        need_dx, _, _, _, *need_dw, _ = ctx.needs_input_grad
        # Gradients are enabled here where a gradient of the gradient may be asked for. (A compiled backward refuses by itself.)
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        dx, dh0, dc0, dw_ih, dw_hh, db, dw_hr = (LSTMBackward.apply if differentiable else lstm_bwd)(
            dy, dh_n, dc_n, x, batch_sizes, h0, c0, w_ih, w_hh, w_hr, y, saved, ctx.reverse, need_dx, any(need_dw)
        )
        need_ih, need_hh, need_b_ih, need_b_hh, need_hr = need_dw
        return (
            dx if need_dx else None,
            None,
            dh0,
            dc0,
            dw_ih if need_ih else None,
            dw_hh if need_hh else None,
            db if need_b_ih else None,
            (db.clone() if need_b_ih else db) if need_b_hh else None,
            dw_hr if need_hr else None,
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
    """What C++ can't say about the ops: the shapes of their results, and how they are mapped over a new dimension."""

    @torch.library.register_fake("fastlstm::lstm_fwd")
    def _(x, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, reverse, save):
        hidden = c0.shape[1]
        slots = 6 if w_hr is not None else 5
        rows = x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[1]
        saved = (rows if save else 0, (hidden + PANEL - 1) // PANEL * slots * PANEL)
        saved_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        y = x.new_empty(*x.shape[:-1], h0.shape[1])
        return y, x.new_empty(h0.shape), x.new_empty(c0.shape), x.new_empty(saved, dtype=saved_dtype)

    @torch.library.register_fake("fastlstm::lstm_bwd")
    def _(dy, dh_n, dc_n, x, batch_sizes, h0, c0, w_ih, w_hh, w_hr, y, saved, reverse, need_dx, need_dw):
        def empty(wanted, *shape):
            return x.new_empty(shape if wanted else (0,))

        return (
            empty(need_dx, *x.shape),
            empty(True, *h0.shape),
            empty(True, *c0.shape),
            empty(need_dw, *w_ih.shape),
            empty(need_dw, *w_hh.shape),
            empty(need_dw, w_ih.shape[0]),
            empty(need_dw and w_hr is not None, *(w_hr.shape if w_hr is not None else ())),
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
