"""`fastlstm train`."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from fastlstm.backends import VARIANTS
from fastlstm.cli.checks import MOST_THREADS
from fastlstm.training import processes
from fastlstm.training.checkpoint import prepare_folder
from fastlstm.training.errors import TrainError
from fastlstm.training.options import DTYPES, NAMES, Options
from fastlstm.training.progress import train_with_progress
from fastlstm.training.report import print_report
from fastlstm.training.run import Run, begin, resume

DEFAULT = Options()


def train(
    context: typer.Context,
    variant: Annotated[str, typer.Option(help=f"Recurrent layer: {', '.join(VARIANTS)}.")] = DEFAULT.variant,
    layers: Annotated[int, typer.Option(help="Recurrent layers.")] = DEFAULT.layers,
    hidden: Annotated[int, typer.Option(help="Hidden units per layer.")] = DEFAULT.hidden,
    embedding: Annotated[int, typer.Option(help="Size of a character's embedding.")] = DEFAULT.embedding,
    batch: Annotated[int, typer.Option(help="Streams of text side by side.")] = DEFAULT.batch,
    length: Annotated[int, typer.Option(help="Characters per stream and step.")] = DEFAULT.length,
    steps: Annotated[int, typer.Option(help="Training steps.")] = DEFAULT.steps,
    lr: Annotated[
        float, typer.Option(help="Learning rate of AdamW at the start; it falls along a cosine.")
    ] = DEFAULT.lr,
    clip: Annotated[float, typer.Option(help="Largest norm of all gradients together; 0: no clipping.")] = DEFAULT.clip,
    seed: Annotated[int, typer.Option(help="Decides weights, batches and the sample.")] = DEFAULT.seed,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = DEFAULT.device,
    dtype: Annotated[str, typer.Option(help=f"Of weights and arithmetic: {', '.join(DTYPES)}.")] = DEFAULT.dtype,
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="UTF-8 text to learn; without it, Python's own help texts.")
    ] = DEFAULT.text,
    compare: Annotated[
        str | None, typer.Option(metavar="torch", help="Train PyTorch's own module too, from the same weights.")
    ] = DEFAULT.compare,
    checkpoint: Annotated[Path | None, typer.Option(metavar="DIR", help="Save checkpoints here.")] = None,
    resume_run: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest one in --checkpoint, with its options.")
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps from one checkpoint to the next.")] = 100,
    sample: Annotated[int, typer.Option(help="Characters to generate at the end.")] = 400,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the picture losses.png.")] = Path("runs"),
    threads: Annotated[int | None, typer.Option(help="CPU threads; without it, PyTorch's choice.")] = None,
) -> None:
    """Train a character model on real text; with --compare torch, beside PyTorch's own module.

    Started by torchrun, each process trains on its share of the --batch streams.
    """
    values = {name: context.params[name] for name in NAMES}
    given = {name: value for name, value in values.items() if _is_given(context, name)}
    console = Console(quiet=processes.rank() > 0)

    def start() -> Run:
        for name, value, least in (("save-every", save_every, 1), ("sample", sample, 0), ("threads", threads, 1)):
            if value is not None and value < least:
                raise TrainError(f"--{name} is {value}, expected at least {least}")
        if threads is not None and threads > MOST_THREADS:
            raise TrainError(f"--threads is {threads}, expected at most {MOST_THREADS}")
        if threads is not None:
            torch.set_num_threads(threads)
        if not resume_run:
            run = begin(Options(**values), checkpoint)
        elif checkpoint is None:
            raise TrainError("--resume needs --checkpoint DIR, the folder of the run to go on with")
        else:
            run = resume(checkpoint, given)
        prepare_folder(out)
        return run

    try:
        with processes.joined():
            run = processes.together(start)
            if not train_with_progress(run, save_every, console):
                raise typer.Exit(130)
        if processes.rank() == 0:
            print_report(run, sample, out, console)
    except TrainError as error:
        if processes.rank() == 0:
            typer.echo(f"fastlstm train: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the option stands on the command line: only such ones can contradict the run that is resumed."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
