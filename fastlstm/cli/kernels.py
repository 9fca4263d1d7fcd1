"""`fastlstm info --kernels`: what the GPU kernels compile to, with or without a GPU."""

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fastlstm.gpu.catalogue import Compiled

# Bytes per thread that may not fit into registers, and lie in memory instead. Nobody has tuned tiles for AMD's GPUs yet.
SPILL_BUDGET = {"sm_80": 128, "sm_90": 32, "gfx942": 1024}


def show_kernels(targets: list[str] | None, dtypes: list[str] | None, as_json: bool) -> None:
    """Compile the catalogue and print it; exits with 1 where a kernel doesn't compile, or spills more than SPILL_BUDGET."""
    import importlib.util

    if importlib.util.find_spec("triton") is None:
        raise typer.BadParameter("--kernels needs triton, which is not installed; run: pip install triton")
    from fastlstm.cli.checks import known, known_dtypes
    from fastlstm.gpu.catalogue import DTYPES, TARGETS, compile_all, entries

    wanted = known_dtypes(dtypes, DTYPES)
    jobs = [(entry, target) for target in known("--target", targets, TARGETS) for entry in entries(target, wanted)]
    rows = list(progress(compile_all(jobs, max(1, min(8, os.cpu_count() or 1))), len(jobs)))
    failed = [row for row in rows if not fits(row)]
    if as_json:
        print(json.dumps([facts(row) for row in rows], indent=1))
    else:
        from rich.console import Console

        console = Console()
        for target in dict.fromkeys(row.target for row in rows):
            console.print(table(target, [row for row in rows if row.target == target]))
        console.print(
            "*: weights stay on chip. Tile: sequences x units x features, of attention slots x features. "
            "Spill: bytes per thread; shared: bytes. Of a step of a resident kernel: loads of rows that wait for each other "
            "and matrix instructions that do (in one block of features), barriers behind these, and transcendentals before the "
            "wait and behind it"
        )
        console.print(f"{len(rows)} kernels, {len(failed)} that don't compile or spill more than is budgeted")
    for row in failed:
        reason = f"spills {row.resources.spilled} bytes" if row.resources else row.error
        typer.echo(f"{row.target}: {title(row)}: {reason}", err=True)
    if failed:
        raise typer.Exit(1)


def progress(compiled: Iterable["Compiled"], total: int) -> Iterable["Compiled"]:
    from rich.console import Console
    from rich.progress import track

    return track(compiled, "compiling", total, console=Console(stderr=True), transient=True)


def fits(row: "Compiled") -> bool:
    return row.resources is not None and row.resources.spilled <= SPILL_BUDGET[row.target]


def facts(row: "Compiled") -> dict[str, object]:
    """One row as plain data."""
    spec = row.entry.spec
    constants = {key: value if isinstance(value, (int, str)) else str(value) for key, value in spec.constants}
    found = row.resources._asdict() if row.resources else {"error": row.error}
    found |= row.step._asdict() if row.step else {}
    sizes = {"variant": row.entry.variant, "dtype": row.entry.dtype, "B": row.entry.B, "H": row.entry.H}
    return {"target": row.target, "kernel": spec.name, **sizes, "warps": spec.warps, **found, "constants": constants}


def title(row: "Compiled") -> str:
    entry = row.entry
    return f"{entry.spec.name} of {entry.variant}, {entry.dtype}, B {entry.B}, H {entry.H}"


def tile_of(constants: dict[str, Any]) -> str:
    """Sequences x units x features; of one sequence's attention, or of its keys, slots x features."""
    if "BS" in constants:
        return f"{constants['BS']}x{constants['BA']}"
    return f"{constants['BM']}x{constants['BH']}x{constants['BK'] + constants.get('BK2', 0)}"


def table(target: str, rows: list["Compiled"]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(
        title=target, title_justify="left", box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False
    )
    table.add_column("variant", overflow="fold")
    for name in ("pass", "dtype", "form"):
        table.add_column(name, no_wrap=True)
    for name in ("B x H", "tile", "regs", "spill", "shared", "step"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        entry, constants = row.entry, dict(row.entry.spec.constants)
        form = ("resident" if constants.get("PERSISTENT") else "steps") + ("*" if constants.get("KEEP") else "")
        tile = tile_of(constants)
        found = [str(n) for n in row.resources] if row.resources else ["-", "-", "-"]
        found.append(" ".join(map(str, row.step)) if row.step else "-")
        kind = entry.spec.name.split("_")[-1]
        table.add_row(entry.variant, kind, entry.dtype, form, f"{entry.B} x {entry.H}", tile, *found)
    return table
