"""Options that can't be right end in one message before any work is done; never in a traceback."""

import json

import pytest
from typer.testing import CliRunner

from fastlstm.cli import app
from fastlstm.cli.info import installed
from fastlstm.version import __version__

# arguments, what the message says; {} is a folder
BAD = {
    "bench json": ("bench --case darts --json {}/no/x.json", "folder that exists"),
    "bench plot": ("bench --case darts --plot {}/x.xyz", "ends in one of"),
    "bench threads": ("bench --threads 100000", "less than or equal to 1024"),
    "bench readme": ("bench --readme {}/foreign.json", "lacks the machine"),
    "parity json": ("parity --case one --json {}", "this is a folder"),
    "parity case": ("parity --case nowhere", "expected a part of one of"),
    "train threads": ("train --threads 100000", "expected at most 1024"),
    "train text": ("train --text {}/none.txt", "none.txt"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_options(arguments, message, tmp_path):
    (tmp_path / "foreign.json").write_text(json.dumps({"a": 1}))
    result = CliRunner().invoke(app, arguments.format(tmp_path).split())
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    flat = " ".join(result.output.replace("│", " ").split())
    assert message in flat or message.replace(" ", "") in flat.replace(" ", "")


def test_version():
    assert CliRunner().invoke(app, ["--version"]).output.strip() == __version__


def test_package_without_metadata(tmp_path, monkeypatch):
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed("nameless") == "unknown version"
    assert installed("nowhere_to_be_found") is None
