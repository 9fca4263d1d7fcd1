"""The checks of `on_gpu.py` as tests, each in a process of its own: there Triton compiles, and does not interpret."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
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


@pytest.fixture
def script(tmp_path: Path) -> list[str | Path]:
    """The command of checks that need no GPU."""
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "gpu_checks.py").write_text(STUB)
    (tmp_path / "on_gpu.py").write_text(SCRIPT.read_text())
    (tmp_path / "fastlstm/benchmarks").mkdir(parents=True)
    (tmp_path / "fastlstm/benchmarks/machine.py").write_text("machine = str")
    return [sys.executable, tmp_path / "on_gpu.py", "--json", tmp_path / "checks.json"]


def test_every_check_is_run_whatever_the_others_do(script: list, tmp_path: Path) -> None:
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "6 checks, 3 failed wrong dead hung"
    seen = {tuple(line.split()[:2]) for line in done.stdout.splitlines()[:-1]}
    assert seen == {("right", "ok"), ("nothing", "skipped"), ("wrong", "FAIL"), ("last", "ok")}
    assert "ValueError: a reason" in done.stdout
    written = json.loads((tmp_path / "checks.json").read_text())
    assert written["machine"] == "cuda"
    assert [one["status"] for one in written["checks"]] == ["ok", "skipped", "FAIL", "FAIL", "FAIL", "ok"]


def test_who_is_ended_leaves_what_was_found(script: list, tmp_path: Path) -> None:
    file = tmp_path / "checks.json"
    (tmp_path / "gpu_checks.py").write_text(STUB.replace("def right(): pass", "def right(): time.sleep(2)"))
    with subprocess.Popen(script, stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(tmp_path)}) as run:
        begin, status = time.monotonic(), {}
        while status.get("nothing") != "skipped":
            assert time.monotonic() - begin < 60
            with suppress(OSError, ValueError):
                status = {one["name"]: one["status"] for one in json.loads(file.read_text())["checks"]}
            time.sleep(0.05)
        run.kill()
    assert status["hung"] == "not run"  # it comes after `right`
