"""The shapes that are measured: what people train, read off the defaults of the libraries that build `nn.LSTM` for them."""

from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import torch
from torch import nn

import fastlstm
from fastlstm.backends import ATTENTION, CONVOLUTIONAL, VARIANTS
from fastlstm.kernels.attention_lstm import DOT
from fastlstm.kernels.variant import Variant
from fastlstm.modules import build

KINDS = VARIANTS | CONVOLUTIONAL | ATTENTION
CELLS: dict[Variant, type[nn.Module]] = {
    cell.variant: cell
    for cell in (fastlstm.LSTMCell, fastlstm.GRUCell, fastlstm.PeepholeLSTMCell, fastlstm.CIFGLSTMCell)
}


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
    # "packed": a PackedSequence; "lengths": a padded batch with its lengths; "cell": one step of a cell, "step": of a decoder
    layout: str = "dense"
    shortest: int = 0  # of variable length: from T down to this, evenly
    resets: float = 0.0  # the share of steps before which a sequence's state is zeroed
    stands_for: str

    @property
    def lengths(self) -> torch.Tensor | None:
        """(B,) falling, or None where all sequences are T long."""
        if self.layout in ("dense", "cell", "step"):
            return None
        return torch.linspace(self.T, self.shortest, self.B).round().long()

    @property
    def rows(self) -> int:
        """The valid steps of all sequences together."""
        return self.T * self.B if self.lengths is None else int(self.lengths.sum())

    @property
    def outputs(self) -> int:
        return self.P or self.H

    @property
    def variants(self) -> dict[str, Variant]:
        """Those that take its input."""
        return VARIANTS

    def row(self, features: int) -> tuple[int, ...]:
        """The shape of a sequence's step of so many features."""
        return (features,)

    def options(self) -> dict[str, Any]:
        """The arguments of a module, of ours and of PyTorch's, after the sizes."""
        some = {"num_layers": self.layers, "bidirectional": self.directions == 2}
        return some | ({"proj_size": self.P} if self.P else {})

    def module(self, variant: Variant, **options: Any) -> nn.Module:
        """A module of ours."""
        if self.layout == "cell":
            return CELLS[variant](self.I, self.H, **options)
        return build(variant.name, self.I, self.H, **self.options(), **options)

    def small(self) -> "Case":
        """The same of next to no work."""
        return replace(self, T=min(self.T, 2), shortest=min(self.shortest, 1), B=min(self.B, 2))

    def gemms(self, variant: str) -> list[tuple[int, int, int, int]]:
        """The matrix products of a forward pass as (how many, rows, inner, columns)."""
        products = []
        columns = len(KINDS[variant].gates) * self.H
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

    def batch(self) -> str:
        return str(self.B)


@dataclass(frozen=True, kw_only=True)
class ConvCase(Case):
    """A stack of ConvLSTMs over images: I and H are channels, and layers feed each other images of one size."""

    S: tuple[int, ...]  # of an image: 1 to 3 dimensions
    kernel: int = 3

    @property
    def variants(self) -> dict[str, Variant]:
        return CONVOLUTIONAL

    def row(self, features: int) -> tuple[int, ...]:
        return features, *self.S

    def module(self, variant: Variant, **options: Any) -> nn.Module:
        kind = getattr(fastlstm, f"ConvLSTM{len(self.S)}d")
        peephole = "channel" if variant.peepholes else None
        chosen = {"peephole": peephole, "coupled": variant.coupled} | self.options() | options
        return kind(self.I, self.H, self.kernel, **chosen)

    def small(self) -> Case:
        return replace(super().small(), S=tuple(min(size, 4) for size in self.S))

    def gemms(self, variant: str) -> list[tuple[int, int, int, int]]:
        """Those that the convolutions are: a row per pixel, over taps and channels. What is padded counts as well."""
        taps, pixels = self.kernel ** len(self.S), prod(self.S)
        columns = len(KINDS[variant].gates) * self.H
        products = []
        for k in range(self.layers):
            inputs = self.I if k == 0 else self.directions * self.H
            products.append((self.directions, self.rows * pixels, taps * inputs, columns))
            products.append((self.directions * self.T, self.B * pixels, taps * self.H, columns))
        return products

    def shape(self) -> str:
        return f"{super().shape()}, {'x'.join([str(self.kernel)] * len(self.S))}"

    def batch(self) -> str:
        return f"{self.B} ({'x'.join(map(str, self.S))})"


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """A decoder and the memory that it attends to. Sizes: S slots, M memory; A attention is H."""

    S: int
    M: int
    attention: str = "additive"
    feed: str | None = "attentional"
    shortest_memory: int = 0  # of variable length: from S down to this, evenly

    @property
    def variants(self) -> dict[str, Variant]:
        return ATTENTION

    @property
    def memory_lengths(self) -> torch.Tensor | None:
        """(B,) falling, or None where all memories are S long."""
        return torch.linspace(self.S, self.shortest_memory, self.B).round().long() if self.shortest_memory else None

    @property
    def slots(self) -> int:
        """The valid slots of all memories together."""
        return self.S * self.B if self.memory_lengths is None else int(self.memory_lengths.sum())

    @property
    def F(self) -> int:
        """How much of a step is fed to the next."""
        return {None: 0, "attentional": self.H, "context": self.M}[self.feed]

    def module(self, variant: Variant, **options: Any) -> nn.Module:
        some: dict[str, Any] = {"num_layers": self.layers, "attention": self.attention, "feed": self.feed}
        return fastlstm.AttentionLSTM(self.I, self.H, self.M, **some, **options)

    def small(self) -> Case:
        return replace(super().small(), S=min(self.S, 3), shortest_memory=min(self.shortest_memory, 1))

    def gemms(self, variant: str) -> list[tuple[int, int, int, int]]:
        """Those with weights; keys are there before a single step."""
        T, B, H, rows = self.T, self.B, self.H, self.T * self.B
        products = [(1, rows, self.I, 4 * H)]
        if self.F:
            products.append((T, B, self.F, 4 * H))
        products += [(1, rows, H, 4 * H)] * (self.layers - 1) + [(self.layers * T, B, H, 4 * H)]
        if self.attention not in DOT and self.layout != "step":
            products.append((1, self.S * B, self.M, H))
        if self.attention == "additive":
            products.append((T, B, H, H))
        return [*products, (T, B, self.M + H, H)]

    def read(self, size: int) -> int:
        """Bytes of memory and keys that a step reads, each once, in numbers of so many bytes."""
        return self.slots * (self.M + (0 if self.attention in DOT else self.H)) * size

    def shape(self) -> str:
        return f"{super().shape()}, M {self.M}, {self.attention}{'' if self.feed else ', nothing fed'}"

    def time(self) -> str:
        slots = f"{self.shortest_memory}–{self.S}" if self.shortest_memory else str(self.S)
        return f"{self.T} over {slots}"


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
CONV_CASES = {
    "radar": ConvCase(layers=2, H=64, I=16, T=10, B=4, S=(32, 32), stands_for="nowcasting"),
    "video": ConvCase(H=128, I=16, T=10, B=4, S=(16, 16), kernel=5, stands_for="video prediction"),
    "deep-radar": ConvCase(
        layers=4, H=128, I=16, T=10, B=4, S=(16, 16), kernel=5, stands_for="the benchmark of spatiotemporal papers"
    ),
    "frame": ConvCase(H=32, I=5, T=1, B=1, S=(96, 64), stands_for="event cameras, one frame at a time"),
    "radar-step": ConvCase(layers=2, H=64, I=16, T=1, B=1, S=(32, 32), stands_for="nowcasting, one frame at a time"),
    "thermal": ConvCase(H=8, I=1, T=24, B=8, S=(24, 32), stands_for="low-resolution sensors, few channels"),
    "volume": ConvCase(H=16, I=1, T=8, B=1, S=(16, 32, 32), stands_for="3d scans over time"),
}
ATTENTION_CASES = {
    "decode": AttentionCase(H=256, I=256, M=256, S=50, T=30, B=32, stands_for="translation decoder"),
    "decode-dot": AttentionCase(
        H=256, I=256, M=256, S=50, T=30, B=32, attention="dot", stands_for="the same, scores of products"
    ),
    "decode-unfed": AttentionCase(
        H=256, I=256, M=256, S=50, T=30, B=32, attention="dot", feed=None, stands_for="the same, nothing fed"
    ),
    "long-memory": AttentionCase(H=256, I=256, M=256, S=400, T=60, B=8, stands_for="speech, summaries"),
    "pronounce": AttentionCase(
        H=128, I=64, M=256, S=12, T=10, B=64, shortest_memory=4, stands_for="spelling to phonemes, dates"
    ),
    "bilingual": AttentionCase(
        layers=2, H=512, I=512, M=1024, S=30, T=30, B=64, shortest_memory=8, attention="general",
        stands_for="translation, a bidirectional encoder",
    ),
    "decode-step": AttentionCase(
        H=256, I=256, M=256, S=50, T=1, B=32, layout="step", stands_for="one step at a time, a batch or beams"
    ),
    "decode-step-1": AttentionCase(
        H=256, I=256, M=256, S=50, T=1, B=1, layout="step", stands_for="one step at a time, greedy"
    ),
}  # fmt: skip
# A GPU takes more to be busy. Its own cases are named after their sizes; T is 512
GPU_CASES = {
    f"b{B}-h{H}": Case(H=H, I=H, T=512, B=B, stands_for="the grid")
    for B, H in product((16, 64, 128), (256, 512, 768, 1024))
} | {
    "published": Case(H=768, I=768, T=1024, B=16, stands_for="what others have published"),
    "b64-h512-packed": Case(H=512, I=512, T=512, shortest=256, B=64, layout="packed", stands_for="packed input"),
    "b64-h512-resets": Case(H=512, I=512, T=512, B=64, resets=0.03, stands_for="3% resets"),
    "b1-h128-t1": Case(H=128, I=128, T=1, B=1, stands_for="one step at a time"),
}  # fmt: skip
CASES: dict[str, Case] = CPU_CASES | CONV_CASES | ATTENTION_CASES | GPU_CASES


def default_cases(device: str) -> dict[str, Case]:
    """Those that are measured on a device where none are named."""
    return (CPU_CASES if device == "cpu" else GPU_CASES) | CONV_CASES | ATTENTION_CASES


def main_peer(variant: str) -> str:
    """Whom a variant is measured against where nobody is named: PyTorch's module, or the loop that stands for one."""
    return "torch" if variant in VARIANTS else "cell"
