"""The benchmark measures what it says: right contenders, in turn, and tables made from the numbers. Never how fast."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastlstm.benchmarks import cases, contenders, memory, report, runner
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
            "case": "darts", "mode": "train", "against": "torch", "path": "oneDNN", "ratios": [1.999, 1.5, 2.5],
            "ours_s": 0.001, "theirs_s": 0.002, "gflops": 10.4, "gemm_gflops": 20.0, "compile_s": None,
            "memory": {"ours": 1_250_000, "torch": 2_000_000},
        },
        {
            "case": "packed", "mode": "train", "against": "torch", "path": "op chain", "ratios": [0.5, 0.5, 0.5],
            "ours_s": 0.02, "theirs_s": 0.01, "gflops": 10.4, "gemm_gflops": 20.0, "compile_s": None,
        },
        {"case": "lm", "mode": "train", "against": "torch", "reason": "ours: the error of y is 1", "miss": True},
        {
            "case": "darts", "mode": "infer", "against": "cell", "path": "", "ratios": [7.0], "ours_s": 0.1,
            "theirs_s": 0.7, "gflops": 1.0, "gemm_gflops": 2.0, "compile_s": 12.3,
        },
    ],
}  # fmt: skip


UNABLE = {
    ("train", "onnx"): "measured in inference only",
    ("packed", "onnx"): "no projection and no packed input",
    ("proj", "onnx"): "no projection and no packed input",
    ("proj", "cell"): "nn.LSTMCell knows no projection",
    ("dense", "dense"): "the case is dense itself",
    ("stack", "dense"): "the case is dense itself",
    ("proj", "dense"): "the case is dense itself",
}
WORK = list(itertools.product(TINY, ["train", "infer"], ["ours", "torch", "cell", "onnx", "dense"]))


def why_unable(name: str, mode: str, peer: str) -> str | None:
    return UNABLE.get((mode, peer)) or UNABLE.get((name, peer))


@pytest.mark.parametrize(("name", "mode", "peer"), [row for row in WORK if not why_unable(*row)])
def test_contenders_do_the_same_work(name: str, mode: str, peer: str) -> None:
    work = contenders.make_work(TINY[name], mode, torch.float32)
    one = contenders.contender(peer, work)
    results = one.step()
    assert len(results) == (3 if mode == "infer" else 6 + len(list(work.module.parameters())))
    assert not any(result.requires_grad for result in results)
    assert runner.disagreement(one, strict=False) is None


@pytest.mark.parametrize(("name", "mode", "peer"), [row for row in WORK if why_unable(*row)])
def test_contenders_say_what_they_cannot_do(name: str, mode: str, peer: str) -> None:
    with pytest.raises(NotImplementedError, match=why_unable(name, mode, peer)):
        contenders.contender(peer, contenders.make_work(TINY[name], mode, torch.float32))


def test_the_path_that_pytorch_took_is_seen() -> None:
    paths = {
        name: contenders.contender("torch", contenders.make_work(TINY[name], "train", torch.float32)).path
        for name in TINY
    }
    assert {paths["packed"], paths["lengths"], paths["proj"]} == {"op chain"}
    if torch.backends.mkldnn.is_available():
        assert paths["dense"] == "oneDNN"


def test_gflop_counts_valid_rows_only() -> None:
    case = TINY["packed"]
    assert case.lengths.tolist() == [6, 5, 3, 2]
    assert case.rows == 16
    assert TINY["dense"].gflop("train") == pytest.approx(3 * 2e-9 * 8 * 4 * 5 * (3 + 5))


def test_pairs_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BLOCK_S", 0.0)
    order = []
    times = runner.interleaved(lambda: order.append("a"), lambda: order.append("b"), pairs=3)
    assert len(times) == 3
    assert all(a > 0 and b > 0 for a, b in times)
    assert re.fullmatch("a+b+" + "(a{3}b{3})" * 3, "".join(order))


def test_a_peer_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(work: contenders.Work) -> contenders.Contender:
        right = contenders.torch_lstm(work).step
        return contenders.Contender(work, lambda: [result * 1.01 for result in right()])

    monkeypatch.setitem(contenders.CONTENDERS, "cell", wrong)
    result = CliRunner().invoke(
        app, ["bench", "--case", "darts", "--against", "cell", "--mode", "infer", "--pairs", "1"]
    )
    assert result.exit_code == 1
    assert "Not timed: darts, inference, loop over nn.LSTMCell: cell: the error of y is 1.0e-02" in result.output


def test_memory_is_that_of_the_step() -> None:
    """PyTorch keeps about 8 numbers per step, sequence and hidden unit of an LSTM: 24 x 32 x 25 of them, of 4 bytes."""
    assert 24 * 32 * 25 * 4 * 3 < memory.peak_memory("darts", "torch", "fp32", threads=1) < 50e6


def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    picture = tmp_path / "speed.png"
    options = ["--case", "darts", "--mode", "infer", "--pairs", "2", "--threads", "1"]
    result = CliRunner().invoke(app, ["bench", *options, "--json", str(tmp_path), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("*-1-threads.json")
    written = json.loads(file.read_text())
    (row,) = written["rows"]
    assert len(row["ratios"]) == 2
    assert {"torch", "commit", "threads", "cpu", "vectors"} <= written["machine"].keys()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "geometric mean of inference" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--case", "nothing"], "--case is 'nothing', expected one of darts, deepar"),
        (["--variant", "gru"], "--variant is 'gru', expected one of lstm"),
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
    headers, (darts, packed, lm) = report.main_table(RESULT, "train")
    assert dict(zip(headers, darts, strict=True))["speed-up"] == "1.99 (1.74–2.24)"
    assert dict(zip(headers, darts, strict=True))["peak MB"] == "1.2 / 2.0"
    assert dict(zip(headers, packed, strict=True))["T"] == "64–128"
    assert "not timed" in lm
    assert report.peer_table(RESULT).rows == [
        ["darts", "inference", "loop over nn.LSTMCell", "100 / 700", "7.00 (7.00–7.00)", "12"]
    ]
    all_cases, one_dnn = report.mean_lines(RESULT, "train")
    assert all_cases.endswith("all cases (2): 0.99")
    assert one_dnn.endswith("(1): 1.99")
    assert "Not timed: lm, training, nn.LSTM: ours: the error of y is 1." in report.notes(RESULT)


def test_update_readme_writes_between_the_markers(tmp_path: Path) -> None:
    readme, file = tmp_path / "README.md", tmp_path / "result.json"
    file.write_text(json.dumps(RESULT))
    readme.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    picture = report.update_readme(file, readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{report.START}\n![")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert picture == tmp_path / "docs/images/speed-a-chip-2-threads.png"
    assert picture.is_file()


def test_update_readme_needs_the_markers(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(
        ValueError, match=r"README\.md has no <!-- bench:start --> ... <!-- bench:end -->, expected both"
    ):
        report.update_readme(tmp_path / "result.json", tmp_path / "README.md")


def test_the_readme_is_what_a_committed_result_generates() -> None:
    section = (ROOT / "README.md").read_text().partition(report.START)[2].partition(report.END)[0].strip()
    picture = re.match(r"!\[.*?\]\((.*?)\)", section)[1]
    assert (ROOT / picture).is_file()
    result = json.loads(
        (ROOT / "benchmarks/results" / Path(picture).name.removeprefix("speed-")).with_suffix(".json").read_text()
    )
    assert section == report.markdown(result, picture)
