"""The LSTM family's gate math on the CPU, in Numba: README.md derives it, csrc/loop/ calls it.

A kernel works in place on `rows` records of 16 hidden units each. A record is a few slots of 16 values:

    forward    a_i a_f a_g a_o c_prev . [p_i p_f p_o]               ->  i f g o c o*tanh(c)
    backward   i f g o c c_prev dh dc [p_i p_f p_o]                 ->  da_i da_f da_g da_o . . . dc_prev
    hidden     c of all rows, then o of all                         ->  o*tanh(c), .

Slots of f are absent where the gates are coupled, those of p where there are no peepholes. One pointer and constant offsets:
LLVM sees that nothing aliases and turns a slot into one vector register.
"""

from numba import carray

from fastlstm.kernels.cpu_math import PANEL, SOURCE_STAMP, compile_gates, sigmoid, tanh
from fastlstm.kernels.variant import Variant


def compile_kernel(variant: Variant, of_pass: str, dtype: str, cpu: str | None = None):
    """The kernel of a pass, "fwd", "bwd" or "hidden", in "f32" or "f64": an object with `.address`, as of `compile_gates`."""
    if of_pass == "hidden":
        return compile_gates(lstm_hidden, dtype, cpu=cpu)
    make = {"fwd": lstm_fwd, "bwd": lstm_bwd}[of_pass]
    return compile_gates(make, dtype, variant.coupled, bool(variant.peepholes), cpu=cpu)


def lstm_fwd(dtype, coupled, peephole, stamp=SOURCE_STAMP):
    one = dtype(1)
    G = 1 if coupled else 2
    O, C, M, P = G + 1, G + 2, G + 3, G + 4
    slots = P + (G + 1 if peephole else 0)

    def kernel(records, rows):
        stamp  # noqa: B018 (part of the cache's key: see cpu_math)
        tile = carray(records, (rows, slots, PANEL), dtype)
        # two loops: a CPU sees some records ahead, and less far in a chain from i to the tanh of c
        for row in range(rows):
            for u in range(PANEL):
                c_prev = tile[row, C, u]
                a_i = tile[row, 0, u]
                if peephole:
                    a_i += tile[row, P, u] * c_prev
                i, g = sigmoid(a_i), tanh(tile[row, G, u])
                if coupled:
                    f = one - i
                else:
                    a_f = tile[row, 1, u]
                    if peephole:
                        a_f += tile[row, P + 1, u] * c_prev
                    f = sigmoid(a_f)
                    tile[row, 1, u] = f
                c = f * c_prev + i * g
                tile[row, 0, u], tile[row, G, u], tile[row, C, u] = i, g, c
        for row in range(rows):
            for u in range(PANEL):
                a_o, c = tile[row, O, u], tile[row, C, u]
                if peephole:
                    a_o += tile[row, P + G, u] * c
                o = sigmoid(a_o)
                tile[row, O, u] = o
                tile[row, M, u] = o * tanh(c)

    return kernel


def lstm_bwd(dtype, coupled, peephole, stamp=SOURCE_STAMP):
    one = dtype(1)
    G = 1 if coupled else 2
    O, C = G + 1, G + 2
    C_PREV, DH, DC, P = C + 1, C + 2, C + 3, C + 4
    slots = P + (G + 1 if peephole else 0)

    def kernel(records, rows):
        stamp  # noqa: B018
        tile = carray(records, (rows, slots, PANEL), dtype)
        for row in range(rows):
            for u in range(PANEL):
                i, g, o = tile[row, 0, u], tile[row, G, u], tile[row, O, u]
                c_prev, dh = tile[row, C_PREV, u], tile[row, DH, u]
                tanh_c = tanh(tile[row, C, u])
                da_o = dh * tanh_c * o * (one - o)
                dc = tile[row, DC, u] + dh * o * (one - tanh_c * tanh_c)
                if peephole:
                    dc += da_o * tile[row, P + G, u]
                if coupled:
                    da_i = dc * (g - c_prev) * i * (one - i)
                    dc_prev = dc * (one - i)
                else:
                    f = tile[row, 1, u]
                    da_i = dc * g * i * (one - i)
                    da_f = dc * c_prev * f * (one - f)
                    dc_prev = dc * f
                    if peephole:
                        dc_prev += da_f * tile[row, P + 1, u]
                    tile[row, 1, u] = da_f
                if peephole:
                    dc_prev += da_i * tile[row, P, u]
                tile[row, 0, u], tile[row, O, u] = da_i, da_o
                tile[row, G, u] = dc * i * (one - g * g)
                tile[row, DC, u] = dc_prev

    return kernel


def lstm_hidden(dtype, stamp=SOURCE_STAMP):
    """The same bits as the forward's: the backward takes h from what is saved, since what was returned may have been edited."""

    def kernel(records, rows):
        stamp  # noqa: B018
        tile = carray(records, (2, rows * PANEL), dtype)
        h, o = tile[0], tile[1]
        for j in range(rows * PANEL):  # of a record's 16 alone, LLVM would make 16 numbers, not a vector
            h[j] = o[j] * tanh(h[j])

    return kernel
