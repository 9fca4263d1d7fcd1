"""Dates as ten languages write them, in four lengths each, to ISO's: "Τετάρτη 5 Μαρτίου 2014" is 2014-03-05.

Names and formats are those of Unicode's CLDR, which Babel ships. A tenth of all days is held out: none of these is seen in any
language or length. A year of two digits is one of 1969 to 2068, and the language is told: 3/5/14 is in May or in March.

    python examples/dates.py            # on a CPU, well under a minute
    python examples/dates.py --short    # a few seconds
"""

import random
from datetime import date, timedelta

import torch
from _shared import ExampleError, Out, Seed, Short, Steps, bar, check_seed, command, prepare, save
from _translate import Pair, Symbols, alignments, train, translate
from rich.console import Console
from rich.table import Table

import fastlstm

LANGUAGES = ("de", "el", "en", "es", "fi", "fr", "hu", "pl", "ru", "tr")
LENGTHS = ("short", "medium", "long", "full")
FIRST, DAYS = date(1969, 1, 1), 36525  # a century
HELD_OUT = 0.1
EMBEDDING, HIDDEN = 32, 64
BATCH, LR = 64, 1e-2
TESTS = 50  # dates in each language and length
SHOWN = date(2014, 3, 5)  # held out as well


class Dates:
    """Days, as somebody writes them."""

    def __init__(self) -> None:
        try:
            from babel import Locale
            from babel.dates import format_date
        except ImportError:
            raise ExampleError("babel is missing; run: pip install 'fastlstm[examples]'") from None
        self._format = format_date
        self.locales = {language: Locale.parse(language) for language in LANGUAGES}

    def written(self, day: date, language: str, length: str) -> list[str]:
        text = self._format(day, length, locale=self.locales[language])
        return [language, *text.replace("\u202f", " ")]  # the narrow space, for which few fonts have a glyph

    def pair(self, day: date, language: str, length: str) -> Pair:
        return self.written(day, language, length), list(day.isoformat())

    def symbols(self) -> Symbols:
        """A year has every month, weekday and digit."""
        days = [FIRST + timedelta(k) for k in range(365)]
        return Symbols(
            self.written(day, language, length) for day in days for language in LANGUAGES for length in LENGTHS
        )


def split(draw: random.Random) -> tuple[list[date], list[date]]:
    """Days to learn from, and those held out."""
    days = [day for k in range(DAYS) if (day := FIRST + timedelta(k)) != SHOWN]
    draw.shuffle(days)
    many = round(HELD_OUT * DAYS) - 1
    return days[many:], [*days[:many], SHOWN]


def table(right: dict[str, dict[str, float]], tests: int) -> Table:
    result = Table(title=f"Right, % of {tests} held-out days each")
    result.add_column("language")
    for header in (*LENGTHS, "all"):
        result.add_column(header, justify="right")
    for name, row in right.items():
        shown = (f"{value:.1f}" for value in (*row.values(), sum(row.values()) / len(row)))
        result.add_row(name, *shown, style="bold" if name == "all" else "")
    return result


def picture(shown: list[tuple[list[str], list[str], torch.Tensor]]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    for axes, (source, said, looked) in zip(figure.subplots(2, 2).flat, shown, strict=True):
        alignments(axes, source, said, looked)
    return figure


def main(steps: Steps = None, seed: Seed = 0, out: Out = "runs", short: Short = False) -> None:
    """Read dates in ten languages, and look where the network looks."""
    prepare(out, steps=steps)
    check_seed(seed)
    steps = steps or (60 if short else 300)
    tests = 5 if short else TESTS
    dates, draw = Dates(), random.Random(seed)
    seen, held_out = split(draw)
    source, target = dates.symbols(), Symbols(["0123456789-"])
    torch.manual_seed(seed)
    model = fastlstm.Seq2Seq(len(source), len(target), EMBEDDING, HIDDEN)

    def some() -> list[Pair]:
        return [dates.pair(draw.choice(seen), draw.choice(LANGUAGES), draw.choice(LENGTHS)) for _ in range(BATCH)]

    with bar() as progress:
        task = progress.add_task("", total=steps)
        losses = train(model, source, target, some, steps, LR, lambda loss: progress.advance(task))

    console = Console()
    right: dict[str, dict[str, float]] = {}
    for language, locale in dates.locales.items():
        name = locale.english_name
        right[name] = {}
        for length in LENGTHS:
            pairs = [dates.pair(day, language, length) for day in draw.sample(held_out, tests)]
            found = translate(model, source, target, [text for text, _ in pairs], max_length=12)
            right[name][length] = (
                100 * sum(said == day for (said, _), (_, day) in zip(found, pairs, strict=True)) / tests
            )
    right["all"] = {length: sum(row[length] for row in right.values()) / len(LANGUAGES) for length in LENGTHS}
    console.print(table(right, tests))
    texts = [dates.written(SHOWN, *kind) for kind in (("en", "full"), ("hu", "long"), ("en", "short"), ("el", "full"))]
    found = translate(model, source, target, texts, max_length=12)
    shown = [(text, said, looked) for text, (said, looked) in zip(texts, found, strict=True)]
    results = {"right": right, "exact": sum(right["all"].values()) / len(LENGTHS), "losses": losses}
    save(picture(shown), results, out, "dates")


app = command(main)

if __name__ == "__main__":
    app()
