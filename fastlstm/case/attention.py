"""A decoder with attention, and the memory that it attends to, as a case."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import nn

import fastlstm
from fastlstm.backends import ATTENTION
from fastlstm.case.rowwise import Case
from fastlstm.case.words import ATTENTION as WORDS
from fastlstm.case.words import CaseError, Word, even
from fastlstm.kernels.attention_lstm import DOT, Attention
from fastlstm.kernels.variant import Variant


@dataclass(frozen=True, kw_only=True, repr=False)
class AttentionCase(Case):
    """Sizes: S slots, M memory, A attention (0: H). What lies beyond a memory's length is NaN in parity."""

    S: int
    M: int
    A: int = 0
    attention: str = "additive"
    feed: str | None = "attentional"
    attend: str = "after"
    output: str = "tanh"
    query_layer: int = -1
    peephole: bool = False
    coupled: bool = False
    memory_lengths: tuple[int, ...] = ()  # B of them, where they differ
    memory_gain: float = 1.0  # scale of the memory; a large one makes large keys
    need_weights: bool = False  # the alignments are asked for
    words: ClassVar[tuple[Word, ...]] = WORDS

    @property
    def sizes(self) -> dict[str, int]:
        return super().sizes | {"S": self.S, "M": self.M, "A": self.A or 1}

    def check(self) -> None:
        if self.layout not in ("dense", "lengths", "step") or self.bidirectional or self.reverse or self.P:
            raise CaseError("a decoder is run dense, with lengths or by step, in one direction, without P")
        if self.resets or self.return_cells:
            raise CaseError("a decoder has no resets and no return_cells")
        if self.memory_lengths:
            if len(self.memory_lengths) != self.B:
                raise CaseError(f"memory has {len(self.memory_lengths)} lengths, expected {self.B}, the batch")
            if min(self.memory_lengths) < 0 or max(self.memory_lengths) > self.S:
                span = f"{min(self.memory_lengths)} to {max(self.memory_lengths)}"
                raise CaseError(f"the memory's lengths are {span}, expected 0 to {self.S}, its slots")
        super().check()

    def smaller(self) -> dict[str, Any]:
        values, S = super().smaller(), min(self.S, 3)
        return values | {"S": S, "memory_lengths": even(1, S, values["B"]) if self.memory_lengths else ()}

    @property
    def family(self) -> dict[str, Variant]:
        return ATTENTION

    @property
    def value(self) -> Attention:
        return Attention(self.attention, self.feed, self.attend, self.output)

    @property
    def F(self) -> int:
        """How much of a step is fed to the next."""
        return self.value.fed(self.H, self.M)

    @property
    def slots(self) -> int:
        """The valid slots of all memories together."""
        return sum(self.memory_lengths) if self.memory_lengths else self.S * self.B

    def module(self, **more: Any) -> nn.Module:
        _, options = self.arguments
        return fastlstm.AttentionLSTM(self.I, self.H, self.M, **options, **more)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        some = ("attention", "feed", "attend", "output", "query_layer", "peephole", "coupled", "bias")
        usual = {f.name: f.default for f in fields(self)}
        options = {name: getattr(self, name) for name in some if getattr(self, name) != usual[name]}
        options |= {"num_layers": self.layers} if self.layers > 1 else {}
        return (self.I, self.H, self.M), options | ({"attention_size": self.A} if self.A else {})

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("h0", "c0"), (self.layers, self.B, self.H))
        return shapes | ({"fed0": (self.B, self.F)} if self.F else {})

    @property
    def others(self) -> dict[str, tuple[float, tuple[int, ...]]]:
        return {"memory": (self.memory_gain, (self.S, self.B, self.M))}

    @property
    def outputs(self) -> dict[str, int]:
        return {"y": self.H} | ({"alignments": self.S} if self.need_weights else {})

    @property
    def draws(self) -> int:
        # four times those of a stack: an attention has weights of A numbers, and a gain of one; and more where all but a few
        # numbers are saturated, and those few are luck
        least = 8 if max(self.gain, self.memory_gain) > 1 else 1
        return max(least, math.ceil(256 / (self.B * self.H)))

    @property
    def flat(self) -> Case | None:
        return None

    def gemms(self) -> list[tuple[int, int, int, int]]:
        """Those with weights; keys are there before a single step."""
        T, B, H, A, rows = self.T, self.B, self.H, self.A or self.H, self.T * self.B
        columns = (3 if self.coupled else 4) * H
        products = [(1, rows, self.I, columns)]
        if joined := self.value.joined(H, self.M):
            products.append((T, B, joined, columns))
        products += [(1, rows, H, columns)] * (self.layers - 1) + [(self.layers * T, B, H, columns)]
        if self.attention not in DOT and self.layout != "step":
            products.append((1, self.S * B, self.M, A if self.value.additive else H))
        if self.value.additive:
            products.append((T, B, H, A))
        return [*products, *([(T, B, self.M + H, H)] if self.output != "hidden" else [])]

    def read(self, size: int) -> int:
        """Bytes of memory and keys that a step reads, each once, in numbers of so many bytes."""
        keys = 0 if self.attention in DOT else (self.A or self.H) if self.value.additive else self.H
        return self.slots * (self.M + keys) * size

    def shape(self) -> str:
        return f"{super().shape()}, M {self.M}, {self.attention}{'' if self.feed else ', nothing fed'}"

    def time(self) -> str:
        lengths = self.memory_lengths
        slots = f"{min(lengths)}–{max(lengths)}" if lengths else str(self.S)
        return f"{super().time()} over {slots}"
