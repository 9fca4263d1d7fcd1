"""The benchmark measures what it says: right contenders, in turn, and tables made from the numbers. Never how fast."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastlstm.backends import IN_PYTORCH, VARIANTS
from fastlstm.benchmarks import cases, contenders, memory, report, runner, work
from fastlstm.cli import app

ROOT = Path(__file__).parents[1]
TINY = {
    "dense": cases.Case(I=3, H=5, T=4, B=2, stands_for="a test"),
    "stack": cases.Case(I=3, H=5, T=4, B=2, layers=2, directions=2, stands_for="a test"),
    "packed": cases.Case(I=3, H=5, T=6, shortest=2, B=4, layers=2, directions=2, layout="packed", stands_for="a test"),
    "lengths": cases.Case(
        I=3, H=5, T=6, shortest=2, B=4, layers=2, directions=2, layout="lengths", stands_for="a test"
    ),
    "proj": cases.Case(I=3, H=5, P=2, T=4, B=2, stands_for="a test"),
    "resets": cases.Case(I=3, H=5, T=9, B=2, resets=0.3, stands_for="a test"),
    "step": cases.Case(I=3, H=5, T=1, B=2, layout="cell", stands_for="a test"),
}
RESULT = {
    "machine": {
        "name": "a-chip-2-threads", "chip": "A Chip", "vectors": "AVX2", "threads": 2, "python": "3.11", "torch": "2.13",
        "commit": "abc",
    },
    "dtype": "fp32",
    "pairs": 3,
    "rows": [
        {
            "case": "darts", "variant": "lstm", "mode": "train", "against": "torch", "path": "oneDNN",
            "ratios": [1.999, 1.5, 2.5],
            "ours_s": 0.001, "theirs_s": 0.002, "gflops": 10.4, "gemm_gflops": 20.0, "compile_s": None,
            "memory": {"ours": 1_250_000, "torch": 2_000_000},
        },
        {
            "case": "packed", "variant": "lstm", "mode": "train", "against": "torch", "path": "op chain",
            "ratios": [0.5, 0.5, 0.5],
            "ours_s": 0.02, "theirs_s": 0.01, "gflops": 10.4, "gemm_gflops": 20.0, "compile_s": None,
        },
        {
            "case": "lm", "variant": "lstm", "mode": "train", "against": "torch", "reason": "ours: the error of y is 1",
            "miss": True,
        },
        {"case": "ppo-resets", "variant": "lstm", "mode": "train", "against": "torch", "reason": "PyTorch knows no resets"},
        {
            "case": "darts", "variant": "gru", "mode": "infer", "against": "cell", "path": "", "ratios": [7.0], "ours_s": 0.1,
            "theirs_s": 0.7, "gflops": 1.0, "gemm_gflops": 2.0, "compile_s": 12.3,
        },
    ],
}  # fmt: skip


# per peer: the cases, variants and modes that it does
MODES = ("train", "infer")
OTHERS = [v for v in VARIANTS if v != "lstm"]
DOES = {
    "ours": (TINY, VARIANTS, MODES),
    "reference": (TINY, VARIANTS, MODES),
    "torch": ([name for name in TINY if name != "resets"], VARIANTS, MODES),
    "cell": (["dense", "stack", "packed", "lengths"], VARIANTS, MODES),
    "onnx": (["dense", "stack", "lengths"], VARIANTS, ["infer"]),
    "dense": (["packed", "lengths"], VARIANTS, MODES),
    "lstm": (TINY, OTHERS, MODES),
    "cut": (["resets"], IN_PYTORCH, MODES),
}
# beyond them: what no contender does
NOBODY = [("proj", "gru"), ("step", "cifg_peephole_lstm")]
WORK = [
    (name, variant, mode, peer)
    for peer, does in DOES.items()
    for name, variant, mode in itertools.product(*does)
    if (name, variant) not in NOBODY
]
# one of each reason: case, variant, mode, peer
REASONS = {
    "a GRU has no projection": ("proj", "gru", "train", "ours"),
    "measured as a layer only": ("step", "cifg_peephole_lstm", "infer", "ours"),
    "the case is dense itself": ("stack", "gru", "train", "dense"),
    "PyTorch knows no resets": ("resets", "lstm", "train", "torch"),
    "cells know no projection": ("proj", "lstm", "train", "cell"),
    "resets are measured against cutting": ("resets", "gru", "train", "cell"),
    "one step is no loop": ("step", "lstm", "infer", "cell"),
    "measured in inference only": ("dense", "lstm", "train", "onnx"),
    "no projection, no resets, no packed input and no cells": ("packed", "lstm", "infer", "onnx"),
    "it is the LSTM itself": ("dense", "lstm", "train", "lstm"),
    "there is nothing to cut": ("dense", "gru", "train", "cut"),
    "no such module to run between cuts": ("resets", "cifg_lstm", "train", "cut"),
}


def contender(name: str, variant: str, mode: str, peer: str) -> work.Contender:
    return contenders.contender(peer, work.make_work(TINY[name], VARIANTS[variant], mode, torch.float32))


@pytest.mark.parametrize(("name", "variant", "mode", "peer"), WORK)
def test_contenders_do_the_same_work(name: str, variant: str, mode: str, peer: str) -> None:
    one = contender(name, variant, mode, peer)
    given, results = one.work, one.step()
    outputs = 1 + len(given.states) - (name == "step")
    if mode == "train" and peer not in ("cell", "lstm", "torch"):
        assert len(results) == outputs + 1 + len(given.states) + len(list(given.module.parameters()))
    assert not any(result.requires_grad for result in results)
    if peer not in contenders.OTHER_WORK and not (peer == "torch" and variant not in IN_PYTORCH):
        assert runner.disagreement(one, strict=False) is None


@pytest.mark.parametrize(("words", "row"), REASONS.items(), ids=REASONS)
def test_contenders_say_what_they_cannot_do(words: str, row: tuple[str, str, str, str]) -> None:
    with pytest.raises(NotImplementedError, match=words):
        contender(*row)


def test_contenders_do_nothing_else() -> None:
    for row in set(itertools.product(TINY, VARIANTS, MODES, DOES)) - set(WORK):
        with pytest.raises(NotImplementedError):
            contender(*row)


def test_half_precision_is_measured_against_ours() -> None:
    half = work.make_work(TINY["dense"], VARIANTS["gru"], "train", torch.bfloat16)
    assert contenders.contender("fp32", half).step()[0].dtype == torch.float32
    with pytest.raises(NotImplementedError, match="in float32 itself"):
        contenders.contender("fp32", half.to(torch.float32))


def test_the_path_that_pytorch_took_is_seen() -> None:
    dense = {
        name: contenders.contender("torch", work.make_work(TINY[name], VARIANTS["lstm"], "train", torch.float32)).path
        for name in TINY
        if name != "resets"
    }
    assert {dense["packed"], dense["lengths"], dense["proj"]} == {"op chain"}
    if torch.backends.mkldnn.is_available():
        assert dense["dense"] == "oneDNN"


def test_gflop_counts_valid_rows_only() -> None:
    case = TINY["packed"]
    assert case.lengths.tolist() == [6, 5, 3, 2]
    assert case.rows == 16
    assert TINY["dense"].gflop("lstm", "train") == pytest.approx(3 * 2e-9 * 8 * 4 * 5 * (3 + 5))
    assert TINY["dense"].gflop("gru", "infer") == pytest.approx(2e-9 * 8 * 3 * 5 * (3 + 5))


def test_pairs_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BLOCK_S", 0.0)
    order = []
    times = runner.interleaved(lambda: order.append("a"), lambda: order.append("b"), pairs=3)
    assert len(times) == 3
    assert all(a > 0 and b > 0 for a, b in times)
    assert re.fullmatch("a+b+" + "(a{3}b{3})" * 3, "".join(order))


def test_a_peer_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(given: work.Work) -> work.Contender:
        right = contenders.torch_module(given).step
        return work.Contender(given, lambda: [result * 1.01 for result in right()])

    monkeypatch.setitem(contenders.CONTENDERS, "cell", wrong)
    result = CliRunner().invoke(
        app,
        ["bench", "--case", "darts", "--variant", "lstm", "--against", "cell", "--mode", "infer", "--pairs", "1"],
    )
    assert result.exit_code == 1
    words = "Not timed: fastlstm.LSTM, darts, inference, loop over nn.LSTMCell: cell: the error of y is 1.0e-02"
    assert words in result.output


def test_memory_is_that_of_the_step() -> None:
    """PyTorch keeps about 8 numbers per step, sequence and hidden unit of an LSTM: 24 x 32 x 25 of them, of 4 bytes."""
    assert 24 * 32 * 25 * 4 * 3 < memory.peak_memory("darts", "lstm", "torch", "fp32", threads=1) < 50e6


def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    picture = tmp_path / "speed.png"
    options = ["--case", "darts", "--variant", "gru", "--mode", "infer", "--pairs", "2", "--threads", "1"]
    result = CliRunner().invoke(app, ["bench", *options, "--json", str(tmp_path), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("*-1-threads.json")
    written = json.loads(file.read_text())
    (row,) = written["rows"]
    assert len(row["ratios"]) == 2
    assert {"torch", "commit", "threads", "cpu", "vectors"} <= written["machine"].keys()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "geometric mean of inference" in result.output

    more = ["--case", "darts", "--variant", "lstm", "--mode", "infer", "--pairs", "2", "--threads", "1", "--add"]
    assert CliRunner().invoke(app, ["bench", *more, "--json", str(tmp_path)]).exit_code == 0
    assert [row["variant"] for row in json.loads(file.read_text())["rows"]] == ["gru", "lstm"]
    more[more.index("--pairs") + 1] = "1"
    refused = CliRunner().invoke(app, ["bench", *more, "--json", str(tmp_path)], env={"COLUMNS": "300"})
    assert refused.exit_code == 2
    assert "of another machine, torch, commit, dtype or number of pairs" in refused.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--case", "nothing"], "--case is 'nothing', expected one of darts, deepar"),
        (["--variant", "rnn"], "--variant is 'rnn', expected one of lstm, gru"),
        (["--against", "jax"], "--against is 'jax', expected one of torch, cell"),
        (["--mode", "both"], "--mode is 'both', expected one of train, infer"),
        (["--dtype", "int8"], "--dtype is 'int8', expected one of fp32"),
        (["--pairs", "0"], "Invalid value for '--pairs'"),
        (["--device", "gpu"], "--device is 'gpu', expected one that PyTorch has here"),
        (["--json", "nowhere/speed.json"], "--json is nowhere/speed.json, expected a file in a folder that exists"),
        (["--readme", "no.json"], "--readme is no.json, expected a result written by --json: [Errno 2] No such file"),
    ],
)
def test_bad_options_get_one_clear_line(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *options], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in result.output


def test_report() -> None:
    headers, (darts, packed, lm) = report.main_table(RESULT, "lstm", "train")
    assert dict(zip(headers, darts, strict=True))["speed-up"] == "1.99 (1.74–2.24)"
    assert dict(zip(headers, darts, strict=True))["peak MB"] == "1.2 / 2.0"
    assert dict(zip(headers, packed, strict=True))["T"] == "64–128"
    assert "not timed" in lm
    assert report.peer_table(RESULT).rows == [
        ["fastlstm.GRU", "darts", "inference", "loop over nn.GRUCell", "100 / 700", "7.00 (7.00–7.00)", "12"]
    ]
    all_cases, one_dnn = report.mean_lines(RESULT, "lstm", "train")
    assert all_cases.endswith("all cases (2): 0.99")
    assert one_dnn.endswith("(1): 1.99")
    assert report.summary(RESULT).rows == [
        ["fastlstm.LSTM", "nn.LSTM", "0.99 (packed: 0.50)", "–", "2"],
        ["fastlstm.GRU", "loop over nn.GRUCell", "–", "7.00", "1"],
    ]
    words = "Not timed: fastlstm.LSTM, lm, training, nn.LSTM: ours: the error of y is 1."
    assert words in report.notes(RESULT)
    assert words in report.markdown(RESULT, "x.png")
    assert report.cost(RESULT, "gru", "train") is None
    assert report.cost(RESULT, "lstm", "train") == "1"
    assert "## LSTM: training against PyTorch's\n" in report.details(RESULT, "x.png")


def test_update_readme_writes_between_the_markers(tmp_path: Path) -> None:
    readme, file = tmp_path / "README.md", tmp_path / "result.json"
    file.write_text(json.dumps(RESULT))
    (tmp_path / "docs").mkdir()
    readme.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    picture = report.update_readme(file, readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{report.START}\n## Variants")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert picture == tmp_path / "docs/images/speed-a-chip-2-threads.png"
    assert picture.is_file()
    assert (tmp_path / "docs/speed.md").read_text() == report.details(RESULT, "images/speed-a-chip-2-threads.png")


def test_other_machines_stand_beside(tmp_path: Path) -> None:
    rows = [
        row | {"against": "lstm", "mode": "train", "ratios": [1.25]}
        for row in RESULT["rows"]
        if row["variant"] == "gru"
    ]
    other = RESULT | {"machine": RESULT["machine"] | {"chip": "Another"}, "rows": rows}
    for name, result in (("a", RESULT), ("a-bf16", RESULT | {"dtype": "bf16"}), ("b", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    result, half, others = report.with_those_beside(tmp_path / "a.json")
    assert (half["dtype"], len(others)) == ("bf16", 1)
    text = report.markdown(result, "x.png", half, others)
    assert "## On another machine: Another (" in text
    costs = {row[0]: row[3:] for row in report.variants_table([result, *others]).rows}
    assert costs["`fastlstm.GRU`"] == ["0.80", "–"]
    assert "# On another machine: Another (" in report.details(result, "x.png", half, others)


def test_update_readme_needs_the_markers(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(
        ValueError, match=r"README\.md has no <!-- bench:start --> ... <!-- bench:end -->, expected both"
    ):
        report.update_readme(tmp_path / "result.json", tmp_path / "README.md")


def test_the_readme_is_what_a_committed_result_generates() -> None:
    section = (ROOT / "README.md").read_text().partition(report.START)[2].partition(report.END)[0].strip()
    picture = re.search(r"!\[.*?\]\((.*?)\)", section)[1]
    assert (ROOT / picture).is_file()
    file = (ROOT / "benchmarks/results" / Path(picture).name.removeprefix("speed-")).with_suffix(".json")
    result, *beside = report.with_those_beside(file)
    assert section == report.markdown(result, picture, *beside)
    assert (ROOT / "docs/speed.md").read_text() == report.details(result, picture.removeprefix("docs/"), *beside)


def test_the_rate_of_products_that_onednn_lacks():
    """It has none in bfloat16 on a CPU without AVX-512."""
    code = "import torch; from fastlstm.benchmarks.runner import gemm_seconds as s; print(s(4, 8, 16, torch.bfloat16, 'cpu'))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    )
    assert float(run.stdout) > 0, run.stderr
