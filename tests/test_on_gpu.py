"""The checks of `on_gpu.py` as tests, each in a process of its own: there Triton compiles, and does not interpret."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_checks import CHECKS

SCRIPT = Path(__file__).with_name("on_gpu.py")


def run(*arguments: str) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, SCRIPT, *arguments], env=env, capture_output=True, text=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("name", CHECKS)
def test_on_gpu(name: str) -> None:
    done = run("--only", name)
    assert done.returncode == 0, done.stdout + done.stderr
    if "skipped" in done.stdout:
        pytest.skip(done.stdout)


def test_list() -> None:
    assert run("--list").stdout.split() == list(CHECKS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_said() -> None:
    done = run()
    assert done.returncode == 1
    assert "no GPU here" in done.stderr


TORCH = """
class cuda:
    broken = []
    is_available = lambda: True

    def synchronize():
        assert not cuda.broken, "the GPU refuses to go on"
"""
STUB = """
import os, time
from torch import cuda

LIMIT_S = 1

class Skip(Exception): pass

def right(): pass
def nothing(): raise Skip("no reason")
def wrong():
    cuda.broken.append(1)
    raise ValueError("a reason")
def dead(): os._exit(5)
def hung(): time.sleep(60)
def last(): pass

CHECKS = {check.__name__: check for check in (right, nothing, wrong, dead, hung, last)}
"""


def test_every_check_is_run_whatever_the_others_do(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "gpu_checks.py").write_text(STUB)
    (tmp_path / "on_gpu.py").write_text(SCRIPT.read_text())
    command = [sys.executable, tmp_path / "on_gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "6 checks, 3 failed wrong dead hung"
    seen = [line.split()[:2] for line in done.stdout.splitlines()[:-1]]
    assert seen == [["right", "ok"], ["nothing", "skipped"], ["wrong", "FAIL"], ["last", "ok"]]
    assert "ValueError: a reason" in done.stdout
