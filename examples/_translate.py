"""What dates.py and pronounce.py share: symbols as tokens, training until it is stopped, and alignments as pictures."""

from collections.abc import Callable, Iterable, Sequence

import torch
from _shared import ExampleError
from torch import Tensor, nn

import fastlstm

PAD, BEGIN, END = 0, 1, 2
WARM_UP = 0.1  # of the steps

Pair = tuple[Sequence[str], Sequence[str]]  # source and target, as symbols


class Symbols:
    """Symbols as tokens: those of `sequences`, after the three that `Seq2Seq` has for itself."""

    def __init__(self, sequences: Iterable[Sequence[str]]) -> None:
        self.names = ["", "", "", *sorted({symbol for sequence in sequences for symbol in sequence})]
        self.tokens = {name: token for token, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, sequences: Sequence[Sequence[str]], begin: bool = False) -> tuple[Tensor, list[int]]:
        """(T, B) tokens padded at the end, and lengths; with `begin`, between BEGIN and END."""
        rows = [[self.tokens[symbol] for symbol in sequence] for sequence in sequences]
        if begin:
            rows = [[BEGIN, *row, END] for row in rows]
        lengths = [len(row) for row in rows]
        tokens = torch.full((max(lengths), len(rows)), PAD)
        for b, row in enumerate(rows):
            tokens[: len(row), b] = torch.tensor(row)
        return tokens, lengths

    def read(self, tokens: Tensor) -> list[str]:
        return [self.names[token] for token in tokens.tolist() if token > END]


def train(
    model: fastlstm.Seq2Seq,
    source: Symbols,
    target: Symbols,
    draw: Callable[[], Sequence[Pair]],
    steps: int,
    lr: float,
    on_step: Callable[[float], None],
) -> list[float]:
    """Losses of `steps` batches that are drawn, or of those until Ctrl-C."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    # as long as the first tenth of all takes, the rate rises; then it falls to nothing
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(2, steps), pct_start=WARM_UP)
    losses: list[float] = []
    try:
        for _ in range(steps):
            sources, targets = zip(*draw(), strict=True)
            tokens, lengths = source.batch(sources)
            said, _ = target.batch(targets, begin=True)
            logits = model(tokens, lengths, said[:-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), said[1:].flatten(), ignore_index=PAD)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            on_step(losses[-1])
    except KeyboardInterrupt:
        if not losses:
            raise ExampleError("stopped before anything was learned") from None
    return losses


def translate(
    model: fastlstm.Seq2Seq,
    source: Symbols,
    target: Symbols,
    sequences: Sequence[Sequence[str]],
    max_length: int,
    **options: float,
) -> list[tuple[list[str], Tensor]]:
    """What the model makes of each, and the alignments (its length, the source's length)."""
    results: list[tuple[list[str], Tensor]] = [([], torch.empty(0))] * len(sequences)
    # those of about one length together, as many as are fast
    order = sorted(range(len(sequences)), key=lambda k: len(sequences[k]))
    for first in range(0, len(order), 256):
        chosen = order[first : first + 256]
        tokens, lengths = source.batch([sequences[k] for k in chosen])
        found = model.generate(tokens, lengths, max_length, **options)
        for k, length, row, looked in zip(chosen, lengths, found.tokens, found.alignments, strict=True):
            said = target.read(row)
            results[k] = said, looked[: len(said), :length]
    return results


def alignments(axes, source: Sequence[str], said: Sequence[str], looked: Tensor) -> None:
    """A row for each symbol that was said, a column for each of the source: the darker, the more it was looked at."""
    if said:
        axes.imshow(looked.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto", zorder=2)
    else:
        axes.set(xlim=(-0.5, len(source) - 0.5), ylabel="nothing was said")
    axes.set_xticks(range(len(source)), source)
    axes.set_yticks(range(len(said)), said)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)
