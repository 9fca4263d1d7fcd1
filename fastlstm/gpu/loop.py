"""A loop over time on a GPU: its tiles and form, and the kernels that run in each step."""

from collections.abc import Mapping
from dataclasses import replace
from math import gcd
from typing import Any

import torch
from torch import Tensor

from fastlstm.gpu import launch, plan
from fastlstm.gpu.rows import Rows
from fastlstm.kernels.gpu_compile import Spec

Given = dict[str, Tensor | None]  # arrays by the names of a kernel's arguments


class Loop:
    """The kernels of one step, in order; with `alone` there is one, and all steps of it may go into one launch."""

    def __init__(self, rows: Rows, dtype: torch.dtype, *, alone: bool) -> None:
        self.rows, self.dtype, self.alone = rows, dtype, alone
        self.calls: list[launch.Call] = []
        self.resident = False

    def add(self, name: str, units: int, K: int, slots: int, given: Given, flags: dict[str, Any]) -> None:
        """One more kernel: `units` to share among programs, a product of K features with `slots` columns per unit."""
        if self.empty:
            return
        rows, gpu = self.rows, launch.gpu(self.rows.device)
        precision = launch.precision(self.dtype, rows.device)
        loops = name != "project"
        chosen = plan.tile(rows.B, units, K, slots, self.dtype, precision, gpu, may_keep=self.alone)
        common = {
            "REVERSE": rows.reverse,
            "VARIABLE": rows.steps is not None,
            "RESET": rows.reset is not None,
            "ALIGN": gcd(16, K * self.dtype.itemsize),
            "PRECISION": precision,
            "BM": chosen.BM,
            "BH": chosen.BH,
            "BK": chosen.BK,
            "K": K,
        }
        if loops:
            common |= {"H": units, "BK2": chosen.BK2, "KEEP": chosen.keep, "SPLIT": chosen.split, "PERSISTENT": False}
        grid = plan.grid(rows.B, units, chosen)
        spec = Spec(name, self.dtype, tuple(sorted({**flags, **common}.items())), chosen.warps, chosen.stages)
        waiting = launch.NOT_WAITING
        if self.alone and plan.resident(rows.B, units, chosen, gpu):
            persistent = replace(spec, constants=tuple(sorted({**flags, **common, "PERSISTENT": True}.items())))
            if launch.can_be_resident(persistent, grid, rows.device):
                spec, self.resident = persistent, True
                waiting = launch.waiting(spec, grid, rows.device)
        self.call(spec, grid, {**given, **waiting})

    def call(self, spec: Spec, grid: tuple[int, int], given: Mapping[str, Tensor | int | None]) -> None:
        """One more kernel, that is planned; what says which rows a step has is the same for all."""
        rows, steps = self.rows, self.rows.steps
        offsets, sizes = (None, None) if steps is None else (steps.offsets, steps.sizes)
        arrays = {"reset": rows.reset, "offsets": offsets, "sizes": sizes}
        self.calls.append(launch.Call(spec, grid, {**given, **arrays, "T": rows.T, "B": rows.B}))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to run, for which nothing is compiled or loaded."""
        return not (self.rows.T and self.rows.B)

    def run(self) -> None:
        if not self.empty:
            launch.run(self.calls, self.rows.T, self.rows.device, resident=self.resident)
