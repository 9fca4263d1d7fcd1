"""`fastlstm bench`."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from fastlstm.backends import ATTENTION, CONVOLUTIONAL, VARIANTS
from fastlstm.cli.cases import complete, named
from fastlstm.cli.checks import (
    MOST_THREADS,
    check_device,
    check_installed,
    check_writable,
    known,
    known_dtypes,
    known_impl,
)
from fastlstm.cli.isa import ENVIRONMENT, hold_to
from fastlstm.cli.measuring import INTERRUPTED, Work, measure_all, resumed
from fastlstm.cli.tables import show_cases, show_comparison, show_prediction, show_result

AGAINST = (
    "torch", "cell", "channels-last", "keras", "joeynmt", "sdpa", "checkpoint", "compile", "compile-ours", "onnx", "dense",
    "lstm", "cut", "torchrl", "fp32", "high", "at-once", "torch-at-once", "penalty", "ensemble", "samples",
)  # fmt: skip
MODES = ("train", "infer")
CHOICES = ("case", "variant", "against", "impl", "mode", "dtype")  # of what to measure
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
    impl: Annotated[
        str | None,
        typer.Option(help="Somebody's implementation, package.module:name, as one more peer (docs/parity.md)."),
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
    plot: Annotated[Path | None, typer.Option(help="Draw the speed-ups over the main peers into this picture.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --json's file: what it has already is not measured anew.")
    ] = False,
    isa: Annotated[
        str | None,
        typer.Option(help=f"Hold all libraries to a lesser CPU's instructions: {', '.join(ENVIRONMENT)}; this CPU's."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Measure the cases of this file of `fastlstm trace`, and what the whole run would gain."
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A B", help="Measure nothing: two results side by side, and what differs by more than the noise."
        ),
    ] = None,
    list_cases: Annotated[
        bool, typer.Option("--list", help="Measure nothing: the named cases of the device, and their sizes.")
    ] = False,
    readme: Annotated[
        Path | None, typer.Option(help="Measure nothing: write README.md's table and picture from this result.")
    ] = None,
) -> None:
    """Measure the speed of every case against PyTorch and other peers.

    A peer is timed only after its outputs and gradients agree with float64's. Pairs are interleaved in one process, and the
    ratio is taken pair by pair. A speed-up above 1 means that fastlstm is the faster. "compile" takes minutes to compile.
    "dense" compares packed input with as many dense steps of our own, "lstm" a variant with our own LSTM or ConvLSTM, "high"
    ours with our products of 16 bits of each factor, "cut" resets with PyTorch's module on the pieces in between, "torchrl"
    with TorchRL's on a GPU. "at-once" and "torch-at-once"
    are the work done twice, by two Python threads. Of a "stream", "cell" is a loop over PyTorch's cell. Of ConvLSTMs,
    "cell" is a loop over one convolution, "channels-last" the same in that layout, "checkpoint" our own with
    checkpoint=True. Of decoders with attention, "cell" is a loop over nn.LSTMCell, "joeynmt" JoeyNMT's, "sdpa" PyTorch's
    LSTM and attention where nothing is fed. "penalty" is a step of
    WGAN-GP by either, "ensemble" the gradients of 32 models, "samples" those of each sequence: vmap against a loop.

    --from measures the cases of a program of yours, as `fastlstm trace` saw them, against PyTorch's modules. Exits with 1 where
    results disagree or nothing could be measured, and with 130 after Ctrl-C.
    """
    from fastlstm.benchmarks import predict, results
    from fastlstm.benchmarks.cases import default_cases, main_peer
    from fastlstm.benchmarks.plot import drawn
    from fastlstm.benchmarks.plot import plot as draw
    from fastlstm.benchmarks.readme import DETAILS, update_readme

    if compare:
        return show_comparison(*compare)
    check_installed("--plot" if plot else "--readme" if readme else None, "matplotlib", "plot")
    if readme:
        try:
            pictures = update_readme(readme, Path("README.md"))
            print(f"README.md, {DETAILS} and {', '.join(map(str, pictures))} are written")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise typer.BadParameter(f"--readme is {readme}, expected a result written by --json: {error}") from error
        return None
    if isa and device != "cpu":
        raise typer.BadParameter(
            f"--isa is given with --device {device}, expected cpu: it is about a CPU's instructions"
        )
    check_device(device)
    if list_cases:
        return show_cases(device)
    hold_to(isa)

    variants = known("--variant", variant, KINDS)
    peers = known("--against", against, AGAINST) if against else []
    own = known_impl(impl)
    modes = known("--mode", mode, MODES)
    (dtype,) = known_dtypes([dtype], DTYPES) if dtype else (None,)
    check_writable("--plot", plot, endings=("png", "pdf", "svg", "jpg"))
    if threads:
        torch.set_num_threads(threads)
    if trace:
        if given := [f"--{n}" for n, v in zip(CHOICES, (case, variant, against, impl, mode, dtype), strict=True) if v]:
            raise typer.BadParameter(
                f"--from is given with {', '.join(given)}, expected it without: it says what to measure"
            )
        try:
            traced = results.read(trace, "trace")
        except OSError as error:
            raise typer.BadParameter(
                f"--from is {trace}, expected a file that `fastlstm trace` wrote: {error.strerror}"
            ) from error
        except results.ResultError as error:
            raise typer.BadParameter(f"--from: {error}") from error
        kept, left = predict.groups(traced, torch.device(device).type)
        work: Work = [(None, group.case, "torch") for group in kept]
        dtypes = list(dict.fromkeys(str(group.case.dtype) for group in kept)) or ["fp32"]
    else:
        said = [named(text) for text in case or default_cases(device)]
        dtypes = list(dict.fromkeys(filter(None, [*(one.dtype for _, one in said), dtype]))) or ["fp32"]
        if len(dtypes) > 1:
            raise typer.BadParameter(f"--dtype and --case say {' and '.join(dtypes)}, expected one dtype at a time")
        measured = complete(said, variant=variants, dtype=dtypes, mode=modes)
        work = [(name, one, peer) for name, one in measured for peer in (peers or [main_peer(one.kind.name)]) + own]
    if plot and not any(peer == main_peer(one.kind.name) for _, one, peer in work):
        raise typer.BadParameter(
            f"--plot is {plot}, expected a main peer in --against: the picture shows torch, or cell"
        )
    result = results.new("bench", device) | {"dtype": " and ".join(dtypes), "pairs": pairs, "rows": []}
    if json_file and json_file.is_dir():
        json_file = json_file / f"{result['machine']['name']}{'' if dtypes == ['fp32'] else f'-{dtypes[0]}'}.json"
    check_writable("--json", json_file)
    if resume:
        result["rows"] = resumed(json_file, result)

    ended = measure_all(work, result, json_file, device, memory=trace is None)
    console = Console()
    if trace:
        show_prediction(console, traced, kept, left, result)
    else:
        show_result(console, result)
    if plot and drawn(result):
        draw(result, plot)
    if not ended:
        raise typer.Exit(INTERRUPTED)
    asked = {(str(one), peer) for _, one, peer in work}
    rows = [row for row in result["rows"] if (row["case"], row["against"]) in asked]
    if work and not any("ratios" in row for row in rows):
        typer.echo("Nothing was measured: the reasons stand above.", err=True)
        raise typer.Exit(1)
    if any(row.get("miss") for row in rows):
        raise typer.Exit(1)
    return None
