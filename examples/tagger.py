"""A syntax highlighter: a bidirectional LSTM that tags the characters of Python code, without packing or sorting.

The text is Python's own standard library, and the `tokenize` module tells the truth about it. What a name is often depends on
what follows: `print(` is called, `sep=` is bound, `in` is a keyword but `index` is not. So two directions must beat one.

    python examples/tagger.py            # both networks, with as many parameters each
    python examples/tagger.py --short    # a few seconds
"""

import io
import keyword
import sysconfig
import tokenize
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from _shared import ExampleError, Out, Seed, Short, Steps, bar, check_seed, command, prepare, save
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

import fastlstm

# Each with the colour in which it is printed
TAGS = {
    "keyword": "magenta",
    "defined": "bold blue",
    "called": "blue",
    "bound": "cyan",
    "other name": "default",
    "number": "yellow",
    "string": "green",
    "comment": "dim",
    "operator": "red",
}
NAMES = list(TAGS)
NO_TAG = -100  # what cross_entropy ignores: spaces between tokens, and padding
LONGEST = 100  # characters of a line of code; longer ones are left out
CHARACTERS = 128  # the last one stands for all that is not ASCII
EMBEDDING = 32
# Hidden units per direction such that both have about as many parameters
NETWORKS = {"forward only": (78, False), "both directions": (48, True)}
BATCH, LR = 32, 8e-3
EVALUATIONS = 10


class Line(NamedTuple):
    """A logical line of code, from its first token on: characters and tags, both (length,)."""

    text: str
    characters: Tensor
    tags: Tensor


class Tagger(nn.Module):
    def __init__(self, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, EMBEDDING)
        self.lstm = fastlstm.LSTM(EMBEDDING, hidden, bidirectional=bidirectional)
        self.output = nn.Linear(hidden * (1 + bidirectional), len(TAGS))

    def forward(self, characters: Tensor, lengths: Tensor) -> Tensor:
        """(T, B) characters, padded at the end, to (T, B, tags): each line's backward direction starts at its own end."""
        return self.output(self.lstm(self.embedding(characters), lengths=lengths)[0])


def tag_of(token: tokenize.TokenInfo, before: str, after: str) -> str | None:
    kind = tokenize.tok_name[token.type]
    if kind == "NAME":
        if keyword.iskeyword(token.string):
            return "keyword"
        if before in ("def", "class"):
            return "defined"
        return {"(": "called", "=": "bound"}.get(after, "other name")
    if "STRING" in kind:  # from Python 3.12 on, an f-string is several tokens
        return "string"
    return {"NUMBER": "number", "COMMENT": "comment", "OP": "operator"}.get(kind)


def lines_of(source: str) -> list[Line]:
    starts = [0, *accumulate(len(line) for line in io.StringIO(source))]
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    tags = [NO_TAG] * len(source)
    found, first = [], None
    for k, token in enumerate(tokens):
        begin, end = (starts[row - 1] + column for row, column in (token.start, token.end))
        if token.type == tokenize.NEWLINE and first is not None:
            if begin - first <= LONGEST:
                text = source[first:begin]
                characters = torch.tensor([min(ord(c), CHARACTERS - 1) for c in text])
                found.append(Line(text, characters, torch.tensor(tags[first:begin])))
            first = None
        tag = tag_of(token, tokens[k - 1].string, tokens[min(k + 1, len(tokens) - 1)].string)
        # comments on lines of their own are no line of code
        if tag is None or (tag == "comment" and first is None):
            continue
        first = begin if first is None else first
        tags[begin:end] = [NAMES.index(tag)] * (end - begin)
    return found


def load(files: int) -> tuple[list[Line], list[Line]]:
    """Distinct lines: those of five files of six to train on, and of the sixth, where they stand in no other, held out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(folder.glob("[a-z]*.py"))[:files]
    if len(paths) < files:
        raise ExampleError(f"{folder} has {len(paths)} Python files, expected the standard library's sources")
    seen: dict[str, Line] = {}
    heldout: dict[str, Line] = {}
    for k, path in enumerate(paths):
        lines = {line.text: line for line in lines_of(path.read_text(encoding="utf-8"))}
        (heldout if k % 6 == 5 else seen).update(lines)
    return list(seen.values()), [line for text, line in heldout.items() if text not in seen]


def batch_of(lines: list[Line]) -> tuple[Tensor, Tensor, Tensor]:
    """Characters (T, B), lengths (B,) and tags (T, B), in whatever order the lines come."""
    pad = nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(line.text) for line in lines])
    return pad([x.characters for x in lines]), lengths, pad([x.tags for x in lines], padding_value=NO_TAG)


@torch.no_grad()
def evaluate(model: Tagger, lines: list[Line]) -> tuple[Tensor, Tensor]:
    """Per tag, how many characters have it, and how many of these got another."""
    many, wrong = torch.zeros(len(TAGS)), torch.zeros(len(TAGS))
    for k in range(0, len(lines), 256):
        characters, lengths, tags = batch_of(lines[k : k + 256])
        missed = model(characters, lengths).argmax(-1) != tags
        for tag in range(len(TAGS)):
            many[tag] += (tags == tag).sum()
            wrong[tag] += (missed & (tags == tag)).sum()
    return many, wrong


def train(model: Tagger, seen: list[Line], heldout: list[Line], steps: int, seed: int, on_step):
    """Training losses, and held-out (step, errors in percent)."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, curve = [], []
    for step in range(1, steps + 1):
        drawn = torch.randint(len(seen), (BATCH,), generator=random).tolist()
        characters, lengths, tags = batch_of([seen[k] for k in drawn])
        logits = model(characters, lengths)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=NO_TAG)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step * EVALUATIONS // steps > (step - 1) * EVALUATIONS // steps:
            many, wrong = evaluate(model, heldout)
            curve.append((step, (100 * wrong.sum() / many.sum()).item()))
        on_step()
    return losses, curve


def table(results: dict[str, dict], title: str) -> Table:
    result = Table(title=title)
    for column in ("wrong, % of characters", *results):
        result.add_column(column, justify="left" if column not in results else "right")
    result.add_row("parameters", *(f"{one['parameters']:,}" for one in results.values()))
    for tag in NAMES:
        result.add_row(tag, *(f"{one['wrong'][tag]:.2f}" for one in results.values()))
    result.add_row("all", *(f"{one['heldout'][-1][1]:.2f}" for one in results.values()), style="bold")
    return result


@torch.no_grad()
def highlighted(model: Tagger, line: Line) -> Text:
    characters, lengths, tags = batch_of([line])
    shown = Text("  ")
    for c, tag, truth in zip(line.text, model(characters, lengths)[:, 0].argmax(-1).tolist(), tags[:, 0], strict=True):
        style = "" if truth == NO_TAG else TAGS[NAMES[tag]] + " underline" * (tag != truth)
        shown.append(c, style=style)
    return shown


def picture(results: dict[str, dict]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, ((name, one), color) in enumerate(zip(results.items(), ("#f4a582", "#053061"), strict=True)):
        left.plot(*zip(*one["heldout"], strict=True), marker="o", color=color, label=name)
        places = [place + 0.4 * k - 0.2 for place in range(len(NAMES))]
        right.barh(places, list(one["wrong"].values()), height=0.4, color=color, label=name)
    left.set(xlabel="training step", ylabel="held-out characters tagged wrong, %", yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    right.set(xlabel="of the characters with this tag, tagged wrong, %", yticks=range(len(NAMES)), yticklabels=NAMES)
    right.invert_yaxis()
    left.legend(frameon=False)
    return figure


def main(steps: Steps = None, seed: Seed = 0, out: Out = "runs", short: Short = False) -> None:
    """Tag the characters of Python code, in one direction and in both."""
    prepare(out, steps=steps)
    check_seed(seed)
    steps = steps or (60 if short else 600)
    seen, heldout = load(6 if short else 60)
    results, models = {}, {}
    with bar() as progress:
        task = progress.add_task("", total=len(NETWORKS) * steps)
        for name, sizes in NETWORKS.items():
            progress.update(task, description=name)
            torch.manual_seed(seed)
            model = models[name] = Tagger(*sizes)
            losses, curve = train(model, seen, heldout, steps, seed, lambda: progress.advance(task))
            many, wrong = evaluate(model, heldout)
            each = dict(zip(NAMES, (100 * wrong / many.clamp(min=1)).tolist(), strict=True))
            parameters = sum(p.numel() for p in model.parameters())
            results[name] = {"parameters": parameters, "losses": losses, "heldout": curve, "wrong": each}
    console = Console()
    console.print(table(results, f"{len(heldout):,} held-out lines, after {steps:,} steps on {len(seen):,} others"))
    console.print("Held-out lines as both directions see them, mistakes underlined:")
    long = [line for line in heldout if len(line.text) > 50]
    for line in long[:: max(1, len(long) // 5)][:5]:
        console.print(highlighted(models["both directions"], line))
    save(picture(results), results, out, "tagger")


app = command(main)

if __name__ == "__main__":
    app()
