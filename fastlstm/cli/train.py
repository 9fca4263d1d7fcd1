"""`fastlstm train`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastlstm.backends import VARIANTS
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
    dtype: Annotated[
        str, typer.Option(help=f"Of weights and arithmetic: {', '.join(DTYPES)}, or PyTorch's name.")
    ] = DEFAULT.dtype,
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
    save_every: Annotated[int, typer.Option(help="Steps from one checkpoint to the next.")] = DEFAULT.save_every,
    sample: Annotated[int, typer.Option(help="Characters to generate at the end.")] = DEFAULT.sample,
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder of the picture losses.png.")] = DEFAULT.out,
    threads: Annotated[int | None, typer.Option(help="CPU threads; without it, PyTorch's choice.")] = DEFAULT.threads,
) -> None:
    """Train a character model on real text; with --compare torch, beside PyTorch's own module.

    Ctrl-C and SIGTERM end the block of ten steps, save, and exit with 130 and 143; --resume goes on as if nothing had been.
    Started by torchrun, each process trains on its share of the --batch streams.
    """
    values = {name: context.params[name] for name in NAMES}
    given = {name: value for name, value in values.items() if _is_given(context, name)}
    console = Console(quiet=processes.rank() > 0)

    def start() -> Run:
        if not resume_run:
            run = begin(Options(**values), checkpoint)
        elif checkpoint is None:
            raise TrainError("--resume needs --checkpoint DIR, the folder of the run to go on with")
        else:
            run = resume(checkpoint, given)
        prepare_folder(Path(run.options.out))
        return run

    try:
        with processes.joined():
            run = processes.together(start)
            if stopped_by := train_with_progress(run, console):
                raise typer.Exit(128 + stopped_by)
        if processes.rank() == 0:
            print_report(run, console)
    except TrainError as error:
        if processes.rank() > 0:
            raise typer.Exit(error.exit_code) from None
        failure = typer.BadParameter(str(error))
        failure.exit_code = error.exit_code
        raise failure from None


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the option stands on the command line: only such ones can contradict the run that is resumed."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
