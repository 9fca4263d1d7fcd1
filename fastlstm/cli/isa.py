"""`--isa`: the same command as a lesser CPU would run it."""

import os
import sys

import typer

from fastlstm import backends

# What ATen, oneDNN and MKL may use; they read it when they start
ENVIRONMENT = {
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "portable": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
}  # fmt: skip


def hold_to(isa: str | None) -> None:
    """Go on as a CPU with no more than these instructions, everyone's libraries included.

    PyTorch has started already: where its environment says otherwise, this process begins anew in one that says so.
    """
    if isa is None:
        return
    if isa not in ENVIRONMENT:
        raise typer.BadParameter(f"--isa is {isa!r}, expected one of {', '.join(ENVIRONMENT)}")
    try:
        backends.force_path(isa)  # before all else: it says what this CPU lacks
    except RuntimeError as error:
        raise typer.BadParameter(f"--isa: {error}") from error
    environment = ENVIRONMENT[isa]
    if any(os.environ.get(name) != value for name, value in environment.items()):
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, os.environ | environment)
