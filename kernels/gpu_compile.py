"""Which Triton kernel, for which dtype and sizes: compiled for a GPU, present or not, without running anything on it."""

import importlib
import inspect
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

# What the pointer arguments that don't hold the storage dtype point to, by name; all other arguments are integers.
ELEMENTS = {
    "cells": "fp32", "c_state": "fp32", "dc_state": "fp32", "h_state": "fp32", "through": "fp32",
    "dpeephole": "fp64", "reset": "u8", "offsets": "i64", "sizes": "i64", "barrier": "i32", "alarm": "i32",
    "lengths": "i64", "scores": "fp32", "sums": "fp32", "context": "fp32", "dscores": "fp32", "shares": "fp32",
}  # fmt: skip
INTEGERS = ("number", "patience", "given", "first", "steps", "T", "B", "S", "depth", "height", "width", "fresh")
# pointers whose address may be any multiple of the element's size
UNALIGNED = (
    "reset", "offsets", "sizes", "barrier", "alarm", "peephole", "bias", "more_bias", "b_ih", "b_hh", "lengths",
)  # fmt: skip
# modules of kernels that aren't named after their variant
MODULES = {
    "project": "lstm.gpu", "floor": "gpu_floor",
    "attend_forward": "attention_lstm.gpu_attend", "attend_backward": "attention_lstm.gpu_attend",
    "attend_keys": "attention_lstm.gpu_keys",
}  # fmt: skip
STORAGE = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Spec:
    """A kernel before it is compiled: the function's name, the storage dtype, its constants and how it is scheduled.

    `registers` are the most that a thread may have, 0 the assembler's choice. NVIDIA's takes fewer than it could where it isn't
    told, and loads a step's rows in turns for it."""

    name: str
    dtype: torch.dtype
    constants: tuple[tuple[str, Any], ...]
    warps: int = 4
    stages: int = 3
    registers: int = 0


class Image(NamedTuple):
    """What a driver loads: the binary for one kind of GPU, the kernel's symbol in it, and what a launch needs."""

    binary: bytes
    symbol: str
    shared: int  # bytes
    threads: int


class Target(NamedTuple):
    """A kind of GPU: ("cuda", 90, 32) or ("hip", "gfx942", 64)."""

    backend: str
    arch: int | str
    warp_size: int


def saved_dtype(dtype: torch.dtype) -> Any:
    """Triton's dtype of the activated gates. They lie in [-1, 1], where float16 is eight times finer than bfloat16."""
    import triton.language as tl

    return tl.float32 if dtype == torch.float32 else tl.float16


@cache
def function(name: str) -> Any:
    """The Triton function."""
    module = MODULES.get(name, f"{name.rpartition('_')[0]}.gpu")
    return getattr(importlib.import_module(f"fastlstm.kernels.{module}"), name)


@cache
def arguments(name: str) -> tuple[str, ...]:
    """The names of the arguments that a launch passes, in order: those that are not constants."""
    parameters = inspect.signature(function(name).fn).parameters.values()
    return tuple(p.name for p in parameters if p.annotation is inspect.Parameter.empty)


@cache
def compiled(spec: Spec, target: Target) -> Any:
    """Triton's CompiledKernel. Compiling takes seconds, once: Triton keeps the result on disk."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = function(spec.name)
    names = list(inspect.signature(fn.fn).parameters)
    signature = dict.fromkeys(names, "constexpr")
    for name in arguments(spec.name):
        signature[name] = "i32" if name in INTEGERS else "*" + ELEMENTS.get(name, STORAGE[spec.dtype])
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") and n not in UNALIGNED]
    source = ASTSource(
        fn, signature, constexprs=dict(spec.constants), attrs={(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    options = {"num_warps": spec.warps, "num_stages": spec.stages, "enable_fp_fusion": True}
    if spec.registers:
        options["maxnreg"] = spec.registers
    return triton.compile(source, target=GPUTarget(*target), options=options)


def image(spec: Spec, target: Target) -> Image:
    """The binary of `spec` for `target`."""
    kernel = compiled(spec, target)
    metadata = kernel.metadata
    # parameters, and memory or a form of launch, that the launcher doesn't give
    for name, least in (("global_scratch_size", 0), ("profile_scratch_size", 0), ("num_ctas", 1)):
        if (found := getattr(metadata, name, None) or least) != least:
            raise RuntimeError(
                f"{spec.name} was compiled with {name} = {found}, expected {least}: that is what instrumented builds have "
                "(a profiler's, Triton's sanitizer); switch it off, or use backend='reference'"
            )
    return Image(kernel.asm["cubin"], metadata.name, metadata.shared, metadata.num_warps * target.warp_size)


class Resources(NamedTuple):
    """What a kernel takes of a GPU: registers per thread, bytes per thread that did not fit into them, and shared bytes."""

    registers: int
    spilled: int
    shared: int


def resources(spec: Spec, target: Target) -> Resources:
    """What `spec` takes on `target`, as its assembler tells."""
    kernel = compiled(spec, target)
    if target.backend == "hip":
        text = kernel.asm["amdgcn"]
        registers, spilled = (
            int(re.search(rf"\.{key}:\s*(\d+)", text)[1]) for key in ("vgpr_count", "private_segment_fixed_size")
        )
        return Resources(registers, spilled, kernel.metadata.shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        text = subprocess.run([cuobjdump(), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL"))
    return Resources(registers, max(stack, local), kernel.metadata.shared)


def cuobjdump() -> Path:
    """The tool that comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
