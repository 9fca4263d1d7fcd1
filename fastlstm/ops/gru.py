"""The GRU over one layer and one direction, differentiable: one call for the whole sequence."""

import inspect
from typing import Any

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.gpu import gru as gpu_gru
from fastlstm.kernels.gru.reference import gru_reference
from fastlstm.ops.dispatch import by_reference, differentiable, saved_like
from fastlstm.ops.vmap import vmap_by_loop


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
    if backend == "reference":
        return by_reference(gru_reference, *tensors, reverse)
    if differentiable(tensors):
        return GRUFunction.apply(*tensors, reverse)[:2]
    return gru_fwd(*tensors, reverse, False)[:2]


class GRUFunction(torch.autograd.Function):
    """`gru_fwd` and `gru_bwd` as one differentiable function; `saved` is its own business and has no gradient."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return gru_fwd(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, batch_sizes, reset, h0, w_ih, w_hh, _, _, ctx.reverse = inputs
        y, _, saved = output
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, batch_sizes, reset, h0, w_ih, w_hh, y, saved)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None, _: None):
        need_dx, _, _, _, *need_dw, _ = ctx.needs_input_grad
        twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        dx, dh0, *dw = (GRUBackward.apply if twice else gru_bwd)(
            dy, dh_n, *ctx.saved_tensors, ctx.reverse, need_dx, any(need_dw)
        )
        dw_ih, dw_hh, db_ih, db_hh = (w if need else None for w, need in zip(dw, need_dw, strict=True))
        return dx if need_dx else None, None, None, dh0, dw_ih, dw_hh, db_ih, db_hh, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return vmap_by_loop(GRUFunction.apply, info, in_dims, args)


class GRUBackward(torch.autograd.Function):
    """`gru_bwd`, which can't be differentiated: says so, where an op without a formula would count as a constant."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return gru_bwd(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError("the GRU's kernels can't be differentiated twice; backend='reference' can")

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return vmap_by_loop(GRUBackward.apply, info, in_dims, args)


# PyTorch asks for it at every call, and would take 10 microseconds to find out.
GRUFunction.forward.__signature__ = inspect.signature(GRUFunction.forward)  # type: ignore[attr-defined]


def _register() -> None:
    """The ops on a GPU; and what C++ can't say about them: the shapes of their results, and how they are mapped."""
    torch.library.impl("fastlstm::gru_fwd", "CUDA")(gpu_gru.gru_fwd)
    torch.library.impl("fastlstm::gru_bwd", "CUDA")(gpu_gru.gru_bwd)

    @torch.library.register_fake("fastlstm::gru_fwd")
    def _(x, batch_sizes, reset, h0, w_ih, w_hh, b_ih, b_hh, reverse, save):
        y = x.new_empty(*x.shape[:-1], h0.shape[1])
        saved = gpu_gru.saved_like(x, h0.shape[1], save) if x.is_cuda else saved_like(x, h0.shape[1], 5, save)
        return y, x.new_empty(h0.shape), saved

    @torch.library.register_fake("fastlstm::gru_bwd")
    def _(dy, dh_n, x, batch_sizes, reset, h0, w_ih, w_hh, y, saved, reverse, need_dx, need_dw):
        def empty(wanted, *shape):
            return x.new_empty(shape if wanted else (0,))

        biases = [empty(need_dw, w_ih.shape[0]) for _ in range(2)]
        dx, dh0 = empty(need_dx, *x.shape), empty(True, *h0.shape)
        return dx, dh0, empty(need_dw, *w_ih.shape), empty(need_dw, *w_hh.shape), *biases

    @torch.library.register_vmap("fastlstm::gru_fwd")
    def _(info, in_dims, *args):
        return vmap_by_loop(gru_fwd, info, in_dims, args)

    @torch.library.register_vmap("fastlstm::gru_bwd")
    def _(info, in_dims, *args):
        return vmap_by_loop(gru_bwd, info, in_dims, args)


if backends.extension_status() == "built":
    gru_fwd = torch.ops.fastlstm.gru_fwd.default
    gru_bwd = torch.ops.fastlstm.gru_bwd.default
    _register()
