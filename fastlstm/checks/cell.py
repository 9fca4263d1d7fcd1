"""The arguments of a single step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlstm.checks.input import check_strided
from fastlstm.kernels.variant import Variant


def check_cell(
    variant: Variant, x: Tensor, states: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, *others: Tensor | None
) -> None:
    """One step's arguments fit each other: `others` are `b_ih`, `b_hh` and `w_peephole`, or None.

    What is right passes the first look, which costs a third of finding out what is wrong: a loop calls this at every step.
    """
    if not _cell_fits(variant, x, states, w_ih, w_hh, others):
        _check_cell(variant, x, states, w_ih, w_hh, *others)


def _cell_fits(
    variant: Variant,
    x: Tensor,
    states: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    others: Sequence[Tensor | None],
) -> bool:
    if x.dim() != 2 or x.layout is not torch.strided:
        return False
    B, I = x.shape
    H = w_hh.shape[-1]
    rows, dtype, device = len(variant.gates) * H, x.dtype, x.device
    if w_ih.shape != (rows, I) or w_hh.shape != (rows, H):
        return False
    for s in states:
        if s.shape != (B, H) or s.dtype is not dtype or s.device != device:
            return False
    b_ih, b_hh, w_peephole = others
    if b_ih is not None and b_hh is not None:
        if b_ih.shape != (rows,) or b_ih.dtype is not dtype or b_ih.device != device:
            return False
        if b_hh.shape != (rows,) or b_hh.dtype is not dtype or b_hh.device != device:
            return False
    elif b_ih is not b_hh:
        return False
    if w_peephole is None:
        peepholes_fit = True
    else:
        peepholes_fit = w_peephole.shape == (len(variant.peepholes), H) and w_peephole.dtype is dtype
        peepholes_fit = peepholes_fit and w_peephole.device == device
    return (
        peepholes_fit
        and w_ih.dtype is dtype
        and w_hh.dtype is dtype
        and w_ih.device == device
        and w_hh.device == device
    )


def _check_cell(
    variant: Variant, x: Tensor, states: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, *others: Tensor | None
) -> None:
    if x.dim() != 2:
        raise ValueError(f"input has {x.dim()} dimensions, expected 2: (batch, input_size)")
    check_strided("input", x, "the batch is read as dense rows")
    B, I = x.shape
    H = w_hh.shape[-1]
    rows = len(variant.gates) * H
    if w_ih.dim() != 2 or w_ih.shape[1] != I:
        raise RuntimeError(f"input has inconsistent input_size: got {I} expected {w_ih.shape[-1]}")
    for k, s in enumerate(states):
        if s.dim() == 0 or s.shape[0] != B:
            raise RuntimeError(
                f"Input batch size {B} doesn't match hidden{k} batch size {s.shape[0] if s.dim() else 1}"
            )
        if s.dim() == 1 or s.shape[1] != H:
            raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {[*s.shape, None][1]}, expected {H}")
        if s.dim() != 2:
            raise RuntimeError(f"hidden{k} has {s.dim()} dimensions, expected 2: (batch, hidden_size)")
    expected = ((rows, I), (rows, H), (rows,), (rows,), (len(variant.peepholes), H))
    names = ("w_ih", "w_hh", "b_ih", "b_hh", "w_peephole")
    for name, w, size in zip(names, (w_ih, w_hh, *others), expected, strict=True):
        if w is not None and w.shape != size:
            raise ValueError(f"{name} has shape {tuple(w.shape)}, expected {size}: input size {I} and hidden size {H}")
    dtype, device = x.dtype, x.device
    for name, t in zip(("w_ih", "w_hh", "hidden0", "hidden1"), (w_ih, w_hh, *states), strict=False):
        if t.dtype != dtype or t.device != device:
            raise RuntimeError(f"{name} is {t.dtype} on {t.device}, expected {dtype} on {device}: those of input")
    for name, other in zip(names[2:], others, strict=True):
        if other is not None and (other.dtype != dtype or other.device != device):
            raise RuntimeError(
                f"{name} is {other.dtype} on {other.device}, expected {dtype} on {device}: those of input"
            )
