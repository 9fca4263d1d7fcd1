"""`fastlstm info`: what runs where on this machine, and why."""

import importlib.util
import itertools
import json
import math
import platform
from importlib import metadata
from typing import Annotated

import torch
import typer

from fastlstm import backends
from fastlstm.case import AttentionCase, Case
from fastlstm.case.words import DTYPES as DTYPE_NAMES
from fastlstm.cli.kernels import show_kernels
from fastlstm.version import __version__

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
KNOWN = backends.VARIANTS | backends.CONVOLUTIONAL | backends.ATTENTION
# What a kernel of ours or of PyTorch's GEMM may use, by the names of torch.cpu.get_capabilities()
CPU_FEATURES = {
    "AVX2": "avx2",
    "AVX-512": "avx512_f",
    "AVX512_BF16": "avx512_bf16",
    "AMX": "amx_tile",
}
ANSWER = {True: "yes", False: "no", None: "unknown"}


def info(
    case: Annotated[
        list[str] | None,
        typer.Option(help="What runs a case, by its name or as docs/cases.md says, and how much work it is."),
    ] = None,
    kernels: Annotated[
        bool, typer.Option(help="Compile the GPU kernels, with or without a GPU, and show what they take.")
    ] = False,
    target: Annotated[list[str] | None, typer.Option(help="With --kernels: sm_80, sm_90, gfx942; all.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="With --kernels: fp32, tf32, bf16, fp16; all.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What runs where on this machine, and why: versions, CPU and GPU features, and the backend of each variant.

    With --case: what runs it and why, the GFLOP of its products, and the bytes of its weights and of its batch.

    With --kernels: registers, spilled bytes per thread and shared memory of every GPU kernel, compiled for each target.
    """
    if case:
        return show_cases(case, json_)
    if kernels:
        return show_kernels(target, dtype, json_)
    facts = gather()
    if json_:
        print(json.dumps(facts, indent=2))
    else:
        show(facts)


def gather() -> dict[str, dict[str, object] | list[dict[str, str]]]:
    """Everything that `fastlstm info` says, as plain data: `versions`, `machine` and `backends`."""
    return {
        "versions": {
            "fastlstm": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numba": installed("numba"),
            "triton": installed("triton"),
        },
        "machine": {
            "extension": backends.extension_status(),
            "gemm": backends.gemm_path(),
            "cpu": cpu_features(),
            "threads": torch.get_num_threads(),
            "gpus": gpus(),
            "triton": triton_status(),
        },
        "backends": [chosen(*row) for row in itertools.product(KNOWN, devices(), DTYPES)],
    }


def installed(package: str) -> str | None:
    """The version of `package`, without importing it; None where it is not installed."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # shipped under another name, or without metadata
        return "unknown version"


def cpu_features() -> dict[str, bool | None]:
    """Which instruction sets the CPU has, as far as fast LSTMs care; None where this torch can't tell."""
    # younger than the oldest torch we support
    if not hasattr(torch.cpu, "get_capabilities"):
        return dict.fromkeys(CPU_FEATURES)
    has = torch.cpu.get_capabilities()
    return {name: bool(has.get(key)) for name, key in CPU_FEATURES.items()}


def gpus() -> list[str]:
    """The name and compute capability of every GPU that torch sees."""
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{gpu.name} (compute capability {gpu.major}.{gpu.minor})" for gpu in found]


def triton_status() -> str:
    """Whether Triton kernels can run here, and if not, why."""
    if not installed("triton"):
        return "not usable: Triton is not installed"
    if not torch.cuda.is_available():
        return "not usable: torch sees no GPU"
    return "usable"


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def chosen(variant: str, device: str, dtype: str) -> dict[str, str]:
    """What "auto" runs `variant` on, and why."""
    choice = backends.so_far(KNOWN[variant], torch.device(device), DTYPES[dtype])
    where = {"variant": variant, "device": device, "dtype": dtype}
    return {**where, "backend": choice.backend, "reason": choice.reason}


def show(facts: dict) -> None:
    """The facts of `gather` as two tables, readable at 80 columns and in a pipe."""
    from rich.console import Console
    from rich.table import Column, Table

    machine = facts["machine"]
    rows = {name: version or "not installed" for name, version in facts["versions"].items()}
    rows |= {
        "extension": machine["extension"],
        "GEMM": machine["gemm"],
        "CPU": ", ".join(f"{name} {ANSWER[has]}" for name, has in machine["cpu"].items()),
        "threads": str(machine["threads"]),
        "GPU": "\n".join(machine["gpus"]) or "none that torch sees",
        "Triton kernels": machine["triton"],
    }
    console = Console(markup=False, highlight=False)
    here = Table(show_header=False, title="This machine", title_justify="left")
    for name, value in rows.items():
        here.add_row(name, value)
    console.print(here)

    # only the reason may be broken into lines
    names = [Column(name, no_wrap=True) for name in ("variant", "device", "dtype", "backend")]
    auto = Table(*names, "why", title='What "auto" runs', title_justify="left")
    for row in joined(joined(facts["backends"], "dtype"), "variant"):
        auto.add_row(*row.values(), end_section=True)
    console.print(auto)


def show_cases(texts: list[str], as_json: bool) -> None:
    """What runs each case and every variant of it, and how much work it is; in float32 where it says no dtype."""
    from rich.console import Console
    from rich.table import Table

    from fastlstm.cli.cases import complete, named

    found = []
    for text in texts:
        name, case = named(text)
        for _, one in complete([(name, case)], variant=list(KNOWN), dtype=[case.dtype or "fp32"]):
            found += [work(name, one, device) for device in devices()]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = Console(markup=False, highlight=False)
    for facts in found:
        table = Table(show_header=False, title=str(facts["case"]), title_justify="left")
        for key, value in facts.items():
            if key != "case" and value is not None:
                table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
        console.print(table)


def work(name: str | None, case: Case, device: str) -> dict[str, object]:
    """Everything that is said of a case on a device."""
    dtype = getattr(torch, DTYPE_NAMES[case.dtype or "fp32"])
    choice = backends.explain(case.kind, device, dtype, beyond_torch=bool(case.resets or case.return_cells))
    weights = sum(weight.numel() for weight in case.module(device="meta").parameters())
    x = case.rows * math.prod(case.input[2:])
    y = case.rows * math.prod(case.row(case.outputs["y"]))
    return {
        "case": str(case),
        "name": name,
        "device": device,
        "backend": choice.backend,
        "why": choice.reason,
        "GFLOP, forward": case.gflop("infer"),
        "GFLOP, training": None if case.mode == "infer" else case.gflop("train"),
        "bytes of weights": weights * dtype.itemsize,
        "bytes of input and output": (x + y) * dtype.itemsize,
        "bytes of memory that a step reads": case.read(dtype.itemsize) if isinstance(case, AttentionCase) else None,
    }


def joined(rows: list[dict[str, str]], key: str) -> list[dict[str, str]]:
    """One row, with a line for each value of `key`, in the place of several that differ in nothing else."""
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        others = tuple(value for name, value in row.items() if name != key)
        if others in groups:
            groups[others][key] += "\n" + row[key]
        else:
            groups[others] = dict(row)
    return list(groups.values())
