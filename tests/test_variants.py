"""Variants as values, and as what the CPU's loops know."""

import dataclasses
import re

import pytest

from fastlstm import backends
from fastlstm.backends import VARIANTS
from fastlstm.kernels.variant import Slots

GOOD = {"gates": [0, 1], "x": (0, 2), "h": (0, 2), "peepholes": [(0, False), (1, True)], "cell": True}
BAD = {
    "slots that the record lacks": ({"x": (1, 2)}, "a weight feeds slots that the record does not have"),
    "no slots": ({"h": (0, 0)}, "a weight feeds slots that the record does not have"),
    "two slots of a gate": ({"gates": [0, 0]}, "a weight feeds one slot from each of its gates"),
    "a slot that nothing feeds": ({"gates": [0, 1, 2]}, "no weight feeds some of its slots"),
    "a peephole of no slot": ({"peepholes": [(2, True)]}, "a peephole of no slot, or the second of one"),
    "two peepholes of a slot": ({"peepholes": [(0, True), (0, False)]}, "a peephole of no slot, or the second of one"),
}

needs_extension = pytest.mark.skipif(
    backends.extension_status() != "built", reason="the loops are in the C++ extension"
)


@needs_extension
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_what_the_loops_cannot_run_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(f"variant 'bad': {message}")):
        backends._C.register_variant("bad", **GOOD | change)


@needs_extension
def test_a_name_stands_for_one_variant():
    for variant in VARIANTS.values():
        backends.register(variant)  # alike: nothing happens
    other = dataclasses.replace(VARIANTS["lstm"], own_slots=Slots("fgoi", (0, 4), (0, 4)))
    with pytest.raises(ValueError, match="variant 'lstm' is registered already, as another"):
        backends.register(other)
    assert backends._registered["lstm"] == VARIANTS["lstm"]


def test_shapes_are_in_the_order_of_pytorch():
    shapes = VARIANTS["peephole_lstm"].weights(3, 5, 2)
    assert list(shapes.items()) == [
        ("w_ih", (20, 3)), ("w_hh", (20, 2)), ("b_ih", (20,)), ("b_hh", (20,)), ("w_hr", (2, 5)), ("w_peephole", (3, 5)),
    ]  # fmt: skip
    assert VARIANTS["gru"].weights(3, 5, bias=False) == {"w_ih": (15, 3), "w_hh": (15, 5)}
