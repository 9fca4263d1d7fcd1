"""What defines a training run, and the checks of it."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from fastlstm.backends import VARIANTS
from fastlstm.case.words import SHORT
from fastlstm.training.errors import TrainError
from fastlstm.training.model import PYTORCHS

# What may differ on resuming; the text itself is compared by its digest.
FREE = ("steps", "device", "text", "save_every", "sample", "out", "threads")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
# More threads than this are a slip of the keyboard, and PyTorch would try to start them all.
MOST_THREADS = 1024


@dataclass(frozen=True)
class Options:
    """Two runs with equal options take the same steps; those of FREE change none of them, but for `steps`: rates end with it.

    Sizes: L layers, H hidden, E embedding, B batch, T length. `dtype` takes PyTorch's names as well, and holds the short one.
    """

    variant: str = "lstm"
    layers: int = 1
    hidden: int = 256
    embedding: int = 64
    batch: int = 32
    length: int = 100
    steps: int = 800
    lr: float = 8e-3
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    dtype: str = "fp32"
    text: str | None = None
    compare: str | None = None
    save_every: int = 100
    sample: int = 400
    out: str = "runs"
    threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", SHORT.get(self.dtype, self.dtype))

    def check(self) -> None:
        """Raises TrainError at the first value that can't be run."""
        for name in ("layers", "hidden", "embedding", "batch", "length", "steps", "save_every", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainError(f"{option(name)} is {value}, expected at least 1")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise TrainError(f"--threads is {self.threads}, expected at most {MOST_THREADS}")
        if self.sample < 0:
            raise TrainError(f"--sample is {self.sample}, expected at least 0")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise TrainError(f"--lr is {self.lr}, expected a finite number above 0")
        if not (math.isfinite(self.clip) and self.clip >= 0):
            raise TrainError(f"--clip is {self.clip}, expected a finite number, at least 0 (0: no clipping)")
        if not 0 <= self.seed < 2**63:
            raise TrainError(f"--seed is {self.seed}, expected 0 to 2^63 - 1")
        _check_choice("variant", self.variant, VARIANTS)
        _check_choice("dtype", self.dtype, DTYPES)
        if self.compare is not None:
            _check_choice("compare", self.compare, ("torch",))
            if self.variant not in PYTORCHS:
                raise TrainError(
                    f"--compare is 'torch', but --variant is {self.variant!r}: PyTorch has {' and '.join(PYTORCHS)} only"
                )
        _check_device(self.device)

    def differs(self, **given: Any) -> str | None:
        """The first of the `given` options that fixes the run and isn't what this run has."""
        other = self.with_given(**given)
        return next((n for n in given if n not in FREE and getattr(other, n) != getattr(self, n)), None)

    def with_given(self, **given: Any) -> "Options":
        return replace(self, **given)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


NAMES = tuple(field.name for field in fields(Options))


def option(name: str) -> str:
    """As it stands on the command line."""
    return f"--{name.replace('_', '-')}"


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise TrainError(f"--{name} is {value!r}, expected one of {', '.join(choices)}")


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise TrainError(f"--device is {name!r}, expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainError(f"--device is {name!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices here")
