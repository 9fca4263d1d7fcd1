"""The gradients of additive keys and of w_score over all steps in Triton: what no other sum of the backward can be taken from.

Sizes as in `gpu_attend.py`.
"""

import triton
import triton.language as tl

from fastlstm.kernels.gpu_math import tanh


@triton.jit(do_not_specialize=["first", "T", "B", "S"])
def attend_keys(
    dkeys,  # (S, B, A): written, zeros where there is no slot
    shares,  # (tiles of slots * B, A) float32: those of the gradient of w_score, written
    keys,
    lengths,
    query,  # (N, A)
    w_score,
    dscores,
    first,  # 0: all is one launch
    T,
    B,
    S,
    A: tl.constexpr,
    LENGTHS: tl.constexpr,
    BS: tl.constexpr,
    BA: tl.constexpr,
):
    """A program has the keys of some slots of a sequence, and some of their columns, over all steps."""
    b = tl.program_id(0) % B
    slots = tl.program_id(0) // B * BS + tl.arange(0, BS)
    length = tl.load(lengths + b) if LENGTHS else S.to(tl.int64)
    valid = slots < length
    of_a = tl.program_id(1) * BA + tl.arange(0, BA)
    at = (slots.to(tl.int64) * B + b)[:, None] * A + of_a[None, :]
    k = tl.load(keys + at, valid[:, None] & (of_a < A)[None, :], other=0.0).to(tl.float32)
    dk, dv = tl.zeros((BS, BA), tl.float32), tl.zeros((BA,), tl.float32)
    for t in tl.range(first, T):
        row = tl.cast(t, tl.int64) * B + b
        de = tl.load(dscores + row * S + slots, valid, other=0.0)
        r = tanh(tl.load(query + row * A + of_a, of_a < A, other=0.0).to(tl.float32)[None, :] + k)
        dk += de[:, None] * (1.0 - r * r)
        dv += tl.sum(de[:, None] * r, 0)
    dk *= tl.load(w_score + of_a, of_a < A, other=0.0).to(tl.float32)[None, :]
    tl.store(dkeys + at, dk.to(dkeys.dtype.element_ty), (slots < S)[:, None] & (of_a < A)[None, :])
    tl.store(shares + tl.program_id(0).to(tl.int64) * A + of_a, dv, of_a < A)
