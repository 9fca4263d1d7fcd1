"""What the Triton kernels of all variants share: σ and tanh, the product of a step, the rows of a step, the grid's barrier.

Arithmetic is float32. Nothing here needs libdevice or inline assembly, so that the interpreter and other GPUs run it too.

A program owns a tile of BM sequences (`rows`) and BH hidden units, in every step of its launch. Sizes: T time, B batch,
H hidden, K the features that a step's product sums over. Step t has `size` rows, which begin at row `offset` of every (N, *)
array.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), whose relative accuracy holds for very negative x too."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Near zero, where 1 - 2 / (1 + e^2x) cancels, x times a polynomial of x² that was fitted to tanh(x) / x."""
    u = x * x
    p = -0.005852160509675741 * u + 0.02075362205505371
    p = p * u - 0.05376870185136795
    p = p * u + 0.13331688940525055
    p = p * u - 0.3333328366279602
    near = x + x * u * p
    size = tl.abs(x)
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * size))
    return tl.where(size < 0.6, near, tl.where(x < 0.0, -far, far))


@triton.jit
def step_rows(t, B, offsets, sizes, VARIABLE: tl.constexpr):
    """Where the rows of step t begin, as int64, and how many there are."""
    if VARIABLE:
        offset = tl.load(offsets + t)
        size = tl.load(sizes + t)
    else:
        offset = t.to(tl.int64) * B
        size = B
    return offset, size


@triton.jit
def rows_run_before(s, T, B, offsets, sizes, DOWN: tl.constexpr, VARIABLE: tl.constexpr):
    """Those of the step that is run before the s-th, none before the first. DOWN: steps are run from the last to the first."""
    t = tl.where(s > 0, T - s if DOWN else s - 1, 0)
    offset, size = step_rows(t, B, offsets, sizes, VARIABLE)
    return offset, tl.where(s > 0, size, 0)


@triton.jit
def weight_tile(w, tile, k, H, K: tl.constexpr, GATES: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr):
    """Columns k of the rows of `w` (GATES * H, K) that are the units' of `tile`: (4 * BH, BK), gate by gate, or (BH, BK)."""
    SLOTS: tl.constexpr = 1 if GATES == 1 else 4
    slot = tl.arange(0, SLOTS * BH)
    gate, unit = slot // BH, tile * BH + slot % BH
    ks = k + tl.arange(0, BK)
    mask = (unit < H) & (gate < GATES)
    return tl.load(
        w + (gate * H + unit).to(tl.int64)[:, None] * K + ks[None, :], mask=mask[:, None] & (ks < K)[None, :], other=0.0
    )


@triton.jit
def product(
    acc, a, a_mask, w, kept, more, tile, H,
    K: tl.constexpr, GATES: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, BK2: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc` plus rows times weights; `a` (BM,) points to rows of K.

    Where KEEP, the weights are there: `kept` of the first BK features, and `more` of the next BK2, which together cover K.
    """
    if KEEP:
        first = row_tile(a, a_mask, 0, K, BK)
        if BK2 > 0:
            second = row_tile(a, a_mask, BK, K, BK2)
        acc = dot(first, kept, acc, PRECISION)
        if BK2 > 0:
            acc = dot(second, more, acc, PRECISION)
    else:
        for k in range(0, K, BK):
            weights = weight_tile(w, tile, k, H, K, GATES, BH, BK)
            acc = dot(row_tile(a, a_mask, k, K, BK), weights, acc, PRECISION)
    return acc


@triton.jit
def row_tile(a, a_mask, k, K: tl.constexpr, BK: tl.constexpr, CACHE: tl.constexpr = ".cg"):
    """Columns k of the rows that `a` points to, (BM, BK); past the first-level cache if other programs write them meanwhile."""
    ks = k + tl.arange(0, BK)
    return tl.load(a[:, None] + ks[None, :], a_mask[:, None] & (ks < K)[None, :], other=0.0, cache_modifier=CACHE)


@triton.jit
def dot(rows, weights, acc, PRECISION: tl.constexpr):
    """The matrix product in the precision asked for; "wide" is for the interpreter, which can't multiply bfloat16."""
    if PRECISION == "wide":
        acc += tl.dot(rows.to(tl.float32), tl.trans(weights.to(tl.float32)))
    else:
        acc = tl.dot(rows, tl.trans(weights), acc, input_precision=PRECISION)
    return acc


@triton.jit
def split_gates(acc, BM: tl.constexpr, BH: tl.constexpr):
    """The four gates (BM, BH) of (BM, 4 * BH)."""
    pairs = tl.reshape(tl.permute(tl.reshape(acc, (BM, 4, BH)), (0, 2, 1)), (BM, BH, 2, 2))
    even, odd = tl.split(pairs)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def arrive(barrier):
    """Tell the programs that wait on `barrier` that all that this one has stored is there."""
    tl.debug_barrier()
    tl.atomic_add(barrier, 1, sem="release")


@triton.jit
def wait(barrier, arrivals):
    """Until there were that many arrivals; what was stored before them is seen by loads that bypass the first-level cache."""
    while tl.atomic_add(barrier, 0, sem="acquire") < arrivals:
        pass
    tl.debug_barrier()
