"""Programs that were saved name ops: these take what they took (docs/promise.md)."""

import re
from pathlib import Path

import pytest
import torch

import fastlstm  # noqa: F401  (registers them)

ROOT = Path(__file__).parents[1]
PROMISED = [torch._C.parse_schema(line) for line in (ROOT / "tests/promised_ops.txt").read_text().splitlines()]


def now(name: str) -> torch._C.FunctionSchema:
    (schema,) = torch._C._jit_get_schemas_for_operator(name)
    return schema


@pytest.mark.parametrize("promised", PROMISED, ids=lambda schema: schema.name)
def test_an_op_takes_what_it_took(promised: torch._C.FunctionSchema) -> None:
    assert now(promised.name).is_backward_compatible_with(promised)


def test_an_op_that_does_not_is_noticed() -> None:
    gru = str(now("fastlstm::gru_layer"))
    for change in (("bool reverse)", "bool reverse, int more)"), ("Tensor h0, ", ""), ("gru_layer", "gru_layers")):
        assert not torch._C.parse_schema(gru.replace(*change)).is_backward_compatible_with(now("fastlstm::gru_layer"))
    longer = torch._C.parse_schema(gru.replace("bool reverse)", "bool reverse, int more=1)"))
    assert longer.is_backward_compatible_with(now("fastlstm::gru_layer"))


def test_every_op_that_a_program_holds_is_promised() -> None:
    """What can be called of ours, less the backward passes and what runs at once only."""
    ours = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("fastlstm::")}
    assert {schema.name for schema in PROMISED} == {
        name for name in ours if not name.endswith(("_bwd", "_each", "_into"))
    }


def test_the_page_names_them() -> None:
    page = (ROOT / "docs/promise.md").read_text()
    for schema in PROMISED:
        stem, kind = re.fullmatch(r"fastlstm::(\w+)_(layer|fwd)", schema.name).groups()
        assert f"{stem}_layer`" in page or f"{stem}_{kind}`" in page
