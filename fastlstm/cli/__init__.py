"""The command line: one file per command, assembled here."""

from typing import Annotated

import typer

from fastlstm.cli.bench import bench
from fastlstm.cli.info import info
from fastlstm.cli.parity import parity
from fastlstm.cli.train import train
from fastlstm.version import __version__

app = typer.Typer(
    help="Fast recurrent networks in PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (info, parity, bench, train):
    app.command()(command)


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
