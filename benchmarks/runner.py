"""Measures cases: parity first, then interleaved pairs in one process, ratio pair by pair.

On a GPU a block of runs is timed from and to its being idle. Its L2 cache is as the run before left it, which had the same
batch; that is neither flushed nor rotated.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from fastlstm.backends import CONVOLUTIONAL, extension_status, multiply_adds
from fastlstm.benchmarks import derivatives
from fastlstm.benchmarks.cases import main_peer
from fastlstm.benchmarks.contenders import CONTENDERS, OTHER_WORK, contender
from fastlstm.benchmarks.memory import peak_memory
from fastlstm.benchmarks.work import Contender, make_work
from fastlstm.case import AttentionCase, Case, even
from fastlstm.gpu import ahead
from fastlstm.parity import difference
from fastlstm.parity.compare import exact_products

BLOCK_S = 0.05  # a block of runs is timed as one, and lasts about this long


def measure(case: Case, against: str, *, name: str | None = None, pairs: int, device: str, memory: bool = True) -> dict:
    """One row of the result: the contenders' times, their ratios, and what bounds them. Losses are rows like any other.

    `case` has its variant, dtype and mode, `name` is what it is called, if anything; `memory`: its peak is taken too. A row
    with "reason" was not timed: the contender can't do the work, or doesn't agree with the oracle.
    """
    row = head(case, against, name)
    try:
        work = make_work(case, device)
        if of_derivatives := derivatives.KINDS.get(against):
            mine, theirs = of_derivatives(work, 0), of_derivatives(work, 1)
        else:
            mine, theirs = contender("ours", work), contender(against, work)
    except NotImplementedError as error:
        return row | {"reason": str(error)}
    if of_derivatives and (reason := derivatives.differ(mine, theirs)):
        return row | {"reason": reason, "miss": True}
    same_work = (
        not of_derivatives and against not in OTHER_WORK and not (against == "torch" and not case.kind.counterpart)
    )
    for one, label in ((mine, "ours"), (theirs, against)):
        strict = label not in CONTENDERS or label == "ours"
        checked = same_work or (one is mine and not of_derivatives)
        with exact_products():  # times are those of TF32, where it is set for recurrent nets: by default, on a GPU
            reason = disagreement(one, strict) if checked else None
        if reason:
            return row | {"reason": f"{label}: {reason}", "miss": True}

    times = interleaved(mine.step, theirs.step, pairs)
    ours_s, theirs_s = (statistics.median(column) for column in zip(*times, strict=True))
    row |= {
        "path": theirs.path,
        "ratios": [their / my for my, their in times],
        "ours_s": ours_s,
        "theirs_s": theirs_s,
        "compile_s": theirs.compile_s,
    }
    if of_derivatives:
        return row
    row |= {
        "gflops": case.gflop(work.mode) / ours_s,
        "gemm_gflops": gemm_rate(case, work.dtype, device),
        "limit_gflops": multiply_add_rate(work.dtype) if device == "cpu" else None,
    }
    if isinstance(case, AttentionCase) and case.F:
        read = case.read(work.dtype.itemsize)
        passes = 2 if work.mode == "train" else 1  # a step back reads them once more
        row |= {
            "read_mb": 1e-6 * read,
            "read_gbs": 1e-9 * passes * case.T * read / ours_s,
            "sum_gbs": read_rate(read, work.dtype, device),
        }
    if memory and work.mode == "train" and against == main_peer(case.kind.name) and same_work:
        if device == "cpu":
            threads = torch.get_num_threads()
            who = ("ours", *(("checkpoint",) if case.kind.name in CONVOLUTIONAL else ()), against)
            row["memory"] = {one: peak_memory(case, one, threads) for one in who}
        else:
            row["memory"] = {one: allocated(run.step, device) for one, run in (("ours", mine), (against, theirs))}
    return row


def head(case: Case, against: str, name: str | None) -> dict[str, Any]:
    """How a row begins."""
    row: dict[str, Any] = {"case": str(case), "variant": case.variant, "mode": case.mode, "against": against}
    return row | ({"name": name} if name else {})


def allocated(step: Callable[[], object], device: str) -> int:
    """Bytes that a step allocates on a GPU at its peak, beyond the batch and the weights."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def compile_ahead(rows: list[tuple[Case, str]], device: str) -> None:
    """Compile the GPU kernels of all rows, (case, against); T does not matter for that."""

    def steps() -> Iterator[Callable[[], object]]:
        for case, against in rows:
            T = min(case.T, 2)
            short = dataclasses.replace(case, T=T, lengths=even(1, T, case.B) if case.lengths else ())
            for one in ("ours", against)[: 1 + (against in OTHER_WORK)]:
                try:
                    yield partial(twice, contender(one, make_work(short, device)).step)
                except Exception:
                    continue  # `measure` gives the reason

    ahead.compile_ahead(steps(), torch.device(device))


def twice(step: Callable[[], object]) -> None:
    """As it is compared, and as it is timed: in float32 these may be other kernels."""
    with exact_products():
        step()
    step()


def disagreement(one: Contender, strict: bool) -> str | None:
    """How the contender's results differ from float64's, or None where they agree.

    Strict, for ours and for somebody's own, is the rule of `fastlstm.parity`: twice the error of PyTorch in this dtype, plus
    one rounding. Another peer has only to compute the same function: to half of the dtype's digits.
    """
    work = one.work
    eps = torch.finfo(work.dtype).eps
    oracle = contender("reference", work.to(torch.float64)).step()
    in_pytorch = work.variant.counterpart and work.reset is None
    torchs = contender("torch" if in_pytorch else "reference", work).step()
    states = ["h", "c", "fed"][: len(work.states + work.zeros)]
    names = ["y", *(f"{s}_n" for s in states)] if work.case.layout != "cell" else states
    names += [f"d{key}" for key in work.named if key not in work.case.frozen]
    names += [f"d{key}" for key, _ in work.module.named_parameters()]
    for key, result, exact, peer in zip(names, one.step(), oracle, torchs, strict=False):
        allowed = 2 * difference(peer, exact) + eps
        if not strict or work.dtype == torch.float64:
            allowed = max(allowed, eps**0.5)
        error = difference(result, exact)
        if not error <= allowed:
            return f"the error of {key} is {error:.1e}, allowed is {allowed:.1e}"
    return None


def interleaved(a: Callable[[], object], b: Callable[[], object], pairs: int) -> list[tuple[float, float]]:
    """Seconds per run of a and b, block by block in turn: A B A B ..."""
    timers = [Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads()) for run in (a, b)]
    runs = [max(1, round(BLOCK_S / timer.timeit(1).mean)) for timer in timers]
    return [tuple(timer.timeit(n).mean for timer, n in zip(timers, runs, strict=True)) for _ in range(pairs)]


def gemm_rate(case: Case, dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of PyTorch's faster GEMM on the forward's matrix products alone, weights warm: what an LSTM could reach.

    A step of a single row multiplies a vector: there the rate is the memory's.
    """
    seconds = sum(count * gemm_seconds(*size, dtype, device) for count, *size in case.gemms())
    return case.gflop("infer") / seconds


@lru_cache
def gemm_seconds(rows: int, inner: int, columns: int, dtype: torch.dtype, device: str) -> float:
    x = torch.randn(rows, inner, dtype=dtype, device=device)
    w = torch.randn(columns, inner, dtype=dtype, device=device)
    ways: list[Callable[[], Tensor]] = [lambda: torch.mm(x, w.t())]
    if (
        device == "cpu"
        and torch.backends.mkldnn.is_available()
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    ):
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""))
    timers = [Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads()) for run in ways]
    return min(timer.blocked_autorange(min_run_time=BLOCK_S).median for timer in timers)


def multiply_add_rate(dtype: torch.dtype) -> float | None:
    """GFLOP/s of nothing but multiply-adds in registers, on all threads: no product can be faster. Taken anew for every row, as
    a core's clock moves. None for half precision, which CPUs multiply in several ways."""
    if dtype not in (torch.float32, torch.float64) or extension_status() != "built":
        return None
    times = 1_000_000
    count = multiply_adds(dtype, times)
    timer = Timer("run()", globals={"run": lambda: multiply_adds(dtype, times)}, num_threads=torch.get_num_threads())
    return max(2e-9 * count / timer.timeit(1).mean for _ in range(3))


@lru_cache
def read_rate(count: int, dtype: torch.dtype, device: str) -> float:
    """GB/s at which PyTorch's sum reads so many bytes again and again: the memory's rate, or a cache's that holds them."""
    numbers = torch.ones(count // dtype.itemsize, dtype=dtype, device=device)
    timer = Timer("run()", globals={"run": numbers.sum}, num_threads=torch.get_num_threads())
    return 1e-9 * count / timer.blocked_autorange(min_run_time=BLOCK_S).median


if __name__ == "__main__":
    raise SystemExit("fastlstm.benchmarks.runner measures nothing by itself: run `fastlstm bench`")
