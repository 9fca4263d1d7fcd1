"""`fastlstm parity`."""

import time
from contextlib import AbstractContextManager, nullcontext
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
from fastlstm.case import Case
from fastlstm.cli.cases import Named, complete, named
from fastlstm.cli.checks import check_device, check_writable, goes_on, known, known_dtypes, known_impl

if TYPE_CHECKING:
    from fastlstm.parity import Row

BACKENDS = ["numba", "triton", "reference"]
EVERY_S = 10.0  # what is known so far is written so often
KINDS = VARIANTS | CONVOLUTIONAL | ATTENTION


def parity(
    backend: Annotated[list[str] | None, typer.Option(help="Backends to check; all that run here.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32, bf16, fp16, fp64; all that the backend takes.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help=f"{', '.join(KINDS)}; all.")] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(help="A case by its name or as docs/cases.md says, or a part of the names of several; all."),
    ] = None,
    impl: Annotated[
        str | None,
        typer.Option(help="Somebody's implementation, package.module:name, in the place of backends; needs --variant."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the backend runs.")] = "cpu",
    verbose: Annotated[bool, typer.Option(help="Every quantity against every oracle, not only the worst.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every error to this file.")] = None,
) -> None:
    """Compare every backend with the oracles: outputs, final states and all gradients.

    Oracles: the reference and PyTorch's module in float64, and ONNX Runtime where it is installed. Allowed is twice the error
    that PyTorch makes in the same dtype, plus one rounding. Each case is run by its op, through a module, and a decoder step
    after step as well. Exits with 1 where an error is larger.

    --impl holds somebody's implementation to the same: a class with nn.LSTM's constructor and parameter names, or a function
    from our module to a callable. What it raises is shown, as refused. docs/parity.md says more.
    """
    from fastlstm.benchmarks import results
    from fastlstm.parity import CASES, DTYPES, LEVELS, check, skip
    from fastlstm.parity.impl import Comparison, load, told

    backends = known("--backend", backend, BACKENDS)
    dtypes = known_dtypes(dtype, DTYPES)
    variants = known("--variant", variant, KINDS)
    check_device(device)
    check_writable("--json", json_file)
    asked = chosen(case, CASES)
    cases = complete(asked, variant=variants, dtype=dtypes)
    names = {str(one): name for name, one in cases if name}
    thing: object = None
    if impl:
        if not variant and not (case and all(one.variant for _, one in asked)):
            raise typer.BadParameter("--impl needs --variant as well: whose equations are those?")
        known_impl(impl)
        thing = load(impl)
        combinations = [(one, impl, "impl") for _, one in cases if not one.reverse]
    else:
        combinations = [
            (one, b, level)
            for (_, one), b, level in product(cases, backends, LEVELS)
            if skip(one, None, b, level, device) is None
        ]
    if not combinations:
        raise typer.BadParameter(str(skip(cases[0][1], None, backends[0], "op", device)))

    console, found = Console(), Comparison(impl or "")
    failed: list[dict[str, str]] = []  # runs of backends that raised
    left, since = len(combinations), time.monotonic()

    def write() -> None:
        """All that is known so far: who is ended before the end leaves that."""
        written: list[dict] = [row._asdict() | {"name": names.get(row.case), "ok": row.ok} for row in found.rows]
        for word in ("refused", "failed"):
            some: dict[str, str] = getattr(found, word)
            written += [{"case": line, "backend": impl, word: why} for line, why in some.items()]
        if json_file:
            results.write([*written, *failed, *([{"left": left}] if left else [])], json_file)

    with compiling_ahead(combinations, device):
        for one, b, level in track(combinations, "parity", console=console, transient=True):
            left -= 1
            if thing is not None:
                found.hold(thing, one, device)
            else:
                try:
                    found.rows += check(one, None, b, level, device)
                except Exception as error:  # of one run: the others are to be compared
                    failed.append({"case": str(one), "level": level, "backend": b, "failed": told(error)})
                    if not goes_on(device):
                        break
            if time.monotonic() - since > EVERY_S:
                write()
                since = time.monotonic()
    rows, missed = found.rows, found.missed
    shown = rows if verbose else worst(rows)
    for b, d in dict.fromkeys((row.backend, row.dtype) for row in shown):
        console.print(table(f"{b}, {d}", [row for row in shown if (row.backend, row.dtype) == (b, d)], names))
    if thing is not None:
        console.print(str(found), highlight=False, soft_wrap=True, markup=False)
    for one_failed in failed:
        console.print("FAILED {backend}, {level}: {case}: {failed}".format(**one_failed), soft_wrap=True, markup=False)
    more = f", {len(failed)} runs failed" if failed else ""
    more += f"; the GPU refuses to go on, {left} runs are left" if left else ""
    said = f"{len(rows)} errors of {len(combinations)} runs compared, {len(missed)} above what is allowed{more}"
    console.print(said, soft_wrap=True)
    option, where = "--impl" if impl else "--backend", "" if device == "cpu" else f" --device {device}"
    for line, who in dict.fromkeys((row.case, row.backend) for row in missed):
        console.print(f"fastlstm parity --case '{line}' {option} {who}{where}", soft_wrap=True, highlight=False)
    write()
    if not found.ok or failed:
        raise typer.Exit(1)


def chosen(texts: list[str] | None, names: dict[str, Case]) -> list[Named]:
    """What --case asks for: a name or a line, or a part of the names of some."""
    from fastlstm.benchmarks.cases import CASES as measured

    found: list[Named] = []
    for text in texts or [""]:
        some = [] if text in measured else [(name, case) for name, case in names.items() if text in name]
        found += [(text, names[text])] if text in names else some or [named(text)]
    return found


def compiling_ahead(combinations: list[tuple[Case, str, str]], device: str) -> AbstractContextManager:
    """Inside, the GPU kernels of all combinations are compiled meanwhile: they are many hundreds."""
    from fastlstm.gpu import ahead
    from fastlstm.parity import DTYPES
    from fastlstm.parity.compare import exact_products, problems
    from fastlstm.parity.runs import run, stacked

    cases = [one for one, backend, level in combinations if (backend, level) == ("triton", "op")]
    if not cases:
        return nullcontext()

    def exactly(one: Case) -> None:
        with exact_products():  # as `check` runs it: products in TF32 are other kernels
            run(problems(one)[0], DTYPES[one.dtype or ""], stacked("triton"), device)

    return ahead.compiling([partial(exactly, one) for one in cases], torch.device(device))


def worst(rows: list["Row"]) -> list["Row"]:
    """The row nearest to its limit, or furthest above, of each case, level, backend and dtype."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        other = found.setdefault(row[:4], row)
        # A NaN is never ok and compares with nothing.
        if not (row.error / row.allowed <= other.error / other.allowed):
            found[row[:4]] = row
    return list(found.values())


def table(title: str, rows: list["Row"], names: dict[str, str]) -> Table:
    """Figures and verdicts never shrink; names are folded where the terminal is narrow."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, pad_edge=False)
    for header in ("case", "level", "quantity", "oracle"):
        table.add_column(header, overflow="fold")
    for header in ("error", "allowed", ""):
        table.add_column(header, justify="right", no_wrap=True, min_width=7 if header else 4)
    for row in rows:
        verdict = "[green]ok[/]" if row.ok else "[bold red]MISS[/]"
        figures = f"{row.error:.1e}", f"{row.allowed:.1e}"
        table.add_row(names.get(row.case, row.case), row.level, row.quantity, row.oracle, *figures, verdict)
    return table
