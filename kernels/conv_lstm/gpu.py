"""One step of the ConvLSTM in Triton, forward and backward, for one layer and direction; a launch is one step.

The recurrent convolution is a product that is never laid out: rows are pixels, in the order (b, *S'), columns the gates of some
channels, and it sums over taps and channels. The rows of a tap are the map's own, shifted, and masked where the image ends.

Sizes: T time, B sequences, H channels, `depth`, `height` and `width` the image (1 where it has fewer dimensions), M its pixels;
KZ, KY, KX the kernel, which reaches (k - 1) // 2 before a pixel and the rest after it. N = T * B * M rows.
`w` has taps in the order of the kernel: W_hh as (taps, G*H, H) in the forward, (taps, H, G*H) in the backward, so that both
products sum along rows. `offsets` and `sizes` count sequences, and `reset` has one number for each: see `step_rows`.
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
from fastlstm.kernels.gpu_math import dot, row_tile, rows_run_before, step_rows, tanh, weight_tile


@triton.jit
def tap_product(
    acc, a, a_mask, pixels, w, tile, taps, depth, height, width, H,
    K: tl.constexpr, KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, BACK: tl.constexpr,
    GATES: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc` plus, over `taps` (all of the kernel or none), the rows that a tap sees times its weights.

    `a` (BM,) points to each pixel's own row of K, `pixels` says which of the image it is. BACK: a tap sees the pixel that sees
    this one by it. One loop over taps and blocks of channels, for a software pipeline to run ahead in; rows come through the
    first-level cache, since the next tap reads most of them again.
    """
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    SIGN: tl.constexpr = -1 if BACK else 1
    x, y, z = pixels % width, pixels // width % height, pixels // (width * height)
    for n in tl.range(0, taps * BLOCKS):
        tap, k = n // BLOCKS, n % BLOCKS * BK
        dx = SIGN * (tap % KX - (KX - 1) // 2)
        dy = SIGN * (tap // KX % KY - (KY - 1) // 2)
        dz = SIGN * (tap // (KX * KY) - (KZ - 1) // 2)
        inside = a_mask & (x + dx >= 0) & (x + dx < width)
        if KY > 1:
            inside = inside & (y + dy >= 0) & (y + dy < height)
        if KZ > 1:
            inside = inside & (z + dz >= 0) & (z + dz < depth)
        rows = row_tile(a + ((dz * height + dy) * width + dx) * K, inside, k, K, BK, ".ca")
        weights = weight_tile(w + tap * (GATES * H * K), tile, k, H, K, GATES, BH, BK)
        acc = dot(rows, weights, acc, PRECISION)
    return acc


@triton.jit
def add(sums, terms, mask, EACH: tl.constexpr):
    """To `sums` those of the rows of `terms`, or EACH of them to its own."""
    more = terms if EACH else tl.sum(terms, 0)
    tl.store(sums, tl.load(sums, mask, other=0.0) + more.to(tl.float64), mask)


@triton.jit(do_not_specialize=["first", "T", "B", "depth", "height", "width", "fresh"])
def conv_lstm_forward(
    inputs,  # (N, G*H): the convolution of x, with the bias
    gates,  # (N, G*H): the activated gates, written where SAVE
    hidden,  # (N, H): h of every step, written, and read by the step after
    cells,  # (N, H) float32: c of every step, written where SAVE
    h0,  # (B * M, H)
    c_state,  # (B * M, H) float32: c before the step, and then after it
    w,
    peephole,  # (G - 1, H), or (G - 1, M, H) where HADAMARD
    reset,  # (T * B,) uint8
    offsets,  # (T,) int64
    sizes,  # (T,) int64
    first,  # the step to run, in the order in which they are run
    T,
    B,
    depth,
    height,
    width,
    fresh,  # h0 is zeros
    H: tl.constexpr,
    K: tl.constexpr,  # = H
    KZ: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
    COUPLED: tl.constexpr,
    PEEPHOLE: tl.constexpr,
    HADAMARD: tl.constexpr,
    REVERSE: tl.constexpr,
    VARIABLE: tl.constexpr,
    RESET: tl.constexpr,
    SAVE: tl.constexpr,
    SAVED: tl.constexpr,  # dtype of saved gates, as wide as that of `gates`
    ALIGN: tl.constexpr,  # bytes that divide those of a row of `hidden`
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    GATES: tl.constexpr = 3 if COUPLED else 4
    tile, M = tl.program_id(1), depth * height * width
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    units = tile * BH + tl.arange(0, BH)
    sequences, pixels = rows // M, rows % M
    t = T - 1 - first if REVERSE else first
    offset, size = step_rows(t, B, offsets, sizes, VARIABLE)
    offset_before, size_before = rows_run_before(first, T, B, offsets, sizes, REVERSE, VARIABLE)
    valid = sequences < size
    mine = valid[:, None] & (units < H)[None, :]
    cut = (tl.load(reset + offset + sequences, valid, other=0) != 0) if RESET else ~valid

    own = rows.to(tl.int64)
    h = tl.where(sequences < size_before, hidden + (offset_before * M + own) * K, h0 + own * K)
    sees = (tl.program_id(0) * BM < size * M) & ((first > 0) | (fresh == 0))
    acc = tl.zeros((BM, 4 * BH), tl.float32)
    acc = tap_product(
        acc, tl.multiple_of(h, ALIGN), valid & ~cut, pixels, w, tile, tl.where(sees, KZ * KY * KX, 0),
        depth, height, width, H, K, KZ, KY, KX, False, GATES, BH, BK, PRECISION,
    )  # fmt: skip

    at_h = (offset * M + own)[:, None] * H + units[None, :]
    at = (offset * M + own)[:, None] * (GATES * H) + units[None, :]
    state = own[:, None] * H + units[None, :]
    c_prev = tl.load(c_state + state, mine & ~cut[:, None] if RESET else mine, other=0.0)
    if HADAMARD:
        p_i, p_f, p_o = load_peepholes(peephole, pixels[:, None] * H + units[None, :], mine, M * H, COUPLED, PEEPHOLE)
    else:
        p_i, p_f, p_o = load_peepholes(peephole, units[None, :], (units < H)[None, :], H, COUPLED, PEEPHOLE)
    a_i, a_f, a_g, a_o = load_gates(inputs, at, mine, H, COUPLED)
    a_i, a_f, a_g, a_o = with_product(a_i, a_f, a_g, a_o, acc, BM, BH, COUPLED)
    i, f, g, o, c, m = activate(a_i, a_f, a_g, a_o, c_prev, p_i, p_f, p_o, COUPLED, PEEPHOLE)
    tl.store(hidden + at_h, m.to(hidden.dtype.element_ty), mine)
    tl.store(c_state + state, c, mine)
    if SAVE:
        store_gates(gates.to(tl.pointer_type(SAVED), bitcast=True), at, mine, H, i, f, g, o, COUPLED)
        tl.store(cells + at_h, c, mine)


@triton.jit(do_not_specialize=["first", "T", "B", "depth", "height", "width"])
def conv_lstm_backward(
    dgates,  # (N, G*H): the gradients of the pre-activations, written, and read by the next launch
    dh,  # (N, H): the gradient of y
    gates,  # (N, G*H), as the forward saved them
    cells,  # (N, H) float32
    dcells,  # (N, H): the gradient of the cells of every step, where CELLS
    c0,  # (B * M, H)
    dh_n,  # (B * M, H): the gradient of the final h
    dc_state,  # (B * M, H) float32: that of the final c, and then of c0
    dpeephole,  # float64, zeros, summed over steps: (tiles of rows, G - 1, H), or (G - 1, B * M, H) where HADAMARD
    w,
    peephole,
    reset,
    offsets,
    sizes,
    first,
    T,
    B,
    depth,
    height,
    width,
    H: tl.constexpr,
    K: tl.constexpr,  # = G * H
    KZ: tl.constexpr,
    KY: tl.constexpr,
    KX: tl.constexpr,
    COUPLED: tl.constexpr,
    PEEPHOLE: tl.constexpr,
    HADAMARD: tl.constexpr,
    REVERSE: tl.constexpr,
    VARIABLE: tl.constexpr,
    RESET: tl.constexpr,
    CELLS: tl.constexpr,
    SAVED: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    GATES: tl.constexpr = 3 if COUPLED else 4
    tile, M = tl.program_id(1), depth * height * width
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    units = tile * BH + tl.arange(0, BH)
    sequences, pixels = rows // M, rows % M
    t = first if REVERSE else T - 1 - first
    offset, size = step_rows(t, B, offsets, sizes, VARIABLE)
    # the step after, in the forward's order: the one that is run before this
    offset_after, size_after = rows_run_before(first, T, B, offsets, sizes, not REVERSE, VARIABLE)
    valid = sequences < size
    mine = valid[:, None] & (units < H)[None, :]
    cut = (tl.load(reset + offset + sequences, valid, other=0) != 0) if RESET else ~valid
    follows = valid & (sequences < size_after)
    back = follows
    if RESET:
        back = back & (tl.load(reset + offset_after + sequences, follows, other=0) == 0)

    own = rows.to(tl.int64)
    after = dgates + (offset_after * M + own) * K
    sees = tl.program_id(0) * BM < size_after * M
    dm = tl.zeros((BM, BH), tl.float32)
    dm = tap_product(
        dm, tl.multiple_of(after, ALIGN), back, pixels, w, tile, tl.where(sees, KZ * KY * KX, 0),
        depth, height, width, H, K, KZ, KY, KX, True, 1, BH, BK, PRECISION,
    )  # fmt: skip

    at_h = (offset * M + own)[:, None] * H + units[None, :]
    at = (offset * M + own)[:, None] * (GATES * H) + units[None, :]
    state = own[:, None] * H + units[None, :]
    dm += tl.load(dh + at_h, mine, other=0.0).to(tl.float32)
    dm += tl.load(dh_n + state, mine & ~follows[:, None], other=0.0).to(tl.float32)
    dc = tl.load(dc_state + state, mine, other=0.0)
    if CELLS:
        dc += tl.load(dcells + at_h, mine, other=0.0).to(tl.float32)
    i, f, g, o = load_gates(gates.to(tl.pointer_type(SAVED), bitcast=True), at, mine, H, COUPLED)
    if COUPLED:
        f = 1.0 - i
    c = tl.load(cells + at_h, mine, other=0.0)
    # c of the step before: of the rows that have one, and that are not cut from it
    t_before = tl.minimum(tl.maximum(t + 1 if REVERSE else t - 1, 0), T - 1)
    offset_before, size_before = step_rows(t_before, B, offsets, sizes, VARIABLE)
    has_before = tl.where(first < T - 1, sequences < size_before, False)[:, None]
    seen, earlier = mine & ~cut[:, None] if RESET else mine, (offset_before * M + own)[:, None] * H + units[None, :]
    c_prev = tl.load(cells + earlier, seen & has_before, other=0.0)
    c_prev += tl.load(c0 + state, seen & ~has_before, other=0.0).to(tl.float32)
    if HADAMARD:
        p_i, p_f, p_o = load_peepholes(peephole, pixels[:, None] * H + units[None, :], mine, M * H, COUPLED, PEEPHOLE)
    else:
        p_i, p_f, p_o = load_peepholes(peephole, units[None, :], (units < H)[None, :], H, COUPLED, PEEPHOLE)

    by_i, by_f, by_g, by_o, by_c = factors(i, f, g, o, tanh(c), c_prev, COUPLED)
    da_i, da_f, da_g, da_o, dc = gradients(dm, dc, by_i, by_f, by_g, by_o, by_c, p_o, PEEPHOLE)
    store_gates(dgates, at, mine, H, da_i, da_f, da_g, da_o, COUPLED)
    dc_prev = cell_before(dc, f, da_i, da_f, p_i, p_f, COUPLED, PEEPHOLE)
    tl.store(dc_state + state, tl.where(cut[:, None], 0.0, dc_prev) if RESET else dc_prev, mine)
    if PEEPHOLE:
        if HADAMARD:
            sums, stride, mask = dpeephole + state, tl.cast(B * M, tl.int64) * H, mine
        else:
            sums, stride, mask = dpeephole + tl.program_id(0) * (GATES - 1) * H + units, H, units < H
        add(sums, da_i * c_prev, mask, HADAMARD)
        add(sums + (GATES - 2) * stride, da_o * c, mask, HADAMARD)
        if not COUPLED:
            add(sums + stride, da_f * c_prev, mask, HADAMARD)
