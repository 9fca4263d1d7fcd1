"""`fastlstm info` and the command line's front door."""

import json

import pytest
import torch
from typer.testing import CliRunner

from fastlstm.backends import choose
from fastlstm.cli import app
from fastlstm.version import __version__

DTYPES = ("float32", "bfloat16", "float16", "float64")


def test_info_json() -> None:
    said = CliRunner().invoke(app, ["info", "--json"], catch_exceptions=False)
    facts = json.loads(said.stdout)
    assert facts["versions"]["fastlstm"] == __version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["machine"]["threads"] == 1
    assert facts["machine"]["gpus"] == [] or torch.cuda.is_available()
    on_cpu = {row["dtype"]: (row["backend"], row["reason"]) for row in facts["backends"] if row["device"] == "cpu"}
    assert on_cpu == {name: choose("lstm", torch.device("cpu"), getattr(torch, name)) for name in DTYPES}


def test_info_fits_80_columns() -> None:
    said = CliRunner().invoke(app, ["info"], env={"COLUMNS": "80"}, catch_exceptions=False)
    assert all(len(line) <= 80 for line in said.stdout.splitlines())
    for word in ("extension", "AVX2", "GEMM", "Triton", *DTYPES):
        assert word in said.stdout


@pytest.mark.parametrize("command", ["info", "parity", "bench", "train"])
def test_help_names_every_command(command: str) -> None:
    assert f" {command} " in CliRunner().invoke(app, ["--help"], catch_exceptions=False).stdout
    assert CliRunner().invoke(app, [command, "--help"], catch_exceptions=False).exit_code == 0
