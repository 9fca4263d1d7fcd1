"""Training with a progress bar, to be stopped by Ctrl-C or SIGTERM."""

import shlex
from signal import Signals

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastlstm.training.learner import Learner
from fastlstm.training.loop import BLOCK, stop_on_signal, train_steps
from fastlstm.training.run import Run


def train_with_progress(run: Run, console: Console) -> Signals | None:
    """None where the run reached its last step; else what stopped it before, after saying how to go on."""
    progress = Progress(
        MofNCompleteColumn(),
        TextColumn("steps"),
        BarColumn(bar_width=None),
        TextColumn("{task.description}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        expand=True,
    )
    task = progress.add_task("", total=run.options.steps, completed=run.step)

    def on_step(learner: Learner) -> None:
        done = sum(len(each.losses) for each in run.learners) / len(run.learners)
        progress.update(task, completed=done, description=_state(run))

    with stop_on_signal() as stop, progress:
        train_steps(run, stop, on_step)
    if run.step == run.options.steps:
        return None
    how = "nothing was saved: no --checkpoint DIR was given"
    if run.folder is not None:
        how = f"go on with: fastlstm train --checkpoint {shlex.quote(str(run.folder))} --resume"
    console.print(f"Stopped at step {run.step:,} of {run.options.steps:,}; {how}", highlight=False, soft_wrap=True)
    return stop.number


def _state(run: Run) -> str:
    """The newest loss, and the speed of each learner's newest steps."""
    speeds = []
    for learner in run.learners:
        seconds = learner.seconds[-BLOCK:]
        if seconds:
            speed = len(seconds) * run.options.batch * run.options.length / sum(seconds)
            speeds.append(f"{learner.name} {speed / 1000:,.0f}k")
    losses = run.learners[-1].losses
    loss = f"loss {losses[-1]:.4g}  " if losses else ""
    return loss + " ".join(speeds) + " chars/s"
