"""Cases as Hypothesis draws them: any words that fit each other, of every family."""

from typing import Any

from hypothesis import strategies as st

from fastlstm.backends import ATTENTION, CONVOLUTIONAL, VARIANTS
from fastlstm.case import CELLS, AttentionCase, Case, ConvCase
from fastlstm.case.words import DTYPES, MODES
from fastlstm.kernels.attention_lstm import DOT, FEEDS, SCORES

SIZES = st.sampled_from([1, 2, 3, 5, 16, 17, 20, 33, 48, 65])
NAMES = st.lists(st.sampled_from(["x", "h0", "bias", "weight_hh"]), unique=True, max_size=3).map(tuple)


def lengths(draw: st.DrawFn, least: int, most: int, count: int) -> tuple[int, ...]:
    return tuple(sorted(draw(st.lists(st.integers(least, most), min_size=count, max_size=count)), reverse=True))


def common(draw: st.DrawFn, layouts: list[str]) -> dict[str, Any]:
    T, B, layout = draw(st.integers(1, 9)), draw(st.integers(1, 14)), draw(st.sampled_from(layouts))
    values: dict[str, Any] = {
        "T": 1 if layout == "cell" else T,
        "B": B,
        "I": draw(SIZES),
        "H": draw(SIZES),
        "layout": layout,
    }
    if layout in ("packed", "lengths"):
        values["lengths"] = lengths(draw, 1 if layout == "packed" else 0, T, B)
    values |= {name: draw(st.booleans()) for name in ("bias", "zero_state", "strided")}
    return values | {
        "gain": draw(st.sampled_from([1.0, 0.5, 100.0])),
        "frozen": draw(NAMES),
        "loss": draw(st.sampled_from([(), ("y",), ("h_n", "y")])),
        "dtype": draw(st.sampled_from([None, *DTYPES])),
        "mode": draw(st.sampled_from([None, *MODES])),
    }


def stacked(draw: st.DrawFn) -> dict[str, Any]:
    bidirectional = draw(st.booleans())
    reverse = not bidirectional and draw(st.booleans())
    resets = draw(st.sampled_from([0.0, 0.03, 0.25, 1e-7]))
    return {"bidirectional": bidirectional, "reverse": reverse, "resets": resets, "layers": draw(st.integers(1, 3))}


@st.composite
def rowwise(draw: st.DrawFn, variants: list[str | None] | None = None) -> Case:
    variant = draw(st.sampled_from(variants or [None, *VARIANTS]))
    values = common(draw, ["dense", "packed", "lengths", *(["cell"] if variant in (None, *CELLS) else [])])
    if values["layout"] != "cell":
        values |= stacked(draw) | {"P": draw(st.integers(0, values["H"] - 1)) if variant != "gru" else 0}
    return Case(variant=variant, return_cells=variant != "gru" and draw(st.booleans()), **values)


@st.composite
def convolutional(draw: st.DrawFn) -> ConvCase:
    variant = draw(st.sampled_from([None, *CONVOLUTIONAL]))
    D = draw(st.integers(1, 3))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(least, most), min_size=D, max_size=D)))

    values = common(draw, ["dense", "lengths"]) | stacked(draw)
    if draw(st.booleans()):
        channels = tuple(draw(st.lists(SIZES, min_size=2, max_size=3)))
        values |= {"unequal": channels, "H": channels[-1], "layers": len(channels)}
    values |= {name: draw(st.sampled_from([(), each(1, 3)])) for name in ("stride", "dilation")}
    values["padding"] = draw(st.sampled_from(["same", tuple(zip(each(0, 3), each(0, 3), strict=True))]))
    hadamard = variant is not None and bool(CONVOLUTIONAL[variant].peepholes) and draw(st.booleans())
    some = {"blind": draw(st.booleans()), "return_cells": draw(st.booleans()), "hadamard": hadamard}
    return ConvCase(variant=variant, S=each(7, 12), kernel=each(1, 3), **values | some)


@st.composite
def decoding(draw: st.DrawFn) -> AttentionCase:
    values = common(draw, ["dense", "lengths", "step"])
    score, S, layers = draw(st.sampled_from(SCORES)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    B, before = values["B"], draw(st.booleans())
    some = {
        "M": values["H"] if score in DOT else draw(SIZES),
        "A": draw(SIZES) if "additive" in score else 0,
        "attend": "before" if before else "after",
        "feed": None if before else draw(st.sampled_from(FEEDS)),
        "output": draw(st.sampled_from(["tanh", "linear"])),
        "query_layer": draw(st.sampled_from([-1, *range(layers)])),
        "memory_lengths": draw(st.sampled_from([(), lengths(draw, 0, S, B)[::-1]])),
        "memory_gain": draw(st.sampled_from([1.0, 4.5])),
    }
    flags = {name: draw(st.booleans()) for name in ("peephole", "coupled", "need_weights")}
    variant = draw(st.sampled_from([None, *ATTENTION]))
    return AttentionCase(variant=variant, S=S, attention=score, layers=layers, **values | some | flags)
