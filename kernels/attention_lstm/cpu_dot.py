"""Dot attention on the CPU, in Numba: e_s = q . k_s, alpha = softmax e, context = sum_s alpha_s m_s.

The keys may be the memory: slots are taken a tile at a time, which stays in the second-level cache between its scores and its
part of the context. The softmax is an online one: what was summed is scaled where a tile's maximum is the largest so far.
"""

import numpy as np
from numba import carray

from fastlstm.kernels.attention_lstm.cpu_additive import NOTHING
from fastlstm.kernels.cpu_math import SOURCE_STAMP, exp

TILE = 128 * 1024  # bytes of memory; larger than the first-level cache, since a tile waits for its own softmax


def dot_fwd(dtype, stamp=SOURCE_STAMP):
    zero, one, least = dtype(0), dtype(1), dtype("-inf")
    tile_size = TILE // dtype().itemsize

    def kernel(query, keys, key_stride, memory, memory_stride, score, S, A, M, prepared, scratch, weights, context):
        stamp  # noqa: B018 (part of the cache's key: see cpu_math)
        q, k = carray(query, A, dtype), carray(keys, (S, key_stride), dtype)
        m, p, c = carray(memory, (S, memory_stride), dtype), carray(weights, S, dtype), carray(context, M, dtype)
        most, total = least, zero
        for j in range(M):
            c[j] = zero
        slots = max(tile_size // M, 16)
        for first in range(0, S, slots):
            end = min(first + slots, S)
            whole = end - (end - first) % 4
            before = most
            for s in range(first, whole, 4):
                y0, y1, y2, y3 = zero, zero, zero, zero
                for a in range(A):
                    y0 += q[a] * k[s, a]
                    y1 += q[a] * k[s + 1, a]
                    y2 += q[a] * k[s + 2, a]
                    y3 += q[a] * k[s + 3, a]
                p[s], p[s + 1], p[s + 2], p[s + 3] = y0, y1, y2, y3
                y0, y2 = y1 if y1 > y0 else y0, y3 if y3 > y2 else y2
                y0 = y2 if y2 > y0 else y0
                most = y0 if y0 > most else most
            for s in range(whole, end):
                y0 = zero
                for a in range(A):
                    y0 += q[a] * k[s, a]
                p[s] = y0
                most = y0 if y0 > most else most
            if most > before and first > 0:
                scale = exp(before - most)
                total *= scale
                for s in range(first):
                    p[s] *= scale
                for j in range(M):
                    c[j] *= scale
            y = p[first:end]
            for s in range(end - first):
                y[s] = exp(y[s] - most)
                total += y[s]
            for s in range(first, whole, 4):
                p0, p1, p2, p3 = p[s], p[s + 1], p[s + 2], p[s + 3]
                for j in range(M):
                    c[j] += p0 * m[s, j] + p1 * m[s + 1, j] + p2 * m[s + 2, j] + p3 * m[s + 3, j]
            for s in range(whole, end):
                for j in range(M):
                    c[j] += p[s] * m[s, j]
        scale = one / total
        for s in range(S):
            p[s] *= scale
        for j in range(M):
            c[j] *= scale

    return kernel


def softmax_fwd(dtype, stamp=SOURCE_STAMP):
    zero, one, least = dtype(0), dtype(1), dtype("-inf")

    def kernel(z, count):
        stamp  # noqa: B018
        z = carray(z, count, dtype)
        most, total = least, zero
        for s in range(count):
            most = z[s] if z[s] > most else most
        for s in range(count):
            z[s] = exp(z[s] - most)
            total += z[s]
        scale = one / total
        for s in range(count):
            z[s] *= scale

    return kernel


def softmax_bwd(dtype, stamp=SOURCE_STAMP):
    zero, nothing = dtype(0), dtype(NOTHING * np.finfo(dtype).tiny)

    def kernel(a, d, count):
        stamp  # noqa: B018
        a, d = carray(a, count, dtype), carray(d, count, dtype)
        delta = zero
        for s in range(count):
            delta += a[s] * d[s]
        for s in range(count):
            d[s] = zero if a[s] < nothing else a[s] * (d[s] - delta)

    return kernel


def dot_bwd(dtype, stamp=SOURCE_STAMP):
    """dscore_s = alpha_s (dcontext . m_s + dweights_s - delta), where delta is their sum weighted by alpha."""
    zero, nothing = dtype(0), dtype(NOTHING * np.finfo(dtype).tiny)

    def kernel(
        query, keys, key_stride, memory, memory_stride, score, S, A, M, prepared, scratch, weights, dcontext,
        dweights, has_dweights, dscores, dquery,
    ):  # fmt: skip
        stamp  # noqa: B018
        k, m = carray(keys, (S, key_stride), dtype), carray(memory, (S, memory_stride), dtype)
        p, dc, dp = carray(weights, S, dtype), carray(dcontext, M, dtype), carray(dweights, S, dtype)
        d, dq = carray(dscores, S, dtype), carray(dquery, A, dtype)
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
        for s in range(0, whole, 4):
            d0, d1, d2, d3 = d[s], d[s + 1], d[s + 2], d[s + 3]
            for a in range(A):
                dq[a] += d0 * k[s, a] + d1 * k[s + 1, a] + d2 * k[s + 2, a] + d3 * k[s + 3, a]
        for s in range(whole, S):
            for a in range(A):
                dq[a] += d[s] * k[s, a]

    return kernel
