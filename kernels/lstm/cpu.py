"""The LSTM's gate math on the CPU, in Numba: README.md derives it, csrc/lstm_fwd.cpp and lstm_bwd.cpp call it.

A kernel works in place on `rows` records of 16 hidden units each. A record is a few slots of 16 values:

    forward    a_i a_f a_g a_o c_prev .                     ->  i f g o c o*tanh(c)
    backward   i f g o c c_prev dh dc                       ->  da_i da_f da_g da_o . . . dc_prev

One pointer and constant offsets: LLVM sees that nothing aliases and turns a slot into one vector register.
"""

import numpy as np
from numba import carray, cfunc, types

from fastlstm.kernels.cpu_math import SOURCE_STAMP, sigmoid, tanh

LANES = 16
DTYPES = {"f32": (np.float32, types.float32), "f64": (np.float64, types.float64)}


def compile_kernel(name: str):
    """The kernel "lstm_fwd_f32", "lstm_bwd_f64", ...: an object with `.address`. Keep it: the code lives as long as it does."""
    pass_name, suffix = name.rsplit("_", 1)
    dtype, numba_type = DTYPES[suffix]
    kernel = {"lstm_fwd": lstm_fwd, "lstm_bwd": lstm_bwd}[pass_name](dtype, SOURCE_STAMP)
    signature = types.void(types.CPointer(numba_type), types.int64)
    options = {"nopython": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return cfunc(signature, cache=True, **options)(kernel)
    except RuntimeError:  # nowhere to write a cache: a read-only installation, a user without a home
        return cfunc(signature, cache=False, **options)(kernel)


def lstm_fwd(dtype, stamp):
    def kernel(records, rows):
        stamp  # noqa: B018 (part of the cache's key: see cpu_math)
        tile = carray(records, (rows, 6, LANES), dtype)
        for row in range(rows):
            for u in range(LANES):
                i, f = sigmoid(tile[row, 0, u]), sigmoid(tile[row, 1, u])
                g, o = tanh(tile[row, 2, u]), sigmoid(tile[row, 3, u])
                c = f * tile[row, 4, u] + i * g
                tile[row, 0, u], tile[row, 1, u], tile[row, 2, u], tile[row, 3, u] = i, f, g, o
                tile[row, 4, u] = c
                tile[row, 5, u] = o * tanh(c)

    return kernel


def lstm_bwd(dtype, stamp):
    one = dtype(1)

    def kernel(records, rows):
        stamp  # noqa: B018
        tile = carray(records, (rows, 8, LANES), dtype)
        for row in range(rows):
            for u in range(LANES):
                i, f, g, o = tile[row, 0, u], tile[row, 1, u], tile[row, 2, u], tile[row, 3, u]
                dh = tile[row, 6, u]
                tanh_c = tanh(tile[row, 4, u])
                dc = tile[row, 7, u] + dh * o * (one - tanh_c * tanh_c)
                tile[row, 0, u] = dc * g * i * (one - i)
                tile[row, 1, u] = dc * tile[row, 5, u] * f * (one - f)
                tile[row, 2, u] = dc * i * (one - g * g)
                tile[row, 3, u] = dh * tanh_c * o * (one - o)
                tile[row, 7, u] = dc * f

    return kernel
