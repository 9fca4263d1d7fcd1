"""Launching: kernels are compiled and loaded once per device, and C++ runs the steps."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm import alarm, backends
from fastlstm.gpu.plan import Gpu
from fastlstm.kernels import gpu_compile
from fastlstm.kernels.gpu_compile import Spec, Target


class Prepared:
    """What launching a kernel by a grid takes, found once: where among its arguments what stands, and the kernel on the GPU."""

    def __init__(self, spec: Spec, grid: tuple[int, int], device: torch.device) -> None:
        self.spec, self.grid, self.device = spec, grid, device
        self.names = gpu_compile.arguments(spec.name)
        self.first = self.names.index("first")
        self.barrier = self.names.index("barrier") if "barrier" in self.names else -1
        # what the driver has said of a launch: that this process has too small a share of the GPU for all of its programs
        self.refused = False
        self._kernel: Any = None

    @property
    def kernel(self) -> Any:
        if self._kernel is None:
            with current(self.device):
                self._kernel = loaded(self.spec, self.device.index or 0)
        return self._kernel


prepared = cache(Prepared)


class Call(NamedTuple):
    """A launch, and its arguments by name; the arguments that the kernel doesn't use may be None."""

    prepared: Prepared
    given: dict[str, Tensor | int | None]

    @property
    def spec(self) -> Spec:
        return self.prepared.spec

    @property
    def grid(self) -> tuple[int, int]:
        return self.prepared.grid


def run(calls: list[Call], T: int, device: torch.device, *, resident: bool) -> bool:
    """Run T steps: in one cooperative launch of the only call, or by a launch per step and call, in order.

    False where the driver refuses the only call, which isn't run then, nor ever asked for again.
    """
    if _recording is not None:
        _recording.calls.extend(calls)
        return True
    alarm.check()
    if device.type == "cuda" and torch.cuda.current_device() != device.index:
        with torch.cuda.device(device):
            return start(calls, T, stream_of(device), resident=resident)
    return start(calls, T, stream_of(device), resident=resident)


def start(calls: list[Call], T: int, stream: int, *, resident: bool) -> bool:
    if not resident:
        launches = [
            (call.prepared.kernel, call.prepared.grid, parameters(call, 1), call.prepared.first) for call in calls
        ]
        _C().run_steps(launches, 0, T, stream)
        return True
    (call,), of = calls, calls[0].prepared
    of.refused = not _C().run_resident(of.kernel, of.grid, parameters(call, T), of.barrier, stream)
    return not of.refused


def can_be_resident(asked: Prepared) -> bool:
    """Whether the GPU holds all programs at once, by what the driver says of the compiled kernel."""
    if _recording is not None:
        return True  # what the driver says of a kernel, it says of one that is compiled and loaded
    if alarm.steps_only or asked.refused:
        return False
    kernel = asked.kernel
    return kernel.cooperative and asked.grid[0] * asked.grid[1] <= kernel.resident_programs()


def waiting(asked: Prepared) -> dict[str, Tensor | int | None]:
    """The arguments of a kernel whose programs wait for each other.

    Where they count is memory of the stream's own, which the launcher has and each launch leaves as zeros. A CUDA graph may be
    replayed on any stream, beside others: what it captures has memory of its own, which it fills at each replay.
    """
    waits = NOT_WAITING if _recording else alarm.arguments(asked.spec.name, asked.grid, asked.device)
    if asked.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return {**waits, "barrier": torch.zeros(asked.grid[0], BARRIER, dtype=torch.int32, device=asked.device)}
    return waits


BARRIER = 32  # integers from one counter to the next: not in one line of the cache
NOT_WAITING: dict[str, Tensor | int | None] = {"barrier": None, "alarm": None, "number": 0, "patience": 0}


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
    return values([given[name] for name in call.prepared.names])


def values(arguments: list[Tensor | int | None]) -> list[int]:
    return [0 if a is None else a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]


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
    if device.type == "meta":
        return recording().gpu
    found = _gpu(device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # a grid that takes all processors, for as long as a loop lasts, would hold up the others' gradients
        found = found._replace(processors=found.processors - FOR_OTHERS)
    return found


FOR_OTHERS = 16  # processors that NCCL may take


@cache
def _gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    # that property is younger than some torch; 99 KB is what the least of the GPUs from compute capability 8.0 on has
    return Gpu(properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", 99 * 1024))


def stream_of(device: torch.device) -> int:
    """The handle of the current stream."""
    return torch.cuda.current_stream(device).cuda_stream


def precision(dtype: torch.dtype, device: torch.device, instead_of: str = "rnn") -> str:
    """How a float32 product is taken: as PyTorch is set to for what the loop stands for, cuDNN's "rnn" or "conv", or matrix
    products, "matmul"; "wide" where the interpreter takes it."""
    if device.type == "cpu":
        return "wide"
    if device.type == "meta":
        return recording().precision if dtype == torch.float32 else "tf32"
    cudnn: Any = torch.backends.cudnn  # what it has is younger than its types
    setting = {"rnn": cudnn.rnn, "conv": cudnn.conv, "matmul": torch.backends.cuda.matmul}[instead_of]
    return "tf32" if dtype != torch.float32 or setting.fp32_precision == "tf32" else "ieee"


def _C() -> Any:
    return vars(backends)["_C"]
