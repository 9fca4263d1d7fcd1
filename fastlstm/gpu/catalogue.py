"""The kernels that the ops launch, found by running the ops on tensors without data; and what each compiles to."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import NamedTuple

import torch

from fastlstm.backends import VARIANTS
from fastlstm.gpu import launch
from fastlstm.gpu.gru import gru_bwd, gru_fwd
from fastlstm.gpu.lstm import lstm_bwd, lstm_fwd
from fastlstm.gpu.plan import Gpu
from fastlstm.kernels.gpu_compile import Resources, Spec, Target, resources

A100 = Gpu(processors=108, shared=163 * 1024)
MI300 = Gpu(processors=304, shared=64 * 1024)
TARGETS = {
    "sm_80": (Target("cuda", 80, 32), A100),
    "sm_90": (Target("cuda", 90, 32), launch.H100),
    "gfx942": (Target("hip", "gfx942", 64), MI300),
}
# (B, H, everything): few units per program and kept weights; large batch tiles and one launch per step; sizes that fit nothing.
# Everything: variable lengths, resets and all cells, in reverse
SIZES = ((16, 768, False), (256, 1024, False), (3, 37, True), (4096, 128, True))
DTYPES = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bf16": (torch.bfloat16, "tf32"),
    "fp16": (torch.float16, "tf32"),
}


class Entry(NamedTuple):
    """One kernel of the catalogue, by what it is for."""

    variant: str
    dtype: str
    B: int
    H: int
    spec: Spec


class Compiled(NamedTuple):
    """What a kernel compiles to on a target, or why it doesn't."""

    entry: Entry
    target: str
    resources: Resources | None
    error: str


def entries(target: str) -> list[Entry]:
    """The kernels of every variant and dtype, at SIZES."""
    found: dict[Spec, Entry] = {}
    for variant, dtype, (B, H, everything) in product((*VARIANTS, "projection"), DTYPES, SIZES):
        for spec in launched(variant, *DTYPES[dtype], B, H, TARGETS[target][1], everything=everything):
            found.setdefault(spec, Entry(variant, dtype, B, H, spec))
    return list(found.values())


def launched(
    variant: str, dtype: torch.dtype, precision: str, B: int, H: int, gpu: Gpu, *, everything: bool
) -> list[Spec]:
    """The kernels that a training step of one layer would launch."""
    T, I, G = 2, H, 3 if variant == "gru" or variant.startswith("cifg") else 4
    R = H // 2 if variant == "projection" else H
    batch_sizes = torch.full((T,), B) if everything else None
    with torch.device("meta"):
        x, h, c, w_ih, w_hh = (torch.empty(s, dtype=dtype) for s in ((T, B, I), (B, R), (B, H), (G * H, I), (G * H, R)))
        reset = torch.empty(T, B, dtype=torch.bool) if everything else None
        w_hr = torch.empty(R, H, dtype=dtype) if variant == "projection" else None
        peephole = torch.empty(G - 1, H, dtype=dtype) if "peephole" in variant else None
        bias = torch.empty(G * H, dtype=dtype)
    batch = x, batch_sizes, reset
    with launch.recorded(gpu, precision) as calls:
        if variant == "gru":
            y, h_n, saved = gru_fwd(*batch, h, w_ih, w_hh, bias, bias, everything, True)
            gru_bwd(y, h_n, *batch, h, w_ih, w_hh, y, saved, everything, True, True)
        else:
            weights, flags = (w_ih, w_hh), (G == 3, everything)
            y, h_n, c_n, cells, saved = lstm_fwd(
                *batch, h, c, *weights, bias, bias, w_hr, peephole, *flags, everything, True
            )
            lstm_bwd(
                y,
                h_n,
                c_n,
                cells if everything else None,
                *batch,
                h,
                c,
                *weights,
                w_hr,
                peephole,
                y,
                saved,
                *flags,
                True,
                True,
            )
    return [call.spec for call in calls]


def compile_all(jobs: list[tuple[Entry, str]], processes: int) -> Iterator[Compiled]:
    """Each kernel for its target, in as many processes; the first time a kernel takes about a second."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(compile_one, *zip(*jobs, strict=True), chunksize=4)


def compile_one(entry: Entry, target: str) -> Compiled:
    try:
        return Compiled(entry, target, resources(entry.spec, TARGETS[target][0]), "")
    except Exception as error:  # whatever Triton's passes raise is what is to be reported
        return Compiled(entry, target, None, f"{type(error).__name__}: {error}".splitlines()[0])
