"""What ran, on what, and what else ran there."""

import json
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fastlstm
from fastlstm.backends import forced_path

STAT = Path("/proc/stat")


def machine(device: str) -> dict[str, Any]:
    """What ran, and on what. `name` is made of the processor and the threads."""
    threads = torch.get_num_threads()
    cpu = cpu_model()
    chip = torch.cuda.get_device_name(device) if device != "cpu" else cpu
    unit = f"{threads}-threads {forced_path() or ''}" if device == "cpu" else "gpu"
    return {
        "name": re.sub(r"[^a-z0-9]+", "-", f"{chip} {unit}".lower()).strip("-"),
        "device": device,
        "chip": chip,
        "cpu": cpu,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "held_to": forced_path(),
        "threads": threads,
        "python": platform.python_version(),
        "fastlstm": fastlstm.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "numba": version("numba"),
        "onnxruntime": version("onnxruntime"),
        **({} if device == "cpu" else gpu_software()),
    }


def gpu_software() -> dict[str, str | int | None]:
    """What else ran, on a GPU, and how its L2 cache was treated."""
    return {
        "triton": version("triton"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": str(torch.backends.cuda.matmul.fp32_precision == "tf32"),
        "l2": "neither flushed nor rotated: the same batch at every run",
    }


def cpu_model() -> str:
    """The processor's name, as Linux tells it; elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it; of a package that pip took from a repository, that one's.

    None for what was installed from a wheel or a folder: there the version says it.
    """
    folder = Path(fastlstm.__file__).parent
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--match="]
    try:
        if (folder.parent / ".git").exists():  # and not that of a project whose environment lies in its folder
            return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip() or None
        origin = json.loads(metadata.distribution("fastlstm").read_text("direct_url.json") or "{}")
        return origin.get("vcs_info", {}).get("commit_id", "")[:7] or None
    except (OSError, ValueError, subprocess.CalledProcessError, metadata.PackageNotFoundError):
        return None


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Others:
    """How many CPUs other processes have kept busy since it was made; None where the system doesn't tell (Linux does)."""

    def __init__(self) -> None:
        self.begin = time.perf_counter(), _busy_s(), _own_s()

    def cpus(self) -> float | None:
        then, busy, own = self.begin
        now = _busy_s()
        if busy is None or now is None:
            return None
        return max(0.0, (now - busy) - (_own_s() - own)) / (time.perf_counter() - then)


def _busy_s() -> float | None:
    """CPU seconds that all processes have taken, and what the host of a virtual machine took from it."""
    if not STAT.exists():
        return None
    user, nice, system, _, _, *others = [int(n) for n in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
