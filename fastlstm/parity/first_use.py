"""Whether a variant's kernels are right on this GPU: tried at their first use by `"auto"`, by a few of the parity cases.

What was found is kept in the user's cache directory, for as long as GPU, driver, torch, triton and fastlstm stay the same.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from fastlstm import alarm, backends
from fastlstm.parity import CASES, DTYPES, check
from fastlstm.version import __version__

# Of these, the first two that a variant has: several programs; lengths, resets and cells; several slots; a kernel and channels.
# And a step alone, for which there is other code
TRIED = ("h65", "cells_padded_reset", "memory_lengths", "conv")
_lock = threading.Lock()


def verdict(variant: str, dtype: torch.dtype, device: torch.device, *, may_try: bool) -> str | None:
    """Empty where the kernels are right, and else what is wrong; None where that isn't known, and can't be tried now."""
    if not torch.cuda.is_available():
        return None
    facts = {"variant": variant, "dtype": str(dtype), **machine(device)}
    with _lock:
        found = stored(facts)
        if found is None and may_try and can_try():
            found = tried(variant, dtype, str(device))
            if found is not None:
                store(facts, found)
    return found


def can_try() -> bool:
    """Not while anything is traced, mapped, captured, or run on tensors without data."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._guards.detect_fake_mode() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch.cuda.is_current_stream_capturing()
    )


def tried(variant: str, dtype: torch.dtype, device: str, backend: str = "triton") -> str | None:
    """What is wrong with the kernels, in both of their forms; None where there was no memory to try them."""
    (name,) = (name for name, known in DTYPES.items() if known == dtype)
    before = alarm.steps_only
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"), no_autocast(device):
            for form in (None, "steps"):
                backends.force_form(form)
                for case in cases(variant):
                    wrong = [row for row in check(case, name, backend, device=device) if not row.ok]
                    backends.check_gpu()
                    if wrong:
                        row = wrong[0]
                        return (
                            f"{row.quantity} of {case} differs from {row.oracle} by {row.error:.1e}, "
                            f"allowed is {row.allowed:.1e}"
                        )
    except Exception as error:  # whatever a compiler, a driver or a kernel says: none of it is to be the user's
        # the driver's own lack of memory is no OutOfMemoryError, nor is cuBLAS's
        no_memory = isinstance(error, torch.OutOfMemoryError) or re.search("out of memory|ALLOC_FAILED", str(error))
        return None if no_memory else f"{type(error).__name__}: {error}"
    finally:
        alarm.steps_only = before
    return ""


def cases(variant: str) -> list[str]:
    names = [name for case in (*TRIED, "step") if (name := f"{variant}_{case}") in CASES]
    return [*names[:2], *(name for name in names[2:] if name == f"{variant}_step")]


@contextlib.contextmanager
def no_autocast(device: str) -> Iterator[None]:
    """There, and on the CPU, where oracles run."""
    with torch.autocast("cpu", enabled=False), torch.autocast(torch.device(device).type, enabled=False):
        yield


def machine(device: torch.device) -> dict[str, str]:
    """All that a result depends on."""
    try:
        driver = Path("/proc/driver/nvidia/version").read_text().partition("\n")[0]
    except OSError:
        driver = "unknown"
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "unknown"
    gpu = torch.cuda.get_device_name(device)
    return {"gpu": gpu, "driver": driver, "torch": torch.__version__, "triton": triton, "fastlstm": __version__}


def file_of(facts: dict[str, str]) -> Path:
    """Raises RuntimeError where the user has no home."""
    top = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(top, "fastlstm", hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20] + ".json")


def stored(facts: dict[str, str]) -> str | None:
    try:
        kept = json.loads(file_of(facts).read_text())
        return kept["differs"] if kept["of"] == facts else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def store(facts: dict[str, str], differs: str) -> None:
    """Whole or not at all, whoever else does so now; where nothing can be kept, the next process tries again."""
    with contextlib.suppress(OSError, RuntimeError):
        file = file_of(facts)
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as new:
            json.dump({"of": facts, "differs": differs}, new)
        os.replace(new.name, file)
