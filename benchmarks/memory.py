"""Peak memory of one training step, in a process of its own: all memory, whoever allocates it.

`python -m fastlstm.benchmarks.memory '{"case": ..., "contender": ..., "threads": ..., "path": ...}'`
prints bytes.
"""

import ctypes
import gc
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

from fastlstm.backends import empty_pool, force_path, forced_path
from fastlstm.benchmarks.contenders import contender
from fastlstm.benchmarks.work import make_work
from fastlstm.case import Case, parse

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(case: Case, name: str, threads: int) -> int:
    """Bytes that a training step of the contender takes at its peak, beyond the batch and the weights."""
    job = {"case": str(case), "contender": name, "threads": threads, "path": forced_path()}
    command = [sys.executable, "-m", "fastlstm.benchmarks.memory", json.dumps(job)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(case: Case, contender_name: str) -> int:
    # A small batch first: what is loaded or compiled once is not the step's.
    contender(contender_name, make_work(case.small())).step()
    run = contender(contender_name, make_work(case)).step  # its weights are not the step's either
    # What the small step freed goes back to the system, or the next would find it at hand, and seem to take nothing.
    gc.collect()
    empty_pool()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    # The peak so far, that of imports and compilers, is forgotten where the system can do that (Linux).
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")
    before = peak()
    for _ in range(2):
        run()
    return peak() - before


def peak() -> int:
    """The most bytes of real memory that the process has held. (On Linux, ru_maxrss begins with the parent's.)"""
    if STATUS.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    force_path(job["path"])
    print(measure(parse(job["case"]), job["contender"]))
