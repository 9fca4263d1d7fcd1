"""The attention of one row in Triton, a program each, forward and backward.

A launch takes the rows of one step in a loop, or those of all steps. Each reads keys and memory once, in tiles of slots:
scores, a softmax whose maximum and sum run along, from minus infinity on, and the context. The backward takes tanh again.

Sizes: T time, B batch, H hidden, S slots, M memory, A attention, N = T * B rows. Arithmetic is float32. Row t * B + b that is
beyond the length of sequence b has an empty memory; all it yields are zeros, and nothing beyond `lengths` is read.
"""

import triton
import triton.language as tl

from fastlstm.kernels.gpu_math import step_rows, tanh


@triton.jit
def row_of(t, b, B, S, lengths, offsets, sizes, LENGTHS: tl.constexpr, VARIABLE: tl.constexpr):
    """The row of sequence b in step t, how many slots it sees, and whether there is such a step."""
    offset, size = step_rows(t, B, offsets, sizes, VARIABLE)
    length = tl.load(lengths + b) if LENGTHS else S.to(tl.int64)
    return offset + b, tl.where(b < size, length, 0), b < size


@triton.jit
def query_row(hidden, h0, row, t, b, B, K: tl.constexpr, OLD: tl.constexpr):
    """Where what asks lies: of the row itself, or where OLD of the step before, which is `h0` before the first."""
    h = hidden + row * K
    if OLD:
        h = tl.where(t > 0, h - B.to(tl.int64) * K, h0 + b.to(tl.int64) * K)
    return h


@triton.jit
def slot_tile(array, slots, valid, b, B, K: tl.constexpr, BK: tl.constexpr):
    """The rows of `array` (S, B, K) that are b's of those slots, in float32; zeros where there are none."""
    ks = tl.arange(0, BK)
    at = (slots.to(tl.int64) * B + b)[:, None] * K + ks[None, :]
    return tl.load(array + at, valid[:, None] & (ks < K)[None, :], other=0.0).to(tl.float32)


@triton.jit
def vector(array, at, here, K: tl.constexpr, BK: tl.constexpr):
    """K numbers from `at` on, in float32; zeros where not `here`."""
    return part(array, at, tl.where(here, K, 0), 0, BK)


@triton.jit
def part(array, at, count, k, BK: tl.constexpr):
    """BK of `count` numbers from `at` on, from number k on, in float32; zeros where there are none."""
    ks = k + tl.arange(0, BK)
    return tl.load(array + at + ks, ks < count, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["first", "T", "B", "S"])
def attend_forward(
    memory,  # (S, B, M)
    keys,  # (S, B, A), where not SHARED
    lengths,  # (B,) int64, where LENGTHS
    hidden,  # (N, H): h of the layer that asks; the query itself where nothing projects it
    h0,  # (B, H), where OLD
    w_query,  # (H, A), where PROJECTED: the transpose of W_q
    b_query,  # (A,), where BIAS
    w_score,  # (A,), where ADDITIVE
    query,  # (N, A): written where SAVE and PROJECTED
    scores,  # (N, S) float32: written where SCORES, minus infinity where there is no slot
    sums,  # (N, 2) float32: their maximum and the sum of exponentials
    context,  # (N, M) float32
    fed,  # (N, M): the context, times `dropped_fed` where DROPPED, for the cells; written where FED
    dropped_fed,  # (N, M)
    top,  # (N, H): h of the top layer, where OUTPUT, as all that follows
    w_out,  # (H, M + H)
    b_out,  # (H,), where BIAS_OUT
    dropped_output,  # (N, H), where DROPPED
    outputs,  # (N, H): written where SAVE
    y,  # (N, H)
    offsets,
    sizes,
    first,
    T,
    B,
    S,
    H: tl.constexpr,
    A: tl.constexpr,
    M: tl.constexpr,
    SCALE: tl.constexpr,
    ADDITIVE: tl.constexpr,
    PROJECTED: tl.constexpr,
    SHARED: tl.constexpr,
    OLD: tl.constexpr,
    LENGTHS: tl.constexpr,
    VARIABLE: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_OUT: tl.constexpr,
    OUTPUT: tl.constexpr,
    TANH: tl.constexpr,
    FED: tl.constexpr,
    DROPPED: tl.constexpr,
    SCORES: tl.constexpr,
    SAVE: tl.constexpr,
    BS: tl.constexpr,  # slots at a time, and rows of a weight
    BH: tl.constexpr,
    BA: tl.constexpr,
    BM: tl.constexpr,
):
    STORAGE: tl.constexpr = memory.dtype.element_ty
    t, b = first + tl.program_id(0) // B, tl.program_id(0) % B
    row, length, here = row_of(t, b, B, S, lengths, offsets, sizes, LENGTHS, VARIABLE)
    of_a, of_m, count = tl.arange(0, BA), tl.arange(0, BM), tl.where(here, H, 0)
    h = query_row(hidden, h0, row, t, b, B, H, OLD)
    if PROJECTED:
        q = vector(b_query, 0, here, A, BA) if BIAS else tl.zeros((BA,), tl.float32)
        for n in tl.range(0, H, BS):
            ks = n + tl.arange(0, BS)
            h_n = part(h, 0, count, n, BS)
            w_n = tl.load(w_query + ks[:, None] * A + of_a[None, :], (ks < H)[:, None] & (of_a < A)[None, :], other=0.0)
            q += tl.sum(w_n.to(tl.float32) * h_n[:, None], 0)
        if SAVE:
            tl.store(query + row * A + of_a, q.to(STORAGE), of_a < A)
        q = q.to(STORAGE).to(tl.float32)  # as the backward has it
    else:
        q = vector(h, 0, here, A, BA) * SCALE
    if ADDITIVE:
        v = vector(w_score, 0, here, A, BA)

    most, total, acc = float("-inf"), 0.0, tl.zeros((BM,), tl.float32)
    for s in tl.range(0, length, BS):
        slots = s + tl.arange(0, BS)
        valid = slots < length
        m = slot_tile(memory, slots, valid, b, B, M, BM)
        k = m if SHARED else slot_tile(keys, slots, valid, b, B, A, BA)
        e = tl.sum(v[None, :] * tanh(q[None, :] + k), 1) if ADDITIVE else tl.sum(q[None, :] * k, 1)
        e = tl.where(valid, e, float("-inf"))
        if SCORES:
            tl.store(scores + row * S + slots, e, slots < S)
        more = tl.maximum(most, tl.max(e, 0))
        shift = tl.where(more == float("-inf"), 0.0, more)
        p, before = tl.exp(e - shift), tl.exp(most - shift)
        total = total * before + tl.sum(p, 0)
        acc = acc * before + tl.sum(p[:, None] * m, 0)
        most = more
    if SCORES:
        for s in tl.range((length + BS - 1) // BS * BS, S, BS):
            slots = s + tl.arange(0, BS)
            tl.store(scores + row * S + slots, tl.full((BS,), float("-inf"), tl.float32), slots < S)
    total = tl.where(length > 0, total, 1.0)
    tl.store(sums + row * 2, tl.where(length > 0, most, 0.0))
    tl.store(sums + row * 2 + 1, total)
    c = acc / total
    tl.store(context + row * M + of_m, c, of_m < M)
    if FED:
        joins = c * vector(dropped_fed, row * M, here, M, BM) if DROPPED else c
        tl.store(fed + row * M + of_m, joins.to(STORAGE), of_m < M)
    if OUTPUT:
        of_h = tl.arange(0, BH)
        h_top = vector(top, row * H, here, H, BH)
        for n in tl.range(0, H, BS):
            ks = n + tl.arange(0, BS)
            w_n = w_out + ks[:, None] * (M + H)
            w_c = tl.load(w_n + of_m[None, :], (ks < H)[:, None] & (of_m < M)[None, :], other=0.0).to(tl.float32)
            z = tl.sum(w_c * c[None, :], 1)
            w_h = tl.load(w_n + M + of_h[None, :], (ks < H)[:, None] & (of_h < H)[None, :], other=0.0).to(tl.float32)
            z += tl.sum(w_h * h_top[None, :], 1)
            if BIAS_OUT:
                z += tl.load(b_out + ks, ks < H, other=0.0).to(tl.float32)
            a = (tanh(z) if TANH else z).to(STORAGE)
            if SAVE:
                tl.store(outputs + row * H + ks, tl.where(here, a, 0.0), ks < H)
            joins = a.to(tl.float32)
            if DROPPED:
                joins *= part(dropped_output, row * H, count, n, BS)
            tl.store(y + row * H + ks, tl.where(here, joins, 0.0).to(STORAGE), ks < H)


@triton.jit(do_not_specialize=["first", "T", "B", "S"])
def attend_backward(
    memory,
    keys,
    lengths,
    hidden,  # (N, A): the query as the forward saved it; or h, or the query given
    h0,
    w_score,
    scores,
    sums,
    context,
    dweights,  # (N, S): the gradient of the alignments, where WEIGHTS
    dcontext,  # (N, M): what is known of the context's gradient, where GIVEN; and then all of it
    dfed,  # (N, M): that of what joined the cells' input, where FED
    dropped_fed,
    dy,  # (N, H): the gradient of y and of what it fed, where OUTPUT, as all that follows
    outputs,
    dropped_output,
    w_out,
    dz,  # (N, H): the gradient before the tanh, written
    dscores,  # (N, S) float32, written, zeros where there is no slot; each row's sum times the alignments is to be taken off
    dquery,  # (N, A): the gradient of the query; that of h where nothing projects it
    offsets,
    sizes,
    first,
    T,
    B,
    S,
    H: tl.constexpr,
    A: tl.constexpr,
    M: tl.constexpr,
    SCALE: tl.constexpr,
    ADDITIVE: tl.constexpr,
    SHARED: tl.constexpr,
    OLD: tl.constexpr,
    LENGTHS: tl.constexpr,
    VARIABLE: tl.constexpr,
    OUTPUT: tl.constexpr,
    TANH: tl.constexpr,
    GIVEN: tl.constexpr,
    FED: tl.constexpr,
    DROPPED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BS: tl.constexpr,
    BA: tl.constexpr,
    BM: tl.constexpr,
):
    STORAGE: tl.constexpr = memory.dtype.element_ty
    t, b = T - 1 - first - tl.program_id(0) // B, tl.program_id(0) % B
    row, length, here = row_of(t, b, B, S, lengths, offsets, sizes, LENGTHS, VARIABLE)
    of_a, of_m, count = tl.arange(0, BA), tl.arange(0, BM), tl.where(here, H, 0)

    dc = vector(dcontext, row * M, here, M, BM) if GIVEN else tl.zeros((BM,), tl.float32)
    if FED:
        share = vector(dfed, row * M, here, M, BM)
        dc += share * vector(dropped_fed, row * M, here, M, BM) if DROPPED else share
    if OUTPUT:
        for n in tl.range(0, H, BS):
            ks = n + tl.arange(0, BS)
            dz_n = part(dy, row * H, count, n, BS)
            if DROPPED:
                dz_n *= part(dropped_output, row * H, count, n, BS)
            if TANH:
                a = part(outputs, row * H, count, n, BS)
                dz_n *= 1.0 - a * a
            tl.store(dz + row * H + ks, dz_n.to(STORAGE), ks < H)
            w_n = w_out + ks[:, None] * (M + H) + of_m[None, :]
            w_n = tl.load(w_n, (ks < H)[:, None] & (of_m < M)[None, :], other=0.0).to(tl.float32)
            dc += tl.sum(w_n * dz_n[:, None], 0)
    if GIVEN:
        tl.debug_barrier()  # each warp has read what was there: what is known, once, and not with what is added to it here
    tl.store(dcontext + row * M + of_m, dc.to(STORAGE), of_m < M)

    h = query_row(hidden, h0, row, t, b, B, A, OLD)
    q = vector(h, 0, here, A, BA) * SCALE
    most, total = tl.load(sums + row * 2), tl.load(sums + row * 2 + 1)
    delta = tl.sum(dc * vector(context, row * M, here, M, BM), 0)
    if WEIGHTS:
        for s in tl.range(0, length, BS):
            slots = s + tl.arange(0, BS)
            e = tl.load(scores + row * S + slots, slots < length, other=float("-inf"))
            dw = tl.load(dweights + row * S + slots, slots < length, other=0.0).to(tl.float32)
            delta += tl.sum(tl.exp(e - most) / total * dw, 0)
    dq, mean, off = tl.zeros((BA,), tl.float32), tl.zeros((BA,), tl.float32), 0.0
    for s in tl.range(0, length, BS):
        slots = s + tl.arange(0, BS)
        valid = slots < length
        m = slot_tile(memory, slots, valid, b, B, M, BM)
        k = m if SHARED else slot_tile(keys, slots, valid, b, B, A, BA)
        dw = tl.sum(dc[None, :] * m, 1)
        if WEIGHTS:
            dw += tl.load(dweights + row * S + slots, valid, other=0.0).to(tl.float32)
        e = tl.load(scores + row * S + slots, valid, other=float("-inf"))
        p = tl.exp(e - most) / total
        de = p * (dw - delta)
        tl.store(dscores + row * S + slots, de, slots < S)
        if ADDITIVE:
            r = tanh(q[None, :] + k)
            by = 1.0 - r * r
        else:
            by = k
        dq += tl.sum(de[:, None] * by, 0)
        mean += tl.sum(p[:, None] * by, 0)
        off += tl.sum(de, 0)
    # the sum of de is zero, but for a rounding of delta, which would count as often as there are slots
    dq -= off * mean
    dq *= vector(w_score, 0, here, A, BA) if ADDITIVE else SCALE
    tl.store(dquery + row * A + of_a, dq.to(STORAGE), of_a < A)
    for s in tl.range((length + BS - 1) // BS * BS, S, BS):
        slots = s + tl.arange(0, BS)
        tl.store(dscores + row * S + slots, tl.zeros((BS,), tl.float32), slots < S)
