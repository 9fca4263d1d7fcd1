"""The Attention LSTM's kernels on the CPU, in Numba, called by csrc/loop/: attention of one step and one row of the batch.

    additive_attention    prepare  keys, key_stride, S, A -> prepared (S, A); whether they are e^2k      cpu_additive.py
                          fwd      "attend", below
                          bwd      "attend back", below
                          keys     queries, query_stride, T, keys, key_stride, score, S, A, prepared, scratch (3 A),
                                   dscores, dscore_stride -> dkeys (S, A), dscore (A)
    dot_attention         fwd, bwd                                                                       cpu_dot.py
    softmax               fwd      z, count: z = softmax z, of the scores of many queries         cpu_dot.py
                          bwd      a, d, count: d = a (d - a . d)
    output                fwd      z, count: z = tanh z                                                  here
                          bwd      a, d, count: d *= 1 - a^2

    attend       query (A), keys, key_stride, memory, memory_stride, score (A), S, A, M, prepared, scratch (2 A)
                 -> weights (S), context (M)
    attend back  the same with weights, dcontext (M), dweights (S), has_dweights -> dscores (S), dquery (A)

Pointers are to values of the kernel's dtype; the rest are int64, sizes and strides in values. S >= 1 is the row's own length:
nothing is read beyond it. `prepared`: what "prepare" returned for the keys. Dot attention takes no score and no scratch, and
without `has_dweights` no dweights: they may be null. Every sum has one order, which the sizes alone decide.
"""

from numba import carray

from fastlstm.kernels.attention_lstm.cpu_additive import additive_bwd, additive_fwd, additive_keys, additive_prepare
from fastlstm.kernels.attention_lstm.cpu_dot import dot_bwd, dot_fwd, softmax_bwd, softmax_fwd
from fastlstm.kernels.cpu_math import SOURCE_STAMP, compile_c, tanh

# (name, pass): what makes the kernel, its arguments (p a pointer, n an int64), whether it returns an int64
FORWARD, BACKWARD = "ppnpnpnnnnppp", "ppnpnpnnnnppppnpp"


def output_fwd(dtype, stamp=SOURCE_STAMP):
    def kernel(z, count):
        stamp  # noqa: B018 (part of the cache's key: see cpu_math)
        z = carray(z, count, dtype)
        for j in range(count):
            z[j] = tanh(z[j])

    return kernel


def output_bwd(dtype, stamp=SOURCE_STAMP):
    one = dtype(1)

    def kernel(a, d, count):
        stamp  # noqa: B018
        a, d = carray(a, count, dtype), carray(d, count, dtype)
        for j in range(count):
            d[j] *= one - a[j] * a[j]

    return kernel


KERNELS = {
    ("additive_attention", "prepare"): (additive_prepare, "pnnnp", True),
    ("additive_attention", "fwd"): (additive_fwd, FORWARD, False),
    ("additive_attention", "bwd"): (additive_bwd, BACKWARD, False),
    ("additive_attention", "keys"): (additive_keys, "pnnpnpnnnppnpp", False),
    ("dot_attention", "fwd"): (dot_fwd, FORWARD, False),
    ("dot_attention", "bwd"): (dot_bwd, BACKWARD, False),
    ("softmax", "fwd"): (softmax_fwd, "pn", False),
    ("softmax", "bwd"): (softmax_bwd, "ppn", False),
    ("output", "fwd"): (output_fwd, "pn", False),
    ("output", "bwd"): (output_bwd, "ppn", False),
}


def compile_kernel(name: str, of_pass: str, dtype: str, cpu: str | None = None):
    """The kernel of a name and pass, in "f32" or "f64": an object with `.address`, as `compile_c` gives it."""
    make, arguments, returns = KERNELS[name, of_pass]
    return compile_c(make, arguments, dtype, cpu=cpu, returns=returns, math=("reassoc",))
