"""Every backend against the oracles, by the code of `fastlstm parity`, which test_planted_bugs.py holds to wrong gradients."""

import importlib
import itertools
import json
import re
import shlex

import pytest
import torch
from typer.testing import CliRunner

from fastlstm import backends, parity
from fastlstm.cli import app
from fastlstm.kernels.lstm.reference import lstm_reference
from fastlstm.ops import lstm as ops_lstm
from fastlstm.parity.compare import oracles
from fastlstm.parity.problems import draw

# float16 is float32 to every CPU's kernels, and is made so of the arguments that the other variants have
BUT_IN_FP16 = ("peephole_lstm_", "cifg_lstm_", "cifg_conv_lstm_", "cifg_peephole_conv_lstm_")
# As a lesser CPU, a case is checked in one dtype, another on each CPU: every two of case, dtype and CPU still meet; and in all
# of them at sizes that fill no panel
DTYPES_OF_CPU = ("fp32", "bf16", "fp64") if backends.gemm_path() == "avx2" else ("bf16", "fp64", "fp32")
TURNS = dict(zip(parity.CASES, itertools.cycle(DTYPES_OF_CPU), strict=False))
IN_EACH = ("h17", "h65", "padded_reverse", "projection_stack", "stack_packed", "_even", "_unequal", "_conv")
# Many steps of few numbers, many draws of one, large frames: for the CPU as it is, but in float16. Two fifths of the time
DEAR = ("_one", "_long", "_longer", "_peaked", "_five_deep", "_saturated_wide")


def marks(case: str, dtype: str) -> list[pytest.MarkDecorator]:
    if case.endswith(DEAR):
        return []
    return [pytest.mark.cpu] if dtype == TURNS[case] or (dtype != "fp16" and case.endswith(IN_EACH)) else []


CHECKED = [
    pytest.param(case, dtype, marks=marks(case, dtype))
    for case in parity.CASES
    for dtype in parity.DTYPES
    if dtype != "fp16" or not (case.startswith(BUT_IN_FP16) or case.endswith(DEAR))
]


@pytest.mark.parametrize(("case", "dtype"), CHECKED)
def test_parity(case: str, dtype: str) -> None:
    levels = [level for level in parity.LEVELS if parity.skip(case, dtype, "numba", level) is None]
    if not levels:
        pytest.skip(str(parity.skip(case, dtype, "numba", "op")))
    missed = [row for level in levels for row in parity.check(case, dtype, "numba", level) if not row.ok]
    assert not missed


def oracle_we_did_not_write(case: str) -> str | None:
    """The dtype in which PyTorch's module, or else ONNX Runtime, says what the case gives."""
    double, single = (oracles(parity.find(case, dtype)) for dtype in ("fp64", "fp32"))
    return "fp64" if "torch" in double else "fp32" if "onnx" in single else None


# the reference is a loop over steps, of which one variant of each op has many here
LONG = {"lstm_longer", *(f"{variant}_long" for variant in backends.VARIANTS if variant not in backends.IN_PYTORCH)}
CHECKABLE = [name for name in parity.CASES if name not in LONG and oracle_we_did_not_write(name)]


@pytest.mark.parametrize("case", CHECKABLE)
def test_the_reference_is_right(case: str) -> None:
    rows = parity.check(case, oracle_we_did_not_write(case), "reference")
    assert {row.oracle for row in rows} > {"reference"}
    assert not [row for row in rows if not row.ok]


THROUGH_MODULES = ("stack_packed", "reset_stack", "projection_stack", "cells_padded_reset", "only_h_n", "h16")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", [c for c in parity.CASES if c.endswith(THROUGH_MODULES) and parity.CASES[c].T < 9])
def test_the_reference_as_a_backend(case: str, dtype: str) -> None:
    """Ops and modules bring it what a loop over layers and directions, written apart from them, brings it."""
    levels = [level for level in parity.LEVELS if parity.skip(case, dtype, "reference", level) is None]
    missed = [row for level in levels for row in parity.check(case, dtype, "reference", level) if not row.ok]
    assert not missed


@pytest.mark.parametrize(
    "wrong", [lambda y: y * float("nan"), lambda y: y[:1], lambda y: y + 2e-5], ids=["nan", "shape", "small"]
)
def test_a_wrong_output_is_a_miss(wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args, coupled, reverse, return_cells, backend):
        y, h_n, c_n, cells = lstm_reference(*args, coupled, reverse)
        return y, wrong(h_n), c_n, cells

    monkeypatch.setattr(ops_lstm, "lstm", broken)
    assert "h_n" in {row.quantity for row in parity.check("lstm_only_y", "fp32", "reference") if not row.ok}


def test_another_dtype_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args, coupled, reverse, return_cells, backend):
        y, h_n, c_n, cells = lstm_reference(*args, coupled, reverse)
        return y, h_n, c_n.double(), cells

    monkeypatch.setattr(ops_lstm, "lstm", broken)
    (missed,) = [row for row in parity.check("lstm_three", "fp32", "reference") if not row.ok]
    assert (missed.quantity, missed.oracle) == ("c_n", "dtype of the input")


def test_the_command_writes_its_errors(tmp_path) -> None:
    file = tmp_path / "parity.json"
    options = ["--case", "projection", "--backend", "reference", "--dtype", "fp32", "--json", str(file)]
    result = CliRunner().invoke(app, ["parity", *options])
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    assert {"case", "quantity", "oracle", "error", "allowed", "ok"} <= rows[0].keys()
    assert {"dweight_hr_l1_reverse", "dh0", "dx", "c_n"} <= {row["quantity"] for row in rows}
    assert "0 above what is allowed" in result.output


@pytest.mark.parametrize(("alive", "words"), [(True, ", 1 runs failed"), (False, "refuses to go on, 2 runs are left")])
def test_a_run_that_fails_ends_no_other(alive: bool, words: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a GPU goes with it. What is known before the end is written."""
    command, file, right, seen = (
        importlib.import_module("fastlstm.cli.parity"),
        tmp_path / "parity.json",
        parity.check,
        [],
    )

    def check(case, *others) -> list:
        seen.append(json.loads(file.read_text()) if file.exists() else [])
        if len(seen) == 2:
            raise RuntimeError("an illegal [address]")
        return right(case, *others)

    monkeypatch.setattr(parity, "check", check)
    monkeypatch.setattr(command, "EVERY_S", 0.0)
    monkeypatch.setattr(command, "goes_on", lambda device: alive)
    cases = [word for name in ("lstm_one", "lstm_three") for word in ("--case", name)]
    options = ["--variant", "lstm", "--backend", "reference", "--dtype", "fp32", "--json", str(file)]
    result = CliRunner().invoke(app, ["parity", *cases, *options], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "FAILED reference, module: lstm T1 B1 I1 H1 fp32: RuntimeError: an illegal [address]" in result.output
    assert words in result.output
    assert seen[1][-1] == {"left": 3}
    written = json.loads(file.read_text())
    assert {"case": "lstm T1 B1 I1 H1 fp32", "level": "module", "backend": "reference"}.items() <= written[
        -2 + alive
    ].items()
    assert ("left" in written[-1]) != alive
    assert len({row["case"] for row in written if "error" in row}) == 1 + alive


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "fast"], "--backend is 'fast', expected one of numba, triton, reference"),
        (["--dtype", "int8"], "--dtype is 'int8', expected one of fp32"),
        (
            ["--case", "dart"],
            "--case is 'dart', expected a name that `fastlstm bench --list` or `fastlstm parity` shows (darts or radar?)",
        ),
    ],
)
def test_bad_options_get_one_clear_line(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["parity", *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.output


def test_a_backend_that_cannot_run_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args):
        raise RuntimeError("backend='numba' needs a CPU with AVX2")

    monkeypatch.setattr(backends, "choose", refuse)
    result = CliRunner().invoke(app, ["parity", "--backend", "numba"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "needs a CPU with AVX2" in result.output


@pytest.mark.parametrize(
    ("case", "level"),
    [
        ("lstm B4 I3 H8 cell", "module"),
        ("gru B4 I3 H8 cell no_bias", "module"),
        ("peephole_lstm B4 I3 H8 cell zero_state return_cells", "op"),
        ("attention_lstm T2 B3 I4 H8 S6 M5 step need_weights memory:1-6", "step"),
    ],
)
def test_one_step_is_a_case_too(case: str, level: str) -> None:
    assert parity.skip(case, "fp32", "reference", level) is None
    rows = parity.check(case, "fp32", "reference", level)
    assert rows
    assert not [row for row in rows if not row.ok]


def test_inference_has_no_gradients() -> None:
    rows = parity.check("lstm T3 B3 I4 H17 infer", "fp32", "reference", "module")
    assert {row.quantity for row in rows} == {"y", "h_n", "c_n"}


def test_a_case_draws_the_same_numbers_in_each_dtype() -> None:
    single, double = (draw(parity.find("lstm_h16", dtype), 1).given["x"] for dtype in ("fp32", "fp64"))
    torch.testing.assert_close(single, double.float(), rtol=0, atol=0)


def test_a_miss_is_a_line_to_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args, coupled, reverse, return_cells, backend):
        y, h_n, c_n, cells = lstm_reference(*args, coupled, reverse)
        return y * 1.01, h_n, c_n, cells

    monkeypatch.setattr(ops_lstm, "lstm", broken)
    options = ["--case", "T2 B3 I4 H17", "--variant", "cifg_lstm", "--backend", "reference", "--dtype", "fp32"]
    result = CliRunner().invoke(app, ["parity", *options], env={"COLUMNS": "80"})
    assert result.exit_code == 1
    line = "fastlstm parity --case 'cifg_lstm T2 B3 I4 H17 fp32' --backend reference"
    assert line in result.output.splitlines()
    again = CliRunner().invoke(app, shlex.split(line)[1:], env={"COLUMNS": "80"})
    assert again.exit_code == 1
    assert result.output.replace(line, "").split() == again.output.replace(line, "").split()


def test_figures_and_verdicts_never_shrink() -> None:
    """At 80 columns, names fold."""
    options = ["--case", "cifg_peephole_conv_lstm_hadamard_frozen_input", "--backend", "reference", "--dtype", "fp32"]
    result = CliRunner().invoke(app, ["parity", *options, "--verbose"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.rstrip().endswith("ok")]
    assert len(lines) == int(re.search(r"(\d+) errors of", result.output)[1])
    assert all(re.search(r"\d\.\de-\d\d +\d\.\de-\d\d +ok$", line.rstrip()) for line in lines)
    assert max(map(len, result.output.splitlines())) <= 80
    assert "…" not in result.output
