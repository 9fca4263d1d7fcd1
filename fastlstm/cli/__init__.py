"""The command line: one file per command, assembled here."""

import typer

from fastlstm.cli.bench import bench
from fastlstm.cli.info import info
from fastlstm.cli.parity import parity
from fastlstm.cli.train import train

app = typer.Typer(
    help="Fast recurrent networks in PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (info, parity, bench, train):
    app.command()(command)


def main() -> None:
    app()
