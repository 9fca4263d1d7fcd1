"""The words of a case's line of text: how each is written, what it means, and back from a value to the line."""

import re
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from typing import Any, NamedTuple

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
SHORT = {long: short for short, long in DTYPES.items()}
MODES = ("train", "infer")


class CaseError(ValueError):
    """A line of text, or a value, that is no case."""


class Even(NamedTuple):
    """Lengths that are said by the shortest and the longest."""

    shortest: int
    longest: int


def even(shortest: int, longest: int, count: int) -> tuple[int, ...]:
    """So many lengths from the longest down to the shortest, evenly."""
    return tuple([round(longest - (longest - shortest) * k / max(1, count - 1)) for k in range(count)])


class Word:
    """One word: a size such as "T100", a flag such as "bi", or a key and what it says, such as "packed:20-80".

    written: an example of it. field: of a case. read and show: of what follows the start; a flag has none, and stands for
    `value`.
    """

    def __init__(
        self,
        written: str,
        means: str,
        field: str,
        read: Callable[[str], Any] | None = None,
        show: Callable[[Any], str] = str,
        value: Any = True,
    ) -> None:
        self.written, self.means, self.field, self.read, self.show, self.value = (
            written, means, field, read, show, value,
        )  # fmt: skip

    @cached_property
    def start(self) -> str:
        found = re.match(r"[a-z_]+:|[A-Zk](?=\d)", self.written) if self.read else None
        return found[0] if found else self.written

    def begins(self, text: str) -> bool:
        if self.read is None:
            return text == self.start
        return text.startswith(self.start) and (self.start.endswith(":") or text[1:2].isdigit())


def number(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError
    return int(text)


def real(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d*)?(e[+-]?\d+)?", text):
        raise ValueError
    return float(text)


def numbers(separator: str) -> Callable[[str], tuple[int, ...]]:
    return lambda text: tuple([number(part) for part in text.split(separator)])


def several(text: str) -> tuple[int, ...]:
    if "," not in text:
        raise ValueError
    return numbers(",")(text)


def lengths(text: str) -> Even | tuple[int, ...]:
    """ "20-80", from the shortest to the longest, or all of them: "9,9,6,1"."""
    if "-" not in text:
        return numbers(",")(text)
    shortest, longest = numbers("-")(text)
    if shortest > longest:
        raise ValueError
    return Even(shortest, longest)


def sides(text: str) -> tuple[tuple[int, int], ...]:
    """Of padding: "1x2" in each dimension, "2+0x1+3" where it differs before and after."""
    pairs = [numbers("+")(part) for part in text.split("x")]
    return tuple([(pair[0], pair[-1]) for pair in pairs if len(pair) <= 2 or number("")])


def show_real(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def show_lengths(value: tuple[int, ...]) -> str:
    if len(value) > 1 and value == even(min(value), max(value), len(value)):
        return f"{min(value)}-{max(value)}"
    return ",".join(map(str, value))


def show_image(value: tuple[int, ...]) -> str:
    return "x".join(map(str, value))


def show_each(value: tuple[int, ...]) -> str:
    """One number where all dimensions have the same."""
    return show_image(value if len(set(value)) > 1 else value[:1])


def show_sides(value: tuple[tuple[int, int], ...]) -> str:
    said = [str(a) if a == b else f"{a}+{b}" for a, b in value]
    return "x".join(said if len(set(said)) > 1 else said[:1])


def show_all(value: tuple[object, ...]) -> str:
    return ",".join(map(str, value))


def names(text: str) -> tuple[str, ...]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\w+", part) for part in parts):
        raise ValueError
    return tuple(parts)


def one_of(*known: str | None) -> Callable[[str], str | None]:
    def read(text: str) -> str | None:
        if text not in map(str, known):
            raise ValueError
        return None if text == "None" else text

    return read


SIZES = (
    Word("T100", "steps; may be left out where the lengths or `cell` or `step` say it", "T", number),
    Word("B32", "batch", "B", number),
    Word("I128", "input features; of a ConvLSTM channels", "I", number),
)
LENGTHS = Word(
    "lengths:1-9", "a padded batch with `lengths`; as above, and some may be 0", "lengths", lengths, show_lengths
)
LAYERS = Word("L2", "layers", "layers", number)
USE = (
    Word("no_bias", "without biases", "bias", value=False),
    Word("zero_state", "no initial states are given", "zero_state"),
    Word("gain:100", "scale of the input; a large one saturates the gates", "gain", real, show_real),
    Word("strided", "inputs and states are not contiguous", "strided"),
    Word("loss:y,h_n", "the outputs that a loss looks at; all", "loss", names, show_all),
    Word("frozen:x,bias", "how the names of tensors begin that need no gradient", "frozen", names, show_all),
)
BOTH_WAYS = (
    Word("bi", "two directions", "bidirectional"),
    Word("reverse", "one direction, from the end of each sequence", "reverse"),
)
STEPS = (
    Word("resets:0.03", "the share of steps before which a sequence's state is zeroed", "resets", real, show_real),
    Word("return_cells", "all cell states are asked for", "return_cells"),
)
ROWWISE = (
    *SIZES,
    Word("H256", "hidden features", "H", number),
    Word("P64", "`proj_size`", "P", number),
    LAYERS,
    *BOTH_WAYS,
    Word("cell", "one step of a cell, such as `LSTMCell`", "layout", value="cell"),
    Word("stream", "step after step, each a call of a `Stream`; in inference", "layout", value="stream"),
    Word(
        "packed:20-80",
        "a `PackedSequence`: lengths from 80 down to 20, evenly, or each of them: `packed:9,9,6,1`",
        "packed", lengths, show_lengths,
    ),
    LENGTHS,
    *STEPS,
    *USE,
)  # fmt: skip
CONV = (
    *SIZES,
    Word("H64", "channels of the states", "H", number),
    Word("H5,17,3", "of each layer, where they differ, in the place of H and L", "unequal", several, show_all),
    LAYERS,
    Word("S32x32", "size of the images, of one to three dimensions", "S", numbers("x"), show_image),
    Word("k3", "size of the kernel; in each dimension, where it differs: `k3x5`", "kernel", numbers("x"), show_each),
    Word("stride:2", "as the kernel", "stride", numbers("x"), show_each),
    Word("dilation:2", "as the kernel", "dilation", numbers("x"), show_each),
    Word("padding:0", "on both sides, or `padding:2+0x1+3`: before and after; `same`", "padding", sides, show_sides),
    Word("hadamard", "peepholes of every pixel", "hadamard"),
    Word("blind", "no input: goes on from the states", "blind"),
    *BOTH_WAYS,
    LENGTHS,
    *STEPS,
    *USE,
)  # fmt: skip
ATTENTION = (
    *SIZES,
    Word("H256", "hidden features", "H", number),
    LAYERS,
    Word("S50", "slots of the memory; may be left out where `memory` says it", "S", number),
    Word("M512", "features of the memory", "M", number),
    Word("A64", "`attention_size`; H", "A", number),
    *[
        Word(score, "the score, in the place of `additive`", "attention", value=score)
        for score in ("normalized_additive", "dot", "scaled_dot", "general")
    ],
    Word("feed:None", "what a step hands to the next: `context`, or nothing; `attentional`", "feed", one_of("context", None)),
    Word("attend:before", "the cell", "attend", one_of("before")),
    Word("output:linear", "or `hidden`; `tanh`", "output", one_of("linear", "hidden")),
    Word("query_layer:0", "the last", "query_layer", number),
    Word("peephole", "gates that see the cell", "peephole"),
    Word("coupled", "f = 1 - i", "coupled"),
    LENGTHS,
    Word("step", "one step after another, each a call", "layout", value="step"),
    Word("memory:4-12", "`memory_lengths`, written as other lengths", "memory_lengths", lengths, show_lengths),
    Word("memory_gain:4", "scale of the memory", "memory_gain", real, show_real),
    Word("need_weights", "the alignments are asked for", "need_weights"),
    *USE,
)  # fmt: skip


def said(case: Any) -> dict[str, str]:
    """The words of a case by their fields, in the order of the tables, without those that say what is so anyway."""
    values = {f.name: getattr(case, f.name) for f in fields(case)}
    values = {f.name: values[f.name] for f in fields(case) if values[f.name] != f.default}
    if "lengths" in values:
        values[values.pop("layout")] = values.pop("lengths")
    if "unequal" in values:
        del values["H"], values["layers"]
    found = {"variant": values["variant"]} if "variant" in values else {}
    for word in case.words:
        if word.field in values and (word.read or values[word.field] == word.value):
            found[word.field] = word.start + (word.show(values[word.field]) if word.read else "")
    return found | {field: values[field] for field in ("dtype", "mode") if field in values}
