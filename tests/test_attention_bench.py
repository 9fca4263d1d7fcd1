"""The benchmark's decoders with attention: contenders that do the same work, and their limits in tables. Never how fast."""

import dataclasses
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastlstm.benchmarks import attention_loops, cases, contenders, memory, readme, report, runner, work
from fastlstm.case import parse
from fastlstm.cli import app

TINY = {
    "fed": parse("T4 B3 I3 H5 S6 M4"),
    "general": parse("T4 B3 I3 H5 L2 S6 M4 general memory:2-6"),
    "dot": parse("T4 B3 I3 H5 S6 M5 dot memory:1-6"),
    "context": parse("T4 B3 I3 H5 S6 M4 feed:context"),
    "unfed": parse("T4 B3 I3 H5 S6 M5 dot feed:None memory:2-6"),
    "unfed general": parse("T4 B3 I3 H5 L2 S6 M4 general feed:None"),
    "unfed additive": parse("T4 B3 I3 H5 S6 M4 feed:None"),
    "step": parse("B3 I3 H5 L2 S6 M4 step memory:2-6"),
    "step unfed": parse("B3 I3 H5 S6 M4 step feed:None"),
}
TINY = {name: dataclasses.replace(case, variant="attention_lstm", dtype="fp32") for name, case in TINY.items()}
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
    return contenders.contender(peer, work.make_work(dataclasses.replace(TINY[name], mode=mode)))


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
    other = work.make_work(parse("lstm T4 B2 I3 H5 fp32 train"))
    with pytest.raises(NotImplementedError, match=r"JoeyNMT is a decoder|there is nothing to attend to"):
        contenders.contender(peer, other)


def test_joeynmt_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joeynmt", None)
    with pytest.raises(NotImplementedError, match="is not installed: JoeyNMT's decoder imports it"):
        attention_loops.load_joeynmt()


def test_no_other_scores_are_measured() -> None:
    given = work.make_work(parse("attention_lstm T4 B3 I3 H5 S6 M5 scaled_dot fp32 infer"))
    with pytest.raises(NotImplementedError, match="scaled_dot scores are not measured"):
        contenders.contender("cell", given)


def test_what_a_loop_does_not_know_is_refused() -> None:
    given = work.make_work(parse("attention_lstm T4 B3 I3 H5 S6 M4 A7 output:linear peephole fp32 infer"))
    with pytest.raises(NotImplementedError, match="this peer knows no A7, output:linear, peephole"):
        contenders.contender("cell", given)


def test_a_wrong_gradient_of_the_memory_is_seen() -> None:
    one = contender("fed", "train", "cell")
    results = one.step()
    results[4] = results[4] * 1.01
    reason = runner.disagreement(work.Contender(one.work, lambda: results), strict=False)
    assert reason.startswith("the error of dmemory is 1.0e-02")


def test_gflop_counts_products_with_weights() -> None:
    rows, gates = 4 * 3, 4 * 5
    fed = rows * gates * (3 + 5 + 5) + 6 * 3 * 4 * 5 + rows * 5 * 5 + rows * (4 + 5) * 5
    assert TINY["fed"].gflop("infer") == pytest.approx(2e-9 * fed)
    unfed = rows * gates * (3 + 5) + rows * (5 + 5) * 5
    assert TINY["unfed"].gflop("train") == pytest.approx(3 * 2e-9 * unfed)
    step = 3 * gates * (3 + 5 + 5 + 5 + 5) + 3 * 5 * 5 + 3 * (4 + 5) * 5  # the keys are there before it
    assert TINY["step"].gflop("infer") == pytest.approx(2e-9 * step)


def test_bytes_are_those_within_lengths() -> None:
    assert TINY["fed"].read(4) == 6 * 3 * (4 + 5) * 4
    assert TINY["general"].memory_lengths == (6, 4, 2)
    assert TINY["general"].read(2) == (6 + 4 + 2) * (4 + 5) * 2
    assert TINY["dot"].slots == 6 + 4 + 1  # of which nothing but the memory is read
    assert TINY["dot"].read(4) == 11 * 5 * 4


def test_a_small_case_is_of_the_same_kind() -> None:
    small = cases.CASES["bilingual"].small()
    assert (small.T, small.B, small.S, small.memory_lengths, small.M, small.layers) == (2, 2, 3, (3, 1), 1024, 2)


def test_memory_is_that_of_the_step() -> None:
    """Gates, states and outputs of every step, at least."""
    case = parse("attention_lstm T60 B8 I256 H256 S400 M256 fp32 train")
    assert 60 * 8 * 256 * 6 * 4 < memory.peak_memory(case, "cell", threads=1) < 1e9


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "peak_memory", lambda case, who, threads: len(who))
    file = tmp_path / "speed.json"
    options = [
        *("--case", "T4 B3 I3 H5 S6 M4"),
        *("--case", "decode-step-1"),
        *("--variant", "attention_lstm"),
        *("--pairs", "1"),
        *("--threads", "1"),
    ]
    result = CliRunner().invoke(app, ["bench", *options, "--json", str(file)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    rows = {(row.get("name"), row["mode"]): row for row in json.loads(file.read_text())["rows"]}
    fed = rows[None, "train"]
    assert fed["case"] == "attention_lstm T4 B3 I3 H5 S6 M4 fp32 train"
    assert fed["memory"] == {"ours": 4, "cell": 4}
    assert fed["read_mb"] == pytest.approx(1e-6 * TINY["fed"].read(4))
    assert fed["read_gbs"] == pytest.approx(2 * 4 * TINY["fed"].read(4) / fed["ours_s"] * 1e-9)
    assert rows["decode-step-1", "train"]["reason"].startswith("single steps are for inference")
    assert rows["decode-step-1", "infer"]["sum_gbs"] > 0
    assert "AttentionLSTM, inference" in result.output


def test_memories_are_an_attention_lstms() -> None:
    result = CliRunner().invoke(app, ["bench", "--case", "decode", "--variant", "gru"], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert "decode: gru has no such input, expected one of attention_lstm" in result.output


def test_report() -> None:
    headers, (decode,) = report.main_table(RESULT, "attention_lstm", "train")
    assert dict(zip(headers, decode, strict=True)) == {
        "case": "decode", "L x H": "1 x 256, M 256, additive", "I": "256", "T": "30 over 50", "B": "32",
        "PyTorch's is": "–", "ms": "100 / 300", "speed-up": "3.00 (3.00–3.00)",
        "GFLOP/s": "75 of 100; 3.3 MB a step, 2.0 of 20 GB/s",
        "peak MB": "30.0 / 60.0", "stands for": "translation decoder",
    }  # fmt: skip
    assert report.summary(RESULT).rows == [
        ["fastlstm.AttentionLSTM", "loop over nn.LSTMCell and an attention", "3.00", "–", "0.50", "1"],
        ["fastlstm.AttentionLSTM", "nn.LSTM + scaled_dot_product_attention", "–", "1.25", "–", "1"],
        ["fastlstm.AttentionLSTM", "fastlstm.LSTM", "0.50", "–", "–", "1"],
        ["fastlstm.AttentionLSTM.step", "step of the loop", "–", "1.50", "–", "1"],
    ]
    costs = {row[0]: row[3:] for row in readme.variants_table(RESULT).rows}
    assert costs["`AttentionLSTM`"] == ["2.00", "–"]
    page = readme.details([readme.Machine([RESULT], [])])
    assert "## AttentionLSTM: training against a loop over nn.LSTMCell and an attention\n" in page
    assert "MB a step and GB/s: memory and keys" in page
