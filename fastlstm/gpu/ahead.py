"""Kernels compiled ahead, on all processors: one by one, each when it is first launched, many of them take minutes."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context

import torch

from fastlstm.gpu import launch
from fastlstm.kernels import gpu_compile
from fastlstm.kernels.gpu_compile import Spec, Target

MOST_PROCESSES = 16
FEW = 8  # kernels, that are compiled sooner than processes are started


def compile_ahead(work: Iterable[Callable[[], object]], device: torch.device) -> None:
    """Compile what `work` would launch; Triton keeps it on disk. A kernel that fails says so when it is launched."""
    specs, target = planned(work), launch.target(device.index or 0)
    if len(specs) > FEW:
        with ProcessPoolExecutor(min(os.cpu_count() or 1, MOST_PROCESSES), get_context("spawn")) as pool:
            wait([pool.submit(compile_one, spec, target) for spec in specs])


def planned(work: Iterable[Callable[[], object]]) -> list[Spec]:
    """The kernels that `work` would launch: it is run, and launches nothing."""
    specs: dict[Spec, None] = {}
    for run in work:
        with launch.recorded() as calls:
            run()
        specs.update(dict.fromkeys(call.spec for call in calls))
    return list(specs)


def compile_one(spec: Spec, target: Target) -> None:
    gpu_compile.compiled(spec, target)
