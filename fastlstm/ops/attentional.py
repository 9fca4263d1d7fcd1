"""The attentional vectors of all steps at once, differentiable, by PyTorch's own ops."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastlstm.ops.derivatives import beyond_kernels, gradients
from fastlstm.ops.dispatch import differentiable

LARGE = 1 << 17  # elements of y from which on a copy of [context, h] outweighs the time that more calls take


def attentional(context: Tensor, h: Tensor, w_out: Tensor, b_out: Tensor | None, *, tanh: bool) -> Tensor:
    """y = W_out [context, h] + b_out, or its tanh: (T, B, H). A caller may edit it in place.

    `context` (T, B, M), `h` (T, B, H), `w_out` (H, M + H), `b_out` (H) or None.
    """
    made = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    half = h.dtype in (torch.float16, torch.bfloat16)  # two sums of a half dtype would round once more
    whole = made or half or beyond_kernels() or torch._C._are_functorch_transforms_active() or h.numel() < LARGE
    if made or differentiable((context, h, w_out, b_out)):
        if not whole:
            return _Attentional.apply(context, h, w_out, b_out, tanh)
        (y,) = _explicit(context, h, w_out, b_out, tanh)
        return y.clone() if tanh else y  # PyTorch's tanh keeps what it returns
    z = linear(torch.cat([context, h], -1), w_out, b_out) if whole else _products(context, h, w_out, b_out)
    return z.tanh_() if tanh else z


def _explicit(context: Tensor, h: Tensor, w_out: Tensor, b_out: Tensor | None, tanh: bool) -> tuple[Tensor]:
    z = linear(torch.cat([context, h], -1), w_out, b_out)
    return (z.tanh() if tanh else z,)


def _products(context: Tensor, h: Tensor, w_out: Tensor, b_out: Tensor | None) -> Tensor:
    """z of contexts and of h, which are not copied to lie side by side."""
    M = context.shape[-1]
    z = torch.empty_like(h, memory_format=torch.contiguous_format)  # a view of it, a Function could not return
    rows = z.flatten(0, 1)
    torch.mm(context.flatten(0, 1), w_out[:, :M].t(), out=rows)
    rows.addmm_(h.flatten(0, 1), w_out[:, M:].t())
    if b_out is not None:
        rows.add_(b_out)
    return z


class _Attentional(torch.autograd.Function):
    """Neither contexts and h nor their gradients lie side by side. Gradients of its gradients are the explicit form's."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, h: Tensor, w_out: Tensor, b_out: Tensor | None, tanh: bool) -> Tensor:
        ctx.tanh = tanh
        y = _products(context, h, w_out, b_out)
        if tanh:
            y.tanh_()
        ctx.save_for_backward(context, h, w_out, b_out, y.clone() if tanh else None)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        context, h, w_out, b_out, y = ctx.saved_tensors
        need = ctx.needs_input_grad
        if torch.is_grad_enabled():
            asked = [k for k in range(4) if need[k]]
            found = gradients(_explicit, [dy], [context, h, w_out, b_out, ctx.tanh], asked)
            results = dict(zip(asked, found, strict=True))
            return *(results.get(k) for k in range(4)), None
        M = context.shape[-1]
        dz = (torch.ops.aten.tanh_backward(dy, y) if ctx.tanh else dy).flatten(0, 1)
        dcontext = dz.mm(w_out[:, :M]).view(context.shape) if need[0] else None
        dh = dz.mm(w_out[:, M:]).view(h.shape) if need[1] else None
        dw_out = None
        if need[2]:
            dw_out = torch.empty_like(w_out, memory_format=torch.contiguous_format)
            torch.mm(dz.t(), context.flatten(0, 1), out=dw_out[:, :M])
            torch.mm(dz.t(), h.flatten(0, 1), out=dw_out[:, M:])
        return dcontext, dh, dw_out, dz.sum(0) if need[3] else None, None
