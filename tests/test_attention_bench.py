"""The benchmark's decoders with attention: contenders that do the same work, and their limits in tables. Never how fast."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastlstm.benchmarks import attention_loops, cases, contenders, memory, report, runner, work
from fastlstm.cli import app

SIZES = {"I": 3, "H": 5, "S": 6, "T": 4, "B": 3, "stands_for": "a test"}
TINY = {
    "fed": cases.AttentionCase(M=4, **SIZES),
    "general": cases.AttentionCase(M=4, layers=2, shortest_memory=2, attention="general", **SIZES),
    "dot": cases.AttentionCase(M=5, attention="dot", shortest_memory=1, **SIZES),
    "context": cases.AttentionCase(M=4, feed="context", **SIZES),
    "unfed": cases.AttentionCase(M=5, attention="dot", feed=None, shortest_memory=2, **SIZES),
    "unfed general": cases.AttentionCase(M=4, attention="general", feed=None, layers=2, **SIZES),
    "unfed additive": cases.AttentionCase(M=4, feed=None, **SIZES),
    "step": cases.AttentionCase(M=4, layout="step", layers=2, shortest_memory=2, **SIZES | {"T": 1}),
    "step unfed": cases.AttentionCase(M=4, layout="step", feed=None, **SIZES | {"T": 1}),
}
WHOLE = [name for name in TINY if not name.startswith("step")]
MODES = ("train", "infer")
# per peer: the cases that it does
DOES = {
    "ours": TINY,
    "reference": TINY,
    "cell": TINY,
    "joeynmt": ["fed", "general", "unfed general", "unfed additive"],
    "sdpa": ["unfed", "unfed general"],
    "lstm": TINY,
}
WORK = [
    (name, mode, peer)
    for peer, does in DOES.items()
    for name, mode in itertools.product(does, MODES)
    if name in WHOLE or mode == "infer"
]
REASONS = {
    "PyTorch has no decoder with attention": ("fed", "train", "torch"),
    "ONNX has no decoder with attention": ("fed", "infer", "onnx"),
    "JoeyNMT has additive and general scores": ("dot", "train", "joeynmt"),
    "feeds the attentional vector or nothing": ("context", "train", "joeynmt"),
    "JoeyNMT projects the keys at every step": ("step", "infer", "joeynmt"),
    "where nothing is fed and scores are products": ("fed", "infer", "sdpa"),
    "single steps are for inference": ("step", "train", "ours"),
    "Keras is measured with ConvLSTMs only": ("fed", "train", "keras"),
    "the case is dense itself": ("fed", "train", "dense"),
    "there is nothing to cut": ("fed", "train", "cut"),
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
            "case": "decode", "variant": "attention_lstm", "mode": "train", "against": "cell", "path": "", "ratios": [3.0],
            "ours_s": 0.1, "theirs_s": 0.3, "gflops": 75.0, "gemm_gflops": 100.0, "compile_s": None, "read_mb": 3.28,
            "read_gbs": 1.96, "sum_gbs": 20.0, "memory": {"ours": 30_000_000, "cell": 60_000_000},
        },
        {
            "case": "decode-step", "variant": "attention_lstm", "mode": "infer", "against": "cell", "path": "",
            "ratios": [1.5], "ours_s": 0.001, "theirs_s": 0.0015, "gflops": 75.0, "gemm_gflops": 100.0, "compile_s": None,
            "read_mb": 3.28, "read_gbs": 3.3, "sum_gbs": 20.0,
        },
        {
            "case": "decode-unfed", "variant": "attention_lstm", "mode": "infer", "against": "sdpa", "path": "",
            "ratios": [1.25], "ours_s": 0.1, "theirs_s": 0.125, "gflops": 75.0, "gemm_gflops": 100.0, "compile_s": None,
        },
        {
            "case": "decode", "variant": "attention_lstm", "mode": "train", "against": "lstm", "path": "", "ratios": [0.5],
            "ours_s": 0.1, "theirs_s": 0.05, "gflops": 75.0, "gemm_gflops": 100.0, "compile_s": None,
        },
    ],
}  # fmt: skip


def contender(name: str, mode: str, peer: str) -> work.Contender:
    return contenders.contender(peer, work.make_work(TINY[name], cases.KINDS["attention_lstm"], mode, torch.float32))


@pytest.mark.parametrize(("name", "mode", "peer"), WORK)
def test_contenders_do_the_same_work(name: str, mode: str, peer: str) -> None:
    if peer == "joeynmt" and importlib.util.find_spec("joeynmt") is None:
        pytest.skip("JoeyNMT is not installed: .ci/run does it, without its dependencies")
    one = contender(name, mode, peer)
    results, given = one.step(), one.work
    assert not any(result.requires_grad for result in results)
    if peer == "lstm":
        assert given.variant.name == "lstm"
        assert results[0].shape[-1] == 5
        return
    outputs = 1 + len(given.states)
    weights = [weight.shape for weight in given.module.parameters()]
    assert len(results) == outputs + (mode == "train") * (len(given.inputs) + len(weights))
    if mode == "train":
        assert [result.shape for result in results[outputs:]] == [t.shape for t in given.inputs] + weights
    assert runner.disagreement(one, strict=False) is None  # a tiny case is luck: test_parity.py is strict


@pytest.mark.parametrize(("words", "row"), REASONS.items(), ids=REASONS)
def test_contenders_say_what_they_cannot_do(words: str, row: tuple[str, str, str]) -> None:
    with pytest.raises(NotImplementedError, match=words):
        contender(*row)


@pytest.mark.parametrize("peer", ["joeynmt", "sdpa"])
def test_peers_of_decoders_only(peer: str) -> None:
    other = work.make_work(
        cases.Case(I=3, H=5, T=4, B=2, stands_for="a test"), cases.KINDS["lstm"], "train", torch.float32
    )
    with pytest.raises(NotImplementedError, match=r"JoeyNMT is a decoder|there is nothing to attend to"):
        contenders.contender(peer, other)


def test_joeynmt_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joeynmt", None)
    with pytest.raises(NotImplementedError, match="is not installed: JoeyNMT's decoder imports it"):
        attention_loops.load_joeynmt()


def test_no_other_scores_are_measured() -> None:
    case = cases.AttentionCase(M=5, attention="scaled_dot", **SIZES)
    with pytest.raises(NotImplementedError, match="scaled_dot scores are not measured"):
        contenders.contender("cell", work.make_work(case, cases.KINDS["attention_lstm"], "infer", torch.float32))


def test_a_wrong_gradient_of_the_memory_is_seen() -> None:
    one = contender("fed", "train", "cell")
    results = one.step()
    results[4] = results[4] * 1.01
    reason = runner.disagreement(work.Contender(one.work, lambda: results), strict=False)
    assert reason.startswith("the error of dmemory is 1.0e-02")


def test_gflop_counts_products_with_weights() -> None:
    rows, gates = 4 * 3, 4 * 5
    fed = rows * gates * (3 + 5 + 5) + 6 * 3 * 4 * 5 + rows * 5 * 5 + rows * (4 + 5) * 5
    assert TINY["fed"].gflop("attention_lstm", "infer") == pytest.approx(2e-9 * fed)
    unfed = rows * gates * (3 + 5) + rows * (5 + 5) * 5
    assert TINY["unfed"].gflop("attention_lstm", "train") == pytest.approx(3 * 2e-9 * unfed)
    step = 3 * gates * (3 + 5 + 5 + 5 + 5) + 3 * 5 * 5 + 3 * (4 + 5) * 5  # the keys are there before it
    assert TINY["step"].gflop("attention_lstm", "infer") == pytest.approx(2e-9 * step)


def test_bytes_are_those_within_lengths() -> None:
    assert TINY["fed"].read(4) == 6 * 3 * (4 + 5) * 4
    assert TINY["general"].memory_lengths.tolist() == [6, 4, 2]
    assert TINY["general"].read(2) == (6 + 4 + 2) * (4 + 5) * 2
    assert TINY["dot"].slots == 6 + 4 + 1  # of which nothing but the memory is read
    assert TINY["dot"].read(4) == 11 * 5 * 4


def test_a_small_case_is_of_the_same_kind() -> None:
    small = cases.CASES["bilingual"].small()
    assert (small.T, small.B, small.S, small.shortest_memory, small.M, small.layers) == (2, 2, 3, 1, 1024, 2)


def test_memory_is_that_of_the_step() -> None:
    """Gates, states and outputs of every step, at least."""
    assert 60 * 8 * 256 * 6 * 4 < memory.peak_memory("long-memory", "attention_lstm", "cell", "fp32", threads=1) < 1e9


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "peak_memory", lambda case, variant, who, *rest: len(who))
    monkeypatch.setitem(cases.CASES, "pronounce", TINY["fed"])
    file = tmp_path / "speed.json"
    options = [
        "--case",
        "pronounce",
        "--case",
        "decode-step-1",
        "--variant",
        "attention_lstm",
        "--pairs",
        "1",
        "--threads",
        "1",
    ]
    result = CliRunner().invoke(app, ["bench", *options, "--json", str(file)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    rows = {(row["case"], row["mode"]): row for row in json.loads(file.read_text())["rows"]}
    fed = rows["pronounce", "train"]
    assert fed["memory"] == {"ours": 4, "cell": 4}
    assert fed["read_mb"] == pytest.approx(1e-6 * TINY["fed"].read(4))
    assert fed["read_gbs"] == pytest.approx(2 * 4 * TINY["fed"].read(4) / fed["ours_s"] * 1e-9)
    assert rows["decode-step-1", "train"]["reason"].startswith("single steps are for inference")
    assert rows["decode-step-1", "infer"]["sum_gbs"] > 0
    assert "AttentionLSTM, inference" in result.output


def test_memories_are_an_attention_lstms() -> None:
    result = CliRunner().invoke(app, ["bench", "--case", "decode", "--variant", "gru"], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert "--case is decode, expected one that gru can run" in result.output
    assert "memories an AttentionLSTM's" in result.output


def test_report() -> None:
    headers, (decode,) = report.main_table(RESULT, "attention_lstm", "train")
    assert dict(zip(headers, decode, strict=True)) == {
        "case": "decode", "L x H": "1 x 256, M 256, additive", "I": "256", "T": "30 over 50", "B": "32",
        "PyTorch's is": "–", "ms": "100 / 300", "speed-up": "3.00 (3.00–3.00)",
        "GFLOP/s": "75 of 100; 3.3 MB a step, 2.0 of 20 GB/s", "peak MB": "30.0 / 60.0", "stands for": "translation decoder",
    }  # fmt: skip
    assert report.summary(RESULT).rows == [
        ["fastlstm.AttentionLSTM", "loop over nn.LSTMCell and an attention", "3.00", "–", "1"],
        ["fastlstm.AttentionLSTM", "nn.LSTM + scaled_dot_product_attention", "–", "1.25", "1"],
        ["fastlstm.AttentionLSTM", "fastlstm.LSTM", "0.50", "–", "1"],
        ["fastlstm.AttentionLSTM.step", "step of the loop", "–", "1.50", "1"],
    ]
    costs = {row[0]: row[3:] for row in report.variants_table([RESULT]).rows}
    assert costs["`fastlstm.AttentionLSTM`"] == ["2.00", "–"]
    page = report.details(RESULT, "x.png")
    assert "## AttentionLSTM: training against a loop over nn.LSTMCell and an attention\n" in page
    assert "MB a step and GB/s: memory and keys" in page
