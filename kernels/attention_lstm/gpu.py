"""One step of a layer's cells in Triton, forward and backward, of an LSTM that attends; a launch is one step.

What `gpu_attend.py` finds in a launch of its own reaches the cells as rows of one more product: the fed vector, or the context.

Sizes: T time, B batch, H hidden, A attention, N = T * B rows: row t * B + b is sequence b in step t. KB is the width of what
joins x: F or M in the first layer, H in those above. Where VARIABLE, `sizes` says how many sequences a step has; they do not
increase, so that a sequence that has a step has those before it.
"""

import triton
import triton.language as tl

from fastlstm.kernels.gpu_gates import (
    activate,
    cell_before,
    factors,
    gradients,
    load_gates,
    load_peepholes,
    store_gates,
    with_product,
)
from fastlstm.kernels.gpu_math import product, rows_run_before, step_rows, tanh


@triton.jit(do_not_specialize=["first", "T", "B"])
def attention_lstm_forward(
    gates,  # (N, G*H): the share of x in the pre-activations, with the bias; the activated gates, written where SAVE
    hidden,  # (N, H): h of every step, written, and read by the step after
    cells,  # (N, H) float32: c of every step, written where SAVE
    passed,  # (N, H): `dropped` * h, written where DROPPED
    dropped,  # (N, H)
    h0,  # (B, H)
    c_state,  # (B, H) float32: c before the step, and then after it
    below,  # (N, KB): what joins x, of the step before where LATER
    below0,  # (B, KB): and before the first step
    w,  # (G*H, H)
    w_below,  # (G*H, KB)
    peephole,  # (G - 1, H)
    offsets,  # (T,) int64
    sizes,  # (T,) int64
    first,  # the step to run
    T,
    B,
    H: tl.constexpr,
    K: tl.constexpr,  # = H
    KB: tl.constexpr,  # 0: nothing joins x
    LATER: tl.constexpr,
    COUPLED: tl.constexpr,
    PEEPHOLE: tl.constexpr,
    VARIABLE: tl.constexpr,
    SAVE: tl.constexpr,
    DROPPED: tl.constexpr,
    SAVED: tl.constexpr,  # dtype of saved gates, as wide as that of `gates`
    ALIGN: tl.constexpr,  # bytes that divide those of a row of `hidden`
    ALIGN_BELOW: tl.constexpr,  # and of a row of `below`
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    GATES: tl.constexpr = 3 if COUPLED else 4
    tile = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    units = tile * BH + tl.arange(0, BH)
    offset, size = step_rows(first, B, offsets, sizes, VARIABLE)
    valid = rows < size
    mine = valid[:, None] & (units < H)[None, :]
    later = valid & (first > 0)
    own = rows.to(tl.int64)

    h = tl.multiple_of(tl.where(later, hidden + (offset - B + own) * K, h0 + own * K), ALIGN)
    acc = tl.zeros((BM, 4 * BH), tl.float32)
    acc = product(acc, h, valid, w, 0, 0, tile, H, K, GATES, BH, BK, 0, False, PRECISION)
    if KB > 0:
        z = below + (offset + own) * KB
        if LATER:
            z = tl.where(later, z - B * KB, below0 + own * KB)
        z = tl.multiple_of(z, ALIGN_BELOW)
        acc = product(acc, z, valid, w_below, 0, 0, tile, H, KB, GATES, BH, BK, 0, False, PRECISION)

    at = (offset + own)[:, None] * (GATES * H) + units[None, :]
    at_h = (offset + own)[:, None] * H + units[None, :]
    state = own[:, None] * H + units[None, :]
    c_prev = tl.load(c_state + state, mine, other=0.0)
    p_i, p_f, p_o = load_peepholes(peephole, units[None, :], (units < H)[None, :], H, COUPLED, PEEPHOLE)
    a_i, a_f, a_g, a_o = load_gates(gates, at, mine, H, COUPLED)
    a_i, a_f, a_g, a_o = with_product(a_i, a_f, a_g, a_o, acc, BM, BH, COUPLED)
    i, f, g, o, c, m = activate(a_i, a_f, a_g, a_o, c_prev, p_i, p_f, p_o, COUPLED, PEEPHOLE)
    m = m.to(hidden.dtype.element_ty)
    tl.store(hidden + at_h, m, mine)
    tl.store(c_state + state, c, mine)
    if DROPPED:
        kept = m.to(tl.float32) * tl.load(dropped + at_h, mine, other=0.0).to(tl.float32)
        tl.store(passed + at_h, kept.to(passed.dtype.element_ty), mine)
    if SAVE:
        store_gates(gates.to(tl.pointer_type(SAVED), bitcast=True), at, mine, H, i, f, g, o, COUPLED)
        tl.store(cells + at_h, c, mine)


@triton.jit(do_not_specialize=["first", "T", "B"])
def attention_lstm_backward(
    dgates,  # (N, G*H): the gradients of the pre-activations, written, and read by the next launch
    above,  # (N, G*H): those of the layer above, where ABOVE
    dropped,  # (N, H): what that layer's input was multiplied with, where DROPPED
    dh,  # (N, H): what of the gradient of h is known, where GIVEN
    dz,  # (N, H): the gradient before the output's tanh, where OUTPUT
    dquery,  # (N, A): of the step after where BEFORE; with QUERY 2 a product away from that of h, with QUERY 1 its share
    gates,  # (N, G*H), as the forward saved them
    cells,  # (N, H) float32
    c0,  # (B, H)
    dh_n,  # (B, H): the gradient of the final h
    dc_state,  # (B, H) float32: that of the final c, and then of c0
    dpeephole,  # (batch tiles, G - 1, H) float64, zeros, summed over steps
    w,  # (H, G*H): the transpose of W_hh
    w_above,  # (H, G*H)
    w_out,  # (H, H): the transpose of W_out's columns for h
    w_query,  # (H, A)
    peephole,
    offsets,
    sizes,
    first,
    T,
    B,
    H: tl.constexpr,
    K: tl.constexpr,  # = G * H
    A: tl.constexpr,
    ABOVE: tl.constexpr,
    DROPPED: tl.constexpr,
    GIVEN: tl.constexpr,
    OUTPUT: tl.constexpr,
    QUERY: tl.constexpr,
    BEFORE: tl.constexpr,
    COUPLED: tl.constexpr,
    PEEPHOLE: tl.constexpr,
    VARIABLE: tl.constexpr,
    SAVED: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    GATES: tl.constexpr = 3 if COUPLED else 4
    tile = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    units = tile * BH + tl.arange(0, BH)
    t = T - 1 - first
    offset, size = step_rows(t, B, offsets, sizes, VARIABLE)
    offset_after, size_after = rows_run_before(first, T, B, offsets, sizes, True, VARIABLE)
    valid = rows < size
    mine = valid[:, None] & (units < H)[None, :]
    follows = valid & (rows < size_after)
    own = rows.to(tl.int64)
    at = (offset + own)[:, None] * (GATES * H) + units[None, :]
    at_h = (offset + own)[:, None] * H + units[None, :]
    state = own[:, None] * H + units[None, :]

    dm = tl.zeros((BM, BH), tl.float32)
    if ABOVE:
        dm = product(dm, above + (offset + own) * K, valid, w_above, 0, 0, tile, H, K, 1, BH, BK, 0, False, PRECISION)
        if DROPPED:
            dm *= tl.load(dropped + at_h, mine, other=0.0).to(tl.float32)
    dm = product(dm, dgates + (offset_after + own) * K, follows, w, 0, 0, tile, H, K, 1, BH, BK, 0, False, PRECISION)
    if OUTPUT:
        dm = product(dm, dz + (offset + own) * H, valid, w_out, 0, 0, tile, H, H, 1, BH, BK, 0, False, PRECISION)
    asking, asks = (offset_after, follows) if BEFORE else (offset, valid)
    if QUERY == 2:
        dm = product(dm, dquery + (asking + own) * A, asks, w_query, 0, 0, tile, H, A, 1, BH, BK, 0, False, PRECISION)
    if QUERY == 1:
        share = (asking + own)[:, None] * H + units[None, :]
        dm += tl.load(dquery + share, asks[:, None] & (units < H)[None, :], other=0.0).to(tl.float32)
    if GIVEN:
        dm += tl.load(dh + at_h, mine, other=0.0).to(tl.float32)
    dm += tl.load(dh_n + state, mine & ~follows[:, None], other=0.0).to(tl.float32)

    dc = tl.load(dc_state + state, mine, other=0.0)
    i, f, g, o = load_gates(gates.to(tl.pointer_type(SAVED), bitcast=True), at, mine, H, COUPLED)
    if COUPLED:
        f = 1.0 - i
    c = tl.load(cells + at_h, mine, other=0.0)
    has_before, earlier = tl.where(t > 0, valid, False)[:, None], (offset - B + own)[:, None] * H + units[None, :]
    c_prev = tl.load(cells + earlier, mine & has_before, other=0.0)
    c_prev += tl.load(c0 + state, mine & ~has_before, other=0.0).to(tl.float32)
    p_i, p_f, p_o = load_peepholes(peephole, units[None, :], (units < H)[None, :], H, COUPLED, PEEPHOLE)

    by_i, by_f, by_g, by_o, by_c = factors(i, f, g, o, tanh(c), c_prev, COUPLED)
    da_i, da_f, da_g, da_o, dc = gradients(dm, dc, by_i, by_f, by_g, by_o, by_c, p_o, PEEPHOLE)
    store_gates(dgates, at, mine, H, da_i, da_f, da_g, da_o, COUPLED)
    dc_prev = cell_before(dc, f, da_i, da_f, p_i, p_f, COUPLED, PEEPHOLE)
    tl.store(dc_state + state, dc_prev, mine)
    if PEEPHOLE:
        sums = dpeephole + tl.program_id(0) * (GATES - 1) * H + units
        add(sums, da_i * c_prev, units < H)
        add(sums + (GATES - 2) * H, da_o * c, units < H)
        if not COUPLED:
            add(sums + H, da_f * c_prev, units < H)


@triton.jit
def add(sums, terms, mask):
    """To `sums` those of the rows of `terms`."""
    tl.store(sums, tl.load(sums, mask, other=0.0) + tl.sum(terms, 0).to(tl.float64), mask)
