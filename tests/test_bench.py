"""The benchmark measures what it says: right contenders, in turn, and tables made from the numbers. Never how fast."""

import dataclasses
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

from fastlstm import backends
from fastlstm.backends import IN_PYTORCH, VARIANTS
from fastlstm.benchmarks import contenders, derivatives, memory, report, runner, work
from fastlstm.benchmarks.work import Contender, Work
from fastlstm.case import CaseError, parse
from fastlstm.cli import app

ROOT = Path(__file__).parents[1]
TINY = {
    "dense": parse("T4 B2 I3 H5"),
    "stack": parse("T4 B2 I3 H5 L2 bi"),
    "packed": parse("B4 I3 H5 L2 bi packed:2-6"),
    "lengths": parse("B4 I3 H5 L2 bi lengths:2-6"),
    "proj": parse("T4 B2 I3 H5 P2"),
    "resets": parse("T9 B2 I3 H5 resets:0.3"),
    "step": parse("B2 I3 H5 cell"),
    "bare": parse("T4 B2 I3 H5 zero_state frozen:x"),
    "no_bias": parse("T4 B2 I3 H5 L2 no_bias"),
}
RESULT = {
    "schema": "fastlstm bench",
    "version": 1,
    "machine": {
        "name": "a-chip-2-threads", "device": "cpu", "chip": "A Chip", "vectors": "AVX2", "threads": 2, "python": "3.11",
        "torch": "2.13", "commit": "abc",
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
    "cell": (["dense", "stack", "packed", "lengths", "bare"], VARIANTS, MODES),
    "onnx": (["dense", "stack", "lengths", "bare"], VARIANTS, ["infer"]),
    "dense": (["packed", "lengths"], VARIANTS, MODES),
    "lstm": (TINY, OTHERS, MODES),
    "cut": (["resets"], IN_PYTORCH, MODES),
}
# beyond them: what there is not
NOBODY = [("proj", "gru"), ("step", "cifg_peephole_lstm")]
WORK = [
    (name, variant, mode, peer)
    for peer, does in DOES.items()
    for name, variant, mode in itertools.product(*does)
    if (name, variant) not in NOBODY
]
# one of each reason: case, variant, mode, peer
REASONS = {
    "the case is dense itself": ("stack", "gru", "train", "dense"),
    "PyTorch knows no resets": ("resets", "lstm", "train", "torch"),
    "cells know no projection": ("proj", "lstm", "train", "cell"),
    "resets are measured against cutting": ("resets", "gru", "train", "cell"),
    "one step is no loop": ("step", "lstm", "infer", "cell"),
    "measured in inference only": ("dense", "lstm", "train", "onnx"),
    "no projection, no resets, no packed input and no cells": ("packed", "lstm", "infer", "onnx"),
    "this loop knows no no_bias": ("no_bias", "gru", "train", "cell"),
    "it is the LSTM itself": ("dense", "lstm", "train", "lstm"),
    "there is nothing to cut": ("dense", "gru", "train", "cut"),
    "no such module to run between cuts": ("resets", "cifg_lstm", "train", "cut"),
    "TorchRL's Triton kernels run on GPUs": ("resets", "gru", "train", "torchrl"),
    "TorchRL has LSTMs and GRUs": ("resets", "cifg_lstm", "train", "torchrl"),
    "TorchRL's Triton backend knows no P2": ("proj", "lstm", "train", "torchrl"),
}


def contender(name: str, variant: str, mode: str, peer: str) -> work.Contender:
    case = dataclasses.replace(TINY[name], variant=variant, mode=mode, dtype="fp32")
    return contenders.contender(peer, work.make_work(case))


@pytest.mark.parametrize(("name", "variant", "mode", "peer"), WORK)
def test_contenders_do_the_same_work(name: str, variant: str, mode: str, peer: str) -> None:
    one = contender(name, variant, mode, peer)
    given, results = one.work, one.step()
    outputs = 1 + len(given.states + given.zeros) - (name == "step")
    if mode == "train" and peer not in ("cell", "lstm", "torch"):
        wanted = len(given.named.keys() - set(given.case.frozen)) + len(list(given.module.parameters()))
        assert len(results) == outputs + wanted
    assert not any(result.requires_grad for result in results)
    if peer not in contenders.OTHER_WORK and not (peer == "torch" and variant not in IN_PYTORCH):
        assert runner.disagreement(one, strict=False) is None


@pytest.mark.parametrize(("words", "row"), REASONS.items(), ids=REASONS)
def test_contenders_say_what_they_cannot_do(words: str, row: tuple[str, str, str, str]) -> None:
    with pytest.raises(NotImplementedError, match=words):
        contender(*row)


def test_contenders_do_nothing_else() -> None:
    for row in set(itertools.product(TINY, VARIANTS, MODES, DOES)) - set(WORK):
        with pytest.raises((NotImplementedError, CaseError)):
            contender(*row)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("peer", ["ours", "torch", "cell", "onnx"])
@pytest.mark.parametrize("more", ["", "zero_state"])
def test_streams_and_their_peers_go_step_by_step(variant: str, peer: str, more: str) -> None:
    case = parse(f"{variant} T4 B2 I3 H5 L2 stream {more} fp32 infer")
    if peer != "torch" or variant in IN_PYTORCH:
        one = contenders.contender(peer, work.make_work(case))
        assert runner.disagreement(one, strict=False) is None
    with pytest.raises(NotImplementedError, match="single steps are for inference"):
        work.make_work(dataclasses.replace(case, mode="train"))


@pytest.mark.parametrize("variant", ["lstm", "gru"])
@pytest.mark.parametrize("peer", derivatives.KINDS)
def test_work_of_derivatives(peer: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's module gets the same gradients; were they others, nothing would be timed. What is not its work is refused."""
    monkeypatch.setattr(runner, "interleaved", lambda mine, theirs, pairs: [(1.0, 2.0)] * pairs)
    case = parse(f"{variant} T3 B2 I3 H4 L2 fp64 train")
    row = runner.measure(case, peer, pairs=2, device="cpu")
    assert row["ratios"] == [2.0, 2.0]
    assert report.peer_table({"rows": [row]}).rows[0][:3] == [f"fastlstm.{variant.upper()}", str(case), "training"]
    for words in ("fp64 infer", "lengths:1-3 fp64 train", "resets:0.3 fp64 train"):
        row = runner.measure(parse(f"{variant} T3 B2 I3 H4 {words}"), peer, pairs=1, device="cpu")
        assert "it is measured in training, on dense batches" in row["reason"]


def test_derivatives_that_differ_are_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    case, right = parse("lstm T3 B2 I3 H4 fp32 train"), derivatives.KINDS["penalty"]

    def wrong(work: Work, which: int) -> Contender:
        gradients = right(work, which).step()
        return Contender(work, lambda: [gradients[0] * (1 + which * 1e-3), *gradients[1:]])

    monkeypatch.setitem(derivatives.KINDS, "penalty", wrong)
    row = runner.measure(case, "penalty", pairs=1, device="cpu")
    assert row["miss"]
    assert row["reason"].startswith("gradient 0 differs from PyTorch's by ")


def test_derivatives_that_are_zero_agree() -> None:
    """Those of the recurrent weights, where there is one step."""
    row = runner.measure(parse("lstm T1 B2 I3 H4 fp32 train"), "penalty", pairs=1, device="cpu")
    assert len(row["ratios"]) == 1


@pytest.mark.parametrize(("peer", "alone"), [("at-once", "ours"), ("torch-at-once", "torch")])
def test_two_threads_do_the_work_of_one(peer: str, alone: str) -> None:
    given = work.make_work(dataclasses.replace(TINY["stack"], variant="lstm", mode="infer", dtype="fp32"))
    both, one = (contenders.contender(name, given) for name in (peer, alone))
    torch.testing.assert_close(both.step(), one.step(), rtol=0, atol=0)


WORDS = {
    "reverse": "T4 B2 I3 H5 reverse",
    "return_cells, gain:2": "T4 B2 I3 H5 return_cells gain:2",
    "stride:2": "T4 B2 I3 H5 S6 k3 stride:2",
    "H4,5": "T4 B2 I3 H4,5 S6 k3",
}


@pytest.mark.parametrize("words", WORDS)
def test_what_a_case_says_is_measured_or_refused(words: str) -> None:
    case = parse(WORDS[words])
    case = dataclasses.replace(case, variant=next(iter(case.family)), dtype="fp32", mode="train")
    with pytest.raises(NotImplementedError, match=f"the benchmark knows no {words}"):
        work.make_work(case)
    assert "the benchmark knows no" in runner.measure(case, "ours", pairs=1, device="cpu")["reason"]


def test_half_precision_is_measured_against_ours() -> None:
    half = work.make_work(parse("gru T4 B2 I3 H5 bf16 train"))
    assert contenders.contender("fp32", half).step()[0].dtype == torch.float32
    with pytest.raises(NotImplementedError, match="in float32 itself"):
        contenders.contender("fp32", half.to(torch.float32))


def test_the_path_that_pytorch_took_is_seen() -> None:
    dense = {name: contender(name, "lstm", "train", "torch").path for name in TINY if name != "resets"}
    assert {dense["packed"], dense["lengths"], dense["proj"]} == {"op chain"}
    if torch.backends.mkldnn.is_available():
        assert dense["dense"] == "oneDNN"


def test_gflop_counts_valid_rows_only() -> None:
    case = TINY["packed"]
    assert case.lengths == (6, 5, 3, 2)
    assert case.rows == 16
    assert parse("lstm T4 B2 I3 H5").gflop("train") == pytest.approx(3 * 2e-9 * 8 * 4 * 5 * (3 + 5))
    assert parse("gru T4 B2 I3 H5").gflop("infer") == pytest.approx(2e-9 * 8 * 3 * 5 * (3 + 5))


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
    """PyTorch keeps about 8 numbers per step, sequence and hidden unit of an LSTM: 24 x 32 x 25 of them, of 4 bytes.

    The process that takes it is held to the path that this one is held to."""
    if backends.extension_status() == "built":
        backends.force_path("portable")
    assert 24 * 32 * 25 * 4 * 3 < memory.peak_memory(parse("lstm T24 B32 I8 H25 fp32 train"), "torch", threads=1) < 50e6


def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    picture = tmp_path / "speed.png"
    options = ["--case", "darts", "--variant", "gru", "--mode", "infer", "--pairs", "2", "--threads", "1"]
    result = CliRunner().invoke(app, ["bench", *options, "--json", str(tmp_path), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("*-1-threads.json")
    written = json.loads(file.read_text())
    (row,) = written["rows"]
    assert len(row["ratios"]) == 2
    assert (row["name"], row["case"]) == ("darts", "gru T24 B32 I8 H25 fp32 infer")
    assert {"torch", "commit", "threads", "cpu", "vectors"} <= written["machine"].keys()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "geometric mean of inference" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--case", "dart"],
            "--case is 'dart', expected a name that `fastlstm bench --list` or `fastlstm parity` shows (darts or radar?)",
        ),
        (["--case", "lstm T5"], "it lacks B (batch), I (input features), H (hidden features)"),
        (
            ["--case", "proj", "--variant", "gru"],
            "for gru, fp32, train, infer: proj: P is 256, and a gru has",
        ),
        (["--case", "lstm T5 B3 I4 H8", "--variant", "gru"], "lstm T5 B3 I4 H8: it says lstm"),
        (["--case", "lstm T5 B3 I4 H8 bf16", "--dtype", "fp32"], "--dtype and --case say bf16 and fp32"),
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
        ["fastlstm.LSTM", "nn.LSTM", "0.99 (packed: 0.50)", "–", "0.62", "2"],
        ["fastlstm.LSTM", "nn.LSTM, dense cases", "1.99", "–", "0.62", "1"],
        ["fastlstm.GRU", "loop over nn.GRUCell", "–", "7.00", "–", "1"],
    ]
    words = "Not timed: fastlstm.LSTM, lm, training, nn.LSTM: ours: the error of y is 1."
    assert words in report.notes(RESULT)


def test_the_rate_of_products_that_onednn_lacks():
    """It has none in bfloat16 on a CPU without AVX-512."""
    code = "import torch; from fastlstm.benchmarks.runner import gemm_seconds as s; print(s(4, 8, 16, torch.bfloat16, 'cpu'))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    )
    assert float(run.stdout) > 0, run.stderr
