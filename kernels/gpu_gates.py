"""The gates of the LSTM family in Triton, forward and backward, on tiles of rows and units; in float32.

Where COUPLED there is no f: what stands for it is not used. Without PEEPHOLE, p isn't.
"""

import triton
import triton.language as tl

from fastlstm.kernels.gpu_math import sigmoid, split_gates, tanh


@triton.jit
def load_gates(array, at, mask, H, COUPLED: tl.constexpr):
    """`i, f, g, o` from the places `at` of i, each gate `H` after the one before; f, where there is none, is i."""
    GATES: tl.constexpr = 3 if COUPLED else 4
    i = tl.load(array + at, mask, other=0.0).to(tl.float32)
    g = tl.load(array + at + (GATES - 2) * H, mask, other=0.0).to(tl.float32)
    o = tl.load(array + at + (GATES - 1) * H, mask, other=0.0).to(tl.float32)
    f = i if COUPLED else tl.load(array + at + H, mask, other=0.0).to(tl.float32)
    return i, f, g, o


@triton.jit
def store_gates(array, at, mask, H, i, f, g, o, COUPLED: tl.constexpr):
    """Where `load_gates` finds them."""
    GATES: tl.constexpr = 3 if COUPLED else 4
    out = array.dtype.element_ty
    tl.store(array + at, i.to(out), mask)
    tl.store(array + at + (GATES - 2) * H, g.to(out), mask)
    tl.store(array + at + (GATES - 1) * H, o.to(out), mask)
    if not COUPLED:
        tl.store(array + at + H, f.to(out), mask)


@triton.jit
def load_peepholes(peephole, at, mask, H, COUPLED: tl.constexpr, PEEPHOLE: tl.constexpr):
    """`p_i, p_f, p_o` from the places `at` of p_i, each `H` after the one before; 0 where there are none."""
    if PEEPHOLE:
        p_i = tl.load(peephole + at, mask, other=0.0).to(tl.float32)
        p_f = p_i if COUPLED else tl.load(peephole + at + H, mask, other=0.0).to(tl.float32)
        p_o = tl.load(peephole + at + (1 if COUPLED else 2) * H, mask, other=0.0).to(tl.float32)
    else:
        p_i, p_f, p_o = 0.0, 0.0, 0.0
    return p_i, p_f, p_o


@triton.jit
def load_biases(bias, more, units, H, COUPLED: tl.constexpr, BIASES: tl.constexpr):
    """`b_i, b_f, b_g, b_o` (1, BH) of `units`: the sum of so many vectors of G*H, or 0."""
    if BIASES > 0:
        at, mask = units[None, :], (units < H)[None, :]
        b_i, b_f, b_g, b_o = load_gates(bias, at, mask, H, COUPLED)
        if BIASES > 1:
            m_i, m_f, m_g, m_o = load_gates(more, at, mask, H, COUPLED)
            b_i, b_f, b_g, b_o = b_i + m_i, b_f + m_f, b_g + m_g, b_o + m_o
    else:
        b_i, b_f, b_g, b_o = 0.0, 0.0, 0.0, 0.0
    return b_i, b_f, b_g, b_o


@triton.jit
def with_product(a_i, a_f, a_g, a_o, acc, BM: tl.constexpr, BH: tl.constexpr, COUPLED: tl.constexpr):
    """The pre-activations plus the step's product (BM, 4 * BH)."""
    if COUPLED:
        r_i, r_g, r_o, _ = split_gates(acc, BM, BH)
    else:
        r_i, r_f, r_g, r_o = split_gates(acc, BM, BH)
        a_f += r_f
    return a_i + r_i, a_f, a_g + r_g, a_o + r_o


@triton.jit
def activate(a_i, a_f, a_g, a_o, c_prev, p_i, p_f, p_o, COUPLED: tl.constexpr, PEEPHOLE: tl.constexpr):
    """`i, f, g, o, c` and m = o * tanh(c) of pre-activations, without peepholes yet, and of the cell before."""
    if PEEPHOLE:
        a_i += p_i * c_prev
        if not COUPLED:
            a_f += p_f * c_prev
    i, g = sigmoid(a_i), tanh(a_g)
    f = 1.0 - i if COUPLED else sigmoid(a_f)
    c = f * c_prev + i * g
    if PEEPHOLE:
        a_o += p_o * c
    o = sigmoid(a_o)
    return i, f, g, o, c, o * tanh(c)


@triton.jit
def factors(i, f, g, o, tanh_c, c_prev, COUPLED: tl.constexpr):
    """What the step after has no part in: factors of dc, for the gradients of i, f and g; of dm, for those of o and c."""
    by_i, by_g = (g - c_prev if COUPLED else g) * i * (1.0 - i), i * (1.0 - g * g)
    return by_i, c_prev * f * (1.0 - f), by_g, tanh_c * o * (1.0 - o), o * (1.0 - tanh_c * tanh_c)


@triton.jit
def gradients(dm, dc, by_i, by_f, by_g, by_o, by_c, p_o, PEEPHOLE: tl.constexpr):
    """Those of the pre-activations i, f, g, o and of c, of which `dc` is what doesn't come by m and o."""
    da_o = dm * by_o
    dc += dm * by_c
    if PEEPHOLE:
        dc += da_o * p_o
    return dc * by_i, dc * by_f, dc * by_g, da_o, dc


@triton.jit
def cell_before(dc, f, da_i, da_f, p_i, p_f, COUPLED: tl.constexpr, PEEPHOLE: tl.constexpr):
    """The gradient of the cell before."""
    dc_prev = dc * f
    if PEEPHOLE:
        dc_prev += da_i * p_i
        if not COUPLED:
            dc_prev += da_f * p_f
    return dc_prev
