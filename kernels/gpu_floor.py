"""The least that a step of a loop takes: a barrier, h through the second-level cache, and a tile's product.

What a kernel with gates takes longer is what could still be gained on it. Each step is h = W h, so that it can be checked.
"""

import triton
import triton.language as tl

from fastlstm.kernels.gpu_math import arrive, leave, product, step_rows, wait, weight_tile


@triton.jit(do_not_specialize=["number", "patience", "first", "steps", "T", "B"])
def floor(
    hidden,  # (T + 1, B, H): h before the first step, then h of every step, written
    w,  # (4 * H, H): the first H rows are W, the others stand for those of the other gates
    barrier,  # (batch tiles, 32) int32, zeros before and after, of which the first of 32 counts
    alarm,
    number,
    patience,
    first,
    steps,
    T,
    B,
    H: tl.constexpr,
    K: tl.constexpr,  # = H
    PRODUCT: tl.constexpr,  # without, a step is its barrier, and stores zeros
    REVERSE: tl.constexpr,  # this and the next two are those of every loop, and not used
    VARIABLE: tl.constexpr,
    RESET: tl.constexpr,
    PERSISTENT: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    BK2: tl.constexpr,
    KEEP: tl.constexpr,
    SPLIT: tl.constexpr,
):
    batch_tile, tile = tl.program_id(0), tl.program_id(1)
    rows = batch_tile * BM + tl.arange(0, BM)
    columns = tl.arange(0, 4 * BH)
    own = (rows < B)[:, None] & ((columns < BH) & (tile * BH + columns < H))[None, :]
    kept = weight_tile(w, tile, 0, H, K, 4, BH, BK, SPLIT) if KEEP else 0
    more = weight_tile(w, tile, BK, H, K, 4, BH, BK2, SPLIT) if KEEP and BK2 > 0 else 0
    arrivals, hope = 0, patience > 0
    for s in tl.range(first, first + steps, num_stages=1):
        if PERSISTENT:
            hope = wait(barrier + batch_tile * 32, arrivals, hope, patience, alarm, number)
            arrivals += tl.num_programs(1)
        t = s  # to the interpreter s is no tensor, and t is one
        offset, _ = step_rows(t, B, 0, 0, False)
        row = offset + rows
        acc = tl.zeros((BM, 4 * BH), tl.float32)
        if PRODUCT:
            h = tl.multiple_of(hidden + row * K, ALIGN)
            acc = product(acc, h, rows < B, w, kept, more, tile, H, K, 4, BH, BK, BK2, KEEP, PRECISION, SPLIT)
        after = hidden + (row + B)[:, None] * H + (tile * BH + columns)[None, :]
        tl.store(after, acc.to(hidden.dtype.element_ty), own)
        if PERSISTENT:
            arrive(barrier + batch_tile * 32)
    if PERSISTENT:
        leave(barrier + batch_tile * 32, steps)
