"""`fastlstm info` and the command line's front door."""

import json

import pytest
import torch
from typer.testing import CliRunner

from fastlstm.backends import ATTENTION, CONVOLUTIONAL, choose
from fastlstm.backends import VARIANTS as RECURRENT
from fastlstm.cli import app
from fastlstm.cli.info import chosen, joined
from fastlstm.version import __version__

VARIANTS = RECURRENT | CONVOLUTIONAL | ATTENTION
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def test_info_json() -> None:
    said = CliRunner().invoke(app, ["info", "--json"], catch_exceptions=False)
    facts = json.loads(said.stdout)
    assert facts["versions"]["fastlstm"] == __version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["machine"]["threads"] == 1
    assert facts["machine"]["gpus"] == [] or torch.cuda.is_available()
    rows = [row for row in facts["backends"] if row["device"] == "cpu"]
    on_cpu = {(row["variant"], row["dtype"]): (row["backend"], row["reason"]) for row in rows}
    expected = {(v, d): choose(VARIANTS[v], torch.device("cpu"), DTYPES[d]) for v in VARIANTS for d in DTYPES}
    assert on_cpu == expected
    assert len(rows) == len(expected)


def test_info_fits_80_columns() -> None:
    said = CliRunner().invoke(app, ["info"], env={"COLUMNS": "80"}, catch_exceptions=False)
    assert all(len(line) <= 80 for line in said.stdout.splitlines())
    for word in ("extension", "AVX2", "GEMM", "Triton", *DTYPES, *VARIANTS):
        assert word in said.stdout


def test_rows_that_say_the_same_are_joined() -> None:
    rows = [chosen(variant, "cpu", dtype) for variant in ("lstm", "gru") for dtype in ("fp32", "fp64")]
    (row,) = joined(joined(rows, "dtype"), "variant")
    assert row == rows[0] | {"variant": "lstm\ngru", "dtype": "fp32\nfp64"}
    rows[3] |= {"reason": "another"}
    by_dtype = joined(rows, "dtype")
    assert [(r["variant"], r["dtype"]) for r in by_dtype] == [
        ("lstm", row["dtype"]),
        ("gru", "fp32"),
        ("gru", "fp64"),
    ]
    assert joined(by_dtype, "variant") == by_dtype
    assert [r["dtype"] for r in rows] == ["fp32", "fp64"] * 2


@pytest.mark.parametrize("command", ["info", "parity", "bench", "train"])
def test_help_names_every_command(command: str) -> None:
    assert f" {command} " in CliRunner().invoke(app, ["--help"], catch_exceptions=False).stdout
    assert CliRunner().invoke(app, [command, "--help"], catch_exceptions=False).exit_code == 0


def test_a_name_is_as_good_as_a_variant() -> None:
    cpu = torch.device("cpu")
    for name, variant in VARIANTS.items():
        assert choose(name, cpu, torch.float32) == choose(variant, cpu, torch.float32)
    assert choose("lstm", cpu, torch.int32).backend == "torch"
    with pytest.raises(ValueError, match="variant is 'rnn', expected one of 'lstm', 'gru'"):
        choose("rnn", cpu, torch.float32)


def test_what_runs_a_case() -> None:
    line = "lstm bi B4 I3 H8 L2 packed:3,3,3,3 bfloat16"
    result = CliRunner().invoke(app, ["info", "--case", line, "--json"], catch_exceptions=False)
    facts = json.loads(result.stdout)[0]
    assert facts["case"] == "lstm T3 B4 I3 H8 L2 bi packed:3-3 bf16"
    assert facts["backend"] == choose("lstm", torch.device("cpu"), torch.bfloat16).backend
    module = torch.nn.LSTM(3, 8, num_layers=2, bidirectional=True)
    assert facts["bytes of weights"] == 2 * sum(weight.numel() for weight in module.parameters())
    assert facts["bytes of input and output"] == 2 * 12 * (3 + 16)
    assert facts["GFLOP, training"] == pytest.approx(3 * facts["GFLOP, forward"])
    assert facts["GFLOP, forward"] == pytest.approx(2e-9 * 2 * 12 * 32 * (3 + 8 + 16 + 8))


def test_a_name_is_of_every_variant() -> None:
    result = CliRunner().invoke(app, ["info", "--case", "ppo"], catch_exceptions=False)
    for variant in RECURRENT:
        assert f"{variant} T128 B16 I128 H256 fp32" in result.stdout
    result = CliRunner().invoke(app, ["info", "--case", "decode-step-1 infer"])
    assert result.exit_code == 2
    assert "'decode-step-1' is no word of such a case" in " ".join(result.output.replace("│", " ").split())
