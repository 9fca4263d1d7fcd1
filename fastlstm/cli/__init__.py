"""The command line: one file per command, assembled here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastlstm.cli.bench import bench
from fastlstm.cli.info import info
from fastlstm.cli.parity import parity
from fastlstm.cli.trace import trace
from fastlstm.cli.train import train
from fastlstm.version import __version__


class Commands(TyperGroup):
    """An error is one line on stderr, whichever command it is of; typer draws boxes, which break it at 80 columns."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:  # help, as an exception
            return super().parse_args(ctx, args)
        with one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with one_line(ctx):
            return super().invoke(ctx)


UsageError: Any = typer.BadParameter.__base__  # click's; younger versions of typer have a copy of click


@contextmanager
def one_line(ctx: Any) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        where = "fastlstm" if error.ctx in (None, ctx) else f"fastlstm {error.ctx.info_name}"
        names_option = isinstance(error, typer.BadParameter) and error.param is None  # ours does
        typer.echo(f"{where}: {error.message if names_option else error.format_message()}", err=True)
        raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=Commands,
    help="Fast recurrent networks in PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (info, parity, bench, train):
    app.command()(command)
app.command(context_settings={"allow_interspersed_args": False})(trace)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fast recurrent networks in PyTorch."""


def main() -> None:
    app()
