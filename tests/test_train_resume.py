"""`fastlstm train --resume` keeps every option of the run, whichever version began it."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from test_train import record, train
from typer.testing import CliRunner

from fastlstm.cli import app
from fastlstm.training.checkpoint import RECORD, newest_checkpoint
from fastlstm.training.options import Options, option


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat, and ate.\n" * 20, encoding="utf-8")
    return path


def test_resume_keeps_every_option(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "variant": "gru", "layers": 2, "hidden": 6, "embedding": 3, "batch": 2, "length": 7, "steps": 3, "lr": 0.01,
        "clip": 0.5, "seed": 3, "device": "cpu", "dtype": "fp64", "text": str(text), "compare": "torch", "save_every": 2,
        "sample": 30, "out": "pictures", "threads": 1,
    }  # fmt: skip
    usual = asdict(Options())
    assert given.keys() == usual.keys()
    assert [name for name, value in usual.items() if value == given[name]] == ["device"]  # there is no other
    arguments = [word for name, value in given.items() for word in (option(name), str(value))]
    run = ["train", "--checkpoint", "run"]
    assert CliRunner().invoke(app, [*run, *arguments]).exit_code == 0
    assert record(Path("run"))["options"] == given

    set_threads = []
    monkeypatch.setattr(torch, "set_num_threads", set_threads.append)
    shutil.rmtree("pictures")
    resumed = CliRunner().invoke(app, [*run, "--resume", "--steps", "6"])
    assert record(Path("run"))["options"] == given | {"steps": 6}
    assert sorted(path.name for path in Path("run").iterdir()) == ["step-000000004", "step-000000006"]
    assert "30 generated characters" in resumed.output
    assert Path("pictures/losses.png").exists()
    assert set_threads == [1]
    # what changes no step may be changed, and is kept again
    changed = {"save_every": 5, "sample": 0, "out": "other", "threads": 2, "steps": 8}
    arguments = [word for name, value in changed.items() for word in (option(name), str(value))]
    resumed = CliRunner().invoke(app, [*run, "--resume", *arguments, "--dtype", "float64"])
    assert resumed.exit_code == 0, resumed.output
    assert "generated characters" not in resumed.output
    assert record(Path("run"))["options"] == given | changed


def test_a_run_of_an_older_version_resumes(text: Path, tmp_path: Path) -> None:
    finished = tmp_path / "run"
    assert train(tmp_path, "--text", str(text), "--steps", "4", "--checkpoint", str(finished)).exit_code == 0
    path = newest_checkpoint(finished) / RECORD
    was = json.loads(path.read_text())
    was["options"] |= {"dtype": "float32", "steps": 5}
    for name in ("save_every", "sample", "out", "threads"):
        del was["options"][name]
    path.write_text(json.dumps(was))
    result = train(tmp_path, "--checkpoint", str(finished), "--resume", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert record(finished)["step"] == 5
