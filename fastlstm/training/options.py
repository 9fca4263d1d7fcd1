"""What defines a training run, and the checks of it."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from fastlstm.backends import VARIANTS
from fastlstm.training.errors import TrainError
from fastlstm.training.model import PYTORCHS

# What may differ on resuming; the text itself is compared by its digest.
FREE = ("steps", "device", "text")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Options:
    """Two runs with equal options take the same steps. Sizes: L layers, H hidden, E embedding, B batch, T length."""

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
    dtype: str = "float32"
    text: str | None = None
    compare: str | None = None

    def check(self) -> None:
        """Raises TrainError at the first value that can't be run."""
        for name in ("layers", "hidden", "embedding", "batch", "length", "steps"):
            if getattr(self, name) < 1:
                raise TrainError(f"--{name} is {getattr(self, name)}, expected at least 1")
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
        return next((name for name in given if name not in FREE and given[name] != getattr(self, name)), None)

    def with_given(self, **given: Any) -> "Options":
        return replace(self, **given)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


NAMES = tuple(field.name for field in fields(Options))


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise TrainError(f"--{name} is {value!r}, expected {' or '.join(map(repr, choices))}")


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise TrainError(f"--device is {name!r}, expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainError(f"--device is {name!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices here")
