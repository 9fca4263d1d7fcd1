"""The loss curves as a picture. The one file that imports matplotlib."""

from itertools import accumulate
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastlstm.training.results import characters_per_second, compare, label, title
from fastlstm.training.run import Run

PALE, DARK = "#f4a582", "#053061"
# By step the curves coincide: PyTorch's is wide and pale, ours thin, dark and dashed on top of it.
BY_STEP = {
    "torch": {"color": PALE, "linewidth": 4.0},
    "fastlstm": {"color": DARK, "linewidth": 1.0, "linestyle": (0, (4, 2))},
}
BY_TIME = {"torch": {"color": PALE, "linewidth": 2.5}, "fastlstm": {"color": DARK, "linewidth": 1.5}}


def save_plot(run: Run, path: Path) -> None:
    """Writes a PNG: the training loss by step; beside it, the held-out loss by the seconds spent in training steps."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    by_step, by_time = figure.subplots(1, 2)
    for learner in run.learners:
        by_step.plot(range(1, len(learner.losses) + 1), learner.losses, label=label(learner), **BY_STEP[learner.name])
        elapsed = list(accumulate(learner.seconds))
        by_time.plot(
            [elapsed[step - 1] for step, _ in learner.heldout],
            [loss for _, loss in learner.heldout],
            marker="o",
            label=f"{label(learner)}, {characters_per_second(run, learner):,.0f} characters/s",
            **BY_TIME[learner.name],
        )
    figure.suptitle(f"Character model trained on {run.corpus.name}: {title(run)}")
    by_step.set(xlabel="training step", ylabel="training loss (nats per character)")
    by_time.set(
        xlabel="time spent in training steps (seconds)", ylabel="held-out loss (nats per character)", xlim=(0, None)
    )
    if run.options.compare:
        c = compare(run)
        by_step.set_title(f"the two differ by {c.difference:.1e} at most", fontsize="medium")
        by_time.set_title(f"speed-up {c.speedup:.2f}", fontsize="medium")
    for axes in (by_step, by_time):
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
