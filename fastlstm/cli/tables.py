"""What `fastlstm bench` shows."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fastlstm.benchmarks.report import Tables

SHAPES = ("L x H", "I", "T", "B", "stands for")  # only in the pages' tables: a terminal has 80 columns
WORDS = ("module", "case", "work", "peer", "b is", "left as it is", "name", "stands for it")
MOST_REASONS = 8
LEAST_CASE = 20  # columns of a case, which is folded


def rich_table(tables: "Tables", title: str = "") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, padding=(0, 1, 0, 0))
    shown = [i for i, header in enumerate(tables.headers) if header not in SHAPES]
    for i in shown:
        words = tables.headers[i] in WORDS
        least = LEAST_CASE if tables.headers[i] == "case" else None
        side: Any = "left" if words else "right"
        table.add_column(tables.headers[i], justify=side, overflow="fold", min_width=least, no_wrap=not words)
    for row in tables.rows:
        table.add_row(*[row[i] for i in shown])
    return table


def say(console: Console, lines: list[str]) -> None:
    console.print(*lines, sep="\n", highlight=False, soft_wrap=True)


def show_result(console: Console, result: dict[str, Any]) -> None:
    """The tables of what was measured, and why the rest was not."""
    from fastlstm.benchmarks import report
    from fastlstm.benchmarks.names import MODES, MODULES

    for v, m in product(MODULES, MODES):
        main = report.main_table(result, v, m)
        if main.rows:
            console.print(rich_table(main, f"{MODULES[v]}, {MODES[m]}"), *report.mean_lines(result, v, m), sep="\n")
    others = report.peer_table(result)
    if others.rows:
        console.print(rich_table(others, "other peers"))
    say(console, report.notes(result))
    reasons: dict[str, list[dict]] = {}
    for row in result["rows"]:
        if "reason" in row and not row.get("miss"):
            reasons.setdefault(f"against {row['against']}: {row['reason']}", []).append(row)
    lines = [f"Left out, {len(rows)} of {len(result['rows'])} rows: {reason}." for reason, rows in reasons.items()]
    say(console, lines[:MOST_REASONS] + (["..."] if len(lines) > MOST_REASONS else []))


def show_cases(device: str) -> None:
    from fastlstm.benchmarks.cases import STANDS_FOR, default_cases
    from fastlstm.benchmarks.report import Tables

    rows = [[name, str(case), STANDS_FOR[name]] for name, case in default_cases(device).items()]
    Console().print(rich_table(Tables(["name", "case", "stands for it"], rows)))
    print(
        "Each is measured of every variant that takes it, in training and inference; docs/cases.md says what the words mean."
    )


def show_comparison(a: Path, b: Path) -> None:
    from fastlstm.benchmarks import results
    from fastlstm.benchmarks.compare import compared

    try:
        tables, notes = compared(results.read(a), results.read(b))
    except (OSError, results.ResultError) as error:
        raise typer.BadParameter(f"--compare: {error}") from error
    console = Console()
    if tables.rows:
        console.print(rich_table(tables))
    say(console, notes)


def show_prediction(console: Console, trace: dict, kept: list, left: list, result: dict) -> None:
    from fastlstm.benchmarks.predict import told

    ours, others, words = told(trace, kept, left, result)
    for tables in (ours, others):
        if tables.rows:
            console.print(rich_table(tables))
    say(console, words)
