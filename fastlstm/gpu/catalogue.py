"""The kernels that the ops launch, found by running the ops on tensors without data; and what each compiles to."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import NamedTuple

import torch

from fastlstm.backends import VARIANTS
from fastlstm.gpu import launch
from fastlstm.gpu.attention_catalogue import DECODERS, decoder_launched
from fastlstm.gpu.conv_lstm import conv_lstm_bwd, conv_lstm_fwd
from fastlstm.gpu.gru import gru_bwd, gru_fwd
from fastlstm.gpu.lstm import lstm_bwd, lstm_fwd
from fastlstm.gpu.plan import Gpu
from fastlstm.kernels.conv_lstm import (
    CIFG_CONV_LSTM,
    CIFG_PEEPHOLE_CONV_LSTM,
    CONV_LSTM,
    PEEPHOLE_CONV_LSTM,
    unmoved,
)
from fastlstm.kernels.gpu_compile import Resources, Spec, Target, resources
from fastlstm.kernels.gpu_machine_code import Step, cost, disassembled, faults
from fastlstm.kernels.lstm import LSTM
from fastlstm.kernels.variant import PARAMETERS, Variant

A100 = Gpu(processors=108, shared=163 * 1024)
MI300 = Gpu(processors=304, shared=64 * 1024)
TARGETS = {
    "sm_80": (Target("cuda", 80, 32), A100),
    "sm_90": (Target("cuda", 90, 32), launch.H100),
    "gfx942": (Target("hip", "gfx942", 64), MI300),
}
# (T, B, H, everything): few units per program and kept weights; large batch tiles, one launch per step; sizes that fit nothing;
# a step alone. Everything: variable lengths, resets and all cells, in reverse
SIZES = ((2, 16, 768, False), (2, 256, 1024, False), (2, 3, 37, True), (2, 4096, 128, True), (1, 1, 128, False))
# (variant, B, H, image, kernel, everything): few programs; many that are large; both with peepholes, which are each pixel's own
# where there is everything; and channels that wide loads can't read
CONV_SIZES = (
    (CONV_LSTM, 4, 64, (32, 32), (3, 3), False),
    (CONV_LSTM, 16, 128, (64, 64), (5, 5), False),
    (PEEPHOLE_CONV_LSTM, 4, 64, (32, 32), (3, 3), False),
    (PEEPHOLE_CONV_LSTM, 16, 64, (64, 64), (3, 3), True),
    (CIFG_CONV_LSTM, 3, 37, (5, 6, 7), (4, 3, 2), True),
    (CIFG_PEEPHOLE_CONV_LSTM, 3, 37, (5, 6, 7), (4, 3, 2), True),
)
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
    """What a kernel compiles to on a target, or why it doesn't; and of a persistent one, what a step is waited for."""

    entry: Entry
    target: str
    resources: Resources | None
    error: str
    step: Step | None = None


def entries(target: str, dtypes: Iterable[str] = DTYPES) -> list[Entry]:
    """The kernels of every variant, in these dtypes, at SIZES."""
    found: dict[Spec, Entry] = {}
    projection = ("projection", LSTM, True)
    for (name, variant, projected), dtype, (T, B, H, everything) in product(
        (*((name, variant, False) for name, variant in VARIANTS.items()), projection), dtypes, SIZES
    ):
        P, gpu = H // 2 if projected else None, TARGETS[target][1]
        for spec in launched(variant, *DTYPES[dtype], T, B, H, P, gpu, everything=everything):
            found.setdefault(spec, Entry(name, dtype, B, H, spec))
    for (variant, B, H, image, kernel, everything), dtype in product(CONV_SIZES, dtypes):
        gpu = TARGETS[target][1]
        for spec in conv_launched(variant, *DTYPES[dtype], B, H, image, kernel, gpu, everything=everything):
            found.setdefault(spec, Entry(variant.name, dtype, B, H, spec))
    for decoder, dtype in product(DECODERS, dtypes):
        for spec in decoder_launched(decoder, *DTYPES[dtype], TARGETS[target][1]):
            found.setdefault(spec, Entry("attention_lstm", dtype, decoder.B, decoder.H, spec))
    return list(found.values())


def launched(
    variant: Variant, dtype: torch.dtype, precision: str, T: int, B: int, H: int, P: int | None, gpu: Gpu, *,
    everything: bool,
) -> list[Spec]:  # fmt: skip
    """The kernels that a training step of one layer would launch."""
    I = H
    batch_sizes = torch.full((T,), B) if everything else None
    with torch.device("meta"):
        x = torch.empty(T, B, I, dtype=dtype)
        reset = torch.empty(T, B, dtype=torch.bool) if everything else None
        states = [torch.empty(B, width, dtype=dtype) for width in variant.widths(H, P or H)]
        weights = {name: torch.empty(shape, dtype=dtype) for name, shape in variant.weights(I, H, P).items()}
    batch = x, batch_sizes, reset
    w_ih, w_hh, b_ih, b_hh, w_hr, w_peephole = (weights.get(name) for name in PARAMETERS)
    with launch.recorded(gpu, precision) as calls:
        if variant.op == "gru":
            y, h_n, saved = gru_fwd(*batch, *states, w_ih, w_hh, b_ih, b_hh, everything, True)
            gru_bwd(y, h_n, *batch, *states, w_ih, w_hh, saved, everything, True, True, True)
        else:
            flags = variant.coupled, everything
            y, h_n, c_n, cells, saved = lstm_fwd(
                *batch, *states, w_ih, w_hh, b_ih, b_hh, w_hr, w_peephole, *flags, everything, True
            )
            dcells = cells if everything else None
            lstm_bwd(
                y, h_n, c_n, dcells, *batch, *states, w_ih, w_hh, w_hr, w_peephole, saved, *flags, True, True, True
            )  # fmt: skip
    return [call.spec for call in calls]


def conv_launched(
    variant: Variant,
    dtype: torch.dtype,
    precision: str,
    B: int,
    H: int,
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    gpu: Gpu,
    *,
    everything: bool,
) -> list[Spec]:
    """The same of a layer of a ConvLSTM."""
    T, G = 2, len(variant.gates) * H
    batch_sizes = torch.full((T,), B) if everything else None
    with torch.device("meta"):
        x, state, w, bias = (
            torch.empty(shape, dtype=dtype) for shape in ((T, B, *image, H), (B, *image, H), (G, *kernel, H), (G,))
        )
        reset = torch.empty(T, B, dtype=torch.bool) if everything else None
        of_pixels = image if everything else ()
        peephole = torch.empty(len(variant.peepholes), *of_pixels, H, dtype=dtype) if variant.peepholes else None
    batch, flags = (x, batch_sizes, reset, state, state, w, w), (*unmoved(kernel), variant.coupled, False, everything)
    with launch.recorded(gpu, precision) as calls:
        y, h_n, c_n, cells, saved = conv_lstm_fwd(*batch, bias, bias, peephole, *flags, everything, True)
        dcells = cells if everything else None
        conv_lstm_bwd(y, h_n, c_n, dcells, *batch, peephole, saved, *flags, True, True)
    return [call.spec for call in calls]


def compile_all(jobs: list[tuple[Entry, str]], processes: int) -> Iterator[Compiled]:
    """Each kernel for its target, in as many processes; the first time a kernel takes about a second."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(compile_one, *zip(*jobs, strict=True), chunksize=4)


def compile_one(entry: Entry, target: str) -> Compiled:
    try:
        found, step = resources(entry.spec, TARGETS[target][0]), None
        persistent = dict(entry.spec.constants).get("PERSISTENT") and entry.variant in VARIANTS
        if persistent and target in READ:
            step = read(entry.spec, TARGETS[target][0])
        return Compiled(entry, target, found, "", step)
    except Exception as error:  # whatever Triton's passes raise is what is to be reported
        return Compiled(entry, target, None, f"{type(error).__name__}: {error}".splitlines()[0])


READ = ("sm_90",)  # whose machine code is read


def read(spec: Spec, target: Target) -> Step | None:
    """What a step is waited for. Raises RuntimeError where the code doesn't keep the barrier's order."""
    constants = dict(spec.constants)
    code = disassembled(spec, target)
    # of the gradients, those of all gates are exchanged
    exchanged = 1 if spec.name.endswith("forward") else 3 if "gru" in spec.name or constants["COUPLED"] else 4
    if wrong := faults(code, streams=not constants["KEEP"], stores=exchanged):
        raise RuntimeError(f"its machine code does not keep the barrier's order: {'; '.join(wrong)}")
    return cost(code)


# What a kernel is compiled for: constants that say no more than sizes
SIZES_OF = (
    "H", "K", "BM", "BH", "BK", "BK2", "BS", "BA", "KB", "A", "M", "R", "ALIGN", "ALIGN_BELOW", "SCALE", "KZ", "KY", "KX",
)  # fmt: skip


def differing(found: list[Entry]) -> list[Entry]:
    """Of these, so many that every kernel is there in every dtype and, in some dtype, with every value of all else that makes
    other code of it, but for sizes."""

    def traits(entry: Entry) -> set[tuple]:
        spec, flags = entry.spec, dict(entry.spec.constants)
        flags["SPLIT"] = flags.get("SPLIT", 1) > 1
        flags["FORM"] = flags.get("PERSISTENT"), flags.get("CARRIED")
        others = {(spec.name, name, flag) for name, flag in flags.items() if name not in SIZES_OF}
        return others | {(spec.name, entry.dtype)}

    left, chosen = set().union(*map(traits, found)), []
    while left:
        best = max(found, key=lambda entry: len(left & traits(entry)))
        chosen.append(best)
        left -= traits(best)
    return chosen
