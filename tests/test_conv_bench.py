"""The benchmark's ConvLSTMs: contenders that do the same work, and rows of their own in tables. Never how fast."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastlstm.backends import CONVOLUTIONAL
from fastlstm.benchmarks import cases, contenders, conv_loops, memory, names, readme, report, runner, work
from fastlstm.case import parse
from fastlstm.cli import app

TINY = {
    "1d": parse("T4 B2 I3 H5 S7 k5"),
    "2d": parse("T3 B2 I3 H5 L2 S4x6 k3"),
    "3d": parse("T2 B1 I3 H5 S3x4x2 k3"),
}
MODES = ("train", "infer")
# per peer: the cases and variants that it does
DOES = {
    "ours": (TINY, CONVOLUTIONAL),
    "reference": (TINY, CONVOLUTIONAL),
    "cell": (TINY, CONVOLUTIONAL),
    "channels-last": (["2d", "3d"], CONVOLUTIONAL),
    "keras": (TINY, ["conv_lstm"]),
    "checkpoint": (TINY, CONVOLUTIONAL),
}
WORK = [(*row, mode, peer) for peer, does in DOES.items() for row in itertools.product(*does) for mode in MODES]
REASONS = {
    "PyTorch has no ConvLSTM": ("conv_lstm", "train", "torch"),
    "ONNX has no ConvLSTM": ("conv_lstm", "infer", "onnx"),
    "it is the LSTM itself": ("conv_lstm", "train", "lstm"),
    "no peepholes and no coupled gates": ("cifg_conv_lstm", "infer", "keras"),
    "the case is dense itself": ("conv_lstm", "train", "dense"),
    "there is nothing to cut": ("conv_lstm", "train", "cut"),
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
            "case": "radar", "variant": "conv_lstm", "mode": "train", "against": "cell", "path": "", "ratios": [2.0],
            "ours_s": 0.1, "theirs_s": 0.2, "gflops": 75.0, "gemm_gflops": 100.0, "limit_gflops": 250.0, "compile_s": None,
            "memory": {"ours": 30_000_000, "checkpoint": 20_000_000, "cell": 60_000_000},
        },
        {
            "case": "volume", "variant": "conv_lstm", "mode": "infer", "against": "keras", "path": "", "ratios": [3.0],
            "ours_s": 0.1, "theirs_s": 0.3, "gflops": 75.0, "gemm_gflops": 100.0, "compile_s": None,
        },
        {
            "case": "radar", "variant": "cifg_conv_lstm", "mode": "infer", "against": "lstm", "path": "", "ratios": [1.25],
            "ours_s": 0.1, "theirs_s": 0.125, "gflops": 75.0, "gemm_gflops": 100.0, "compile_s": None,
        },
    ],
}  # fmt: skip


def contender(name: str, variant: str, mode: str, peer: str) -> work.Contender:
    case = dataclasses.replace(TINY[name], variant=variant, mode=mode, dtype="fp32")
    return contenders.contender(peer, work.make_work(case))


@pytest.mark.parametrize(("name", "variant", "mode", "peer"), WORK)
def test_contenders_do_the_same_work(name: str, variant: str, mode: str, peer: str) -> None:
    one = contender(name, variant, mode, peer)
    results = one.step()
    weights = [weight.shape for weight in one.work.module.parameters()]
    if mode == "train":
        assert [result.shape for result in results[6:]] == weights
    assert len(results) == 3 + (mode == "train") * (3 + len(weights))
    assert not any(result.requires_grad for result in results)
    assert runner.disagreement(one, strict=peer == "ours") is None


@pytest.mark.parametrize(("words", "row"), REASONS.items(), ids=REASONS)
def test_contenders_say_what_they_cannot_do(words: str, row: tuple[str, str, str]) -> None:
    with pytest.raises(NotImplementedError, match=words):
        contender("2d", *row)


def test_channels_last_is_of_images() -> None:
    with pytest.raises(NotImplementedError, match="channels_last for 2d and 3d only"):
        contender("1d", "conv_lstm", "train", "channels-last")
    loop = conv_loops.ConvLoop(contender("3d", "conv_lstm", "train", "ours").work, channels_last=True)
    assert loop.convs[0].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_keras_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(NotImplementedError, match="keras is not installed"):
        contender("2d", "conv_lstm", "infer", "keras")


def test_ours_of_other_gates_is_beside_the_plain_one() -> None:
    assert contender("2d", "cifg_conv_lstm", "infer", "lstm").work.variant.name == "conv_lstm"


def test_gflop_counts_taps_and_pixels() -> None:
    forward = 2e-9 * 3 * 2 * 24 * 9 * 4 * 5 * (3 + 5 + 5 + 5)
    plain, coupled = (dataclasses.replace(TINY["2d"], variant=name) for name in ("conv_lstm", "cifg_conv_lstm"))
    assert plain.gflop("infer") == pytest.approx(forward)
    assert plain.gflop("train") == pytest.approx(3 * forward)
    assert coupled.gflop("infer") == pytest.approx(0.75 * forward)
    assert (3, 48, 45, 20) in plain.gemms()  # a step's recurrent product: pixels x taps and channels x gates


def test_a_small_case_is_of_the_same_kind() -> None:
    small = cases.CASES["radar"].small()
    assert (small.T, small.B, small.S, small.H) == (2, 2, (4, 4), 64)
    assert cases.CASES["frame"].small().T == 1


def test_memory_is_that_of_the_step() -> None:
    """Four gates of 32 channels for each pixel, at least, of 4 bytes."""
    assert (
        96 * 64 * 4 * 32 * 4
        < memory.peak_memory(parse("conv_lstm T1 B1 I5 H32 S96x64 k3 fp32 train"), "checkpoint", threads=1)
        < 100e6
    )


def test_the_command_measures_time_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "peak_memory", lambda case, who, threads: len(who))
    file = tmp_path / "speed.json"
    options = ["--case", "frame", "--case", "darts", "--variant", "conv_lstm", "--mode", "train", "--pairs", "1"]
    result = CliRunner().invoke(app, ["bench", *options, "--threads", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["name"], row["against"]) == ("frame", "cell")
    assert row["memory"] == {"ours": 4, "checkpoint": 10, "cell": 4}
    assert "ConvLSTM2d, training" in result.output


def test_images_are_a_conv_lstms() -> None:
    command = ["bench", "--case", "radar", "--variant", "gru"]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert (
        "--case has nothing for gru, fp32, train, infer: radar: gru has no such input, expected one of conv_lstm"
        in result.output
    )


def test_report() -> None:
    headers, (radar,) = report.main_table(RESULT, "conv_lstm", "train")
    assert dict(zip(headers, radar, strict=True)) == {
        "case": "radar", "L x H": "2 x 64, 3x3", "I": "16", "T": "10", "B": "4 (32x32)", "PyTorch's is": "–",
        "ms": "100 / 200", "speed-up": "2.00 (2.00–2.00)", "GFLOP/s": "75 of 100", "of the limit": "30%",
        "peak MB": "30.0 / 20.0 / 60.0",
        "stands for": "nowcasting",
    }  # fmt: skip
    assert report.summary(RESULT).rows == [
        ["fastlstm.ConvLSTM2d", "loop over one convolution", "2.00", "–", "0.50", "1"],
        ["fastlstm.ConvLSTM3d", "Keras on torch", "–", "3.00", "–", "1"],
        ["fastlstm.ConvLSTM2d(coupled=True)", "fastlstm.ConvLSTM2d", "–", "1.25", "–", "1"],
    ]
    assert [row[:2] for row in report.peer_table(RESULT).rows] == [
        ["fastlstm.ConvLSTM3d", "volume"],
        ["fastlstm.ConvLSTM2d(coupled=True)", "radar"],
    ]
    costs = {row[0]: row[3:] for row in readme.variants_table(RESULT).rows}
    assert costs["`ConvLSTM2d`"] == ["1", "1"]
    assert costs["`ConvLSTM2d(coupled=True)`"] == ["–", "0.80"]
    assert report.mean_lines(RESULT, "conv_lstm", "train") == ["geometric mean of training, all cases (1): 2.00"]
    page = readme.details([readme.Machine([RESULT], [])])
    assert "## ConvLSTM2d: training against a loop over one convolution\n" in page
    assert "Of three numbers, the second is that of checkpoint=True." in page


def test_every_variant_has_a_name_and_a_purpose() -> None:
    assert list(names.MODULES) == list(names.PURPOSES) == list(cases.KINDS)
