"""A run: options, text and learners together; begun anew, resumed from a checkpoint, and saved to one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlstm.training import processes
from fastlstm.training.checkpoint import (
    RECORD,
    checkpoint_step,
    load_checkpoint,
    newest_checkpoint,
    prepare_folder,
    save_checkpoint,
)
from fastlstm.training.errors import TrainError
from fastlstm.training.learner import Learner
from fastlstm.training.model import build_model
from fastlstm.training.options import DTYPES, Options, option
from fastlstm.training.text import Corpus, load_corpus


@dataclass
class Run:
    """`learners`: ours, after PyTorch's where it is compared with. All of them are at the same step between blocks."""

    options: Options
    corpus: Corpus
    learners: list[Learner]
    folder: Path | None

    @property
    def step(self) -> int:
        return min(len(learner.losses) for learner in self.learners)

    def save(self) -> None:
        """Processes call it together; the first one writes."""
        if self.folder is None:
            return
        tensors: dict[str, Tensor] = {}
        for learner in self.learners:
            tensors |= learner.tensors()
        if processes.rank() > 0:
            return
        record = {
            "options": self.options.to_json(),
            "text": {"name": self.corpus.name, "sha256": self.corpus.digest},
            "vocabulary": self.corpus.vocabulary,
            "curves": {learner.name: learner.curves() for learner in self.learners},
        }
        save_checkpoint(self.folder, self.step, tensors, record)


def begin(options: Options, folder: Path | None) -> Run:
    """A new run at step 0. Raises TrainError where `folder` holds another run."""
    run = _build(options, folder)
    if folder is not None:
        prepare_folder(folder)
        if found := newest_checkpoint(folder):
            raise TrainError(f"{folder} already holds a run ({found.name}): add --resume, or choose another folder")
    return run


def resume(folder: Path, given: dict[str, Any]) -> Run:
    """The run in `folder`, at its newest checkpoint. The options `given` on the command line may not contradict it."""
    found = newest_checkpoint(folder)
    if found is None:
        raise TrainError(f"{folder} holds no checkpoint to resume: leave out --resume to begin a run there")
    prepare_folder(folder)
    tensors, record = load_checkpoint(found)
    try:
        options = Options(**record["options"])
        options.check()
        step, curves, digest = int(record["step"]), record["curves"], record["text"]["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise TrainError(f"{found} is not a checkpoint of this version: {error!r}") from None
    if name := options.differs(**given):
        has = getattr(options, name)
        raise TrainError(
            f"{option(name)} is {given[name]}, but the run in {folder} has {has}: leave the option out to resume it"
        )
    options = options.with_given(**given)
    if options.steps < step:
        raise TrainError(f"--steps is {options.steps}, but the run in {folder} is at step {step} already")
    run = _build(options, folder)
    if run.corpus.digest != digest:
        raise TrainError(
            f"the text {run.corpus.name} is not the one that the run in {folder} reads: its sha256 differs"
        )
    try:
        for learner in run.learners:
            learner.load_tensors(tensors)
            learner.load_curves(curves[learner.name])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TrainError(f"{found} does not fit the model that its own options describe: {reason}") from None
    curves_steps = {len(curve) for learner in run.learners for curve in (learner.losses, learner.seconds)}
    if others := {checkpoint_step(found), *curves_steps} - {step}:
        raise TrainError(
            f"{found / RECORD} is damaged: its step is {step}, and its folder's name or its curves say {min(others)}"
        )
    return run


def _build(options: Options, folder: Path | None) -> Run:
    options.check()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    processes.check(options.batch, options.device)
    corpus = load_corpus(Path(options.text) if options.text is not None else None, options.batch, options.length)
    learners = []
    for library in ("fastlstm",) if options.compare is None else (options.compare, "fastlstm"):
        try:
            model = build_model(
                options.variant,
                library,
                len(corpus.vocabulary),
                options.embedding,
                options.hidden,
                options.layers,
                options.seed,
            ).to(torch.device(options.device), DTYPES[options.dtype])
        except RuntimeError as error:
            raise TrainError(f"a model of this size cannot be made: {str(error).splitlines()[0]}") from None
        learners.append(Learner(library, model))
    return Run(options, corpus, learners, folder)
