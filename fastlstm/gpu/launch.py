"""Launching: kernels are compiled and loaded once per device, and C++ runs the steps."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.gpu.plan import Gpu
from fastlstm.kernels import gpu_compile
from fastlstm.kernels.gpu_compile import Spec, Target


class Call(NamedTuple):
    """A kernel, its grid, and its arguments by name; the arguments that the kernel doesn't use may be None."""

    spec: Spec
    grid: tuple[int, int]
    given: dict[str, Tensor | int | None]


def run(calls: list[Call], T: int, device: torch.device, *, resident: bool) -> None:
    """Run T steps: in one cooperative launch of the only call, or by a launch per step and call, in order."""
    if _recording is not None:
        _recording.calls.extend(calls)
        return
    with current(device):
        kernels, stream = [loaded(call.spec, device.index or 0) for call in calls], stream_of(device)
        if resident:
            _C().run_resident(kernels[0], calls[0].grid, parameters(calls[0], T), stream)
        else:
            steps = [
                (kernel, call.grid, parameters(call, 1), gpu_compile.arguments(call.spec.name).index("first"))
                for kernel, call in zip(kernels, calls, strict=True)
            ]
            _C().run_steps(steps, 0, T, stream)


def can_be_resident(spec: Spec, grid: tuple[int, int], device: torch.device) -> bool:
    """Whether the GPU holds all programs at once, by what the driver says of the compiled kernel."""
    if _recording is not None:
        return True  # what the driver says of a kernel, it says of one that is compiled and loaded
    with current(device):
        kernel = loaded(spec, device.index or 0)
    return kernel.cooperative and grid[0] * grid[1] <= kernel.resident_programs()


def current(device: torch.device) -> AbstractContextManager:
    """The GPU of that tensor becomes the current one. (Tensors of the CPU come here in tests.)"""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Recording(NamedTuple):
    """What ops would have launched. Tensors on the meta device have no GPU: for them, which one, and with which products."""

    gpu: Gpu
    precision: str
    calls: list[Call]


H100 = Gpu(processors=132, shared=227 * 1024)
_recording: Recording | None = None  # of all threads: a backward on a GPU runs in one of its own


@contextmanager
def recorded(gpu: Gpu = H100, precision: str = "tf32") -> Iterator[list[Call]]:
    """Inside, ops launch nothing; their calls are listed, and their results are whatever memory held."""
    global _recording
    before, _recording = _recording, Recording(gpu, precision, [])
    try:
        yield _recording.calls
    finally:
        _recording = before


def recording() -> Recording:
    if _recording is None:
        raise RuntimeError("tensors on the meta device have nothing to launch; see fastlstm.gpu.launch.recorded")
    return _recording


def parameters(call: Call, steps: int) -> list[int]:
    """What a launch passes, in the order of the kernel's arguments: addresses and integers."""
    given = {**call.given, "first": 0, "steps": steps}
    return [value(given[name]) for name in gpu_compile.arguments(call.spec.name)]


def value(argument: Any) -> int:
    if argument is None:
        return 0
    return argument.data_ptr() if isinstance(argument, Tensor) else argument


@cache
def loaded(spec: Spec, index: int) -> Any:
    """The kernel on the GPU of that index."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{spec.name} would be compiled and loaded while a CUDA graph is captured, which the driver refuses: "
            "run the same forward and backward once before capturing, as PyTorch asks for as well"
        )
    binary, symbol, shared, threads = gpu_compile.image(spec, target(index))
    return _C().load_kernel(binary, symbol, shared, threads, index)


@cache
def target(index: int) -> Target:
    """The kind of the GPU of that index."""
    major, minor = torch.cuda.get_device_capability(index)
    return Target("cuda", 10 * major + minor, 32)


def gpu(device: torch.device) -> Gpu:
    """What a plan needs to know of the GPU."""
    return recording().gpu if device.type == "meta" else _gpu(device)


@cache
def _gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    # that property is younger than some torch; 99 KB is what the least of the GPUs from compute capability 8.0 on has
    return Gpu(properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", 99 * 1024))


def stream_of(device: torch.device) -> int:
    """The handle of the current stream."""
    return torch.cuda.current_stream(device).cuda_stream


def precision(dtype: torch.dtype, device: torch.device, *, convolves: bool = False) -> str:
    """How a float32 product is taken: as PyTorch's matrix products are set to, or where it `convolves` its convolutions; "wide"
    where the interpreter takes it."""
    if device.type == "cpu":
        return "wide"
    if device.type == "meta":
        return recording().precision if dtype == torch.float32 else "tf32"
    cudnn: Any = torch.backends.cudnn  # what it has is younger than its types
    setting = cudnn.conv if convolves else torch.backends.cuda.matmul
    return "tf32" if dtype != torch.float32 or setting.fp32_precision == "tf32" else "ieee"


def _C() -> Any:
    return vars(backends)["_C"]
