"""What a run came to, in numbers: speeds, losses, and how far two curves part."""

from dataclasses import dataclass
from statistics import fmean, median, quantiles

from fastlstm.training.learner import Learner
from fastlstm.training.loop import BLOCK
from fastlstm.training.run import Run

EARLY = 50


@dataclass(frozen=True)
class Comparison:
    """`speedup` and its quartiles are over pairs of blocks.

    `difference` is the largest one between the two losses of a step, in nats; `early` is that of the first EARLY steps.
    Training amplifies rounding: in the default run `nn.LSTM` against itself, its weights moved by one rounding each,
    differs by 7e-7 in the first 50 steps and by 5e-3 in the first 150, as ours against `nn.LSTM` does (7e-7 and 4e-3).
    """

    speedup: float
    quartiles: tuple[float, float]
    pairs: int
    difference: float
    at_step: int
    early: float


def title(run: Run) -> str:
    o = run.options
    variant = o.variant.replace("_", " ").upper()
    return f"{variant}, {o.layers} x {o.hidden}, {o.dtype}, batch {o.batch} x {o.length} characters"


def label(learner: Learner) -> str:
    name = type(learner.model.rnn).__name__
    return f"fastlstm.{name}" if learner.name == "fastlstm" else f"torch.nn.{name}"


def step_seconds(learner: Learner) -> list[float]:
    """Mean seconds of a step, block by block. The first block warms up and the last may be short: they don't count."""
    times = learner.seconds
    blocks = [fmean(times[k : k + BLOCK]) for k in range(BLOCK, len(times) - BLOCK + 1, BLOCK)]
    return blocks or [fmean(times)]


def characters_per_second(run: Run, learner: Learner) -> float:
    """The median over blocks."""
    return run.options.batch * run.options.length / median(step_seconds(learner))


def final_loss(learner: Learner) -> float:
    """The mean over the last block's steps: one step's loss is noisy."""
    return fmean(learner.losses[-BLOCK:])


def compare(run: Run) -> Comparison:
    theirs, ours = run.learners
    ratios = [a / b for a, b in zip(step_seconds(theirs), step_seconds(ours), strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    differences = [abs(a - b) for a, b in zip(theirs.losses, ours.losses, strict=True)]
    difference = max(differences)
    return Comparison(
        speedup=median(ratios),
        quartiles=(low, high),
        pairs=len(ratios),
        difference=difference,
        at_step=differences.index(difference) + 1,
        early=max(differences[:EARLY]),
    )
