"""`fastlstm parity`."""

import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastlstm.backends import ATTENTION, CONVOLUTIONAL, VARIANTS
from fastlstm.cli.checks import check_device, check_writable, known, known_dtypes

if TYPE_CHECKING:
    from fastlstm.parity import Row

BACKENDS = ["numba", "triton", "reference"]
KINDS = VARIANTS | CONVOLUTIONAL | ATTENTION


def parity(
    backend: Annotated[list[str] | None, typer.Option(help="Backends to check; all that run here.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32, bf16, fp16, fp64; all that the backend takes.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help=f"{', '.join(KINDS)}; all.")] = None,
    case: Annotated[str, typer.Option(help="Only cases whose name contains this.")] = "",
    device: Annotated[str, typer.Option(help="Where the backend runs.")] = "cpu",
    verbose: Annotated[bool, typer.Option(help="Every quantity against every oracle, not only the worst.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every error to this file.")] = None,
) -> None:
    """Compare every backend with the oracles: outputs, final states and all gradients.

    Oracles: the reference and PyTorch's module in float64, and ONNX Runtime where it is installed. Allowed is twice the error
    that PyTorch makes in the same dtype, plus one rounding. Each case is run by its op, through a module, and a decoder step
    after step as well. Exits with 1 where an error is larger.
    """
    from fastlstm.parity import CASES, DTYPES, LEVELS, check, skip

    backends = known("--backend", backend, BACKENDS)
    dtypes = known_dtypes(dtype, DTYPES)
    variants = known("--variant", variant, KINDS)
    check_device(device)
    check_writable("--json", json_file)
    names = [name for name in CASES if case in name and CASES[name].variant in variants]
    if not names:
        raise typer.BadParameter(f"--case is {case!r}, expected a part of one of {', '.join(CASES)}")
    combinations = [
        (name, d, b, level)
        for name, d, b, level in product(names, dtypes, backends, LEVELS)
        if skip(name, d, b, level, device) is None
    ]
    if not combinations:
        raise typer.BadParameter(str(skip(names[0], dtypes[0], backends[0], "op", device)))

    console = Console()
    compile_ahead(combinations, device)
    progress = track(combinations, "parity", console=console, transient=True)
    rows = [row for combination in progress for row in check(*combination, device)]
    missed = [row for row in rows if not row.ok]
    shown = rows if verbose else worst(rows)
    for b, d in dict.fromkeys((row.backend, row.dtype) for row in shown):
        console.print(table(f"{b}, {d}", [row for row in shown if (row.backend, row.dtype) == (b, d)]))
    console.print(f"{len(rows)} errors of {len(combinations)} runs compared, {len(missed)} above what is allowed")
    if json_file:
        json_file.write_text(json.dumps([row._asdict() | {"ok": row.ok} for row in rows], indent=1) + "\n")
    if missed:
        raise typer.Exit(1)


def compile_ahead(combinations: list[tuple[str, str, str, str]], device: str) -> None:
    """Compile the GPU kernels of all combinations at once: they are many hundreds."""
    from fastlstm.gpu import ahead
    from fastlstm.parity.compare import DTYPES, problems
    from fastlstm.parity.runs import run, stacked

    cases = [(name, dtype) for name, dtype, backend, level in combinations if (backend, level) == ("triton", "op")]
    if cases:
        work = (partial(run, problems(name, d)[0], DTYPES[d], stacked("triton"), device) for name, d in cases)
        ahead.compile_ahead(work, torch.device(device))


def worst(rows: list["Row"]) -> list["Row"]:
    """The row nearest to its limit, or furthest above, of each case, level, backend and dtype."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        other = found.setdefault(row[:4], row)
        # A NaN is never ok and compares with nothing.
        if not (row.error / row.allowed <= other.error / other.allowed):
            found[row[:4]] = row
    return list(found.values())


def table(title: str, rows: list["Row"]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    for header in ("case", "level", "quantity", "oracle"):
        table.add_column(header, no_wrap=True)
    for header in ("error", "allowed", ""):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        verdict = "[green]ok[/]" if row.ok else "[bold red]MISS[/]"
        table.add_row(row.case, row.level, row.quantity, row.oracle, f"{row.error:.1e}", f"{row.allowed:.1e}", verdict)
    return table
