"""How a loop is laid out on a GPU: the tile of a program, and whether all programs can be resident at once.

The numbers are predictions from what the kernels compile to (registers, shared memory, grid), see docs/decisions/0008-gpu.md;
none of them depends on T, and B enters in powers of two only, so that few kernels are ever compiled.
"""

from typing import NamedTuple

import torch

SLACK_BYTES = 16 * 1024  # of shared memory, for conversions of layouts
STAGE_BYTES = 32 * 1024  # of one stage of the pipeline that streams weights and rows
# per warp: of a block loaded whole, once, or half as much in every step; it passes through registers
BLOCK_BYTES = 16 * 1024
EAGER_BYTES = 8 * 1024  # per warp: as much of such a block as there are registers for to load all of it in one go
MOST_WARPS = 16
REGISTERS = 128  # of a thread, so many that MOST_WARPS have
WIDE = 64  # sequences from which on the tensor cores have instructions of four warps
ROW_NUMBERS = 1024  # per warp: of rows that pass through registers and that sums along them are taken of


class Gpu(NamedTuple):
    """What a plan needs to know of a GPU."""

    processors: int
    shared: int  # bytes that a program may have


class Tile(NamedTuple):
    """`BM` sequences and `BH` units per program; the product takes `BK` features at a time, or with `keep` BK and BK2, all."""

    BM: int
    BH: int
    BK: int
    BK2: int
    keep: bool
    warps: int
    stages: int
    split: int = 1  # parts of the features that are summed apart
    registers: int = 0  # the most of a thread, 0: as the compiler finds


def power_of_two(n: int) -> int:
    """The next power of two from `n` on."""
    return 1 << max(n - 1, 0).bit_length()


def batch_tile(B: int) -> int:
    """Sequences per program: the tensor cores take 16 rows at least, and 64 for their asynchronous form."""
    return min(max(power_of_two(B), 16), 64)


def batch_tiles(B: int) -> int:
    """Programs along the batch."""
    return -(-B // batch_tile(B))


def tile(
    B: int, H: int, K: int, slots: int, dtype: torch.dtype, precision: str, gpu: Gpu, *, may_keep: bool = True
) -> Tile:
    """The tile of a loop over H units, K features and `slots` columns of the product per unit.

    Few units per program make a short step, as long as there are processors for them. The weights stay in shared memory where
    they and the rows of a step fit; not for exact float32 products, which have no tensor cores and are unrolled over
    all features, and not where each step is a launch (`may_keep` is False).
    """
    exact, size, BM = precision == "ieee", dtype.itemsize, batch_tile(B)
    if may_keep and not exact and (kept := kept_tile(B, H, K, slots, size, gpu)):
        return kept
    BH = units(B, H, 8 if slots > 1 else 16, size, gpu)
    warps = wide_warps(BM, BH, slots)
    # a pipeline copies 8 bytes at a time through the first-level cache, which may hold what another program has overwritten
    stages = 1 if K * size % 16 else 3
    BK = block(BM + slots * BH, K, size, exact, gpu)
    split = pieces(BM, warps, BK) if may_keep and not exact else 1
    return Tile(BM, BH, BK, 0, False, warps, stages, split)


def kept_tile(B: int, H: int, K: int, slots: int, size: int, gpu: Gpu) -> Tile | None:
    """That of a program whose weights stay, where they can: on a processor of its own, since a launch of one step has nothing
    to keep them for. What is loaded at once passes through registers, of which many warps have more.

    Each program reads all rows, in the backward those of all gates: there, as few programs as have room for their weights.
    """
    BM, (BK, BK2) = batch_tile(B), whole(K)
    for least in (8,) if slots > 1 else (16, 8) if BM < WIDE else (16,):
        BH = units(B, H, least, size, gpu)
        room = (slots * BH + BM) * (BK + BK2) * size + SLACK_BYTES <= gpu.shared
        loaded = max(slots * BH, 2 * BM) * (BK + BK2) * size
        warps = wide_warps(BM, BH, slots)
        if BM < WIDE:
            warps = min(max(power_of_two(-(-loaded // EAGER_BYTES)), warps), MOST_WARPS)
        if room and loaded <= BLOCK_BYTES * warps and -(-H // BH) * batch_tiles(B) <= gpu.processors:
            registers = REGISTERS if BM < WIDE else 0
            return Tile(BM, BH, BK, BK2, True, warps, 1, pieces(BM, warps, BK, BK2), registers)
    return None


def units(B: int, H: int, least: int, size: int, gpu: Gpu) -> int:
    """Of a program: as few as there are processors for."""
    BH = least
    while (16 if size == 4 else 32) > BH and -(-H // BH) * batch_tiles(B) > gpu.processors:
        BH *= 2
    return BH


def wide_warps(BM: int, BH: int, slots: int) -> int:
    return 8 if BM * BH >= 64 * 32 or BM * slots * BH >= 64 * 64 else 4


def pieces(BM: int, warps: int, *blocks: int) -> int:
    """How many warps share the features of a product, of 16 or more each: those of one warp are summed one after another. The
    instructions for wide tiles are all warps' together."""
    return 1 if BM >= WIDE else min(warps, *(block // 16 for block in blocks if block))


def pixel_tile(rows: int, H: int, K: int, slots: int, dtype: torch.dtype, precision: str, gpu: Gpu) -> Tile:
    """That of a step over maps, whose product sums K features at every tap, and has as many `rows` as a batch has pixels.

    Where there are programs to spare they are fewer and larger, and read weights less often. Channels that wide loads can't
    read are read one by one: their addresses take registers, so blocks are small.
    """
    chosen = tile(rows, H, K, slots, dtype, precision, gpu, may_keep=False)
    if K * dtype.itemsize % 16:
        return chosen._replace(BK=min(chosen.BK, 32 if precision == "ieee" else 16), warps=8, stages=1)
    if dtype.itemsize == 2 and chosen.warps == 8 and -(-H // chosen.BH) * batch_tiles(rows) > 4 * gpu.processors:
        return chosen._replace(BM=2 * chosen.BM, BK=block(2 * chosen.BM + slots * chosen.BH, K, 2, False, gpu))
    return chosen


def slot_tile(*widths: int) -> tuple[int, int]:
    """Rows at a time of arrays of such widths, which a program has whole and which pass through registers; and its warps."""
    widest = power_of_two(max(widths))
    warps = 8 if widest >= 512 else 4
    return min(max(ROW_NUMBERS * warps // widest, 1), 64), warps


def block(loaded: int, K: int, size: int, exact: bool, gpu: Gpu) -> int:
    """Features that a streamed product takes at a time, of so many rows of both factors."""
    most = min(STAGE_BYTES, (gpu.shared - SLACK_BYTES) // 3) // (loaded * size)
    BK = 32 if exact else max(16, min(512, power_of_two(most + 1) // 2))
    return min(BK, power_of_two(max(K, 16)))


def whole(K: int) -> tuple[int, int]:
    """Powers of two, from 16 on, whose sum covers K: one, or two where they come closer."""
    one = power_of_two(max(K, 16))
    most = one // 2
    rest = power_of_two(max(K - most, 16))
    return (most, rest) if most >= 16 and most + rest < one else (one, 0)


def grid(rows: int, H: int, chosen: Tile) -> tuple[int, int]:
    """Programs along the rows, of which there may be more than the 65,535 of a GPU's second axis, and along the units."""
    return -(-rows // chosen.BM), -(-H // chosen.BH)


def resident(B: int, H: int, chosen: Tile, gpu: Gpu) -> bool:
    """Whether the grid surely fits on the GPU at once: a program per processor."""
    along_batch, along_units = grid(B, H, chosen)
    return along_batch * along_units <= gpu.processors
