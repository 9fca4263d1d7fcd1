"""Additive attention on the CPU, in Numba: e_s = w_score . tanh(q + k_s), alpha = softmax e, context = sum_s alpha_s m_s.

tanh(q + k) = 1 - 2 r with r = 1 / (1 + e^2q e^2k), and 1 - tanh^2 = 4 r (1 - r). "prepare" takes e^2k once, a call takes e^2q
once for all slots, so that a pair (s, a) costs no exponential, and a reciprocal that is looked up. Neither factor leaves
the range, nor does their product: where some |k| is above `LIMIT`, the keys stay as they are, and each tanh is computed; and
a q that saturates beside any |k| <= LIMIT counts as one that barely does. Scores sum 1/2 - r, which is small where tanh is.

Slots are taken a few at a time, which share what is loaded of the query, the weights and the context, and are sums that do
not wait for each other.
"""

import numpy as np
from numba import carray
from numba.extending import register_jitable

from fastlstm.kernels.cpu_math import SOURCE_STAMP, exp, reciprocal, tanh

# float32, float64: the largest |k| that is prepared, and the |x| from which on tanh x rounds to 1
LIMIT, SATURATED = {4: 17.0, 8: 20.0}, {4: 9.1, 8: 19.1}

# A weight below this many times the smallest normal number counts as 0 in the backward: CPUs are slow at denormal numbers
NOTHING = 2**26


def additive_prepare(dtype, stamp=SOURCE_STAMP):
    """(keys, key_stride, S, A, prepared (S, A)) -> 1 where `prepared` is e^2k, 0 where it is k."""
    limit = dtype(LIMIT[dtype().itemsize])

    def kernel(keys, key_stride, S, A, prepared):
        stamp  # noqa: B018 (part of the cache's key: see cpu_math)
        k, y = carray(keys, (S, key_stride), dtype), carray(prepared, (S, A), dtype)
        beyond = 0
        for s in range(S):
            for a in range(A):
                beyond += 0 if abs(k[s, a]) <= limit else 1
        for s in range(S):
            if beyond == 0:
                for a in range(A):
                    y[s, a] = exp(k[s, a] + k[s, a])
            else:
                for a in range(A):
                    y[s, a] = k[s, a]
        return 1 if beyond == 0 else 0

    return kernel


@register_jitable
def within(x, end):
    """x, but no further from 0 than `end`; NaN stays NaN."""
    x = end if x > end else x
    return -end if x < -end else x


def additive_fwd(dtype, stamp=SOURCE_STAMP):
    zero, half, one, two = dtype(0), dtype(0.5), dtype(1), dtype(2)
    least, end = dtype("-inf"), dtype(LIMIT[dtype().itemsize] + SATURATED[dtype().itemsize])

    def kernel(query, keys, key_stride, memory, memory_stride, score, S, A, M, prepared, scratch, weights, context):
        stamp  # noqa: B018
        q, k, w = carray(query, A, dtype), carray(keys, (S, key_stride), dtype), carray(score, A, dtype)
        m, p, c = carray(memory, (S, memory_stride), dtype), carray(weights, S, dtype), carray(context, M, dtype)
        e = carray(scratch, A, dtype)
        sixes, whole, most = S - S % 6, S - S % 4, least
        if prepared != 0:
            for a in range(A):
                e[a] = exp(two * within(q[a], end))
            for s in range(0, sixes, 6):
                y0, y1, y2, y3, y4, y5 = zero, zero, zero, zero, zero, zero
                for a in range(A):
                    y0 += w[a] * (half - reciprocal(one + e[a] * k[s, a]))
                    y1 += w[a] * (half - reciprocal(one + e[a] * k[s + 1, a]))
                    y2 += w[a] * (half - reciprocal(one + e[a] * k[s + 2, a]))
                    y3 += w[a] * (half - reciprocal(one + e[a] * k[s + 3, a]))
                    y4 += w[a] * (half - reciprocal(one + e[a] * k[s + 4, a]))
                    y5 += w[a] * (half - reciprocal(one + e[a] * k[s + 5, a]))
                p[s], p[s + 1], p[s + 2], p[s + 3] = y0 + y0, y1 + y1, y2 + y2, y3 + y3
                p[s + 4], p[s + 5] = y4 + y4, y5 + y5
                for i in range(s, s + 6):
                    most = p[i] if p[i] > most else most
            for s in range(sixes, S):
                y0 = zero
                for a in range(A):
                    y0 += w[a] * (half - reciprocal(one + e[a] * k[s, a]))
                p[s] = y0 + y0
                most = p[s] if p[s] > most else most
        else:
            for s in range(S):
                y0 = zero
                for a in range(A):
                    y0 += w[a] * tanh(q[a] + k[s, a])
                p[s] = y0
                most = y0 if y0 > most else most
        total = zero
        for s in range(S):
            p[s] = exp(p[s] - most)
            total += p[s]
        for s in range(S):
            p[s] /= total
        for j in range(M):
            c[j] = zero
        for s in range(0, whole, 4):
            p0, p1, p2, p3 = p[s], p[s + 1], p[s + 2], p[s + 3]
            for j in range(M):
                c[j] += p0 * m[s, j] + p1 * m[s + 1, j] + p2 * m[s + 2, j] + p3 * m[s + 3, j]
        for s in range(whole, S):
            for j in range(M):
                c[j] += p[s] * m[s, j]

    return kernel


def additive_bwd(dtype, stamp=SOURCE_STAMP):
    """dscore_s = alpha_s (dcontext . m_s + dweights_s - delta), where delta is their sum weighted by alpha."""
    zero, one, two, four = dtype(0), dtype(1), dtype(2), dtype(4)
    nothing = dtype(NOTHING * np.finfo(dtype).tiny)
    end = dtype(LIMIT[dtype().itemsize] + SATURATED[dtype().itemsize])

    def kernel(
        query, keys, key_stride, memory, memory_stride, score, S, A, M, prepared, scratch, weights, dcontext,
        dweights, has_dweights, dscores, dquery,
    ):  # fmt: skip
        stamp  # noqa: B018
        q, k, w = carray(query, A, dtype), carray(keys, (S, key_stride), dtype), carray(score, A, dtype)
        m, p = carray(memory, (S, memory_stride), dtype), carray(weights, S, dtype)
        dc, dp = carray(dcontext, M, dtype), carray(dweights, S, dtype)
        d, dq = carray(dscores, S, dtype), carray(dquery, A, dtype)
        e = carray(scratch, A, dtype)
        whole = S - S % 4
        for s in range(0, whole, 4):
            y0, y1, y2, y3 = zero, zero, zero, zero
            for j in range(M):
                y0 += dc[j] * m[s, j]
                y1 += dc[j] * m[s + 1, j]
                y2 += dc[j] * m[s + 2, j]
                y3 += dc[j] * m[s + 3, j]
            d[s], d[s + 1], d[s + 2], d[s + 3] = y0, y1, y2, y3
        for s in range(whole, S):
            y0 = zero
            for j in range(M):
                y0 += dc[j] * m[s, j]
            d[s] = y0
        if has_dweights != 0:
            for s in range(S):
                d[s] += dp[s]
        delta = zero
        for s in range(S):
            delta += p[s] * d[s]
        for s in range(S):
            d[s] = zero if p[s] < nothing else p[s] * (d[s] - delta)
        for a in range(A):
            dq[a] = zero
        if prepared != 0:
            for a in range(A):
                e[a] = exp(two * within(q[a], end))
            for s in range(0, whole, 4):
                d0, d1, d2, d3 = d[s], d[s + 1], d[s + 2], d[s + 3]
                for a in range(A):
                    r0 = reciprocal(one + e[a] * k[s, a])
                    r1 = reciprocal(one + e[a] * k[s + 1, a])
                    r2 = reciprocal(one + e[a] * k[s + 2, a])
                    r3 = reciprocal(one + e[a] * k[s + 3, a])
                    dq[a] += d0 * (r0 - r0 * r0) + d1 * (r1 - r1 * r1) + d2 * (r2 - r2 * r2) + d3 * (r3 - r3 * r3)
            for s in range(whole, S):
                for a in range(A):
                    r0 = reciprocal(one + e[a] * k[s, a])
                    dq[a] += d[s] * (r0 - r0 * r0)
            for a in range(A):
                dq[a] = zero if abs(q[a]) > end else dq[a] * (four * w[a])
        else:
            for s in range(S):
                for a in range(A):
                    y = tanh(q[a] + k[s, a])
                    dq[a] += d[s] * (one - y * y)
            for a in range(A):
                dq[a] *= w[a]

    return kernel


def additive_keys(dtype, stamp=SOURCE_STAMP):
    """Of all T steps of a row: dkeys_s = sum_t dscores_ts w_score (1 - tanh^2), dscore = sum_ts dscores_ts tanh."""
    zero, half, one, two, four = dtype(0), dtype(0.5), dtype(1), dtype(2), dtype(4)
    end = dtype(LIMIT[dtype().itemsize] + SATURATED[dtype().itemsize])

    def kernel(
        queries, query_stride, T, keys, key_stride, score, S, A, prepared, scratch, dscores, dscore_stride, dkeys, dscore,
    ):  # fmt: skip
        stamp  # noqa: B018
        q, k = carray(queries, (T, query_stride), dtype), carray(keys, (S, key_stride), dtype)
        w, d = carray(score, A, dtype), carray(dscores, (T, dscore_stride), dtype)
        dk, dw = carray(dkeys, (S, A), dtype), carray(dscore, A, dtype)
        e, f = carray(scratch, A, dtype), carray(scratch, 2 * A, dtype)[A:]
        # of dw, which holds a pair of steps at a time: one sum of all would round too often
        sums = carray(scratch, 3 * A, dtype)[2 * A :]
        for a in range(A):
            dw[a] = sums[a] = zero
        for s in range(S):
            for a in range(A):
                dk[s, a] = zero
        if prepared != 0:
            for t in range(0, T - T % 2, 2):
                for a in range(A):
                    e[a] = exp(two * within(q[t, a], end))
                for a in range(A):
                    f[a] = exp(two * within(q[t + 1, a], end))
                for s in range(0, S - S % 2, 2):
                    d0, d1 = d[t, s], d[t + 1, s]
                    d2, d3 = d[t, s + 1], d[t + 1, s + 1]
                    for a in range(A):
                        r0, r1 = reciprocal(one + e[a] * k[s, a]), reciprocal(one + f[a] * k[s, a])
                        r2, r3 = reciprocal(one + e[a] * k[s + 1, a]), reciprocal(one + f[a] * k[s + 1, a])
                        dw[a] += d0 * (half - r0) + d1 * (half - r1) + d2 * (half - r2) + d3 * (half - r3)
                        dk[s, a] += d0 * (r0 - r0 * r0) + d1 * (r1 - r1 * r1)
                        dk[s + 1, a] += d2 * (r2 - r2 * r2) + d3 * (r3 - r3 * r3)
                for s in range(S - S % 2, S):
                    d0, d1 = d[t, s], d[t + 1, s]
                    for a in range(A):
                        r0 = reciprocal(one + e[a] * k[s, a])
                        r1 = reciprocal(one + f[a] * k[s, a])
                        dw[a] += d0 * (half - r0) + d1 * (half - r1)
                        dk[s, a] += d0 * (r0 - r0 * r0) + d1 * (r1 - r1 * r1)
                for a in range(A):
                    sums[a] += dw[a]
                for a in range(A):
                    dw[a] = zero
            for t in range(T - T % 2, T):
                for a in range(A):
                    e[a] = exp(two * within(q[t, a], end))
                for s in range(S):
                    for a in range(A):
                        r0 = reciprocal(one + e[a] * k[s, a])
                        dw[a] += d[t, s] * (half - r0)
                        dk[s, a] += d[t, s] * (r0 - r0 * r0)
            for s in range(S):
                for a in range(A):
                    dk[s, a] *= four * w[a]
            for a in range(A):
                dw[a] = two * (sums[a] + dw[a])
        else:
            for t in range(T):
                for s in range(S):
                    for a in range(A):
                        y = tanh(q[t, a] + k[s, a])
                        dw[a] += d[t, s] * y
                        dk[s, a] += d[t, s] * (one - y * y)
                for a in range(A):
                    sums[a] += dw[a]
                for a in range(A):
                    dw[a] = zero
            for s in range(S):
                for a in range(A):
                    dk[s, a] *= w[a]
            for a in range(A):
                dw[a] = sums[a]

    return kernel
