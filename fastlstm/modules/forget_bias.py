"""`forget_bias`: what is added to the bias of the forget gate when weights are set, so that cells begin by remembering."""

import math
from collections.abc import Iterable
from numbers import Real

import torch
from torch import nn

from fastlstm.kernels.variant import Variant


def check_forget_bias(variant: Variant, forget_bias: float, bias: bool) -> None:
    if isinstance(forget_bias, bool) or not isinstance(forget_bias, Real):
        raise TypeError(
            f"forget_bias is {forget_bias!r}, expected a number: it is added to bias_ih of the forget gate, 0.0 for nothing"
        )
    if not math.isfinite(forget_bias):
        raise ValueError(f"forget_bias is {forget_bias}, expected a finite number: it is added to bias_ih")
    if forget_bias == 0:
        return
    if variant.forget is None:
        raise ValueError(f"forget_bias is {forget_bias}, expected 0.0: a {variant.name} has no forget gate")
    if not bias:
        raise ValueError(
            f"forget_bias is {forget_bias}, expected 0.0 with bias=False: there is no bias_ih to add it to"
        )


def add_forget_bias(module: nn.Module, variant: Variant, names: Iterable[str], forget_bias: float) -> None:
    """Add it to the Parameters `names` of `module`, in place."""
    if forget_bias == 0 or variant.forget is None:
        return
    gate, sign = variant.forget
    for name in names:
        bias = module._parameters.get(name)
        if bias is None:
            raise RuntimeError(
                f"{name} is no Parameter of this {type(module).__name__}, expected one to add forget_bias to: it was "
                "parametrized, pruned or replaced, so undo that before reset_parameters()"
            )
        with torch.no_grad():
            # A mask, not a slice: a slice of a sharded tensor may be a copy
            row = torch.ones_like(bias).cumsum(0, dtype=torch.int64) - 1
            size = len(bias) // len(variant.gates)
            of_gate = (row >= gate * size) & (row < (gate + 1) * size)
            bias.add_(of_gate.to(bias.dtype) * (sign * float(forget_bias)))
