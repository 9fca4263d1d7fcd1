"""The loss curves as a picture. The one file that imports matplotlib."""

from itertools import accumulate
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastlstm.training.results import characters_per_second, compare, label, title
from fastlstm.training.run import Run

# The curves coincide: PyTorch's is wide and pale, ours thin, dark and dashed on top of it.
STYLES = {
    "torch": {"color": "#f4a582", "linewidth": 5.0, "solid_capstyle": "round"},
    "fastlstm": {"color": "#053061", "linewidth": 1.2, "linestyle": (0, (4, 2))},
}


def save_plot(run: Run, path: Path) -> None:
    """Writes a PNG: losses by step and, beside it, by the seconds spent in training steps."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for learner in run.learners:
        style = STYLES[learner.name]
        seconds = list(accumulate(learner.seconds))
        name = label(learner)
        by_step.plot(range(1, len(learner.losses) + 1), learner.losses, label=name, **style)
        speed = f"{name}, {characters_per_second(run, learner):,.0f} characters/s"
        by_time.plot(seconds, learner.losses, label=speed, **style)
        ours = learner.name == "fastlstm"
        by_step.plot(
            [step for step, _ in learner.heldout],
            [loss for _, loss in learner.heldout],
            linestyle="none",
            marker="o",
            markersize=4 if ours else 9,
            color=style["color"],
            label=f"{name}, held-out text",
        )
    by_step.set(xlabel="training step", ylabel="loss (nats per character)")
    by_time.set(xlabel="time in training steps (s)")
    for axes in (by_step, by_time):
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    if run.options.compare:
        c = compare(run)
        by_step.set_title(f"by step: the curves differ by {c.difference:.1e} at most", fontsize="medium")
        by_time.set_title(f"by time: speed-up {c.speedup:.2f}", fontsize="medium")
    figure.suptitle(f"Character model trained on {run.corpus.name}: {title(run)}")
    figure.savefig(path, dpi=120)
