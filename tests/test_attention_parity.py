"""The cases of the Attention LSTM in `fastlstm parity`: the reference as a backend, and that what is wrong is a miss.

test_parity.py runs them on our kernels.
"""

import json

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from fastlstm import parity
from fastlstm.cli import app
from fastlstm.parity import attention as cases

NAMES = [name for name in parity.CASES if parity.CASES[name].variant == "attention_lstm"]
# what these ask of a kernel, they do not ask of what brings it its arguments
OF_KERNELS = (
    "_one", "_h17", "_h65", "_h128", "_b1", "_b33", "_many_slots", "_long", "_dot_h64", "_saturated", "_large_keys", "_peaked",
)  # fmt: skip


@pytest.mark.parametrize("case", [name for name in NAMES if not name.endswith(OF_KERNELS)])
def test_the_reference_as_a_backend(case: str) -> None:
    """The op, the module and its steps bring it what is put together apart from them; what nothing is fed from, at once."""
    levels = [level for level in parity.LEVELS if parity.skip(case, "fp32", "reference", level) is None]
    assert ("step" in levels) == (not parity.CASES[case].lengths)
    rows = [row for level in levels for row in parity.check(case, "fp32", "reference", level)]
    assert not [row for row in rows if not row.ok]
    found = {row.quantity for row in rows}
    used = {"y", "h_n", "c_n"} | {"alignments" for _ in "1" if parity.CASES[case].need_weights}
    assert found > used | {key.replace("0", "_n") for key in parity.CASES[case].states}


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp64"])
@pytest.mark.parametrize("case", ["stack", "context", "before", "unfed_normalized", "unfed_general"])
def test_other_dtypes(case: str, dtype: str) -> None:
    assert all(row.ok for row in parity.check(f"attention_lstm_{case}", dtype, "reference", "module"))


def test_every_option_has_a_case() -> None:
    """Each score fed and at once, and each of the other words."""
    found = {(case.attention, case.value.at_once) for case in map(parity.CASES.get, NAMES)}
    scores = {"additive", "normalized_additive", "dot", "general"}
    assert found >= {(score, at_once) for score in scores for at_once in (False, True)} | {("scaled_dot", False)}
    for name, words in {"feed": ("attentional", "context", None), "output": ("tanh", "linear", "hidden")}.items():
        assert {getattr(parity.CASES[case], name) for case in NAMES} == set(words)


def scaled(t: Tensor) -> Tensor:
    return t * (1 + 1e-5)


def lost(t: Tensor) -> Tensor:
    return t.detach() + 0 * t


# the result of the op, what is done to it, and which errors show it
WRONG = {
    "an output": (0, scaled, "y"),
    "what is fed": (3, scaled, "fed_n"),
    "alignments": (4, scaled, "alignments"),
    "a gradient": (4, lost, "dmemory"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_a_miss(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result, wrong, quantity = WRONG[what]
    op = cases.attention_lstm

    def broken(*args, **options):
        results = list(op(*args, **options))
        results[result] = wrong(results[result])
        return tuple(results)

    monkeypatch.setattr(cases, "attention_lstm", broken)
    rows = parity.check("attention_lstm_memory_lengths", "fp32", "reference")
    assert quantity in {row.quantity for row in rows if not row.ok}


def test_what_lies_beyond_a_memory_is_nan() -> None:
    case = parity.CASES["attention_lstm_memory_lengths"]
    given = {"x": torch.zeros(1), "memory": torch.zeros(case.S, case.B, case.M)}
    memory, _ = cases._memory(case, given)
    assert memory.isnan().any(2).sum(0).tolist() == [case.S - n for n in case.memory_lengths]


def test_the_command(tmp_path) -> None:
    file = tmp_path / "parity.json"
    options = ["--variant", "attention_lstm", "--case", "context", "--backend", "reference", "--dtype", "fp32"]
    result = CliRunner().invoke(app, ["parity", *options, "--json", str(file)])
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    assert {row["level"] for row in rows} == {"op", "module", "step"}
    assert {"dfed0", "dmemory", "dweight_query", "dweight_out", "dbias_hh_l0", "fed_n"} <= {
        row["quantity"] for row in rows
    }
