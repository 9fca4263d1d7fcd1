"""Checkpoints: one folder per step, complete or not there.

DIR/step-000000100/weights.safetensors   weights, optimizer state and carried hidden state of every learner
DIR/step-000000100/training.json         step, options, losses, the text's digest and vocabulary, the weights' digest

Both files are written and synced in DIR/.partial, which is then renamed: a process killed at any moment leaves the
folders before it whole. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastlstm.training.errors import TrainError, TrainingFailed

FORMAT = "fastlstm-train-1"
WEIGHTS, RECORD, PARTIAL = "weights.safetensors", "training.json", ".partial"
KEEP = 2


def prepare_folder(folder: Path) -> None:
    """Makes `folder`, and shows now, not after an hour of training, that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise TrainError(f"cannot write to {folder}: {error.strerror}") from None


def newest_checkpoint(folder: Path) -> Path | None:
    found = _checkpoints(folder)
    return found[-1] if found else None


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Writes the checkpoint of `step` and removes all but the newest two."""
    target, partial = folder / f"step-{step:09d}", folder / PARTIAL
    # Resumed and stopped again before a step was made: it is this very checkpoint.
    if target.exists():
        return
    weights = safetensors.torch.save(tensors)
    record = {"format": FORMAT, "step": step, "sha256": hashlib.sha256(weights).hexdigest(), **record}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _write(partial / WEIGHTS, weights)
        _write(partial / RECORD, json.dumps(record, allow_nan=False).encode())
        _sync(partial)
        partial.rename(target)
        _sync(folder)
        for old in _checkpoints(folder)[:-KEEP]:
            old.rename(partial)
            shutil.rmtree(partial)
    except OSError as error:
        raise TrainingFailed(f"cannot write the checkpoint {target}: {error.strerror}") from None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of one checkpoint. Raises TrainError where a file is missing, damaged or not ours."""
    try:
        record = json.loads((path / RECORD).read_bytes())
        weights = (path / WEIGHTS).read_bytes()
    except OSError as error:
        raise TrainError(f"cannot read the checkpoint {error.filename}: {error.strerror}") from None
    except ValueError:
        raise TrainError(f"{path / RECORD} is not a checkpoint's record: it is damaged, or not JSON") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise TrainError(f"{path / RECORD} is not a record of this program: it has no format {FORMAT!r}")
    if hashlib.sha256(weights).hexdigest() != record.get("sha256"):
        raise TrainError(f"{path / WEIGHTS} is not the file that {RECORD} was written with: its sha256 differs")
    try:
        return safetensors.torch.load(weights), record
    except SafetensorError as error:
        raise TrainError(f"{path / WEIGHTS} is not a safetensors file: {error}") from None


def _checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes a folder's entries durable, as fsync does for a file's content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
