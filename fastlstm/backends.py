"""Which backend runs what, and why. `"auto"` chooses; a backend that is named runs or raises with the remedy."""

import importlib
import logging
import platform
from functools import cache
from typing import Any, NamedTuple

import torch

from fastlstm import alarm
from fastlstm.kernels.attention_lstm import ATTENTION_LSTM
from fastlstm.kernels.conv_lstm import CIFG_CONV_LSTM, CIFG_PEEPHOLE_CONV_LSTM, CONV_LSTM, PEEPHOLE_CONV_LSTM
from fastlstm.kernels.gru import GRU
from fastlstm.kernels.lstm import CIFG_LSTM, CIFG_PEEPHOLE_LSTM, LSTM, PEEPHOLE_LSTM
from fastlstm.kernels.pairs import PAIRS
from fastlstm.kernels.variant import Variant

try:
    import fastlstm._C as _C
except ModuleNotFoundError:
    _C, _C_ERROR = None, "not built: no C++20 compiler worked when fastlstm was installed"
except ImportError as error:
    _C, _C_ERROR = None, f"not loadable: {error}"

NAMES = ("auto", "numba", "triton", "reference")
VARIANTS = {v.name: v for v in (LSTM, GRU, PEEPHOLE_LSTM, CIFG_LSTM, CIFG_PEEPHOLE_LSTM)}
# Those over maps, which take other inputs; one op runs them, with the gate kernels of the LSTM family
CONVOLUTIONAL = {v.name: v for v in (CONV_LSTM, PEEPHOLE_CONV_LSTM, CIFG_CONV_LSTM, CIFG_PEEPHOLE_CONV_LSTM)}
# Those with a memory to attend to: a cell of the LSTM family in each layer
ATTENTION = {ATTENTION_LSTM.name: ATTENTION_LSTM}
IN_PYTORCH = tuple(name for name, v in VARIANTS.items() if v.counterpart)
CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)
CUDNN = "cuDNN's kernels run it, until measurements say that ours are faster; backend='triton' runs ours"
NO_EXTENSION = "the C++ extension is {}; install g++ >= 11, then fastlstm again"
_CPU_LOOP = "C++ loop ({} matrix products) over Numba gate kernels"
_log = logging.getLogger("fastlstm")


class Choice(NamedTuple):
    """`backend` is "numba", "triton", "reference", or "torch": PyTorch's own op, which only "auto" falls back to."""

    backend: str
    reason: str


def choose(
    variant: Variant | str,
    device: torch.device,
    dtype: torch.dtype,
    requested: str = "auto",
    beyond_torch: bool = False,
) -> Choice:
    """The backend that runs `variant`, or the one of that name, on `device` and `dtype`, and one sentence that says why.

    `beyond_torch`: PyTorch's own op, where it has one, does not do what is asked. A fallback is logged, once. Raises
    ValueError for an unknown name and RuntimeError where the requested backend can't run, with the remedy.
    """
    check_backend(requested)
    choice = explain(variant, device.type, dtype, requested, beyond_torch)
    if requested == "auto":
        if choice.backend == "triton":
            choice = _if_right(choice, variant, device, dtype, beyond_torch, may_try=True)
        if choice.backend in ("torch", "reference") and choice.reason is not CUDNN:
            _log_fallback(variant if isinstance(variant, str) else variant.name, device.type, dtype, choice)
    return choice


# All that torch.compiler.assume_constant_result does; calling it here would import Dynamo, a second of every start.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_backend(backend: str) -> None:
    """It is one of them; where it has no hash as well."""
    if backend not in NAMES:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(map(repr, NAMES))}")


@cache
def explain(
    variant: Variant | str, device: str, dtype: torch.dtype, requested: str = "auto", beyond_torch: bool = False
) -> Choice:
    """What `choose` would choose, unlogged, if the kernels are right on this GPU; `device` is a device type."""
    variant = _value(variant)
    check_backend(requested)
    if requested == "reference":
        return Choice("reference", "asked for")
    on_gpu = device == "cuda"
    native = "triton" if on_gpu else "numba"
    if requested not in ("auto", native):
        kind = "CUDA GPUs" if requested == "triton" else "the CPU"
        obstacle: str | None = f"its kernels run on {kind}, and the tensors are on {device}"
    else:
        obstacle = _gpu_obstacle(dtype) if on_gpu else _obstacle(device, dtype)
    if obstacle is None and on_gpu and requested == "auto" and variant.counterpart and not beyond_torch:
        return Choice("torch", CUDNN)
    if obstacle is None:
        return Choice(native, "C++ loop over Triton kernels" if on_gpu else _CPU_LOOP.format(gemm_path()))
    if requested != "auto":
        raise RuntimeError(
            f"backend {requested!r} can't run {variant.name} here: {obstacle}; backend 'auto' finds one that can"
        )
    return _fallback(variant, beyond_torch, obstacle)


def _fallback(variant: Variant, beyond_torch: bool, obstacle: str) -> Choice:
    return Choice("torch" if variant.counterpart and not beyond_torch else "reference", obstacle)


def _value(variant: Variant | str) -> Variant:
    if not isinstance(variant, str):
        return variant
    known = VARIANTS | CONVOLUTIONAL | ATTENTION
    if variant not in known:
        raise ValueError(f"variant is {variant!r}, expected one of {', '.join(map(repr, known))}")
    return known[variant]


def so_far(variant: Variant | str, device: torch.device, dtype: torch.dtype) -> Choice:
    """What "auto" chooses by what is known: nothing is tried, and nothing logged."""
    choice = explain(variant, device.type, dtype)
    return _if_right(choice, variant, device, dtype, False, may_try=False) if choice.backend == "triton" else choice


def _if_right(
    choice: Choice, variant: Variant | str, device: torch.device, dtype: torch.dtype, beyond_torch: bool, may_try: bool
) -> Choice:
    """`choice`, which is "triton", or the fallback where the kernels are wrong on this GPU: tried at their first use."""
    variant = _value(variant)
    key = variant.name, dtype, device
    if (wrong := _verdicts.get(key)) is None:
        wrong = importlib.import_module("fastlstm.parity.first_use").verdict(*key, may_try=may_try)
    if wrong is None:
        wrong = "its kernels are tried on this GPU at their first use, but not while it is traced or captured: run it before"
    elif not wrong:
        _verdicts[key] = ""
        return choice
    else:
        _verdicts[key] = wrong
        wrong = f"its kernels are wrong on this GPU, please report it: {wrong}"
    return _fallback(variant, beyond_torch, wrong)


_verdicts: dict[tuple[str, torch.dtype, torch.device], str] = {}


@cache
def _log_fallback(variant: str, device: str, dtype: torch.dtype, choice: Choice) -> None:
    what = "PyTorch's own op" if choice.backend == "torch" else "the reference, a loop in Python"
    _log.warning("%s in %s on %s runs on %s: %s", variant, dtype, device, what, choice.reason)


def _obstacle(device: str, dtype: torch.dtype) -> str | None:
    """Why the CPU kernels can't run this, with the remedy; None where they can."""
    if device not in ("cpu", "meta"):
        return f"there are no kernels for {device} devices, only for the CPU and CUDA GPUs"
    if dtype not in CPU_DTYPES:
        return f"there are no CPU kernels for {dtype}"
    if _C is None:
        return NO_EXTENSION.format(extension_status())
    try:
        import fastlstm.kernels.cpu_math  # noqa: F401
    except Exception as error:  # a numba that doesn't fit its numpy raises much else than ImportError
        return f"numba can't be imported ({error}); run: pip install --upgrade numba"
    return None


def _gpu_obstacle(dtype: torch.dtype) -> str | None:
    """Why the GPU kernels can't run this, with the remedy; None where they can."""
    if dtype not in GPU_DTYPES:
        return f"there are no GPU kernels for {dtype}"
    if _C is None:
        return NO_EXTENSION.format(extension_status())
    if torch.version.hip:
        return "the kernels are launched through NVIDIA's driver; a launcher for ROCm is not written yet"
    if torch.cuda.is_available() and (capability := torch.cuda.get_device_capability()) < LEAST_CAPABILITY:
        return "the kernels need compute capability {}.{}, and this GPU has {}.{}".format(
            *LEAST_CAPABILITY, *capability
        )
    try:
        import fastlstm.kernels.gpu_math  # noqa: F401
    except Exception as error:
        return f"triton can't be imported ({error}); run: pip install triton"
    return None


def extension_status() -> str:
    """The word "built", or why the C++ extension can't be used."""
    return "built" if _C is not None else _C_ERROR


def gemm_path() -> str:
    """The micro-kernels in use: "avx512+amx", "avx512+bf16", "avx512", "avx2" or "portable"; "none" without the extension.

    Each has all that those after it have. The first two differ from "avx512" in bfloat16 alone.
    """
    return _C.gemm_path() if _C is not None else "none"


def multiplies_pairs() -> bool:
    """Whether the CPU's path multiplies pairs of bfloat16."""
    return gemm_path() in ("avx512+amx", "avx512+bf16")


def multiply_adds(dtype: torch.dtype, times: int) -> int:
    """Run nothing but multiply-adds on all of PyTorch's threads: `times` as many as a tile has sums. Returns their number."""
    return _C.multiply_adds(dtype == torch.float64, times)


def panel() -> int:
    """Hidden units of a panel, in which the CPU's records are kept."""
    return _C.PANEL


def make_stream(**options: Any) -> Any:
    """What runs a `fastlstm.Stream`, in C++."""
    return _C.Stream(**options)


def empty_pool() -> None:
    """Return the memory that the CPU kernels keep between calls to the system."""
    if _C is not None:
        _C.empty_pool()


PRECISIONS = ("highest", "high", "medium")


def set_float32_precision(precision: str) -> None:
    """How precise the CPU's products of float32 are to be, from now on in this process, in the words of
    `torch.set_float32_matmul_precision`: "highest" (the default) is float32's own; "high" takes 16 bits of each factor, the
    sum of two bfloat16; "medium" its nearest bfloat16, 8 bits. Sums, gates, states and what is saved stay float32.

    Where the CPU has AMX, the recurrent family is faster by it, for 16 sequences or more (of a single step: 64) and 64
    hidden units or more. Elsewhere, and in every other dtype, nothing changes. A backward runs with what is set by then; a
    `Stream` with what was set when it was made. Raises ValueError for another name.

    Example:
        >>> fastlstm.backends.set_float32_precision("high")
        >>> fastlstm.backends.float32_precision()
        'high'
        >>> fastlstm.backends.set_float32_precision("highest")
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(map(repr, PRECISIONS))}")
    if _C is not None:
        _C.set_float32_precision(precision)


def float32_precision() -> str:
    """What `set_float32_precision` was given; "highest" without the C++ extension."""
    return _C.float32_precision() if _C is not None else "highest"


# What LLVM calls the CPUs that gate kernels are compiled for where a path is forced
_CPUS = {"avx512+bf16": "cooperlake", "avx512": "skylake-avx512", "avx2": "haswell", "portable": "x86-64"}


def force_path(path: str | None) -> None:
    """Run the CPU kernels of this process as a lesser CPU would, from now on: "avx512+bf16" (without AMX), "avx512"
    (without the instructions for bfloat16), "avx2" or "portable"; None is what this CPU has. For tests and measurements: a call
    that runs meanwhile, in another thread, may take some of its kernels from either path. A decoder's backward in bfloat16
    needs a path that has it, as that of its forward had.

    It is ours alone: PyTorch and oneDNN have `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA`, read when they start.
    Raises RuntimeError where this CPU can't, or without the C++ extension, and ValueError for another name.
    """
    if path is not None and path not in _CPUS:
        raise ValueError(f"path is {path!r}, expected one of {', '.join(map(repr, _CPUS))}, or None for this CPU's own")
    if _C is None and path is None:
        return
    if _C is None:
        raise RuntimeError(f"path {path!r} can't run here: {NO_EXTENSION.format(extension_status())}")
    _C.force_path(path)
    explain.cache_clear()  # its reasons name the path


def forced_path() -> str | None:
    """What `force_path` was given; None where this CPU's own kernels run."""
    return None if gemm_path() == _NATIVE_PATH else gemm_path()


def force_form(form: str | None) -> None:
    """Launch a kernel for every step of a loop on a GPU ("steps"), from now on in this process: slower, and programs don't wait
    for each other. None: one launch for all steps where the GPU can hold all of its programs at once.

    Raises ValueError for another name.
    """
    if form not in ("steps", None):
        raise ValueError(f"form is {form!r}, expected 'steps', or None for what the GPU can do")
    alarm.steps_only = form == "steps"


def check_gpu() -> None:
    """Wait for the GPUs on which programs of ours wait for each other, and raise RuntimeError if a launch has given up: they
    waited in vain, and its results are NaN. Without this call, the next call of ours raises it.
    """
    for device in alarm.devices:  # of another GPU, it would make a context there, of hundreds of MB
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    alarm.check()


_kept_alive: list[object] = []


def register(variant: Variant) -> None:
    """Make a variant known to the CPU's loops: what slots its records have, and where its gate kernels are to be had.

    Loops run any that is registered; which one a call runs is the op's choice, and the ops there are know those of VARIANTS.
    """
    slots, gates = variant.slots, variant.gates
    _C.register_variant(
        variant.name,
        gates=[gates.index(gate) for gate in slots.gates],
        x=slots.x,
        h=slots.h,
        peepholes=[(slots.gates.index(gate), gate in variant.sees_new) for gate in variant.peepholes],
        cell="c" in variant.states,
    )
    _registered[variant.name] = variant


_registered: dict[str, Variant] = {}


def _compile_gate_kernel(name: str, of_pass: str, dtype: str, path: str) -> int:
    """The address of a variant's gate kernel, or of one of attention's, the first time that it is needed on a path.

    Compiled by Numba, or read from its cache. of_pass: "fwd", "bwd", "hidden", or one of attention's; dtype: "f32" or "f64".
    """
    forced = path != _NATIVE_PATH and platform.machine() in ("x86_64", "AMD64")
    variant = _registered.get(name)
    source = importlib.import_module(f"fastlstm.kernels.{variant.op if variant else 'attention_lstm'}.cpu")
    kernel = source.compile_kernel(variant or name, of_pass, dtype, _CPUS[path] if forced else None)
    _kept_alive.append(kernel)
    return kernel.address


_NATIVE_PATH = gemm_path()
if _C is not None:
    _C.set_kernel_compiler(_compile_gate_kernel)
    for _variant in (*VARIANTS.values(), *PAIRS):
        register(_variant)
