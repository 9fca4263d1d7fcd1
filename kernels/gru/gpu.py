"""The GRU's loop over time in Triton: forward and backward, for one layer and direction.

Each kernel takes `steps` steps, from the `first` on in the order in which they are run. One launch of all of them is the
persistent form: all programs are resident, those of one batch tile wait for each other once a step, and each keeps its state
in registers. A launch per step is the other form, which needs no barrier; the state goes through `h_state` or `dh_state`.

`w` is W_hh (3 * H, H) in the forward and its transpose (H, 3 * H) in the backward, so that both products sum along rows.
"""

import triton
import triton.language as tl

from fastlstm.kernels.gpu_math import (
    arrive,
    dread,
    first_state,
    in_rows,
    leave,
    product,
    rows_run_before,
    sigmoid,
    split_gates,
    step_rows,
    tanh,
    wait,
    weight_tile,
)


@triton.jit(do_not_specialize=["number", "patience", "first", "steps", "T", "B"])
def gru_forward(
    gates,  # (N, 3*H): W_ih x, overwritten with the activated r, z, n where SAVE
    hn,  # (N, H): W_hn h + b_hn, which r acts on, written where SAVE
    y,  # (N, H): h of every step, written, and read by the step after
    h0,  # (B, H)
    h_n,  # (B, H): h of the last step, written where FINAL
    h_state,  # (B, H) float32: h between launches, where CARRIED
    w,
    b_ih,  # (3*H,), where BIAS_IH
    b_hh,  # (3*H,), where BIAS_HH
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
    K: tl.constexpr,  # = H
    BIAS_IH: tl.constexpr,
    BIAS_HH: tl.constexpr,
    REVERSE: tl.constexpr,
    VARIABLE: tl.constexpr,
    RESET: tl.constexpr,
    SAVE: tl.constexpr,
    FINAL: tl.constexpr,  # all sequences end at the last step
    CARRIED: tl.constexpr,  # there are other launches before or after this one
    PERSISTENT: tl.constexpr,
    SAVED: tl.constexpr,  # dtype of saved gates, as wide as that of `gates`
    ALIGN: tl.constexpr,  # bytes that divide those of a row of `y`
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
    units = tile * BH + tl.arange(0, BH)
    own = (rows < B)[:, None] & (units < H)[None, :]
    state = rows.to(tl.int64)[:, None] * H + units[None, :]
    h = first_state(h0, own, h_state, state, own, first, CARRIED)
    b_r, b_z, b_in = load_bias(b_ih, units, H, BIAS_IH)
    m_r, m_z, b_hn = load_bias(b_hh, units, H, BIAS_HH)
    b_r, b_z = b_r + m_r, b_z + m_z
    kept = weight_tile(w, tile, 0, H, K, 3, BH, BK, SPLIT) if KEEP else 0
    more = weight_tile(w, tile, BK, H, K, 3, BH, BK2, SPLIT) if KEEP and BK2 > 0 else 0
    offset_before, size_before = rows_run_before(first, T, B, offsets, sizes, REVERSE, VARIABLE)
    arrivals, hope = 0, patience > 0

    for s in tl.range(first, first + steps, num_stages=1):
        t = T - 1 - s if REVERSE else s
        offset, size = step_rows(t, B, offsets, sizes, VARIABLE)
        valid = rows < size
        mine = valid[:, None] & (units < H)[None, :]
        cut = (tl.load(reset + offset + rows, valid, other=0) != 0) if RESET else ~valid

        # the loads that need not wait for the step before
        at = (offset + rows)[:, None] * (3 * H) + units[None, :]
        a_r = tl.load(gates + at, mine, other=0.0).to(tl.float32)
        a_z = tl.load(gates + at + H, mine, other=0.0).to(tl.float32)
        a_n = tl.load(gates + at + 2 * H, mine, other=0.0).to(tl.float32)

        if PERSISTENT:
            hope = wait(barrier + batch_tile * 32, arrivals, hope, patience, alarm, number)
            arrivals += tl.num_programs(1)
        a = tl.where(rows < size_before, y + (offset_before + rows) * K, h0 + rows.to(tl.int64) * K)
        acc = tl.zeros((BM, 4 * BH), tl.float32) + dread(hope, PERSISTENT)
        acc = product(
            acc, tl.multiple_of(a, ALIGN), valid & ~cut, w, kept, more, tile, H,
            K, 3, BH, BK, BK2, KEEP, PRECISION, SPLIT,
        )  # fmt: skip

        h_prev = tl.where(cut[:, None], 0.0, h) if RESET else h
        h_r, h_z, of_h, _ = split_gates(acc, BM, BH)
        of_h += b_hn
        r, z = sigmoid(a_r + b_r + h_r), sigmoid(a_z + b_z + h_z)
        n = tanh(a_n + b_in + r * of_h)
        h_new = (1.0 - z) * n + z * h_prev
        at_h = (offset + rows)[:, None] * H + units[None, :]
        tl.store(y + at_h, h_new.to(y.dtype.element_ty), mine)
        if PERSISTENT:
            arrive(barrier + batch_tile * 32)
        if SAVE:
            save = gates.to(tl.pointer_type(SAVED), bitcast=True)
            tl.store(save + at, r.to(SAVED), mine)
            tl.store(save + at + H, z.to(SAVED), mine)
            tl.store(save + at + 2 * H, n.to(SAVED), mine)
            tl.store(hn + at_h, of_h.to(hn.dtype.element_ty), mine)
        if FINAL:
            ends = (rows < tl.where(s == T - 1, size, 0))[:, None] & (units < H)[None, :]
            tl.store(h_n + state, h_new.to(y.dtype.element_ty), ends)
        h = tl.where(mine, h_new, h)
        offset_before, size_before = offset, size
    if CARRIED:
        tl.store(h_state + state, h, own)
    if PERSISTENT:
        leave(barrier + batch_tile * 32, steps)


@triton.jit
def load_bias(bias, units, H, GIVEN: tl.constexpr):
    """A vector of 3*H's numbers (1, BH) for r, z and n, or 0."""
    if GIVEN:
        at, mask = units[None, :], (units < H)[None, :]
        b_r = tl.load(bias + at, mask, other=0.0).to(tl.float32)
        b_z = tl.load(bias + at + H, mask, other=0.0).to(tl.float32)
        b_n = tl.load(bias + at + 2 * H, mask, other=0.0).to(tl.float32)
    else:
        b_r, b_z, b_n = 0.0, 0.0, 0.0
    return b_r, b_z, b_n


@triton.jit(do_not_specialize=["number", "patience", "given", "first", "steps", "T", "B"])
def gru_backward(
    dgates,  # (N, 4*H): the gradients of the pre-activations of n, r and z, and of what r acts on; written, the last 3*H read
    dy,  # (N, H)
    gates,  # (N, 3*H): r, z, n, as the forward saved them
    hn,  # (N, H)
    y,  # (N, H)
    h0,  # (B, H)
    dh_n,  # (B, H): the gradient of the final h
    through,  # (B, H) float32: what reaches h0 through z, written; between launches what reaches the h before
    w,
    reset,
    offsets,
    sizes,
    barrier,
    alarm,
    number,
    patience,
    given,  # the sum of 1, if there is a dy, and 2 for dh_n: others are zeros, which nobody reads
    first,
    steps,
    T,
    B,
    H: tl.constexpr,
    K: tl.constexpr,  # = 3 * H
    REVERSE: tl.constexpr,
    VARIABLE: tl.constexpr,
    RESET: tl.constexpr,
    CARRIED: tl.constexpr,
    PERSISTENT: tl.constexpr,
    SAVED: tl.constexpr,
    ALIGN: tl.constexpr,  # divides the bytes of H, too
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
    units = tile * BH + tl.arange(0, BH)
    own = (rows < B)[:, None] & (units < H)[None, :]
    state = rows.to(tl.int64)[:, None] * H + units[None, :]
    carry = first_state(dh_n, tl.where((given & 2) > 0, own, False), through, state, own, first, CARRIED)
    kept = weight_tile(w, tile, 0, H, K, 1, BH, BK, SPLIT) if KEEP else 0
    more = weight_tile(w, tile, BK, H, K, 1, BH, BK2, SPLIT) if KEEP and BK2 > 0 else 0
    # the step after, in the forward's order: the one that is run before this
    offset_after, size_after = rows_run_before(first, T, B, offsets, sizes, not REVERSE, VARIABLE)
    arrivals, hope = 0, patience > 0

    for s in tl.range(first, first + steps, num_stages=1):
        t = s if REVERSE else T - 1 - s
        offset, size = step_rows(t, B, offsets, sizes, VARIABLE)
        valid = rows < size
        mine = valid[:, None] & (units < H)[None, :]
        cut = (tl.load(reset + offset + rows, valid, other=0) != 0) if RESET else ~valid

        at = (offset + rows)[:, None] * (3 * H) + units[None, :]
        at_h = (offset + rows)[:, None] * H + units[None, :]
        save = gates.to(tl.pointer_type(SAVED), bitcast=True)
        r = tl.load(save + at, mine, other=0.0).to(tl.float32)
        z = tl.load(save + at + H, mine, other=0.0).to(tl.float32)
        n = tl.load(save + at + 2 * H, mine, other=0.0).to(tl.float32)
        h_n = tl.load(hn + at_h, mine, other=0.0).to(tl.float32)
        # h of the step before: of the rows that have one, and that are not cut from it
        t_before = tl.minimum(tl.maximum(t + 1 if REVERSE else t - 1, 0), T - 1)
        offset_before, size_before = step_rows(t_before, B, offsets, sizes, VARIABLE)
        size_before = tl.where(s < T - 1, size_before, 0)
        old = tl.where(rows < size_before, y + (offset_before + rows) * H, h0 + rows.to(tl.int64) * H)
        old = tl.multiple_of(old, ALIGN)[:, None] + units[None, :]
        h_prev = tl.load(old, mine & ~cut[:, None] if RESET else mine, other=0.0).to(tl.float32)
        dh = tl.load(dy + at_h, tl.where((given & 1) > 0, mine, False), other=0.0).to(tl.float32) + carry
        follows = valid & (rows < size_after)
        a, a_mask = dgates + (offset_after + rows) * (4 * H) + H, follows
        if RESET:
            a_mask = a_mask & (tl.load(reset + offset_after + rows, follows, other=0) == 0)

        if PERSISTENT:
            hope = wait(barrier + batch_tile * 32, arrivals, hope, patience, alarm, number)
            arrivals += tl.num_programs(1)
        acc = tl.zeros((BM, BH), tl.float32)
        acc = product(
            acc, tl.multiple_of(a, ALIGN), a_mask, w, kept, more, tile, H, K, 1, BH, BK, BK2, KEEP, PRECISION, SPLIT
        )
        dh += in_rows(acc, dread(hope, PERSISTENT), SPLIT)

        da_n = dh * (1.0 - z) * (1.0 - n * n)
        da_r = da_n * h_n * r * (1.0 - r)
        da_z = dh * (h_prev - n) * z * (1.0 - z)
        out = dgates.dtype.element_ty
        to = dgates + (offset + rows)[:, None] * (4 * H) + units[None, :]
        tl.store(to + H, da_r.to(out), mine)
        tl.store(to + 2 * H, da_z.to(out), mine)
        tl.store(to + 3 * H, (da_n * r).to(out), mine)
        if PERSISTENT:
            arrive(barrier + batch_tile * 32)
        tl.store(to, da_n.to(out), mine)
        passed = dh * z
        if RESET:
            passed = tl.where(cut[:, None], 0.0, passed)
        carry = tl.where(mine, passed, carry)
        offset_after, size_after = offset, size
    tl.store(through + state, carry, own)
    if PERSISTENT:
        leave(barrier + batch_tile * 32, steps)
