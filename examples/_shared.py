"""What the scripts share: one-line errors, checks, the progress bar, and the files that they write."""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Steps = Annotated[int | None, typer.Option(help="Training steps of each network; without it, what the form takes.")]
Seed = Annotated[int, typer.Option(help="Decides weights and batches.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the picture and of the numbers in it, as JSON.")]
Short = Annotated[bool, typer.Option("--short", help="A few seconds: shows that it runs, not what can be learned.")]


class ExampleError(Exception):
    """An option, or something on this machine, can't be used: the message says what and why."""


def command(main: Callable[..., None]) -> typer.Typer:
    """The script as a command line, on which an ExampleError is one line on stderr and exit status 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    @wraps(main)
    def run(*args: Any, **options: Any) -> None:
        try:
            main(*args, **options)
        except ExampleError as error:
            typer.echo(f"{Path(main.__code__.co_filename).name}: {error}", err=True)
            raise typer.Exit(2) from None

    return app


def prepare(out: Path, **at_least_one: int | None) -> None:
    """Checks the options and makes the folder, before anything is trained."""
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise ExampleError(f"--{name} is {value}, expected at least 1")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ExampleError("matplotlib is missing; run: pip install 'fastlstm[examples]'") from None
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExampleError(f"cannot make --out {out}: {error.strerror}") from None


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ExampleError(f"--seed is {seed}, expected 0 to 2^32 - 1")


def bar() -> Progress:
    return Progress(
        MofNCompleteColumn(),
        TextColumn("steps"),
        BarColumn(bar_width=None),
        TextColumn("{task.description}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        expand=True,
    )


def save(figure: Any, results: dict[str, Any], out: Path, name: str) -> None:
    """Writes `out`/`name`.png and `out`/`name`.json, and says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    for axes in figure.axes:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(out / f"{name}.png", dpi=100)
        (out / f"{name}.json").write_text(json.dumps(results) + "\n")
    except OSError as error:
        raise ExampleError(f"cannot write {error.filename}: {error.strerror}") from None
    typer.echo(f"Picture: {out / name}.png; its numbers: {out / name}.json")
