"""The gate math of dual numbers on the CPU, in Numba: README.md derives it, csrc/loop/ calls it.

Records are those of `kernels/lstm/cpu.py` and `kernels/gru/cpu.py`, two for each sequence: of the values, then of what they
are along u, here with a suffix _t. The backward finds the gradients of both in the same order.
"""

from numba import carray

from fastlstm.kernels.cpu_math import PANEL, SOURCE_STAMP, compile_gates, sigmoid, tanh
from fastlstm.kernels.variant import Variant


def compile_kernel(variant: Variant, of_pass: str, dtype: str, cpu: str | None = None):
    """The kernel of a pass, "fwd", "bwd" or "hidden", in "f32" or "f64": an object with `.address`, as of `compile_gates`."""
    if of_pass == "hidden":
        return compile_gates(lstm_hidden, dtype, cpu=cpu)
    if "c" not in variant.states:
        return compile_gates({"fwd": gru_fwd, "bwd": gru_bwd}[of_pass], dtype, cpu=cpu)
    make = {"fwd": lstm_fwd, "bwd": lstm_bwd}[of_pass]
    return compile_gates(make, dtype, variant.coupled, bool(variant.peepholes), cpu=cpu)


def lstm_fwd(dtype, coupled, peephole, stamp=SOURCE_STAMP):
    one = dtype(1)
    G = 1 if coupled else 2
    O, C, M, P = G + 1, G + 2, G + 3, G + 4
    slots = P + (G + 1 if peephole else 0)

    def kernel(records, rows):
        stamp  # noqa: B018 (part of the cache's key: see cpu_math)
        tile = carray(records, (rows // 2, 2, slots, PANEL), dtype)
        for row in range(rows // 2):
            for u in range(PANEL):
                c_prev, c_prev_t = tile[row, 0, C, u], tile[row, 1, C, u]
                a_i, a_i_t = tile[row, 0, 0, u], tile[row, 1, 0, u]
                a_o, a_o_t = tile[row, 0, O, u], tile[row, 1, O, u]
                if peephole:
                    a_i += tile[row, 0, P, u] * c_prev
                    a_i_t += tile[row, 0, P, u] * c_prev_t
                i, g = sigmoid(a_i), tanh(tile[row, 0, G, u])
                i_t, g_t = i * (one - i) * a_i_t, (one - g * g) * tile[row, 1, G, u]
                if coupled:
                    f = one - i
                    f_t = -i_t
                else:
                    a_f, a_f_t = tile[row, 0, 1, u], tile[row, 1, 1, u]
                    if peephole:
                        a_f += tile[row, 0, P + 1, u] * c_prev
                        a_f_t += tile[row, 0, P + 1, u] * c_prev_t
                    f = sigmoid(a_f)
                    f_t = f * (one - f) * a_f_t
                    tile[row, 0, 1, u], tile[row, 1, 1, u] = f, f_t
                c = f * c_prev + i * g
                c_t = f_t * c_prev + f * c_prev_t + i_t * g + i * g_t
                if peephole:
                    a_o += tile[row, 0, P + G, u] * c
                    a_o_t += tile[row, 0, P + G, u] * c_t
                o, tanh_c = sigmoid(a_o), tanh(c)
                o_t = o * (one - o) * a_o_t
                tile[row, 0, 0, u], tile[row, 0, G, u], tile[row, 0, O, u] = i, g, o
                tile[row, 1, 0, u], tile[row, 1, G, u], tile[row, 1, O, u] = i_t, g_t, o_t
                tile[row, 0, C, u], tile[row, 1, C, u] = c, c_t
                tile[row, 0, M, u] = o * tanh_c
                tile[row, 1, M, u] = o_t * tanh_c + o * (one - tanh_c * tanh_c) * c_t

    return kernel


def lstm_bwd(dtype, coupled, peephole, stamp=SOURCE_STAMP):
    one, two = dtype(1), dtype(2)
    G = 1 if coupled else 2
    O, C = G + 1, G + 2
    C_PREV, DH, DC, P = C + 1, C + 2, C + 3, C + 4
    slots = P + (G + 1 if peephole else 0)

    def kernel(records, rows):
        stamp  # noqa: B018
        tile = carray(records, (rows // 2, 2, slots, PANEL), dtype)
        for row in range(rows // 2):
            for u in range(PANEL):
                i, g, o, c_prev = tile[row, 0, 0, u], tile[row, 0, G, u], tile[row, 0, O, u], tile[row, 0, C_PREV, u]
                i_t, g_t, o_t, c_prev_t = (
                    tile[row, 1, 0, u],
                    tile[row, 1, G, u],
                    tile[row, 1, O, u],
                    tile[row, 1, C_PREV, u],
                )
                dh, dh_t = tile[row, 0, DH, u], tile[row, 1, DH, u]
                tanh_c, c_t = tanh(tile[row, 0, C, u]), tile[row, 1, C, u]
                slope = one - tanh_c * tanh_c
                do, do_t = dh * tanh_c + dh_t * slope * c_t, dh_t * tanh_c
                da_o = do * o * (one - o) + do_t * (one - two * o) * o_t
                da_o_t = do_t * o * (one - o)
                dc = tile[row, 0, DC, u] + slope * (dh * o + dh_t * (o_t - two * o * tanh_c * c_t))
                dc_t = tile[row, 1, DC, u] + dh_t * o * slope
                if peephole:
                    dc += da_o * tile[row, 0, P + G, u]
                    dc_t += da_o_t * tile[row, 0, P + G, u]
                if coupled:
                    f, f_t = one - i, -i_t
                    di = dc * (g - c_prev) + dc_t * (g_t - c_prev_t)
                    di_t = dc_t * (g - c_prev)
                else:
                    f, f_t = tile[row, 0, 1, u], tile[row, 1, 1, u]
                    di, di_t = dc * g + dc_t * g_t, dc_t * g
                da_i = di * i * (one - i) + di_t * (one - two * i) * i_t
                da_i_t = di_t * i * (one - i)
                dc_prev, dc_prev_t = dc * f + dc_t * f_t, dc_t * f
                if not coupled:
                    df, df_t = dc * c_prev + dc_t * c_prev_t, dc_t * c_prev
                    da_f = df * f * (one - f) + df_t * (one - two * f) * f_t
                    da_f_t = df_t * f * (one - f)
                    if peephole:
                        dc_prev += da_f * tile[row, 0, P + 1, u]
                        dc_prev_t += da_f_t * tile[row, 0, P + 1, u]
                    tile[row, 0, 1, u], tile[row, 1, 1, u] = da_f, da_f_t
                if peephole:
                    dc_prev += da_i * tile[row, 0, P, u]
                    dc_prev_t += da_i_t * tile[row, 0, P, u]
                dg, dg_t = dc * i + dc_t * i_t, dc_t * i
                tile[row, 0, 0, u], tile[row, 1, 0, u] = da_i, da_i_t
                tile[row, 0, O, u], tile[row, 1, O, u] = da_o, da_o_t
                tile[row, 0, G, u], tile[row, 1, G, u] = dg * (one - g * g) - two * dg_t * g * g_t, dg_t * (one - g * g)
                tile[row, 0, DC, u], tile[row, 1, DC, u] = dc_prev, dc_prev_t

    return kernel


def lstm_hidden(dtype, stamp=SOURCE_STAMP):
    one = dtype(1)

    def kernel(records, rows):
        stamp  # noqa: B018
        tile = carray(records, (2, rows // 2, 2, PANEL), dtype)
        h, o = tile[0], tile[1]
        for row in range(rows // 2):
            for u in range(PANEL):
                tanh_c = tanh(h[row, 0, u])
                h[row, 1, u] = o[row, 1, u] * tanh_c + o[row, 0, u] * (one - tanh_c * tanh_c) * h[row, 1, u]
                h[row, 0, u] = o[row, 0, u] * tanh_c

    return kernel


def gru_fwd(dtype, stamp=SOURCE_STAMP):
    one = dtype(1)

    def kernel(records, rows):
        stamp  # noqa: B018
        tile = carray(records, (rows // 2, 2, 6, PANEL), dtype)
        for row in range(rows // 2):
            for u in range(PANEL):
                r, z = sigmoid(tile[row, 0, 1, u]), sigmoid(tile[row, 0, 2, u])
                r_t, z_t = r * (one - r) * tile[row, 1, 1, u], z * (one - z) * tile[row, 1, 2, u]
                q, q_t = tile[row, 0, 3, u], tile[row, 1, 3, u]
                n = tanh(tile[row, 0, 0, u] + r * q)
                n_t = (one - n * n) * (tile[row, 1, 0, u] + r_t * q + r * q_t)
                h_prev, h_prev_t = tile[row, 0, 4, u], tile[row, 1, 4, u]
                h = (one - z) * n + z * h_prev
                h_t = (one - z) * n_t + z * h_prev_t + z_t * (h_prev - n)
                tile[row, 0, 0, u], tile[row, 0, 1, u], tile[row, 0, 2, u] = n, r, z
                tile[row, 1, 0, u], tile[row, 1, 1, u], tile[row, 1, 2, u] = n_t, r_t, z_t
                tile[row, 0, 4, u], tile[row, 0, 5, u] = h, h
                tile[row, 1, 4, u], tile[row, 1, 5, u] = h_t, h_t

    return kernel


def gru_bwd(dtype, stamp=SOURCE_STAMP):
    one, two = dtype(1), dtype(2)

    def kernel(records, rows):
        stamp  # noqa: B018
        tile = carray(records, (rows // 2, 2, 8, PANEL), dtype)
        for row in range(rows // 2):
            for u in range(PANEL):
                n, r, z, q = tile[row, 0, 0, u], tile[row, 0, 1, u], tile[row, 0, 2, u], tile[row, 0, 3, u]
                n_t, r_t, z_t, q_t = tile[row, 1, 0, u], tile[row, 1, 1, u], tile[row, 1, 2, u], tile[row, 1, 3, u]
                kept, kept_t = tile[row, 0, 5, u] - n, tile[row, 1, 5, u] - n_t
                dh, dh_t = tile[row, 0, 6, u] + tile[row, 0, 7, u], tile[row, 1, 6, u] + tile[row, 1, 7, u]
                dn, dn_t = dh * (one - z) - dh_t * z_t, dh_t * (one - z)
                dx_n, dx_n_t = dn * (one - n * n) - two * dn_t * n * n_t, dn_t * (one - n * n)
                dz, dz_t = dh * kept + dh_t * kept_t, dh_t * kept
                dr, dr_t = dx_n * q + dx_n_t * q_t, dx_n_t * q
                tile[row, 0, 0, u], tile[row, 1, 0, u] = dx_n, dx_n_t
                tile[row, 0, 1, u] = dr * r * (one - r) + dr_t * (one - two * r) * r_t
                tile[row, 1, 1, u] = dr_t * r * (one - r)
                tile[row, 0, 2, u] = dz * z * (one - z) + dz_t * (one - two * z) * z_t
                tile[row, 1, 2, u] = dz_t * z * (one - z)
                tile[row, 0, 3, u], tile[row, 1, 3, u] = dx_n * r + dx_n_t * r_t, dx_n_t * r
                tile[row, 0, 7, u], tile[row, 1, 7, u] = dh * z + dh_t * z_t, dh_t * z

    return kernel
