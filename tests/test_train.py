"""`fastlstm train`: it learns, resumes bit by bit however it died, compares fairly, and refuses in one line."""

import errno
import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fresh import Server, server
from typer.testing import CliRunner, Result

from fastlstm.backends import IN_PYTORCH, VARIANTS
from fastlstm.cli import app
from fastlstm.training.checkpoint import RECORD, WEIGHTS, load_checkpoint, newest_checkpoint, save_checkpoint
from fastlstm.training.errors import TrainingFailed
from fastlstm.training.model import PYTORCHS
from fastlstm.training.text import heldout_batches, load_corpus, training_batch

TINY = ["--hidden", "8", "--embedding", "4", "--batch", "3", "--length", "5", "--threads", "1", "--sample", "20"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat, über 3 € [b]and[/b] ate.\n" * 20, encoding="utf-8")
    return path


def train(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", *TINY, "--out", str(folder / "out"), *arguments])


def record(folder: Path) -> dict:
    newest = newest_checkpoint(folder)
    assert newest is not None
    return json.loads((newest / RECORD).read_text())


def weights(folder: Path) -> bytes:
    newest = newest_checkpoint(folder)
    assert newest is not None
    return (newest / WEIGHTS).read_bytes()


# --- learning


@pytest.mark.parametrize(
    ("variant", "dtype", "layers"),
    [
        *itertools.product(["lstm"], ["fp32", "float64", "bf16"], [1, 2]),
        *itertools.product(tuple(VARIANTS)[1:], ["float32"], [2]),
    ],
)
def test_learns(text: Path, tmp_path: Path, variant: str, dtype: str, layers: int) -> None:
    ck = tmp_path / "ck"
    options = ["--variant", variant, "--dtype", dtype, "--layers", str(layers), "--steps", "100", "--lr", "0.03"]
    result = train(tmp_path, "--text", str(text), *options, "--checkpoint", str(ck))
    assert result.exit_code == 0, result.output
    curves = record(ck)["curves"]["fastlstm"]
    assert len(curves["losses"]) == 100
    assert sum(curves["losses"][-5:]) / 5 < 0.75 * curves["losses"][0]
    assert curves["heldout"][-1][1] < 0.75 * curves["losses"][0]


def test_carries_state_between_steps(text: Path, tmp_path: Path) -> None:
    for steps in ("1", "2"):
        train(tmp_path, "--text", str(text), "--steps", steps, "--checkpoint", str(tmp_path / steps))
    one, two = (safetensors.torch.load(weights(tmp_path / steps)) for steps in ("1", "2"))
    assert one["fastlstm.state.0"].shape == one["fastlstm.state.1"].shape == (1, 3, 8)
    assert not torch.equal(one["fastlstm.state.1"], two["fastlstm.state.1"])


def test_batches_follow_seed_and_step_alone(text: Path) -> None:
    data = load_corpus(text, 3, 5).train
    first = [training_batch(data, 7, step, 3, 5) for step in range(200)]
    for step in (199, 3, 70):
        x, y, fresh = training_batch(data, 7, step, 3, 5)
        assert torch.equal(x, first[step][0])
        assert torch.equal(y, first[step][1])
        assert fresh == first[step][2]
    for (x, y, _), (x_next, _, fresh) in itertools.pairwise(first):
        assert torch.equal(x[1:], y[:-1])
        assert fresh or torch.equal(x_next[0], y[-1])
    assert [step for step, (_, _, fresh) in enumerate(first) if fresh] == [0, 62, 124, 186]
    assert not torch.equal(first[0][0], training_batch(data, 8, 0, 3, 5)[0])


@pytest.mark.parametrize(("M", "B", "T"), [(2, 3, 5), (6, 3, 5), (17, 3, 5), (65, 3, 5), (65, 1, 100)])
def test_heldout_batches_read_on(M: int, B: int, T: int) -> None:
    batches = heldout_batches(torch.arange(M, dtype=torch.int32), B, T)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(y, x + 1)
    assert torch.equal(x.T.flatten(), torch.arange(x.numel()))
    assert M - 1 - x.numel() < B


def test_same_seed_same_sample(text: Path, tmp_path: Path) -> None:
    options = ["--text", str(text), "--steps", "5", "--seed"]
    one, again, other = (train(tmp_path, *options, seed).output.split("losses.png")[1] for seed in ("1", "1", "2"))
    assert one == again != other
    assert "20 generated characters" in one


# --- comparison


@pytest.mark.parametrize(("variant", "name"), [("lstm", "LSTM"), ("gru", "GRU")])
def test_compare(text: Path, tmp_path: Path, variant: str, name: str) -> None:
    ck = tmp_path / "ck"
    options = ["--variant", variant, "--steps", "50", "--compare", "torch"]
    result = train(tmp_path, "--text", str(text), *options, "--checkpoint", str(ck))
    assert result.exit_code == 0, result.output
    for expected in (
        f"torch.nn.{name}",
        f"fastlstm.{name}",
        "characters/s",
        "speed-up",
        "Largest difference",
        "4 interleaved pairs",
    ):
        assert expected in result.output
    assert (tmp_path / "out" / "losses.png").read_bytes().startswith(b"\x89PNG")
    theirs, ours = record(ck)["curves"]["torch"], record(ck)["curves"]["fastlstm"]
    torch.testing.assert_close(torch.tensor(ours["losses"]), torch.tensor(theirs["losses"]), rtol=0, atol=1e-3)
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], abs=1e-6)
    assert [step for step, _ in ours["heldout"]] == [*range(3, 50, 3), 50]


def test_compares_what_pytorch_has() -> None:
    assert tuple(PYTORCHS) == IN_PYTORCH


def test_without_matplotlib(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fastlstm.training.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = train(tmp_path, "--text", str(text), "--steps", "2")
    assert result.exit_code == 0
    assert "matplotlib is missing" in result.output


# --- checkpoints


@pytest.fixture(scope="module")
def forks(tmp_path_factory) -> Iterator[Server]:
    with server(
        "import torch._dynamo, numba, fastlstm.cli, fastlstm.training.plot", tmp_path_factory.mktemp("said")
    ) as started:
        yield started


COMPARED = ["--compare", "torch"]


@pytest.mark.parametrize(
    ("number", "compare"),
    [(signal.SIGKILL, COMPARED), (signal.SIGINT, []), (signal.SIGTERM, COMPARED)],
    ids=["SIGKILL-compare", "SIGINT-alone", "SIGTERM-compare"],
)
def test_killed_and_resumed_ends_with_the_same_bits(
    text: Path, tmp_path: Path, forks: Server, number: signal.Signals, compare: list[str]
) -> None:
    options = ["--text", str(text), *compare, "--layers", "2", "--steps", "150", "--save-every", "7"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(tmp_path, *options, "--checkpoint", str(whole)).exit_code == 0

    command = ["train", *TINY, "--out", str(tmp_path / "out"), *options, "--checkpoint", str(killed)]
    process = forks.start("from fastlstm.cli import main; main()", *command)
    while process.poll() is None and not any(killed.glob("step-*[1-9]")):
        time.sleep(0.005)
    os.kill(process.pid, number)
    output, code = process.end(60)
    assert code == (-number if number == signal.SIGKILL else 128 + number), output
    assert 0 < record(killed)["step"] < 150
    if number != signal.SIGKILL:
        assert f"go on with: fastlstm train --checkpoint {killed} --resume" in output

    # Nothing but --checkpoint and --resume: the run's options are in the checkpoint.
    resumed = CliRunner().invoke(app, ["train", "--checkpoint", str(killed), "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert weights(killed) == weights(whole)
    one, other = record(killed), record(whole)
    for curves in (*one["curves"].values(), *other["curves"].values()):
        del curves["seconds"]
    assert one == other


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_resumes_with_the_same_bits(text: Path, tmp_path: Path, variant: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ["--text", str(text), "--variant", variant, "--layers", "2", "--steps", "6", "--save-every", "3"]
    assert train(tmp_path, *options, "--checkpoint", str(whole)).exit_code == 0
    shutil.copytree(whole, cut)
    shutil.rmtree(newest_checkpoint(cut))
    assert record(cut)["step"] == 3
    assert train(tmp_path, "--checkpoint", str(cut), "--resume").exit_code == 0
    assert weights(cut) == weights(whole)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [*((os, "fsync", call) for call in (1, 2, 3, 4)), (Path, "mkdir", 1), (Path, "rename", 1), (Path, "rename", 2)],
)
def test_a_save_that_breaks_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.full((3,), step)}, {})
    calls, original = iter(range(1, 9)), getattr(owner, name)

    def breaks(*arguments: object) -> object:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, breaks)
        with pytest.raises(TrainingFailed, match=r"cannot write the checkpoint .*step-0+3: No space left on device"):
            save_checkpoint(tmp_path, 3, {"a": torch.full((3,), 3)}, {})
    tensors, found = load_checkpoint(newest_checkpoint(tmp_path))
    assert found["step"] in (2, 3)
    assert tensors["a"].tolist() == [found["step"]] * 3

    for step in (4, 5):
        save_checkpoint(tmp_path, step, {"a": torch.full((3,), step)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000005"]


# --- refusals: one line on stderr, exit code 2


def refusal(result: Result) -> str:
    """The one line on stderr."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "0"], "--hidden is 0, expected at least 1"),
        (["--steps", "-3"], "--steps is -3, expected at least 1"),
        (["--lr", "nan"], "--lr is nan, expected a finite number above 0"),
        (["--lr", "0"], "--lr is 0.0, expected a finite number above 0"),
        (["--clip", "-1"], "--clip is -1.0, expected a finite number, at least 0 (0: no clipping)"),
        (["--seed", "-1"], "--seed is -1, expected 0 to 2^63 - 1"),
        (
            ["--variant", "lstmm"],
            "--variant is 'lstmm', expected one of lstm, gru, peephole_lstm, cifg_lstm, cifg_peephole_lstm",
        ),
        (["--dtype", "int8"], "--dtype is 'int8', expected one of fp32, bf16, fp64"),
        (["--compare", "jax"], "--compare is 'jax', expected one of torch"),
        (
            ["--compare", "torch", "--variant", "cifg_lstm"],
            "--compare is 'torch', but --variant is 'cifg_lstm': PyTorch has lstm and gru only",
        ),
        (["--device", "tpu"], "--device is 'tpu', expected cpu, cuda or cuda:N"),
        (["--device", "meta"], "--device is 'meta', expected cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "--device is 'cuda:99', but PyTorch sees"),
        (["--threads", "0"], "--threads is 0, expected at least 1"),
        (["--threads", "1025"], "--threads is 1025, expected at most 1024"),
        (["--save-every", "0"], "--save-every is 0, expected at least 1"),
        (["--sample", "-1"], "--sample is -1, expected at least 0"),
        (["--hidden", "1000000000"], "a model of this size cannot be made:"),
        (["--batch", "100000"], "pydoc_data.topics has"),
        (["--resume"], "--resume needs --checkpoint DIR"),
        (["--text", "{folder}/missing"], "cannot read --text {folder}/missing: No such file or directory"),
        (["--text", "{folder}"], "cannot read --text {folder}: Is a directory"),
        (["--text", "{folder}/empty"], "empty has 0 characters, expected at least 40:"),
        (["--text", "{folder}/short"], "short has 11 characters, expected at least 40:"),
        (["--text", "{folder}/latin1"], "--text {folder}/latin1 is not UTF-8: byte 0xfc at position 1"),
        (["--out", "{folder}/short/x"], "cannot write to {folder}/short/x: Not a directory"),
        (["--out", "{folder}/short"], "cannot write to {folder}/short: File exists"),
        (["--checkpoint", "{folder}/short/x"], "cannot write to {folder}/short/x: Not a directory"),
        (["--checkpoint", "{folder}/none", "--resume"], "{folder}/none holds no checkpoint to resume"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("eleven char")
    (tmp_path / "latin1").write_bytes("für".encode("latin1"))
    result = train(tmp_path, *(argument.format(folder=tmp_path) for argument in arguments))
    assert message.format(folder=tmp_path) in refusal(result)


@pytest.mark.parametrize("arguments", [["--hidden", "many"], ["--no-such-option"], ["surplus"]])
def test_what_the_command_line_cannot_parse(tmp_path: Path, arguments: list[str]) -> None:
    result = train(tmp_path, *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_loss_that_explodes(text: Path, tmp_path: Path) -> None:
    result = train(tmp_path, "--text", str(text), "--steps", "20", "--lr", "1e38", "--clip", "0")
    assert result.exit_code == 1
    assert "try a lower --lr or --clip" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def finished(text: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    assert train(tmp_path, "--text", str(text), "--steps", "4", "--checkpoint", str(folder)).exit_code == 0
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "9"], "--hidden is 9, but the run in {folder} has 8: leave the option out to resume it"),
        (["--lr", "0.5"], "--lr is 0.5, but the run in {folder} has 0.008"),
        (["--compare", "torch"], "--compare is torch, but the run in {folder} has None"),
        (["--dtype", "float64"], "--dtype is float64, but the run in {folder} has fp32"),
        (["--save-every", "0"], "--save-every is 0, expected at least 1"),
        (["--steps", "3"], "--steps is 3, but the run in {folder} is at step 4 already"),
        (["--text", "{folder}/../other"], "the text other is not the one that the run in {folder} reads"),
    ],
)
def test_resume_refuses_other_options(
    finished: Path, tmp_path: Path, text: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "other").write_text(text.read_text() + "more")
    arguments = [argument.format(folder=finished) for argument in arguments]
    assert message.format(folder=finished) in refusal(
        train(tmp_path, "--checkpoint", str(finished), "--resume", *arguments)
    )


def test_resume_takes_more_steps_and_a_text_that_moved(finished: Path, tmp_path: Path, text: Path) -> None:
    moved = text.rename(tmp_path / "moved")
    resume = ["--checkpoint", str(finished), "--resume", "--steps", "6"]
    assert "cannot read --text" in refusal(train(tmp_path, *resume))
    assert train(tmp_path, *resume, "--text", str(moved)).exit_code == 0
    assert record(finished)["step"] == 6


def test_a_folder_in_use_is_not_overwritten(finished: Path, tmp_path: Path, text: Path) -> None:
    result = train(tmp_path, "--text", str(text), "--checkpoint", str(finished))
    assert f"{finished} already holds a run (step-000000004): add --resume" in refusal(result)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (WEIGHTS, b"", "weights.safetensors is not the file that training.json was written with"),
        (WEIGHTS, b"foreign", "weights.safetensors is not the file that training.json was written with"),
        (WEIGHTS, None, "weights.safetensors: No such file or directory"),
        (RECORD, None, "training.json: No such file or directory"),
        (RECORD, b"", "training.json is not a checkpoint's record: it is damaged, or not JSON"),
        (RECORD, b"\xff\xfe", "training.json is not a checkpoint's record"),
        (RECORD, b"[]", "training.json is not a record of this program: it has no format 'fastlstm-train-1'"),
        (RECORD, b'{"format": "other"}', "training.json is not a record of this program"),
    ],
)
def test_damaged_or_foreign_checkpoints(
    finished: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = newest_checkpoint(finished) / name
    path.unlink() if content is None else path.write_bytes(content)
    assert message in refusal(train(tmp_path, "--checkpoint", str(finished), "--resume"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"hiden": 3}}, "is not a checkpoint of this version"),
        ({"curves": {}}, "does not fit the model that its own options describe"),
        ({"step": 2}, "training.json is damaged: its step is 2, and its folder's name or its curves say 4"),
        ({"step": 0}, "training.json is damaged: its step is 0, and its folder's name or its curves say 4"),
    ],
)
def test_edited_records(finished: Path, tmp_path: Path, change: dict, message: str) -> None:
    path = newest_checkpoint(finished) / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in refusal(train(tmp_path, "--checkpoint", str(finished), "--resume"))
