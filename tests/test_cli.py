"""Options that can't be right end in one message before any work is done; never in a traceback."""

import json

import pytest
import typer
from typer.testing import CliRunner

from fastlstm.cli import app
from fastlstm.cli.checks import known_dtypes
from fastlstm.cli.info import installed
from fastlstm.parity import DTYPES
from fastlstm.version import __version__

COMMANDS = ("info", "parity", "bench", "train")

# arguments, what the message says; {} is a folder
BAD = {
    "bench pairs": ("bench --pairs some", "Invalid value for '--pairs'"),
    "bench json": ("bench --case darts --json {}/no/x.json", "folder that exists"),
    "bench plot": ("bench --case darts --plot {}/x.xyz", "ends in one of"),
    "bench threads": ("bench --threads 100000", "less than or equal to 1024"),
    "bench readme": ("bench --readme {}/foreign.json", "has the schema None"),
    "parity json": ("parity --case one --json {}", "this is a folder"),
    "parity case": (
        "parity --case nowhere",
        "a name that `fastlstm bench --list` or `fastlstm parity` shows, or a line such as",
    ),
    "parity option": ("parity --nope", "No such option: --nope"),
    "parity surplus": ("parity surplus", "Got unexpected extra argument"),
    "info target": ("info --kernels --target q", "--target is 'q', expected one of"),
    "train lr": ("train --lr 0", "--lr is 0.0, expected a finite number above 0"),
    "no command": ("nothing", "No such command 'nothing'"),
    "no option": ("--nothing bench", "No such option: --nothing"),
    "train threads": ("train --threads 100000", "expected at most 1024"),
    "train text": ("train --text {}/none.txt", "none.txt"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_options(arguments, message, tmp_path):
    (tmp_path / "foreign.json").write_text(json.dumps({"a": 1}))
    result = CliRunner().invoke(app, arguments.format(tmp_path).split())
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    command = arguments.split()[0]
    assert line.startswith(f"fastlstm {command}: " if command in COMMANDS else "fastlstm: ")
    assert message in line


@pytest.mark.parametrize("long", ["float32", "bfloat16", "float16", "float64"])
def test_dtypes_have_one_spelling_and_take_pytorchs(long):
    short = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}[long]
    for spelled in (long, short):
        assert known_dtypes([spelled], DTYPES) == [short]
    with pytest.raises(typer.BadParameter, match="--dtype is 'single', expected one of fp32, bf16, fp16, fp64"):
        known_dtypes(["single"], DTYPES)


@pytest.mark.parametrize(
    "command", ["parity --case nowhere", "bench --case nowhere", "train --lr 0", "info --kernels --target q"]
)
def test_every_command_takes_both_spellings(command):
    """It gets as far as to the next mistake."""
    for dtype in ("float32", "fp32"):
        result = CliRunner().invoke(app, [*command.split(), "--dtype", dtype])
        assert result.exit_code == 2
        assert "--dtype" not in result.stderr


def test_help_where_nothing_is_asked():
    result = CliRunner().invoke(app, [])
    assert "Usage: " in result.output
    assert all(f" {command} " in result.output for command in COMMANDS)


def test_version():
    assert CliRunner().invoke(app, ["--version"]).output.strip() == __version__


def test_package_without_metadata(tmp_path, monkeypatch):
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed("nameless") == "unknown version"
    assert installed("nowhere_to_be_found") is None
