"""Generating timed spikes: which recurrent network keeps time by itself, and what peepholes do for it.

The task is "Generating Timed Spikes" of Gers, Schraudolph & Schmidhuber (2002), Learning Precise Timing with LSTM Recurrent
Networks, JMLR 3:115-143. The network is told an offset n of 0 or 1, and has to spike 15 + n steps after its own last spike,
over and over. Nothing tells it in time when a spike is due. README.md says where this differs from the paper.

    python examples/timing.py            # all five networks, seven seeds each
    python examples/timing.py --short    # a few seconds
"""

from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Annotated

import torch
import typer
from _shared import Out, Seed, Short, Steps, bar, check_seed, command, prepare, save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fastlstm

LEAST, OFFSETS = 15, 2  # spikes are LEAST + n steps apart, n < OFFSETS
TEST_SEED = 2**62  # one that --seed can't be
TRAINED, TESTED = 5, 30  # intervals per stream: a tested one goes on six times as long as a trained one
BATCH, TEST_BATCH = 16, 100
EVALUATIONS = 20
LR = 0.02

# Hidden units such that all have about as many parameters, with the output layer
NETWORKS = {
    "LSTM": (fastlstm.LSTM, 8),
    "PeepholeLSTM": (fastlstm.PeepholeLSTM, 8),
    "CIFGLSTM": (fastlstm.CIFGLSTM, 10),
    "CIFGLSTM, peephole=True": (partial(fastlstm.CIFGLSTM, peephole=True), 10),
    "GRU": (fastlstm.GRU, 10),
}


class Spiker(nn.Module):
    """The recurrent layer and one output, whose sign says whether to spike."""

    def __init__(self, name: str) -> None:
        super().__init__()
        make, H = NETWORKS[name]
        self.layer = make(1, H)
        self.output = nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.layer(x)[0]).squeeze(-1)

    def size(self) -> int:
        return sum(p.numel() for p in self.parameters())


@dataclass
class Curve:
    """Of one network from one seed: training loss per step, and at some steps how far the test streams were right."""

    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    until_error: list[float] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)


def streams(B: int, intervals: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (T, B, 1), the offset of the interval that a step lies in, and targets (T, B), 1 at its last step."""
    offset = torch.randint(OFFSETS, (intervals, B), generator=random)
    last = (LEAST + offset).cumsum(0) - 1
    t = torch.arange(intervals * LEAST)[:, None, None]
    interval = (t > last).sum(1)
    return offset.gather(0, interval).float()[..., None], (t == last).any(1).float()


@torch.no_grad()
def evaluate(model: Spiker, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The mean share of a stream before its first wrong step, and the share of streams without one."""
    right = (model(x) > 0) == (y > 0)
    return right.long().cumprod(0).float().mean().item(), right.all(0).float().mean().item()


def train(model: Spiker, steps: int, seed: int, on_step) -> Curve:
    test = streams(TEST_BATCH, TESTED, torch.Generator().manual_seed(TEST_SEED))
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # spikes are rare: without the weight, a silent network is where many runs stay
    rarity = torch.tensor(LEAST / 2)
    curve = Curve()
    for step in range(1, steps + 1):
        x, y = streams(BATCH, TRAINED, random)
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), y, pos_weight=rarity)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        curve.losses.append(loss.item())
        if step * EVALUATIONS // steps > (step - 1) * EVALUATIONS // steps:
            until_error, exact = evaluate(model, *test)
            curve.steps.append(step)
            curve.until_error.append(until_error)
            curve.exact.append(exact)
        on_step()
    return curve


def table(curves: dict[str, list[Curve]], sizes: dict[str, int]) -> Table:
    result = Table(title=f"After {curves['LSTM'][0].steps[-1]:,} steps, on streams of {TESTED} intervals")
    for title in ("network", "H", "parameters", "right until, %", "from - to", "no error"):
        result.add_column(title, justify="left" if title == "network" else "right")
    for name, runs in curves.items():
        last = [100 * run.until_error[-1] for run in runs]
        flawless = sum(run.exact[-1] == 1 for run in runs)
        spread = f"{min(last):.0f} - {max(last):.0f}"
        result.add_row(
            name, str(NETWORKS[name][1]), str(sizes[name]), f"{median(last):.0f}", spread, f"{flawless} of {len(runs)}"
        )
    return result


def picture(curves: dict[str, list[Curve]], sizes: dict[str, int]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, (name, runs) in zip(figure.subplots(1, len(curves), sharey=True), curves.items(), strict=True):
        steps = runs[0].steps
        points = [[100 * value for value in run.until_error] for run in runs]
        lower, middle, upper = torch.tensor(points).quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0).tolist()
        axes.fill_between(
            steps, lower, upper, color="#92c5de", alpha=0.5, linewidth=0, label=f"quartiles of {len(runs)} seeds"
        )
        for values in points:
            axes.plot(steps, values, color="#2166ac", linewidth=0.5, alpha=0.6)
        axes.plot(steps, middle, color="#053061", linewidth=2, label="median")
        axes.set(xlabel="training step", ylim=(-3, 103))
        axes.set_title(f"{name}\n{sizes[name]} parameters", fontsize="medium")
    figure.axes[0].set_ylabel("right until, % of the stream")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    return figure


def main(
    steps: Steps = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds per network; without it, 7, or 1 with --short.")] = None,
    seed: Seed = 0,
    out: Out = "runs",
    short: Short = False,
) -> None:
    """Timed spikes, generated by LSTM, PeepholeLSTM, CIFGLSTM and GRU with the same budget."""
    prepare(out, steps=steps, seeds=seeds)
    check_seed(seed)
    steps = steps or (40 if short else 1500)
    seeds = seeds or (1 if short else 7)
    torch.set_num_threads(1)  # the networks are too small to be shared among threads
    curves: dict[str, list[Curve]] = {name: [] for name in NETWORKS}
    sizes: dict[str, int] = {}
    with bar() as progress:
        task = progress.add_task("", total=len(NETWORKS) * seeds * steps)
        for each in range(seed, seed + seeds):
            for name, runs in curves.items():
                progress.update(task, description=f"{name}, seed {each}")
                torch.manual_seed(each)
                model = Spiker(name)
                sizes[name] = model.size()
                runs.append(train(model, steps, each, lambda: progress.advance(task)))
    Console().print(table(curves, sizes))
    results = {name: {"parameters": sizes[name], "seeds": [vars(run) for run in runs]} for name, runs in curves.items()}
    save(picture(curves, sizes), results, out, "timing")


app = command(main)

if __name__ == "__main__":
    app()
