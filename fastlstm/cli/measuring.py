"""What `fastlstm bench` measures, row by row: progress, an interruption, and going on after one."""

import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastlstm.case import Case
from fastlstm.cli.checks import goes_on

Work = Sequence[tuple[str | None, Case, str]]  # name, case, peer
BUSY = 0.25  # CPUs that others keep busy, which is worth a word
INTERRUPTED = 130  # what a shell says of a process that Ctrl-C ended
EVERY_S = 10.0  # seconds between two lines, where there is no terminal


def measure_all(work: Work, result: dict, file: Path | None, device: str, memory: bool) -> bool:
    """Add a row to the result for each that it doesn't have, and write it after each. False where Ctrl-C ended it."""
    from fastlstm.benchmarks import results, runner
    from fastlstm.benchmarks.machine import Others
    from fastlstm.parity.impl import told as shortly

    have = {(row["case"], row["against"]) for row in result["rows"]}
    left = [(name, case, peer) for name, case, peer in work if (str(case), peer) not in have]
    others, told = Others(), Told(len(work), len(work) - len(left))
    time.sleep(0.2)
    warn(others.cpus(), "now")
    try:
        with told.progress:
            if device != "cpu" and left:
                told.now("compiling")
                runner.compile_ahead([(case, peer) for _, case, peer in left], device)
            for name, case, peer in left:
                told.now(f"{case.variant}, {name or case}, {case.mode}, against {peer}")
                alive = True
                try:
                    row = runner.measure(case, peer, name=name, pairs=result["pairs"], device=device, memory=memory)
                except Exception as error:  # of one row: the others are to be measured
                    typer.echo(traceback.format_exc(), err=True)
                    row = runner.head(case, peer, name) | {"reason": shortly(error), "miss": True}
                    alive = goes_on(device)
                result["rows"].append(row)
                told.done(row)
                if file:
                    results.write(result, file)
                if not alive:
                    typer.echo("The GPU refuses to go on: rows that are left are not measured.", err=True)
                    break
    except KeyboardInterrupt:
        on = (
            f"; the same command with --resume goes on from {file}"
            if file
            else "; with --json FILE, --resume could go on"
        )
        typer.echo(f"Interrupted: {len(result['rows'])} of {len(work)} rows are measured{on}.", err=True)
        return False
    result["others_cpus"] = others.cpus()
    warn(result["others_cpus"], "meanwhile, on average")
    if file:
        results.write(result, file)
    return True


def warn(cpus: float | None, when: str) -> None:
    if cpus is not None and cpus > BUSY:
        typer.echo(
            f"Warning: the machine is busy: other processes keep {cpus:.1f} CPUs ({when}). Times are longer, spreads wider.",
            err=True,
        )


class Told:
    """Progress on stderr: a bar, or where there is no terminal a line now and then."""

    def __init__(self, total: int, already: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.task = self.progress.add_task("", total=total, completed=already)
        self.lines, self.total, self.count = not console.is_terminal, total, already
        self.begin = self.last = time.monotonic()
        self.what = ""

    def now(self, what: str) -> None:
        self.what = what
        self.progress.update(self.task, description=what)

    def done(self, row: dict) -> None:
        from fastlstm.benchmarks.spread import spread

        self.count += 1
        self.progress.advance(self.task)
        if self.lines and (time.monotonic() - self.last >= EVERY_S or self.count in (1, self.total)):
            self.last = time.monotonic()
            found = str(spread(row)) if "ratios" in row else row["reason"]
            elapsed = f"{self.last - self.begin:.0f} s"
            typer.echo(f"{self.count} of {self.total}, {elapsed}: {self.what}: {found}", err=True)


def resumed(file: Path | None, result: dict) -> list[dict]:
    """The rows of a result of the same machine, torch, commit, dtype and pairs, to go on with; none where there is no file."""
    from fastlstm.benchmarks import results

    if file is None:
        raise typer.BadParameter("--resume is given without --json, expected both: it goes on with that file")
    if not file.exists():
        return []
    try:
        earlier = results.read(file)
    except (OSError, results.ResultError) as error:
        raise typer.BadParameter(f"--resume: {error}") from error
    for key in ("name", "torch", "commit"):
        was, now = (str(one["machine"].get(key)).rstrip("+") for one in (earlier, result))
        if was != now:
            raise typer.BadParameter(f"--resume: {file} has {key} {was} of its machine, expected {now}, as it is now")
    for key in ("dtype", "pairs"):
        if earlier[key] != result[key]:
            raise typer.BadParameter(
                f"--resume: {file} has {key} {earlier[key]}, expected {result[key]}, as asked for now"
            )
    return earlier["rows"]
