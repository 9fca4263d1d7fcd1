"""What a GPU reports: that programs of one launch waited for each other in vain.

Programs that are resident together wait for each other at every step. One that has looked for the others `PATIENCE` times
gives up, so that no GPU hangs: it writes its launch's number to a word of the host's memory, which the next call of ours
reads, without waiting for the GPU; and what it computes from there on is NaN.
"""

from typing import Any

import torch
from torch import Tensor

# Each look is a round trip to the second-level cache: seconds, where a step takes microseconds
PATIENCE = 1 << 23

steps_only = False  # no launch is of all steps: see `backends.force_form`
_word: Tensor | None = None
_reading: Any = None  # its numbers, which NumPy reads in a tenth of the time
_launches: dict[tuple[str, tuple[int, int]], int] = {}  # their numbers, from 1 on
devices: set[torch.device] = set()  # where programs have waited for each other


def arguments(name: str, grid: tuple[int, int], device: torch.device) -> dict[str, Tensor | int | None]:
    """What a kernel is given for its waiting: where to write, what, and after how many looks."""
    global _word, _reading
    if _word is None:
        # memory that is pinned has the same address on every GPU
        _word = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        _reading = _word.numpy()
    devices.add(device)
    number = _launches.setdefault((name, grid), len(_launches) + 1)
    return {"barrier": None, "alarm": _word, "number": number, "patience": PATIENCE}


def check() -> None:
    """Raise if a launch has given up; once, and every loop after it is a launch per step."""
    global steps_only
    if _reading is None or not (number := int(_reading[0])):
        return
    _reading[0], steps_only = 0, True
    name, grid = next(launch for launch, known in _launches.items() if known == number)
    raise RuntimeError(
        f"{name} gave up: its grid of {grid[0]} x {grid[1]} programs, which wait for each other at every step, was not on the "
        "GPU at once, or one never came; what it returned is NaN from there on. It was launched by an earlier call, not "
        "by this one. From now on, each step is a launch of its own in this process, which needs no waiting: "
        'fastlstm.backends.force_form("steps") says so from the start, and backend="reference" runs none of our kernels'
    )
