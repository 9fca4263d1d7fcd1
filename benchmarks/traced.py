"""A trace as a table, and what it says of a whole run where its cases were measured."""

from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

MOST = 20  # rows that are shown


def table_of_trace(result: dict[str, Any]) -> str:
    """The calls that took the most time, and what share of the run they are."""
    rows = sorted(result["rows"], key=seconds, reverse=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("case", "calls", "forward s", "backward s"):
        table.add_column(header, justify="left" if header == "case" else "right", overflow="fold")
    for row in rows[:MOST]:
        table.add_row(named(row), f"{row['calls']:,}", f"{row['forward_s']:.3f}", f"{row['backward_s']:.3f}")
    whole, recurrent = run_s(result), sum(map(seconds, rows))
    lines = [
        f"{len(rows) - MOST} more cases took {sum(map(seconds, rows[MOST:])):.3f} s." if len(rows) > MOST else "",
        f"Recurrent calls: {recurrent:.2f} s of {whole:.2f} s, {recurrent / whole:.0%} of the run"
        + (f", which ended with {result['ended']}." if result["ended"] != "normally" else "."),
        f"{result['undescribed']} calls were not understood, and are not told." if result["undescribed"] else "",
    ]
    text = StringIO()
    console = Console(file=text, width=100, highlight=False)
    console.print(
        *([table] if rows else ["No recurrent call was seen."]), *filter(None, lines), sep="\n", soft_wrap=True
    )
    return text.getvalue()


def named(row: dict[str, Any]) -> str:
    """The case, and who runs it where that is no plain module of PyTorch's."""
    by = row["by"]
    plain = by.startswith("torch.nn.modules.rnn.")
    return row["case"] + ("" if plain else f"  ({'ours' if by == 'fastlstm' else by})")


def seconds(row: dict[str, Any]) -> float:
    return row["forward_s"] + row["backward_s"]


def run_s(result: dict[str, Any]) -> float:
    """The whole time of the program, without what it took to watch it."""
    return max(result["seconds"] - result["watching_s"], 1e-9)
