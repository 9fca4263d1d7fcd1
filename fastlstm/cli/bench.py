"""`fastlstm bench`."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fastlstm.backends import ATTENTION, CONVOLUTIONAL, VARIANTS
from fastlstm.cli.cases import complete, named
from fastlstm.cli.checks import MOST_THREADS, check_device, check_writable, known, known_dtypes

if TYPE_CHECKING:
    from fastlstm.benchmarks.report import Tables

AGAINST = (
    "torch", "cell", "channels-last", "keras", "joeynmt", "sdpa", "checkpoint", "compile", "compile-ours", "onnx", "dense",
    "lstm", "cut", "fp32",
)  # fmt: skip
MODES = ("train", "infer")
KINDS = VARIANTS | CONVOLUTIONAL | ATTENTION
DTYPES = ("fp32", "bf16", "fp16", "fp64")


def bench(
    case: Annotated[
        list[str] | None, typer.Option(help="Cases to measure, by name or as docs/cases.md says; all of the device's.")
    ] = None,
    variant: Annotated[list[str] | None, typer.Option(help=f"{', '.join(KINDS)}; all.")] = None,
    against: Annotated[
        list[str] | None, typer.Option(help=f"Peers: {', '.join(AGAINST)}; torch, or cell where it lacks it.")
    ] = None,
    mode: Annotated[list[str] | None, typer.Option(help="train, infer; both.")] = None,
    dtype: Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}; what the cases say, or fp32.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="PyTorch's threads; as many as PyTorch takes.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Interleaved pairs per case.")] = 21,
    device: Annotated[str, typer.Option(help="Where to measure.")] = "cpu",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write every ratio to this file; in a folder, named after the machine."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the speed-ups over torch.nn.LSTM into this picture.")] = None,
    add: Annotated[
        bool,
        typer.Option("--add", help="Keep the rows of --json's file that are not measured anew, from this machine."),
    ] = False,
    readme: Annotated[
        Path | None, typer.Option(help="Measure nothing: write README.md's table and picture from this result.")
    ] = None,
) -> None:
    """Measure the speed of every case against PyTorch and other peers.

    A peer is timed only after its outputs and gradients agree with float64's. Pairs are interleaved in one process, and the
    ratio is taken pair by pair. A speed-up above 1 means that fastlstm is the faster. "compile" takes minutes to compile.
    "dense" compares packed input with as many dense steps of our own, "lstm" a variant with our own LSTM or ConvLSTM, "cut"
    resets with PyTorch's module on the pieces in between. Of ConvLSTMs, "cell" is a loop over one convolution,
    "channels-last" the same in that layout, "checkpoint" our own with checkpoint=True. Of decoders with attention, "cell" is a
    loop over nn.LSTMCell, "joeynmt" JoeyNMT's, "sdpa" PyTorch's LSTM and attention where nothing is fed. Exits with 1 where
    results disagree.
    """
    from fastlstm.benchmarks import report, results, runner
    from fastlstm.benchmarks.cases import default_cases, main_peer
    from fastlstm.benchmarks.names import MODES as MODE_NAMES
    from fastlstm.benchmarks.names import MODULES
    from fastlstm.benchmarks.plot import drawn
    from fastlstm.benchmarks.plot import plot as draw
    from fastlstm.benchmarks.readme import DETAILS, update_readme

    if readme:
        try:
            pictures = update_readme(readme, Path("README.md"))
            print(f"README.md, {DETAILS} and {', '.join(map(str, pictures))} are written")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise typer.BadParameter(f"--readme is {readme}, expected a result written by --json: {error}") from error
        return

    variants = known("--variant", variant, KINDS)
    peers = known("--against", against, AGAINST) if against else []
    modes = known("--mode", mode, MODES)
    (dtype,) = known_dtypes([dtype], DTYPES) if dtype else (None,)
    given = [named(text) for text in case or default_cases(device)]
    dtypes = list(dict.fromkeys(filter(None, [*(one.dtype for _, one in given), dtype]))) or ["fp32"]
    if len(dtypes) > 1:
        raise typer.BadParameter(f"--dtype and --case say {' and '.join(dtypes)}, expected one dtype at a time")
    measured = complete(given, variant=variants, dtype=dtypes, mode=modes)
    check_device(device)
    if json_file and not json_file.is_dir():
        check_writable("--json", json_file)
    check_writable("--plot", plot, endings=("png", "pdf", "svg", "jpg"))
    if threads:
        torch.set_num_threads(threads)
    result = results.new("bench", device) | {"dtype": dtypes[0], "pairs": pairs, "rows": []}
    if json_file and json_file.is_dir():
        json_file = json_file / f"{result['machine']['name']}{'' if dtypes == ['fp32'] else f'-{dtypes[0]}'}.json"

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        work = [(name, one, peer) for name, one in measured for peer in peers or [main_peer(one.kind.name)]]
        result["rows"] = kept_rows(json_file, result, {(str(one), peer) for _, one, peer in work}) if add else []
        task = progress.add_task("compiling" if device != "cpu" else "", total=len(work))
        if device != "cpu":
            runner.compile_ahead([(one, peer) for _, one, peer in work], device)
        for name, one, peer in work:
            progress.update(task, description=f"{one.variant}, {name or one}, {one.mode}, against {peer}")
            result["rows"].append(runner.measure(one, peer, name=name, pairs=pairs, device=device))
            progress.advance(task)
            if json_file:
                results.write(result, json_file)

    for v, m in product(variants, modes):
        main = report.main_table(result, v, m)
        if main.rows:
            title = f"{MODULES[v]}, {MODE_NAMES[m]}"
            console.print(rich_table(main, title), *report.mean_lines(result, v, m), sep="\n")
    others = report.peer_table(result)
    if others.rows:
        console.print(rich_table(others, "other peers"))
    console.print(*report.notes(result), sep="\n", highlight=False, soft_wrap=True)
    if plot and drawn(result):
        draw(result, plot)
    if any(row.get("miss") for row in result["rows"]):
        raise typer.Exit(1)


def kept_rows(file: Path | None, result: dict, anew: set[tuple[str, str]]) -> list[dict]:
    """The rows of an earlier result of the same machine, dtype and pairs that are not to be measured anew."""
    if file is None or not file.exists():
        return []
    from fastlstm.benchmarks import results

    try:
        earlier = results.read(file)
    except results.ResultError as error:
        raise typer.BadParameter(f"--add: {error}") from error
    rows = [r for r in earlier["rows"] if (r["case"], r["against"]) not in anew]
    was, now = (
        [str(r["machine"].get(key)).rstrip("+") for key in ("name", "torch", "commit")] for r in (earlier, result)
    )
    if was != now or any(earlier[key] != result[key] for key in ("dtype", "pairs")):
        raise typer.BadParameter(
            f"--add: {file} is of another machine, torch, commit, dtype or number of pairs than asked for now"
        )
    return rows


SHAPES = ("L x H", "I", "T", "B", "stands for")  # only in the README's table: a terminal has 80 columns


def rich_table(tables: "Tables", title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, padding=(0, 1, 0, 0))
    shown = [i for i, header in enumerate(tables.headers) if header not in SHAPES]
    for i in shown:
        words = tables.headers[i] in ("module", "case", "work", "peer")
        table.add_column(tables.headers[i], justify="left" if words else "right", overflow="fold")
    for row in tables.rows:
        table.add_row(*[row[i] for i in shown])
    return table
