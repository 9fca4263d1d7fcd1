"""Time per step of the LSTM's persistent loop on a GPU, beside the least that it could take.

`python -m fastlstm.benchmarks.floor FILE` measures the dense cases of a GPU and writes JSON. The floor is a kernel of the
forward's tiles and nothing else: a barrier, h through the L2 cache, the tile's matrix product. Each time is that of T steps
more in one launch, over T, so that the launch itself is not in it. Beside each stands what `step_model` predicts for an H100.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import fastlstm
from fastlstm.benchmarks.cases import GPU_CASES
from fastlstm.benchmarks.machine import machine
from fastlstm.benchmarks.step_model import counts, predicted_s
from fastlstm.benchmarks.work import DTYPES
from fastlstm.gpu import ahead, launch
from fastlstm.gpu.loop import Loop
from fastlstm.gpu.rows import Rows
from fastlstm.kernels.gpu_compile import Target
from fastlstm.kernels.gpu_machine_code import step_of
from fastlstm.parity.impl import told

T, RUNS = 512, 9
SM_90 = Target("cuda", 90, 32)
Events = list[tuple[torch.cuda.Event, torch.cuda.Event]]


# Predictions, until a GPU is measured: what a call takes of the host beside its steps, docs/decisions/0029. Launches, PyTorch's
# too, and Python calls inside the op are counted by tests/test_gpu_host.py
LAUNCH_S, PYTHON_CALL_S = 4e-6, 1e-7
CALLS = {"lstm forward": (2, 38), "lstm backward": (8, 48), "gru forward": (3, 36), "gru backward": (14, 44)}


def predicted_call_s(launches: int, python_calls: int) -> float:
    return launches * LAUNCH_S + python_calls * PYTHON_CALL_S


def floor_seconds_per_step(B: int, H: int, dtype: torch.dtype, *, product: bool = True) -> float:
    """What a step of B sequences and H units takes at least; without `product`, its barrier and its stores alone."""
    (seconds,) = per_step(partial(floor, B, H, dtype, product=product))
    return seconds


def loop_seconds_per_step(B: int, H: int, dtype: torch.dtype) -> tuple[float, float]:
    """What a step of our LSTM takes, forward and backward: its loop alone, without the products over all steps."""
    forward, backward = per_step(partial(train, B, H, dtype))
    return forward, backward


def floor(B: int, H: int, dtype: torch.dtype, steps: int, *, product: bool = True, device: str = "cuda") -> Tensor:
    """The states (steps + 1, B, H) of h = W h: the first is drawn, the others are what the floor's kernel made of it."""
    hidden = torch.empty(steps + 1, B, H, dtype=dtype, device=device)
    hidden[0].normal_()
    loop = Loop(Rows(hidden[1:], None, None, B, False), dtype, alone=True)
    loop.add("floor", H, H, 4, {"hidden": hidden, "w": weights(H, dtype, device)}, {"PRODUCT": product})
    loop.run()
    return hidden


def weights(H: int, dtype: torch.dtype, device: str) -> Tensor:
    """(4H, H), of a scale that keeps h about as large as it was; the same at every call."""
    random = torch.Generator(device).manual_seed(0)
    return (torch.randn(4 * H, H, generator=random, device=device) * H**-0.5).to(dtype)


def train(B: int, H: int, dtype: torch.dtype, steps: int) -> None:
    """One training step of our LSTM."""
    module = fastlstm.LSTM(H, H, device="cuda", dtype=dtype, backend="triton")
    x = torch.randn(steps, B, H, device="cuda", dtype=dtype, requires_grad=True)
    y, _ = module(x)
    y.backward(torch.randn_like(y))


def per_step(run: Callable[[int], object]) -> list[float]:
    """The seconds that a step takes more, of each loop that `run(steps)` launches, in order; the median."""
    times: dict[int, list[list[float]]] = {T: [], 2 * T: []}
    for _ in range(RUNS):
        for steps, rows in times.items():
            with timed_loops() as loops:
                run(steps)
            torch.cuda.synchronize()
            rows.append([1e-3 * begin.elapsed_time(end) for begin, end in loops])
    short, long = ([statistics.median(loop) for loop in zip(*rows, strict=True)] for rows in times.values())
    return [(more - less) / T for less, more in zip(short, long, strict=True)]


@contextmanager
def timed_loops() -> Iterator[Events]:
    """An event before and one after each loop that is launched inside."""
    events: Events = []
    run = launch.run

    def timed(*args: Any, **options: Any) -> bool:
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        done = run(*args, **options)
        pair[1].record()
        events.append(pair)
        return done

    with patch.object(launch, "run", timed):
        yield events


def predicted(run: Callable[[int], object]) -> list[float]:
    """The seconds that a step of each loop of `run(steps)` would take on an H100, by the model."""
    with launch.recorded() as calls:
        run(2)
    return [predicted_s(counts(call.spec, call.grid, step_of(call.spec, SM_90))) for call in calls]


def measure(name: str, dtype: str) -> dict[str, str | float]:
    case, kind = GPU_CASES[name], DTYPES[dtype]
    forward, backward = loop_seconds_per_step(case.B, case.H, kind)
    row: dict[str, str | float] = {
        "case": name,
        "dtype": dtype,
        "barrier_s": floor_seconds_per_step(case.B, case.H, kind, product=False),
        "floor_s": floor_seconds_per_step(case.B, case.H, kind),
        "forward_s": forward,
        "backward_s": backward,
    }
    try:
        (of_floor,) = predicted(partial(floor, case.B, case.H, kind))
        of_forward, of_backward = predicted(partial(train, case.B, case.H, kind))
    except Exception as error:  # whatever reads machine code may lack: what was measured stands
        return row | {"not_predicted": told(error)}
    return row | {
        "predicted_floor_s": of_floor,
        "predicted_forward_s": of_forward,
        "predicted_backward_s": of_backward,
    }


def main(file: Path) -> None:
    names = [name for name, case in GPU_CASES.items() if case.layout == "dense" and not case.resets and case.T > 1]
    rows = [(name, "bf16") for name in names] + [("published", "fp16")]
    predicted = {name: predicted_call_s(*counts) for name, counts in CALLS.items()}
    result: dict = {"machine": machine("cuda"), "rows": [], "predicted_call_s": predicted}
    ahead.compile_ahead(
        (
            partial(run, GPU_CASES[name].B, GPU_CASES[name].H, DTYPES[dtype], 2)
            for name, dtype in rows
            for run in (train, floor, partial(floor, product=False))
        ),
        torch.device("cuda"),
    )
    print("microseconds per step: barrier, floor, forward, backward; predicted for an H100: floor, forward, backward")
    for name, dtype in rows:
        try:
            row = measure(name, dtype)
            times = [f"{1e6 * value:8.2f}" for key, value in row.items() if key.endswith("_s")]
        except Exception as error:  # of one row: the others are to be measured
            row, times = {"case": name, "dtype": dtype, "failed": told(error)}, [told(error)]
        result["rows"].append(row)
        print(f"{name:12} {dtype}", *times, flush=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any("failed" in row for row in result["rows"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
