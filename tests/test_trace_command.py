"""`fastlstm trace` runs a program as Python does, and writes what it saw whatever becomes of it."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastlstm.benchmarks import results
from fastlstm.cli import app

SCRIPT = """
import sys
from torch import nn, ones
nn.LSTM(3, 4)(ones(5, 2, 3))
print(sys.argv, __name__)
if sys.argv[1] == "fault":
    raise ValueError("of the script")
if sys.argv[1] == "exit":
    sys.exit(3)
if sys.argv[1] == "interrupt":
    raise KeyboardInterrupt
"""


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands put on Python's path, and its arguments, end with a test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.mark.parametrize(
    ("what", "code", "ended"),
    [
        ("--json", 0, "normally"),
        ("fault", 1, "ValueError"),
        ("exit", 3, "SystemExit"),
        ("interrupt", 130, "KeyboardInterrupt"),
    ],
)
def test_the_command(what: str, code: int, ended: str, tmp_path: Path) -> None:
    script, file = tmp_path / "mine.py", tmp_path / "run.json"
    script.write_text(SCRIPT)
    result = CliRunner().invoke(app, ["trace", "--json", str(file), str(script), what, "-x"])
    assert result.exit_code == code
    assert result.stdout == f"{[str(script), what, '-x']} __main__\n"
    assert "lstm T5 B2 I3 H4 fp32 infer" in result.stderr
    assert f"fastlstm bench --from {file}" in result.stderr.replace("\n", "")
    assert ("ValueError: of the script" in result.stderr) == (what == "fault")
    assert "fastlstm/cli" not in result.stderr
    written = results.read(file, "trace")
    assert (written["ended"], written["program"], written["rows"][0]["calls"]) == (ended, "mine.py", 1)
    assert written["seconds"] > written["rows"][0]["forward_s"] > 0


def test_a_module_is_run_as_python_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").touch()
    (tmp_path / "mine/train.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["trace", "-m", "mine.train", "fine"])
    assert result.stdout == f"{[str(tmp_path / 'mine/train.py'), 'fine']} __main__\n"
    assert json.loads((tmp_path / "trace.json").read_text())["program"] == "mine.train"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py"], "SCRIPT is nothing.py, expected a Python file that exists; a module is run by -m"),
        (["-m", "no.such"], "SCRIPT is no.such, expected a module that can be imported: No module named 'no'"),
        (["--json", "no/run.json", __file__], "--json is no/run.json, expected a file in a folder that exists"),
    ],
)
def test_bad_options_get_one_clear_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["trace", *arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in result.output
