"""What a run came to, on the terminal: table, picture, sample."""

from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fastlstm.training.errors import TrainingFailed
from fastlstm.training.loop import BLOCK
from fastlstm.training.model import generate
from fastlstm.training.results import EARLY, characters_per_second, compare, final_loss, label, title
from fastlstm.training.run import Run

PROMPT = 100


def print_report(run: Run, console: Console) -> None:
    """The table and how its numbers were taken; the curves as a picture, losses.png; a sample of generated characters."""
    console.print(results_table(run))
    console.print(remarks(run), style="dim")
    print_plot(run, Path(run.options.out) / "losses.png", console)
    if run.options.sample:
        print_sample(run, run.options.sample, console)


def results_table(run: Run) -> Table:
    o = run.options
    table = Table(title=f"{title(run)}\n{o.steps:,} steps on {run.corpus.name}", title_justify="left")
    table.add_column("")
    table.add_column("characters/s", justify="right")
    table.add_column("speed-up", justify="right")
    table.add_column("training loss", justify="right")
    table.add_column("held-out loss", justify="right")
    for learner in run.learners:
        ours = learner.name == "fastlstm"
        speedup = f"{compare(run).speedup:.2f}" if ours and o.compare else ""
        table.add_row(
            label(learner),
            f"{characters_per_second(run, learner):,.0f}",
            speedup,
            f"{final_loss(learner):.4f}",
            f"{learner.heldout[-1][1]:.4f}",
            style="bold" if ours else None,
        )
    return table


def remarks(run: Run) -> Text:
    lines = [f"Losses in nats per character; training: the mean of the last {BLOCK} steps."]
    if run.options.compare:
        c = compare(run)
        low, high = c.quartiles
        lines += [
            f"Speed-up: median of {c.pairs} interleaved pairs of {BLOCK} steps (quartiles {low:.2f}, {high:.2f}).",
            f"Largest difference between the two loss curves: {c.difference:.1e}, at step {c.at_step:,}.",
        ]
        if c.at_step > EARLY:
            lines.append(f"In the first {EARLY} steps: {c.early:.1e}. Rounding differs, and training amplifies it.")
    return Text("\n".join(lines))


def print_plot(run: Run, path: Path, console: Console) -> None:
    try:
        from fastlstm.training.plot import save_plot
    except ImportError:
        console.print("No picture of the curves: matplotlib is missing (pip install matplotlib).")
        return
    try:
        save_plot(run, path)
    except OSError as error:
        raise TrainingFailed(f"cannot write {path}: {error.strerror}") from None
    console.print(f"Loss curves: {path}", highlight=False, soft_wrap=True)


def print_sample(run: Run, length: int, console: Console) -> None:
    """The end of the held-out text, dim, and how the model goes on from it."""
    prompt = run.corpus.heldout[-PROMPT:]
    drawn = generate(run.learners[-1].model, prompt, length, run.options.seed)
    shown = Text(run.corpus.decode(prompt), style="dim").append(run.corpus.decode(drawn), style="not dim")
    console.print(
        Panel(shown, title=f"the end of the text (dim) and {length} generated characters", title_align="left")
    )
