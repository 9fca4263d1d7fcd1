"""From a line of text to a case. docs/cases.md is the page of it, which a test holds to the tables in words.py."""

import difflib
from dataclasses import MISSING, fields
from typing import Any

from fastlstm.backends import ATTENTION, CONVOLUTIONAL, VARIANTS
from fastlstm.case.attention import AttentionCase
from fastlstm.case.conv import ConvCase
from fastlstm.case.rowwise import Case
from fastlstm.case.words import DTYPES, MODES, SHORT, CaseError, Even, even

FAMILIES: tuple[tuple[type[Case], dict[str, Any]], ...] = (
    (Case, VARIANTS),
    (ConvCase, CONVOLUTIONAL),
    (AttentionCase, ATTENTION),
)


def parse(text: str) -> Case:
    """The case that a line of text says: words in any order, sizes first by custom.

    >>> case = parse("lstm B32 I128 H256 L2 bi packed:20-80 bf16 train")
    >>> case.T, case.rows
    (80, 1600)
    >>> str(case)
    'lstm T80 B32 I128 H256 L2 bi packed:20-80 bf16 train'

    Raises CaseError, a ValueError, which says which word was not understood and what was expected.
    """
    try:
        return _parse(text.split())
    except ValueError as error:
        raise CaseError(f"case {text!r}: {error}") from error


def _parse(said: list[str]) -> Case:
    kind = family(said)
    values: dict[str, Any] = {}
    for text in said:
        field, value = understood(text, kind)
        if field in values:
            raise CaseError(f"{text!r} says {field} once more, expected each word once")
        values[field] = value
    layouts = [layout for layout in ("packed", "lengths", "layout") if layout in values]
    if len(layouts) > 1:
        raise CaseError("it has more than one of packed, lengths, cell, stream and step, expected one at most")
    if layouts and layouts != ["layout"]:
        values |= {"lengths": values.pop(layouts[0]), "layout": layouts[0]}
    if values.get("layout") in ("cell", "step"):
        values.setdefault("T", 1)
    for size, of in (("T", "lengths"), ("S", "memory_lengths")):
        if of in values and "B" in values:
            some = values[of]
            values[of] = even(*some, values["B"]) if isinstance(some, Even) else some
            values.setdefault(size, max(values[of]))
    if "unequal" in values:
        if "H" in values or "layers" in values:
            raise CaseError("H gives the channels of each layer, expected no other H and no L")
        values |= {"H": values["unequal"][-1], "layers": len(values["unequal"])}
    lacking = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]
    if lacking:
        starts = [f"{word.start} ({word.means.split(';')[0]})" for word in kind.words if word.field in lacking]
        raise CaseError(f"it lacks {', '.join(starts)}")
    if issubclass(kind, ConvCase):
        for field in ("kernel", "stride", "dilation", "padding"):
            if len(values.get(field, ())) == 1:
                values[field] *= len(values["S"])
    return kind(**values)


def family(said: list[str]) -> type[Case]:
    """By the variant; where none is named, M is a decoder's, and S alone, an image, a ConvLSTM's."""
    for kind, variants in FAMILIES:
        if any(text in variants for text in said):
            return kind
    starts = {text[0] for text in said if text[1:2].isdigit()}
    return AttentionCase if "M" in starts else ConvCase if "S" in starts else Case


def understood(text: str, kind: type[Case]) -> tuple[str, Any]:
    """The field and the value of a word."""
    variants = [name for _, names in FAMILIES for name in names]
    if text in variants:
        return "variant", text
    if text in DTYPES or text in SHORT:
        return "dtype", SHORT.get(text, text)
    if text in MODES:
        return "mode", text
    words = [word for word in kind.words if word.begins(text)]
    if not words:
        raise CaseError(f"{text!r} is no word of such a case, {expected(text, kind, variants)}")
    for word in words:
        try:
            return word.field, word.read(text.removeprefix(word.start)) if word.read else word.value
        except ValueError:
            continue
    forms = " or ".join(f"{word.written!r}: {word.means}" for word in words)
    raise CaseError(f"{text!r} was not understood, expected it as {forms}")


def expected(text: str, kind: type[Case], variants: list[str]) -> str:
    """What may have been meant: the nearest words, one of another family, or all there are."""
    words = [word.written for word in kind.words]
    near = difflib.get_close_matches(text, [*variants, *words, *DTYPES, *MODES], n=2, cutoff=0.7)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    for other, names in FAMILIES:
        if any(word.begins(text) for word in other.words):
            return f"but of one of {', '.join(names)}"
    return f"expected {', '.join(words)}, a variant, one of {', '.join(DTYPES)}, or one of {', '.join(MODES)}"
