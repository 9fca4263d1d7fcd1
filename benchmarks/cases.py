"""The shapes that are measured: what people train, read off the defaults of the libraries that build `nn.LSTM` for them."""

from dataclasses import dataclass
from itertools import product

import torch

from fastlstm.backends import VARIANTS


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recurrent stack and one batch. Sizes: T time, B batch, I input, H hidden, P projection (0: none)."""

    I: int
    H: int
    T: int
    B: int
    P: int = 0
    layers: int = 1
    directions: int = 1
    layout: str = (
        "dense"  # "packed": a PackedSequence; "lengths": a padded batch with its lengths; "cell": one step of a cell
    )
    shortest: int = 0  # of variable length: from T down to this, evenly
    resets: float = 0.0  # the share of steps before which a sequence's state is zeroed
    stands_for: str

    @property
    def lengths(self) -> torch.Tensor | None:
        """(B,) falling, or None where all sequences are T long."""
        if self.layout in ("dense", "cell"):
            return None
        return torch.linspace(self.T, self.shortest, self.B).round().long()

    @property
    def rows(self) -> int:
        """The valid steps of all sequences together."""
        return self.T * self.B if self.lengths is None else int(self.lengths.sum())

    @property
    def outputs(self) -> int:
        return self.P or self.H

    def gemms(self, variant: str) -> list[tuple[int, int, int, int]]:
        """The matrix products of a forward pass as (how many, rows, inner, columns)."""
        products = []
        columns = len(VARIANTS[variant].gates) * self.H
        for k in range(self.layers):
            inputs = self.I if k == 0 else self.directions * self.outputs
            products.append((self.directions, self.rows, inputs, columns))
            products.append((self.directions * self.T, max(1, self.rows // self.T), self.outputs, columns))
            if self.P:
                products.append((self.directions * self.T, max(1, self.rows // self.T), self.H, self.P))
        return products

    def gflop(self, variant: str, mode: str) -> float:
        """GFLOP of the matrix products; a backward has twice those of the forward."""
        forward = 2e-9 * sum(count * rows * inner * columns for count, rows, inner, columns in self.gemms(variant))
        return 3 * forward if mode == "train" else forward

    def shape(self) -> str:
        hidden = f"{self.layers} x {self.H}" + (f", P {self.P}" if self.P else "")
        return hidden + (", both ways" if self.directions == 2 else "")

    def time(self) -> str:
        return f"{self.shortest}–{self.T}" if self.lengths is not None else str(self.T)


CPU_CASES = {
    "darts": Case(H=25, I=8, T=24, B=32, stands_for="forecasting, tiny"),
    "deepar": Case(layers=2, H=40, I=40, T=100, B=32, stands_for="forecasting"),
    "forecast": Case(layers=2, H=128, I=16, T=100, B=128, stands_for="forecasting, windows"),
    "hydrology": Case(H=128, I=32, T=365, B=256, stands_for="daily rainfall-runoff, one year"),
    "ppo": Case(H=256, I=128, T=128, B=16, stands_for="reinforcement learning"),
    "ppo-resets": Case(H=256, I=128, T=128, B=16, resets=0.03, stands_for="the same, 3% resets"),
    "control-resets": Case(H=64, I=8, T=128, B=16, resets=0.03, stands_for="control, a small policy, 3% resets"),
    "atari": Case(H=128, I=512, T=128, B=8, stands_for="reinforcement learning"),
    "tagger": Case(
        H=256, directions=2, I=300, T=80, shortest=20, B=32, layout="packed", stands_for="tagging, PackedSequence"
    ),
    "tagger-lengths": Case(
        H=256, directions=2, I=300, T=80, shortest=20, B=32, layout="lengths", stands_for="tagging, padded batch"
    ),
    "codec": Case(layers=2, H=512, I=512, T=150, B=8, stands_for="audio"),
    "lm": Case(H=1152, I=400, T=70, B=40, stands_for="language model"),
    "translate": Case(H=1024, I=1024, T=50, B=32, stands_for="sequence to sequence"),
    "square": Case(H=512, I=512, T=100, B=64, stands_for="the classic benchmark"),
    "stream": Case(H=256, I=256, T=1, B=1, stands_for="one step at a time"),
    "long": Case(H=64, I=64, T=4000, B=4, stands_for="long sequences"),
    "packed": Case(H=256, I=128, T=128, shortest=64, B=32, layout="packed", stands_for="packed input, one direction"),
    "proj": Case(H=512, P=256, I=80, T=100, B=32, stands_for="speech, projected"),
    "cell-1": Case(H=256, I=256, T=1, B=1, layout="cell", stands_for="a cell, one row"),
    "cell-16": Case(H=256, I=256, T=1, B=16, layout="cell", stands_for="a cell, a small batch"),
    "cell-64": Case(H=256, I=256, T=1, B=64, layout="cell", stands_for="a cell, a batch"),
    "cell-256": Case(H=256, I=256, T=1, B=256, layout="cell", stands_for="a cell, a large batch"),
}
# A GPU takes more to be busy. Its cases are named after their sizes; T is 512
GPU_CASES = {
    f"b{B}-h{H}": Case(H=H, I=H, T=512, B=B, stands_for="the grid")
    for B, H in product((16, 64, 128), (256, 512, 768, 1024))
} | {
    "published": Case(H=768, I=768, T=1024, B=16, stands_for="what others have published"),
    "b64-h512-packed": Case(H=512, I=512, T=512, shortest=256, B=64, layout="packed", stands_for="packed input"),
    "b64-h512-resets": Case(H=512, I=512, T=512, B=64, resets=0.03, stands_for="3% resets"),
    "b1-h128-t1": Case(H=128, I=128, T=1, B=1, stands_for="one step at a time"),
}  # fmt: skip
CASES = CPU_CASES | GPU_CASES


def default_cases(device: str) -> dict[str, Case]:
    """Those that are measured on a device where none are named."""
    return CPU_CASES if device == "cpu" else GPU_CASES
