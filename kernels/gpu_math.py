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
def first_state(given, is_given, carried, at, mask, first, CARRIED: tl.constexpr):
    """A state before the first step of a launch: that which is given, or where CARRIED what the launch before left."""
    if CARRIED:
        state = tl.load(given + at, tl.where(first > 0, False, is_given), other=0.0).to(tl.float32)
        state += tl.load(carried + at, tl.where(first > 0, mask, False), other=0.0)
    else:
        state = tl.load(given + at, is_given, other=0.0).to(tl.float32)
    return state


@triton.jit
def last_state(final, carried, at, state, mask, is_final, CARRIED: tl.constexpr):
    """And after its last step."""
    if CARRIED:
        tl.store(final + at, state.to(final.dtype.element_ty), tl.where(is_final, mask, False))
        tl.store(carried + at, state, tl.where(is_final, False, mask))
    else:
        tl.store(final + at, state.to(final.dtype.element_ty), mask)


@triton.jit
def weight_tile(
    w, tile, k, H,
    K: tl.constexpr, GATES: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr = 1,
):  # fmt: skip
    """Columns k of the rows of `w` (GATES * H, K) that are the units' of `tile`: (4 * BH, BK), gate by gate, or (BH, BK).

    SPLIT: in so many pieces, (SPLIT, 4 * BH, BK / SPLIT).
    """
    SLOTS: tl.constexpr = 1 if GATES == 1 else 4
    slot = tl.arange(0, SLOTS * BH)
    gate, unit = slot // BH, tile * BH + slot % BH
    ks = features(k, BK, SPLIT)
    mask = (unit < H) & (gate < GATES)
    row = (gate * H + unit).to(tl.int64)
    at, mask = along(row, SPLIT), along(mask, SPLIT)
    return tl.load(w + at * K + ks, mask & (ks < K), other=0.0)


@triton.jit
def features(k, BK: tl.constexpr, SPLIT: tl.constexpr):
    """From the k-th on BK of them: (1, BK), or in pieces (SPLIT, 1, BK / SPLIT)."""
    PIECE: tl.constexpr = BK // SPLIT
    ks = k + tl.arange(0, PIECE)
    if SPLIT > 1:
        ks = PIECE * tl.arange(0, SPLIT)[:, None, None] + ks[None, None, :]
    else:
        ks = ks[None, :]
    return ks


@triton.jit
def along(rows, SPLIT: tl.constexpr):
    """Of each row, for all of its features."""
    if SPLIT > 1:
        rows = rows[None, :, None]
    else:
        rows = rows[:, None]
    return rows


@triton.jit
def product(
    acc, a, a_mask, w, kept, more, tile, H,
    K: tl.constexpr, GATES: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, BK2: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr = 1,
):  # fmt: skip
    """`acc` plus rows times weights; `a` (BM,) points to rows of K.

    Where KEEP, the weights are there: `kept` of the first BK features, and `more` of the next BK2, which together cover K.
    SPLIT: each warp sums over a part of the features, since a sum of matrix instructions waits for each of them in turn.
    """
    if SPLIT > 1:
        total = tl.zeros((SPLIT, acc.shape[0], acc.shape[1]), tl.float32)
    else:
        total = acc
    if KEEP:
        first = row_tile(a, a_mask, 0, K, BK, ".cg", SPLIT)
        if BK2 > 0:
            second = row_tile(a, a_mask, BK, K, BK2, ".cg", SPLIT)
        total = dot(first, kept, total, PRECISION)
        if BK2 > 0:
            total = dot(second, more, total, PRECISION)
    else:
        for k in range(0, K, BK):
            weights = weight_tile(w, tile, k, H, K, GATES, BH, BK, SPLIT)
            total = dot(row_tile(a, a_mask, k, K, BK, ".cg", SPLIT), weights, total, PRECISION)
    if SPLIT > 1:
        total = acc + sum_of_pieces(total)
    return total


@triton.jit
def sum_of_pieces(pieces):
    """The sum along the first axis, which has 1 to 16 pieces; each thread adds all that there are of a number, pair by pair."""
    S: tl.constexpr = pieces.shape[0]
    last = tl.permute(pieces, (1, 2, 0))
    if S == 2:
        total = halved(last)
    elif S == 4:
        total = halved(halved(tl.reshape(last, (last.shape[0], last.shape[1], 2, 2))))
    elif S == 8:
        total = halved(halved(halved(tl.reshape(last, (last.shape[0], last.shape[1], 2, 2, 2)))))
    else:
        total = halved(halved(halved(halved(tl.reshape(last, (last.shape[0], last.shape[1], 2, 2, 2, 2))))))
    return total


@triton.jit
def halved(pairs):
    one, other = tl.split(pairs)
    return one + other


@triton.jit
def in_rows(x, doom, SPLIT: tl.constexpr):
    """x + doom, of which each thread has what it loads and stores of a row; a sum of pieces (SPLIT > 1) is so already.

    Triton carries the layout of a matrix product on to all that is computed with it, and then converts everything that is
    loaded and stored, each time by barriers. A split of neighbouring rows can't keep that layout: one conversion, here.
    """
    if SPLIT > 1:
        x += doom
    else:
        M: tl.constexpr = x.shape[0]
        N: tl.constexpr = x.shape[1]
        even, odd = tl.split(tl.permute(tl.reshape(x, (M // 2, 2, N)), (0, 2, 1)))
        x = tl.reshape(tl.permute(tl.join(even + doom, odd + doom), (0, 2, 1)), (M, N))
    return x


@triton.jit
def row_tile(a, a_mask, k, K: tl.constexpr, BK: tl.constexpr, CACHE: tl.constexpr, SPLIT: tl.constexpr = 1):
    """Columns k of the rows that `a` points to, (BM, BK) or (SPLIT, BM, BK / SPLIT); past the first-level cache if other
    programs write them meanwhile."""
    ks = features(k, BK, SPLIT)
    return tl.load(along(a, SPLIT) + ks, along(a_mask, SPLIT) & (ks < K), other=0.0, cache_modifier=CACHE)


@triton.jit
def dot(rows, weights, acc, PRECISION: tl.constexpr):
    """The matrix product in the precision asked for; "wide" is for the interpreter, which can't multiply bfloat16."""
    if PRECISION == "wide":
        acc += tl.dot(rows.to(tl.float32), turned(weights.to(tl.float32)))
    else:
        acc = tl.dot(rows, turned(weights), acc, input_precision=PRECISION)
    return acc


@triton.jit
def turned(weights):
    """The transpose, of each piece where there are pieces."""
    if len(weights.shape) == 3:
        weights = tl.permute(weights, (0, 2, 1))
    else:
        weights = tl.trans(weights)
    return weights


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
def leave(barrier, steps):
    """After `steps` arrivals of each program: the last one to leave makes it zero again, for the launch after this.

    Who leaves looks at it no more, and has arrived as often as it ever will, whether it had waited in vain or not. So
    whoever completes the count is the only one left.
    """
    before = tl.atomic_add(barrier, 1, sem="relaxed")
    tl.atomic_xchg(barrier, 0, before >= (steps + 1) * tl.num_programs(1) - 1, sem="relaxed")


@triton.jit
def wait(barrier, arrivals, hope, patience, alarm, number):
    """Until there were that many arrivals; what was stored before them is seen by loads that bypass the first-level cache.

    A program that has looked `patience` times in vain writes its launch's `number` to `alarm`, and has no `hope` from then on:
    it waits no more, and what it computes is NaN. Returns whether there is hope.
    """
    looks = tl.where(hope, 0, patience)
    while (tl.atomic_add(barrier, 0, sem="acquire") < arrivals) & (looks < patience):
        looks += 1
    tl.debug_barrier()
    tl.store(alarm, number, looks >= patience)
    return looks < patience


@triton.jit
def dread(hope, PERSISTENT: tl.constexpr):
    """What is added to a step's product: 0, or NaN where there is no hope."""
    if PERSISTENT:
        doom = tl.where(hope, 0.0, float("nan"))
    else:
        doom = 0.0
    return doom
