"""Every backend against the oracles, by the code of `fastlstm parity`, which test_planted_bugs.py holds to wrong gradients."""

import json

import pytest
from typer.testing import CliRunner

from fastlstm import backends, parity
from fastlstm.cli import app
from fastlstm.kernels.lstm.reference import lstm_reference
from fastlstm.ops import lstm as ops_lstm
from fastlstm.parity.compare import oracles

# float16 is float32 to every CPU's kernels
DTYPES = [dtype if dtype == "fp16" else pytest.param(dtype, marks=pytest.mark.cpu) for dtype in parity.DTYPES]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", parity.CASES)
def test_parity(case: str, dtype: str) -> None:
    levels = [level for level in parity.LEVELS if parity.skip(case, dtype, "numba", level) is None]
    if not levels:
        pytest.skip(str(parity.skip(case, dtype, "numba", "op")))
    missed = [row for level in levels for row in parity.check(case, dtype, "numba", level) if not row.ok]
    assert not missed


def oracle_we_did_not_write(case: str) -> str | None:
    """The dtype in which PyTorch's module, or else ONNX Runtime, says what the case gives."""
    return "fp64" if "torch" in oracles(case, "fp64") else "fp32" if "onnx" in oracles(case, "fp32") else None


@pytest.mark.parametrize("case", [name for name in parity.CASES if oracle_we_did_not_write(name)])
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
    assert "h_n" in {row.quantity for row in parity.check("only_y", "fp32", "reference") if not row.ok}


def test_another_dtype_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args, coupled, reverse, return_cells, backend):
        y, h_n, c_n, cells = lstm_reference(*args, coupled, reverse)
        return y, h_n, c_n.double(), cells

    monkeypatch.setattr(ops_lstm, "lstm", broken)
    with pytest.raises(TypeError, match=r"three: c_n came back in another dtype than fp32"):
        parity.check("three", "fp32", "reference")


def test_the_command_writes_its_errors(tmp_path) -> None:
    file = tmp_path / "parity.json"
    options = ["--case", "projection", "--backend", "reference", "--dtype", "fp32", "--json", str(file)]
    result = CliRunner().invoke(app, ["parity", *options])
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    assert {"case", "quantity", "oracle", "error", "allowed", "ok"} <= rows[0].keys()
    assert {"dweight_hr_l1_reverse", "dh0", "dx", "c_n"} <= {row["quantity"] for row in rows}
    assert "0 above what is allowed" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "fast"], "--backend is 'fast', expected one of numba, triton, reference"),
        (["--dtype", "int8"], "--dtype is 'int8', expected one of fp32"),
        (["--case", "nothing"], "--case is 'nothing', expected a part of one of one, three"),
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
