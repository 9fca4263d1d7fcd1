"""Checks of options that several commands share: a bad one gets one clear line, before any work is done."""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

import torch
import typer

from fastlstm.case.words import SHORT
from fastlstm.training.options import MOST_THREADS as MOST_THREADS


def known(option: str, given: list[str] | None, names: Iterable[str]) -> list[str]:
    """What was asked for, or all, after a check of the names."""
    names = list(names)
    for name in given or ():
        if name not in names:
            raise typer.BadParameter(f"{option} is {name!r}, expected one of {', '.join(names)}")
    return list(given or names)


def known_dtypes(given: list[str] | None, names: Iterable[str]) -> list[str]:
    """The same of dtypes, which may be spelled as PyTorch's are."""
    return known("--dtype", [SHORT.get(dtype, dtype) for dtype in given or ()], names)


def check_installed(option: str | None, package: str, extra: str) -> None:
    """What an option needs at the end is there at the start; None: it is not given."""
    if option and importlib.util.find_spec(package) is None:
        raise typer.BadParameter(f"{option} needs {package}, which is not installed: pip install 'fastlstm[{extra}]'")


def known_impl(impl: str | None) -> list[str]:
    """What --impl names, if anything, after a look whether it is there."""
    from fastlstm.parity.impl import load

    try:
        return [impl] if impl and load(impl) else []
    except ValueError as error:
        raise typer.BadParameter(f"--{error}") from error


def check_device(device: str) -> None:
    if re.fullmatch(r"cpu:\d+", device):
        raise typer.BadParameter(f"--device is {device!r}, expected 'cpu': it has no numbers")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"--device is {device!r}, expected one that PyTorch has here: {reason}") from error


def goes_on(device: str) -> bool:
    """Whether the device can run anything more: an access to no memory, for one, leaves a GPU that refuses all."""
    try:
        if device != "cpu":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def check_writable(option: str, file: Path | None, endings: Iterable[str] = ()) -> None:
    """The file can be written, and has one of the endings, where they are given."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise typer.BadParameter(f"{option} is {file}, expected a file in a folder that exists: {file.parent} doesn't")
    if file.is_dir():
        raise typer.BadParameter(f"{option} is {file}, expected a file: this is a folder")
    if endings and file.suffix.removeprefix(".") not in endings:
        raise typer.BadParameter(
            f"{option} is {file}, expected a name that ends in one of {', '.join(sorted(endings))}"
        )
    existed = file.exists()
    try:
        file.open("a").close()
    except OSError as error:
        raise typer.BadParameter(
            f"{option} is {file}, expected a file that can be written: {error.strerror}"
        ) from error
    if not existed:
        file.unlink()
