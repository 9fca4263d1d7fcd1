"""The logistic function, tanh, e^x and 1/x for Numba kernels, in float32 and float64, so that LLVM vectorises them.

Both rest on e^x = s (1 + p) with x = n ln2 + r, |r| <= ln2 / 2, s = 2^n, and p = e^r - 1 by its Taylor series, cut where the
next term falls below half a unit in the last place. Keeping p apart from the 1 keeps tanh accurate near zero:
tanh |x| = -m / (2 + m) with m = e^(-2|x|) - 1. Far from zero, 1 - 2 (1 + m) / (2 + m) rounds less. Errors are below 3 ulp, and
a third of one on the average; NaN stays NaN. Large arguments saturate exactly, at 0 and 1 or -1 and 1: s is infinite where e^x
leaves the range.

Calls of libm's exp and tanh would be scalar (Numba has no vector math library), and about 25 times slower.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numba import cfunc, types
from numba.core.codegen import JITCPUCodegen, get_host_cpu_features
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import overload

from fastlstm._C import PANEL

__all__ = ["PANEL", "SOURCE_STAMP", "compile_c", "compile_gates", "exp", "reciprocal", "sigmoid", "tanh"]

# Numba's cache on disk notices edits of a kernel's own file only. Kernels close over this number to notice edits of this file.
SOURCE_STAMP = zlib.crc32(Path(__file__).read_bytes())

DTYPES = {"f32": (np.float32, types.float32), "f64": (np.float64, types.float64)}


def compile_gates(make, suffix: str, *flags: bool, cpu: str | None = None):
    """The gate kernel `make(dtype, *flags)` for "f32" or "f64", as a C function of (records, rows): see `compile_c`."""
    return compile_c(make, "pn", suffix, *flags, cpu=cpu)


def compile_c(make, arguments: str, suffix: str, *flags: bool, cpu: str | None = None, returns: bool = False, math=()):
    """The kernel `make(dtype, *flags)` for "f32" or "f64", as a C function.

    An object with `.address`. Keep it: the code lives as long as it does. `arguments`: a letter each, p for a pointer to values
    of that dtype, n for an int64; the result is an int64 or nothing. `cpu`: LLVM's name of the CPU to compile for, where it
    isn't this one. `math`: what LLVM may do to the kernel's arithmetic beside contracting it to FMAs, by its names for that.
    """
    dtype, numba_type = DTYPES[suffix]
    of = {"p": types.CPointer(numba_type), "n": types.int64}
    signature = (types.int64 if returns else types.void)(*(of[letter] for letter in arguments))
    options = {"nopython": True, "error_model": "numpy", "fastmath": {"contract", *math}}
    kernel = make(dtype, *flags)
    with _code_for(cpu):
        try:
            return cfunc(signature, cache=True, **options)(kernel)
        except RuntimeError:  # nowhere to write a cache: a read-only installation, a user without a home
            return cfunc(signature, cache=False, **options)(kernel)


# LLVM keeps to vectors of 256 bits on Intel's CPUs, though they have wider ones, for those that the clock slows down for; the
# micro-kernels around use the wide ones anyway
WIDE = "-prefer-256-bit"


class _CodeFor(JITCPUCodegen):
    """What Numba makes machine code with, for a CPU by LLVM's name or for this one; Numba itself has one for the process."""

    def __init__(self, cpu: str | None) -> None:
        self._cpu = cpu
        super().__init__("fastlstm.exec")

    def _get_host_cpu_name(self) -> str:
        return self._cpu or super()._get_host_cpu_name()

    def _get_host_cpu_features(self) -> str:
        return WIDE if self._cpu else f"{super()._get_host_cpu_features()},{WIDE}"


@cache  # kept: its code is in use
def _generator(cpu: str | None) -> _CodeFor | None:
    """None where Numba's own does as well."""
    return _CodeFor(cpu) if cpu or "+avx512f" in get_host_cpu_features().split(",") else None


@contextmanager
def _code_for(cpu: str | None) -> Iterator[None]:
    context = cpu_target.target_context
    with global_compiler_lock:
        own = context.codegen()
        context._internal_codegen = _generator(cpu) or own
        try:
            yield
        finally:
            context._internal_codegen = own


# Kernels whose sums LLVM may reassociate call these all the same: each keeps its own arithmetic
EXACTLY = {"fastmath": {"contract"}, "error_model": "numpy"}


def sigmoid(x):
    """1 / (1 + e^-x), in kernels only."""


def tanh(x):
    """(e^x - e^-x) / (e^x + e^-x), in kernels only."""


def exp(x):
    """e^x, in kernels only: 0 where a thousandth of it is no longer normal, infinity a little before it leaves the range."""


def reciprocal(x):
    """1 / x to two units in the last place, in kernels only, for x and 1 / x finite and normal; NaN stays NaN.

    In float32 x86 CPUs look up an approximation, of 14 bits with AVX-512 and else of 12; LLVM adds an iteration of Newton's.
    """


def _make(scale, dtype, integer, degree, ln2_high, least):
    """e^(scale x) in parts, for a scale whose products are exact: 1, -1, and -2, where x is not negative.

    `ln2_high` has so few bits that its products with n are exact; scale x below `least` counts as `least`. There s is still a
    normal number, and e^(scale x) nothing beside 1. At the other end n stops where the bits of s are infinity's.
    """
    mantissa, scale = np.finfo(dtype).nmant, dtype(scale)
    log2e = scale * dtype(1 / math.log(2))
    # x + round_up has x, rounded, in its low bits; where s has its exponent, it is off by as much as maxexp - 1
    round_up = dtype(1.5 * 2.0**mantissa + np.finfo(dtype).maxexp - 1)
    ln2_high = dtype(ln2_high) / scale
    ln2_low = dtype(np.longdouble("0.693147180559945309417232121458") - np.longdouble(ln2_high * scale)) / scale
    ends = dtype(least) / scale, dtype(np.finfo(dtype).maxexp * math.log(2)) / scale
    lowest, highest = (dtype(-np.inf) if scale == -2 else min(ends)), max(ends)
    shift = integer(mantissa)
    c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = (
        dtype(1 / math.factorial(d)) * scale ** (d - 1) for d in range(2, 14)
    )
    long = degree == 13

    def parts(x):
        x = highest if x > highest else x
        x = lowest if x < lowest else x
        shifted = dtype(x * log2e + round_up)
        n = shifted - round_up
        r = (x - n * ln2_high) - n * ln2_low
        if long:
            p = ((((((c13 * r + c12) * r + c11) * r + c10) * r + c9) * r + c8) * r + c7) * r + c6
        else:
            p = c7 * r + c6
        p = (((p * r + c5) * r + c4) * r + c3) * r + c2
        p = (p * r) * r + r
        s = integer(shifted.view(integer) << shift).view(dtype)
        return p, s

    return parts


_MAKERS = {
    types.float32: (np.float32, np.int32, 7, 0.693359375, -87.0),
    types.float64: (np.float64, np.int64, 13, 6.93147180369123816490e-01, -708.0),
}


def _parts(scale):
    """(p, s) with e^(scale x) = s (1 + scale p); for x above half the last power of 2, s is infinite and s p + s may be NaN.

    Powers of 2 change no rounding: that scale is part of the constants spares a multiplication, or a change of sign.
    """

    def parts(x):
        """In kernels only."""

    overload(parts, jit_options=EXACTLY)(lambda x: _make(scale, *_MAKERS[x]) if x in _MAKERS else None)
    return parts


_exp_parts, _sigmoid_parts, _tanh_parts = _parts(1), _parts(-1), _parts(-2)


@overload(sigmoid, jit_options=EXACTLY)
def _sigmoid_impl(x):
    if x not in _MAKERS:
        return None
    one = _MAKERS[x][0](1)

    def impl(x):
        p, s = _sigmoid_parts(x)
        return one / (one + s * (one - p))

    return impl


@overload(tanh, jit_options=EXACTLY)
def _tanh_impl(x):
    if x not in _MAKERS:
        return None
    dtype, integer, *_ = _MAKERS[x]
    half, one, two = dtype(0.5), dtype(1), dtype(2)
    sign = integer(np.iinfo(integer).min)

    def impl(x):
        size = abs(x)
        p, s = _tanh_parts(size)
        m = s * p + (half - half * s)  # -m / 2 of the above
        large = size > half
        q = (s * (one - two * p) if large else m) / (one - m)
        y = dtype(one - q if large else q)
        return integer(y.view(integer) | (dtype(x).view(integer) & sign)).view(dtype)

    return impl


@overload(exp, jit_options=EXACTLY)
def _exp_impl(x):
    if x not in _MAKERS:
        return None
    dtype, *_, least = _MAKERS[x]
    zero, one, least = dtype(0), dtype(1), dtype(least + math.log(1000))

    def impl(x):
        p, s = _exp_parts(x)
        return zero if x < least else s * (one + p)

    return impl


LOOKED_UP = EXACTLY | {"fastmath": {"contract", "arcp", "ninf"}}  # LLVM wants to know that no x is infinite


@overload(reciprocal, jit_options=LOOKED_UP)
def _reciprocal_impl(x):
    if x not in _MAKERS:
        return None
    one = _MAKERS[x][0](1)
    return lambda x: one / x
