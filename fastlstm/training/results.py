"""What a run came to, in numbers: speeds, losses, and how far two curves part."""

import statistics
from dataclasses import dataclass

from fastlstm.training.learner import Learner
from fastlstm.training.loop import BLOCK
from fastlstm.training.run import Run


@dataclass(frozen=True)
class Comparison:
    """`speedup` and its quartiles are over pairs of blocks; `difference` is between the losses of a step, in nats."""

    speedup: float
    quartiles: tuple[float, float]
    pairs: int
    difference: float
    at_step: int


def title(run: Run) -> str:
    o = run.options
    return f"{o.variant.upper()}, {o.layers} x {o.hidden}, {o.dtype}, batch {o.batch} x {o.length} characters"


def label(learner: Learner) -> str:
    name = type(learner.model.rnn).__name__
    return f"fastlstm.{name}" if learner.name == "fastlstm" else f"torch.nn.{name}"


def block_seconds(learner: Learner) -> list[float]:
    """Seconds of each block. The first one warms up, the last may be short: they are left out where others remain."""
    times = learner.seconds
    blocks = [sum(times[k : k + BLOCK]) for k in range(BLOCK, len(times) - BLOCK + 1, BLOCK)]
    return blocks or [sum(times)]


def characters_per_second(run: Run, learner: Learner) -> float:
    """The median over blocks."""
    blocks = block_seconds(learner)
    steps = min(BLOCK, len(learner.seconds))
    return steps * run.options.batch * run.options.length / statistics.median(blocks)


def final_loss(learner: Learner) -> float:
    """The mean over the last block's steps: one step's loss is noisy."""
    return statistics.fmean(learner.losses[-BLOCK:])


def compare(run: Run) -> Comparison:
    theirs, ours = run.learners
    ratios = [a / b for a, b in zip(block_seconds(theirs), block_seconds(ours), strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    differences = [abs(a - b) for a, b in zip(theirs.losses, ours.losses, strict=True)]
    difference = max(differences)
    return Comparison(
        statistics.median(ratios), (low, high), len(ratios), difference, differences.index(difference) + 1
    )
