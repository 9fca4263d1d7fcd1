"""The GRU's gate math on the CPU, in Numba: README.md derives it, csrc/loop/ calls it.

A kernel works in place on `rows` records of 16 hidden units each. A record is a few slots of 16 values; x_n and h_n are the
parts of n's pre-activation, h_n being what r acts on:

    forward    x_n a_r a_z h_n h_prev .                    ->  n r z h_n h h
    backward   n r z h_n h h_prev dh dc                    ->  dx_n da_r da_z dh_n . . . dc_prev

The state that is carried unit by unit, the loop's c, is h here. dh is the gradient of h from its output and through W_hh of
the next step, dc that of the next step's z * h'.
"""

from numba import carray

from fastlstm.kernels.cpu_math import PANEL, SOURCE_STAMP, compile_gates, sigmoid, tanh
from fastlstm.kernels.variant import Variant


def compile_kernel(variant: Variant, of_pass: str, dtype: str, cpu: str | None = None):
    """The kernel of a pass, "fwd" or "bwd", in "f32" or "f64": an object with `.address`, as `compile_gates` gives it."""
    return compile_gates({"fwd": gru_fwd, "bwd": gru_bwd}[of_pass], dtype, cpu=cpu)


def gru_fwd(dtype, stamp=SOURCE_STAMP):
    one = dtype(1)

    def kernel(records, rows):
        stamp  # noqa: B018 (part of the cache's key: see cpu_math)
        tile = carray(records, (rows, 6, PANEL), dtype)
        for row in range(rows):
            for u in range(PANEL):
                r, z = sigmoid(tile[row, 1, u]), sigmoid(tile[row, 2, u])
                n = tanh(tile[row, 0, u] + r * tile[row, 3, u])
                h = (one - z) * n + z * tile[row, 4, u]
                tile[row, 0, u], tile[row, 1, u], tile[row, 2, u] = n, r, z
                tile[row, 4, u], tile[row, 5, u] = h, h

    return kernel


def gru_bwd(dtype, stamp=SOURCE_STAMP):
    one = dtype(1)

    def kernel(records, rows):
        stamp  # noqa: B018
        tile = carray(records, (rows, 8, PANEL), dtype)
        for row in range(rows):
            for u in range(PANEL):
                n, r, z = tile[row, 0, u], tile[row, 1, u], tile[row, 2, u]
                dh = tile[row, 6, u] + tile[row, 7, u]
                dx_n = dh * (one - z) * (one - n * n)
                tile[row, 2, u] = dh * (tile[row, 5, u] - n) * z * (one - z)
                tile[row, 1, u] = dx_n * tile[row, 3, u] * r * (one - r)
                tile[row, 0, u], tile[row, 3, u] = dx_n, dx_n * r
                tile[row, 7, u] = dh * z

    return kernel
