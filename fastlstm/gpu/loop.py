"""A loop over time on a GPU: its tiles and form, and the kernels that run in each step."""

from collections.abc import Mapping
from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm.gpu import launch, plan
from fastlstm.gpu.rows import Rows
from fastlstm.kernels.gpu_compile import Spec, saved_dtype

Given = dict[str, Tensor | int | None]  # arguments by their names in a kernel

# Kernels with a state, and the float32 argument by which it goes from one launch to the next, where there are several
CARRIES = {
    "lstm_forward": "c_state", "lstm_backward": "dc_state", "gru_forward": "h_state", "gru_backward": "through",
}  # fmt: skip


class Wanted(NamedTuple):
    """What a loop's kernel depends on: `units` to share, a product of K features with `slots` columns per unit."""

    name: str
    dtype: torch.dtype
    B: int
    units: int
    K: int
    slots: int
    alone: bool
    single: bool  # of one step
    reverse: bool
    variable: bool
    reset: bool
    precision: str
    gpu: plan.Gpu
    device: torch.device
    flags: tuple[tuple[str, Any], ...]


class Forms(NamedTuple):
    """A launch for each step; and one of all steps, where all of its programs have a processor of their own."""

    steps: launch.Prepared
    resident: launch.Prepared | None


@lru_cache(maxsize=4096)
def forms(wanted: Wanted) -> Forms:
    w = wanted
    chosen = plan.tile(w.B, w.units, w.K, w.slots, w.dtype, w.precision, w.gpu, may_keep=w.alone)
    constants: dict[str, Any] = dict(w.flags) | {
        "REVERSE": w.reverse, "VARIABLE": w.variable, "RESET": w.reset, "ALIGN": gcd(16, w.K * w.dtype.itemsize),
        "PRECISION": w.precision, "BM": chosen.BM, "BH": chosen.BH, "BK": chosen.BK, "K": w.K,
    }  # fmt: skip
    if w.name != "project":
        constants |= {"H": w.units, "BK2": chosen.BK2, "KEEP": chosen.keep, "SPLIT": chosen.split}
    grid = plan.grid(w.B, w.units, chosen)

    def form(**more: Any) -> launch.Prepared:
        spec = Spec(
            w.name, w.dtype, tuple(sorted((constants | more).items())), chosen.warps, chosen.stages, chosen.registers
        )
        return launch.prepared(spec, grid, w.device)

    if w.name == "project":
        return Forms(form(), None)
    of_state: dict[str, Any] = {}
    if w.name in CARRIES:
        of_state, constants["SAVED"] = {"CARRIED": not w.single}, saved_dtype(w.dtype)
    resident = w.alone and not w.single and plan.resident(w.B, w.units, chosen, w.gpu)
    return Forms(
        form(PERSISTENT=False, **of_state),
        form(PERSISTENT=True, **dict.fromkeys(of_state, False)) if resident else None,
    )


class Loop:
    """The kernels of one step, in order; with `alone` there is one, and all steps of it may go into one launch.

    A single step waits for nobody: it's a launch of the form of steps.
    """

    def __init__(self, rows: Rows, dtype: torch.dtype, *, alone: bool) -> None:
        self.rows, self.dtype, self.alone = rows, dtype, alone
        self.calls: list[launch.Call] = []
        self.resident: tuple | None = None  # what was added, where that is one launch of all steps

    def add(self, name: str, units: int, K: int, slots: int, given: Given, flags: dict[str, Any]) -> None:
        """One more kernel; the arguments are those of `Wanted`, and `given` what the caller knows of the kernel's."""
        if self.empty:
            return
        rows, device = self.rows, self.rows.device
        wanted = Wanted(
            name, self.dtype, rows.B, units, K, slots, self.alone, rows.T == 1, rows.reverse, rows.steps is not None,
            rows.reset is not None, launch.precision(self.dtype, device), launch.gpu(device), device,
            tuple(flags.items()),
        )  # fmt: skip
        found = forms(wanted)
        if found.resident is not None and launch.can_be_resident(found.resident):
            self.resident = name, units, K, slots, given, flags
            self.append(found.resident, {**given, **launch.waiting(found.resident)})
            return
        if rows.T > 1 and name in CARRIES and name != "gru_backward":
            given = {**given, CARRIES[name]: torch.empty(rows.B, units, dtype=torch.float32, device=device)}
        self.append(found.steps, {**given, **launch.NOT_WAITING})

    def call(self, spec: Spec, grid: tuple[int, int], given: Mapping[str, Tensor | int | None]) -> None:
        """One more kernel, that is planned."""
        self.append(launch.prepared(spec, grid, self.rows.device), given)

    def append(self, prepared: launch.Prepared, given: Mapping[str, Tensor | int | None]) -> None:
        """What says which rows a step has is the same for all."""
        rows, steps = self.rows, self.rows.steps
        offsets, sizes = (None, None) if steps is None else (steps.offsets, steps.sizes)
        more = {"reset": rows.reset, "offsets": offsets, "sizes": sizes, "T": rows.T, "B": rows.B}
        self.calls.append(launch.Call(prepared, {**given, **more}))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to run, for which nothing is compiled or loaded."""
        return not (self.rows.T and self.rows.B)

    def run(self) -> None:
        rows, again = self.rows, self.resident
        if self.empty or launch.run(self.calls, rows.T, rows.device, resident=again is not None):
            return
        assert again is not None
        self.calls, self.resident = [], None
        self.add(*again)  # a launch per step, now
        launch.run(self.calls, rows.T, rows.device, resident=False)
