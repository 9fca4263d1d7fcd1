"""What most calls are: dense, on the CPU, in one direction. They go to the op with little asked.

The op takes 10 to 30 microseconds where a batch is small; asking all that may be asked of a call took 70 more. What is not
usual, or not right, gets None here and goes the long way, which runs everything, and says what is wrong: that shapes and dtypes
fit, the op itself sees.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastlstm import backends
from fastlstm.call import Call
from fastlstm.checks.weights import optional_weights
from fastlstm.kernels.variant import Variant
from fastlstm.ops import gru, lstm

# What is raised by what is not right
WRONG = (RuntimeError, ValueError, TypeError, AttributeError, IndexError)
KEPT = 1 << 14  # zeros of no more numbers than this


def is_usual() -> bool:
    """Whether nothing else has a say in what runs: no program that is made, no transform, mode or autocast."""
    return runs_at_once() and not torch._C._is_any_autocast_enabled()


def runs_at_once() -> bool:
    """The same, but for autocast."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()  # under fake tensors, zeros that are kept would be fake ones
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def step(
    variant: Variant, x: Tensor, states: Sequence[Tensor], weights: Sequence[Any], backend: str
) -> tuple[Tensor, ...] | None:
    """The states after one step of a cell, h first, or None: see `fastlstm.functional.driver.step`."""
    w_ih, w_hh, b_ih, b_hh, w_peephole = weights
    try:
        if not (x.is_cpu and x.dim() == 2 and w_ih.is_cpu and w_hh.is_cpu):
            return None
        for s in states:
            if not s.is_cpu or s.dim() != 2:
                return None
        for t in (b_ih, b_hh, w_peephole):
            if t is not None and not t.is_cpu:
                return None
        if (b_ih is None) != (b_hh is None) or not _by_kernels(variant, x, backend):
            return None
        return _op(variant, x, states, w_ih, w_hh, b_ih, b_hh, None, w_peephole)[1:]
    except WRONG:
        return None


def layers(variant: Variant, x: Any, weights: Sequence[Sequence[Tensor]], hx: Any, call: Call) -> tuple | None:
    """Output and final states of a stack in one direction, or None: see `fastlstm.functional.driver.recurrent`."""
    if call.bidirectional or call.lengths is not None or call.reset is not None or call.return_cells:
        return None
    dropout = call.dropout
    if type(dropout) not in (float, int) or not 0 <= dropout <= 1 or (dropout and call.training):
        return None
    if not isinstance(x, Tensor) or x.dim() != 3 or not x.is_cpu or not _by_kernels(variant, x, call.backend):
        return None
    try:
        if call.batch_first:
            x = x.transpose(0, 1)
        states = _states(variant, x, weights, hx)
        if states is None:
            return None
        if len(weights) == 1 and not torch.is_grad_enabled():
            y, *finals = _layer(variant, x, states, weights[0])  # the op takes states as they are, and gives them alike
        else:
            y, ends = x, []
            for initial, w in zip(zip(*[s.unbind(0) for s in states], strict=True), weights, strict=True):
                y, *end = _layer(variant, y, initial, w)
                ends.append(end)
            finals = [torch.stack(s) for s in zip(*ends, strict=True)]
    except WRONG:
        return None
    return y.transpose(0, 1) if call.batch_first else y, finals[0] if len(finals) == 1 else tuple(finals)


def _states(variant: Variant, x: Tensor, weights: Sequence[Sequence[Tensor]], hx: Any) -> Sequence[Tensor] | None:
    """The initial states (L, B, ...): zeros, or those given."""
    T, B, _ = x.shape
    L = len(weights)
    if not (T and B and L) or (L > 1 and len({len(w) for w in weights}) > 1):
        return None
    w_hh = weights[0][1]
    G_H, R = w_hh.shape
    H = G_H // len(variant.gates)
    if hx is None:
        h = _zeros((L, B, R), x.dtype)
        return (h,) if len(variant.states) == 1 else (h, h if H == R else _zeros((L, B, H), x.dtype))
    given = (hx,) if len(variant.states) == 1 else hx
    if not isinstance(given, (tuple, list)) or len(given) != len(variant.states):
        return None
    for s, width in zip(given, (R, H), strict=False):
        if not isinstance(s, Tensor) or not s.is_cpu or s.shape != (L, B, width):
            return None
    return given


def _zeros(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Zeros that are only read, so that the same can serve many calls; large ones are not kept."""
    if shape[0] * shape[1] * shape[2] > KEPT:
        return torch.zeros(shape, dtype=dtype, device="cpu")
    return _kept_zeros(shape, dtype)


@lru_cache(maxsize=64)
def _kept_zeros(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=dtype, device="cpu")


def _layer(variant: Variant, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """y and the final states, of the shape of `states`."""
    for w in weights:
        if not w.is_cpu:
            raise ValueError("weights are on another device than x")
    w_ih, w_hh, *others = weights
    b_ih, b_hh, w_hr, w_peephole = [others[k] if k >= 0 else None for k in _places(variant, len(weights))]
    return _op(variant, x, states, w_ih, w_hh, b_ih, b_hh, w_hr, w_peephole)


def _op(
    variant: Variant,
    x: Tensor,
    states: Sequence[Tensor],
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    w_hr: Any,
    w_p: Any,
) -> tuple[Tensor, ...]:
    """y and the final states, with a graph where gradients may be asked for."""
    if variant.op == "gru":
        (h0,) = states
        if torch.is_grad_enabled():
            return gru.gru(x, None, None, h0, w_ih, w_hh, b_ih, b_hh, backend="numba")
        return gru.OPS.fwd(x, None, None, h0, w_ih, w_hh, b_ih, b_hh, False, False)[:2]
    h0, c0 = states
    given = (x, None, None, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_p)
    if torch.is_grad_enabled():
        return lstm.lstm(*given, coupled=variant.coupled, backend="numba")[:3]
    return lstm.OPS.fwd(*given, variant.coupled, False, False, False)[:3]


@cache
def _places(variant: Variant, count: int) -> tuple[int, ...]:
    """Where b_ih, b_hh, w_hr and w_peephole stand in a layer's `count` weights, after w_ih and w_hh; -1 where they lack."""
    bias, projected = optional_weights(variant, count)
    names = list(variant.weights(0, 0, 0 if projected else None, bias=bias))
    return tuple([names.index(n) - 2 if n in names else -1 for n in ("b_ih", "b_hh", "w_hr", "w_peephole")])


def _by_kernels(variant: Variant, x: Tensor, backend: str) -> bool:
    return backends.explain(variant, "cpu", x.dtype, backend, True).backend == "numba"
