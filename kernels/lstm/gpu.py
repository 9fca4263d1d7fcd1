"""The LSTM family's loop over time in Triton: forward and backward, for one layer and direction.

Each kernel takes `steps` steps, from the `first` on in the order in which they are run. One launch of all of them is the
persistent form: all programs are resident, those of one batch tile wait for each other once a step, and each keeps its state
in registers. A launch per step is the other form, which needs no barrier; the state goes through `c_state` or `dc_state`.

`w` is W_hh (G * H, R) in the forward and its transpose (R, G * H) in the backward, so that both products sum along rows.
With a projection the recurrent product and the gates can't share a step's launch: see `project`.
"""

import triton
import triton.language as tl

from fastlstm.kernels.gpu_gates import (
    activate,
    cell_before,
    factors,
    gradients,
    load_biases,
    load_gates,
    load_peepholes,
    store_gates,
    with_product,
)
from fastlstm.kernels.gpu_math import (
    arrive,
    dread,
    first_state,
    in_rows,
    last_state,
    leave,
    product,
    rows_run_before,
    step_rows,
    tanh,
    wait,
    weight_tile,
)


@triton.jit(do_not_specialize=["number", "patience", "first", "steps", "T", "B"])
def lstm_forward(
    gates,  # (N, G*H): W_ih x, overwritten with the activated gates where SAVE
    hidden,  # (N, R): h of every step, read
    m,  # (N, H): o * tanh(c) of every step, written; the same array as `hidden` without a projection
    cells,  # (N, H) float32: c of every step, written where SAVE
    h0,  # (B, R)
    c0,  # (B, H)
    h_n,  # (B, H): h of the last step, written where FINAL
    c_n,  # (B, H): c after the last step, written
    c_state,  # (B, H) float32: c between launches, where CARRIED
    w,
    bias,  # (G*H,), and
    more_bias,  # another such, of which there are BIASES
    peephole,  # (G - 1, H)
    reset,  # (N,) uint8
    offsets,  # (T,) int64
    sizes,  # (T,) int64
    barrier,  # (batch tiles, 32) int32, zeros before and after, of which the first of 32 counts
    alarm,  # () int32, in the host's memory: see `wait`
    number,
    patience,
    first,
    steps,
    T,
    B,
    H: tl.constexpr,
    K: tl.constexpr,  # = R
    COUPLED: tl.constexpr,
    PEEPHOLE: tl.constexpr,
    REVERSE: tl.constexpr,
    VARIABLE: tl.constexpr,
    RESET: tl.constexpr,
    SAVE: tl.constexpr,
    BIASES: tl.constexpr,
    FINAL: tl.constexpr,  # all sequences end at the last step, and h isn't projected
    CARRIED: tl.constexpr,  # there are other launches before or after this one
    PERSISTENT: tl.constexpr,
    SAVED: tl.constexpr,  # dtype of saved gates, as wide as that of `gates`
    ALIGN: tl.constexpr,  # bytes that divide those of a row of `hidden`
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    BK2: tl.constexpr,
    KEEP: tl.constexpr,
    SPLIT: tl.constexpr,
):
    GATES: tl.constexpr = 3 if COUPLED else 4
    batch_tile, tile = tl.program_id(0), tl.program_id(1)
    rows = batch_tile * BM + tl.arange(0, BM)
    units = tile * BH + tl.arange(0, BH)
    own = (rows < B)[:, None] & (units < H)[None, :]
    state = rows.to(tl.int64)[:, None] * H + units[None, :]
    c = first_state(c0, own, c_state, state, own, first, CARRIED)
    b_i, b_f, b_g, b_o = load_biases(bias, more_bias, units, H, COUPLED, BIASES)
    p_i, p_f, p_o = load_peepholes(peephole, units[None, :], (units < H)[None, :], H, COUPLED, PEEPHOLE)
    kept = weight_tile(w, tile, 0, H, K, GATES, BH, BK, SPLIT) if KEEP else 0
    more = weight_tile(w, tile, BK, H, K, GATES, BH, BK2, SPLIT) if KEEP and BK2 > 0 else 0
    offset_before, size_before = rows_run_before(first, T, B, offsets, sizes, REVERSE, VARIABLE)
    arrivals, hope = 0, patience > 0

    for s in tl.range(first, first + steps, num_stages=1):
        t = T - 1 - s if REVERSE else s
        offset, size = step_rows(t, B, offsets, sizes, VARIABLE)
        valid = rows < size
        mine = valid[:, None] & (units < H)[None, :]
        cut = (tl.load(reset + offset + rows, valid, other=0) != 0) if RESET else ~valid

        # the loads that need not wait for the step before
        at = (offset + rows)[:, None] * (GATES * H) + units[None, :]
        a_i, a_f, a_g, a_o = load_gates(gates, at, mine, H, COUPLED)

        if PERSISTENT:
            hope = wait(barrier + batch_tile * 32, arrivals, hope, patience, alarm, number)
            arrivals += tl.num_programs(1)
        h = tl.where(rows < size_before, hidden + (offset_before + rows) * K, h0 + rows.to(tl.int64) * K)
        acc = tl.zeros((BM, 4 * BH), tl.float32) + dread(hope, PERSISTENT)
        acc = product(
            acc, tl.multiple_of(h, ALIGN), valid & ~cut, w, kept, more, tile, H,
            K, GATES, BH, BK, BK2, KEEP, PRECISION, SPLIT,
        )  # fmt: skip

        c_prev = tl.where(cut[:, None], 0.0, c) if RESET else c
        a_i, a_f, a_g, a_o = a_i + b_i, a_f + b_f, a_g + b_g, a_o + b_o
        a_i, a_f, a_g, a_o = with_product(a_i, a_f, a_g, a_o, acc, BM, BH, COUPLED)
        i, f, g, o, c_new, m_new = activate(a_i, a_f, a_g, a_o, c_prev, p_i, p_f, p_o, COUPLED, PEEPHOLE)
        at_h = (offset + rows)[:, None] * H + units[None, :]
        tl.store(m + at_h, m_new.to(m.dtype.element_ty), mine)
        if PERSISTENT:
            arrive(barrier + batch_tile * 32)
        if SAVE:
            store_gates(gates.to(tl.pointer_type(SAVED), bitcast=True), at, mine, H, i, f, g, o, COUPLED)
            tl.store(cells + at_h, c_new, mine)
        if FINAL:
            ends = (rows < tl.where(s == T - 1, size, 0))[:, None] & (units < H)[None, :]
            tl.store(h_n + state, m_new.to(m.dtype.element_ty), ends)
        c = tl.where(mine, c_new, c)
        offset_before, size_before = offset, size
    last_state(c_n, c_state, state, c, own, first + steps >= T, CARRIED)
    if PERSISTENT:
        leave(barrier + batch_tile * 32, steps)


@triton.jit(do_not_specialize=["number", "patience", "given", "first", "steps", "T", "B"])
def lstm_backward(
    dgates,  # (N, G*H): the gradients of the pre-activations, written; and read, where not PROJECTED
    dh,  # (N, R): the gradient of y; with PROJECTED that of h, from `project`
    gates,  # (N, G*H), as the forward saved them
    cells,  # (N, H) float32
    dcells,  # (N, H): the gradient of the cells of every step, where CELLS
    m,  # (N, H): o * tanh(c) of every step, written
    c0,  # (B, H)
    dh_n,  # (B, R): the gradient of the final h; not with PROJECTED
    dc_n,  # (B, H): that of the final c
    dc0,  # (B, H): and of the first, written
    dc_state,  # (B, H) float32: that of c between launches, where CARRIED
    dpeephole,  # (batch tiles, G - 1, H) float64, zeros: sums over steps and the rows of a tile
    w,
    peephole,
    reset,
    offsets,
    sizes,
    barrier,
    alarm,
    number,
    patience,
    given,  # the sum of 1, if there is a dh, 2 for dh_n and 4 for dc_n: others are zeros, which nobody reads; and 8 for m
    first,
    steps,
    T,
    B,
    H: tl.constexpr,
    K: tl.constexpr,  # = G * H, or R with PROJECTED
    COUPLED: tl.constexpr,
    PEEPHOLE: tl.constexpr,
    REVERSE: tl.constexpr,
    VARIABLE: tl.constexpr,
    RESET: tl.constexpr,
    CELLS: tl.constexpr,
    PROJECTED: tl.constexpr,
    CARRIED: tl.constexpr,
    PERSISTENT: tl.constexpr,
    SAVED: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
    BK2: tl.constexpr,
    KEEP: tl.constexpr,
    SPLIT: tl.constexpr,
):
    GATES: tl.constexpr = 3 if COUPLED else 4
    batch_tile, tile = tl.program_id(0), tl.program_id(1)
    rows = batch_tile * BM + tl.arange(0, BM)
    units = tile * BH + tl.arange(0, BH)
    own = (rows < B)[:, None] & (units < H)[None, :]
    state = rows.to(tl.int64)[:, None] * H + units[None, :]
    dc = first_state(dc_n, tl.where((given & 4) > 0, own, False), dc_state, state, own, first, CARRIED)
    p_i, p_f, p_o = load_peepholes(peephole, units[None, :], (units < H)[None, :], H, COUPLED, PEEPHOLE)
    if PEEPHOLE:
        sums = dpeephole + batch_tile * (GATES - 1) * H + units
        dp_i = tl.load(sums, units < H, other=0.0)
        dp_o = tl.load(sums + (GATES - 2) * H, units < H, other=0.0)
        if not COUPLED:
            dp_f = tl.load(sums + H, units < H, other=0.0)
    kept = weight_tile(w, tile, 0, H, K, 1, BH, BK, SPLIT) if KEEP else 0
    more = weight_tile(w, tile, BK, H, K, 1, BH, BK2, SPLIT) if KEEP and BK2 > 0 else 0
    # the step after, in the forward's order: the one that is run before this
    offset_after, size_after = rows_run_before(first, T, B, offsets, sizes, not REVERSE, VARIABLE)
    arrivals, hope = 0, patience > 0
    offset, size = step_rows(first if REVERSE else T - 1 - first, B, offsets, sizes, VARIABLE)
    if PERSISTENT:
        of_first = (rows < size)[:, None] & (units < H)[None, :]
        c = tl.load(cells + (offset + rows)[:, None] * H + units[None, :], of_first, other=0.0)
        tanh_c = tanh(c)

    for s in tl.range(first, first + steps, num_stages=1):
        t = s if REVERSE else T - 1 - s
        valid = rows < size
        mine = valid[:, None] & (units < H)[None, :]
        cut = (tl.load(reset + offset + rows, valid, other=0) != 0) if RESET else ~valid

        at = (offset + rows)[:, None] * (GATES * H) + units[None, :]
        at_h = (offset + rows)[:, None] * H + units[None, :]
        save = gates.to(tl.pointer_type(SAVED), bitcast=True)
        i, f, g, o = load_gates(save, at, mine, H, COUPLED)
        if COUPLED:
            f = 1.0 - i
        if not PERSISTENT:  # else it was loaded as that of the step before
            c = tl.load(cells + at_h, mine, other=0.0)
            tanh_c = tanh(c)
        # c of the step before, which is run next; to this step it is that of the rows that have one and are not cut from it
        t_before = tl.minimum(tl.maximum(t + 1 if REVERSE else t - 1, 0), T - 1)
        offset_before, size_before = step_rows(t_before, B, offsets, sizes, VARIABLE)
        size_before = tl.where(s < T - 1, size_before, 0)
        has_before, seen = (rows < size_before)[:, None], mine & ~cut[:, None] if RESET else mine
        earlier = (offset_before + rows)[:, None] * H + units[None, :]
        if PERSISTENT:
            c_before = tl.load(cells + earlier, has_before & (units < H)[None, :], other=0.0)
            c_prev = tl.where(seen, c_before, 0.0)
        else:
            c_prev = tl.load(cells + earlier, seen & has_before, other=0.0)
        c_prev += tl.load(c0 + state, seen & ~has_before, other=0.0).to(tl.float32)
        if CELLS:
            dc += tl.load(dcells + at_h, mine, other=0.0).to(tl.float32)
        follows = valid & (rows < size_after)
        if PROJECTED:
            a, a_mask = dh + (offset + rows) * K, valid
        else:
            of_y = tl.load(dh + at_h, tl.where((given & 1) > 0, mine, False), other=0.0).to(tl.float32)
            ends = tl.where((given & 2) > 0, mine & ~follows[:, None], False)
            of_y += tl.load(dh_n + state, ends, other=0.0).to(tl.float32)
            a, a_mask = dgates + (offset_after + rows) * K, follows
            if RESET:
                a_mask = a_mask & (tl.load(reset + offset_after + rows, follows, other=0) == 0)
            tl.store(m + at_h, (o * tanh_c).to(m.dtype.element_ty), tl.where((given & 8) > 0, mine, False))

        by_i, by_f, by_g, by_o, by_c = factors(i, f, g, o, tanh_c, c_prev, COUPLED)

        if PERSISTENT:
            hope = wait(barrier + batch_tile * 32, arrivals, hope, patience, alarm, number)
            arrivals += tl.num_programs(1)
        acc = tl.zeros((BM, BH), tl.float32)
        acc = product(
            acc, tl.multiple_of(a, ALIGN), a_mask, w, kept, more, tile, H, K, 1, BH, BK, BK2, KEEP, PRECISION, SPLIT
        )
        acc = in_rows(acc, dread(hope, PERSISTENT), SPLIT)
        dm = acc if PROJECTED else acc + of_y

        da_i, da_f, da_g, da_o, dc = gradients(dm, dc, by_i, by_f, by_g, by_o, by_c, p_o, PEEPHOLE)
        store_gates(dgates, at, mine, H, da_i, da_f, da_g, da_o, COUPLED)
        if PERSISTENT:
            arrive(barrier + batch_tile * 32)
        dc_prev = cell_before(dc, f, da_i, da_f, p_i, p_f, COUPLED, PEEPHOLE)
        if PEEPHOLE:
            dp_i += tl.sum(da_i * c_prev, 0).to(tl.float64)
            dp_o += tl.sum(da_o * c, 0).to(tl.float64)
            if not COUPLED:
                dp_f += tl.sum(da_f * c_prev, 0).to(tl.float64)
        if RESET:
            dc_prev = tl.where(cut[:, None], 0.0, dc_prev)
        dc = tl.where(mine, dc_prev, dc)
        if PERSISTENT:  # the transcendentals that the next step needs, while others still arrive
            c, tanh_c = c_before, tanh(c_before)
        offset_after, size_after = offset, size
        offset, size = offset_before, size_before

    last_state(dc0, dc_state, state, dc, own, first + steps >= T, CARRIED)
    if PERSISTENT:
        leave(barrier + batch_tile * 32, steps)
    if PEEPHOLE:
        tl.store(sums, dp_i, units < H)
        tl.store(sums + (GATES - 2) * H, dp_o, units < H)
        if not COUPLED:
            tl.store(sums + H, dp_f, units < H)


@triton.jit(do_not_specialize=["first", "steps", "T", "B"])
def project(
    out,  # (N, R): h of every step; in the backward its gradient
    a,  # (N, K): m; in the backward the gates' gradients of the step after
    w,  # (R, K): W_hr; in the backward the transpose of W_hh
    dy,  # (N, R): the backward adds it
    dh_n,  # (B, R): and this where a sequence ends
    reset,
    offsets,
    sizes,
    first,
    steps,
    T,
    B,
    R: tl.constexpr,
    K: tl.constexpr,
    BACKWARD: tl.constexpr,
    REVERSE: tl.constexpr,
    VARIABLE: tl.constexpr,
    RESET: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    """One step of what a projection adds to the loop: h = W_hr m, or dh = dy + W_hh^T da of the step after."""
    batch_tile, tile = tl.program_id(0), tl.program_id(1)
    rows = batch_tile * BM + tl.arange(0, BM)
    units = tile * BH + tl.arange(0, BH)
    for s in tl.range(first, first + steps, num_stages=1):
        t = s if REVERSE == BACKWARD else T - 1 - s
        offset, size = step_rows(t, B, offsets, sizes, VARIABLE)
        valid = rows < size
        mine = valid[:, None] & (units < R)[None, :]
        at = (offset + rows)[:, None] * R + units[None, :]
        acc = tl.zeros((BM, BH), tl.float32)
        if BACKWARD:
            offset_after, size_after = rows_run_before(s, T, B, offsets, sizes, not REVERSE, VARIABLE)
            follows = valid & (rows < size_after)
            acc += tl.load(dy + at, mine, other=0.0).to(tl.float32)
            final = rows.to(tl.int64)[:, None] * R + units[None, :]
            acc += tl.load(dh_n + final, mine & ~follows[:, None], other=0.0).to(tl.float32)
            if RESET:
                follows = follows & (tl.load(reset + offset_after + rows, follows, other=0) == 0)
            source, mask = a + (offset_after + rows) * K, follows
        else:
            source, mask = a + (offset + rows) * K, valid
        acc = product(acc, tl.multiple_of(source, ALIGN), mask, w, 0, 0, tile, R, K, 1, BH, BK, 0, False, PRECISION)
        tl.store(out + at, acc.to(out.dtype.element_ty), mine)
