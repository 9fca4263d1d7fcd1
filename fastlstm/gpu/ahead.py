"""Kernels compiled ahead, on all processors: one by one, each when it is first launched, many of them take minutes."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import chain, islice
from multiprocessing import get_context

import torch

from fastlstm.gpu import launch
from fastlstm.kernels import gpu_compile
from fastlstm.kernels.gpu_compile import Spec, Target

MOST_PROCESSES = 16
FEW = 8  # kernels, that are compiled sooner than processes are started
NICE = 5


def compile_ahead(work: Iterable[Callable[[], object]], device: torch.device) -> None:
    """Compile what `work` would launch; Triton keeps it on disk. A kernel that fails says so when it is launched."""
    with compiling(work, device) as jobs:
        wait(jobs)


@contextmanager
def compiling(work: Iterable[Callable[[], object]], device: torch.device) -> Iterator[list[Future]]:
    """Inside, the same is compiled meanwhile, in their order, by processes that leave the CPUs to others who want them."""
    specs = planned(work)
    few = list(islice(specs, FEW + 1))
    if len(few) <= FEW:
        yield []
        return
    processes, target, jobs = min(os.cpu_count() or 1, MOST_PROCESSES), launch.target(device.index or 0), list[Future]()
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=os.nice, initargs=(NICE,)) as pool:
        try:
            with suppress(BrokenExecutor):  # by a process that was killed; then each is compiled when it is launched
                for spec in chain(few, specs):
                    jobs.append(pool.submit(compile_one, spec, target))
            yield jobs
        finally:
            pool.shutdown(cancel_futures=True)


def planned(work: Iterable[Callable[[], object]]) -> Iterator[Spec]:
    """The kernels that `work` would launch: it is run, and launches nothing. What raises will raise again where it is run."""
    known: set[Spec] = set()
    for run in work:
        with launch.recorded() as calls, suppress(Exception):
            run()
        found = dict.fromkeys(call.spec for call in calls if call.spec not in known)
        known |= found.keys()
        yield from found


def compile_one(spec: Spec, target: Target) -> None:
    gpu_compile.compiled(spec, target)
