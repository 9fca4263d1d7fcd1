"""What "auto" does on a GPU: kernels are tried once, by a small parity problem, and used where they are right."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from logging.handlers import BufferingHandler
from pathlib import Path
from unittest import mock
from unittest.mock import Mock

import pytest
import torch
from gpu_interpreter import MANY, Interpreter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastlstm import alarm, backends
from fastlstm.cli.info import chosen
from fastlstm.gpu import launch, plan
from fastlstm.ops import lstm as ops_lstm
from fastlstm.parity import CASES, first_use

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")

CUDA = torch.device("cuda")
PEEPHOLE = backends.VARIANTS["peephole_lstm"], CUDA, torch.bfloat16
FACTS = {"gpu": "one", "driver": "2", "torch": "3", "triton": "4", "fastlstm": "5"}


def test_right_kernels_pass(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, whose ops are those of a GPU here; in both forms; inside whatever a user may be in the middle of."""
    monkeypatch.setattr(first_use, "cases", lambda variant: [f"{variant}_h16"])  # the interpreter is slow
    monkeypatch.setattr(launch, "gpu", lambda device: MANY)
    monkeypatch.setattr(plan, "tile", lambda *args, **_: plan.Tile(16, 32, 128, 0, keep=True, warps=4, stages=1))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert first_use.tried("peephole_lstm", torch.float32, "cpu", "numba") == ""
    assert {cooperative for *_, cooperative in interpreter.launched} == {True, False}
    assert not alarm.steps_only


def test_what_is_wrong_is_said(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops_lstm.OPS.bwd
    monkeypatch.setattr(ops_lstm.OPS, "bwd", lambda *args: (right(*args)[0] * 1.01, *right(*args)[1:]))
    said = first_use.tried("peephole_lstm", torch.float32, "cpu", "numba")
    assert said.startswith("dx of peephole_lstm_h65 differs from reference by 1.0e-02, allowed is ")


def test_what_fails_is_said(interpreter: Interpreter, fake_cuda, capsys: pytest.CaptureFixture) -> None:
    fake_cuda.fail("cuLaunchKernel", 719)
    said = first_use.tried("cifg_lstm", torch.float32, "cpu", "numba")
    assert said.startswith("RuntimeError: fastlstm: cuLaunchKernel of lstm_forward")


@pytest.mark.parametrize("entry", ["cuModuleLoadData", "cuLaunchKernel"])
def test_no_memory_says_nothing_of_kernels(interpreter: Interpreter, fake_cuda, entry: str) -> None:
    """The driver's own lack of it is no OutOfMemoryError: they are tried again, when there is more."""
    fake_cuda.fail(entry, 2)
    assert first_use.tried("cifg_lstm", torch.float32, "cpu", "numba") is None


@pytest.mark.parametrize("variant", [*backends.VARIANTS, *backends.CONVOLUTIONAL, *backends.ATTENTION])
def test_every_variant_has_cases(variant: str) -> None:
    found = first_use.cases(variant)
    assert len(found) > 1
    assert set(found) <= CASES.keys()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mock:
    """There is a GPU, and a home; the trial itself, which finds all right."""
    for name, value in {
        "is_available": True, "get_device_capability": (9, 0), "is_current_stream_capturing": False,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(first_use, "machine", lambda device: FACTS)
    monkeypatch.setattr(backends, "_verdicts", {})
    backends.explain.cache_clear()
    backends._log_fallback.cache_clear()
    trial = Mock(return_value="")
    monkeypatch.setattr(first_use, "tried", trial)
    yield trial
    backends.explain.cache_clear()
    backends._log_fallback.cache_clear()


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process would begin."""
    monkeypatch.setattr(backends, "_verdicts", {})


def test_kernels_are_tried_once(gpu: Mock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "at their first use" in backends.so_far(*PEEPHOLE).reason
    assert not gpu.called
    for _ in range(3):
        assert backends.choose(*PEEPHOLE).backend == "triton"
    forget(monkeypatch)
    assert backends.choose(*PEEPHOLE).backend == "triton"
    gpu.assert_called_once_with("peephole_lstm", torch.bfloat16, "cuda")
    (file,) = (tmp_path / "cache" / "fastlstm").iterdir()
    kept = json.loads(file.read_text())
    assert kept == {"of": {"variant": "peephole_lstm", "dtype": "torch.bfloat16", **FACTS}, "differs": ""}


@pytest.mark.parametrize("fact", FACTS)
def test_they_are_tried_again_where_anything_is_new(fact: str, gpu: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    backends.choose(*PEEPHOLE)
    forget(monkeypatch)
    monkeypatch.setattr(first_use, "machine", lambda device: FACTS | {fact: "new"})
    backends.choose(*PEEPHOLE)
    assert gpu.call_count == 2


@pytest.fixture
def said() -> Iterator[list[logging.LogRecord]]:
    """What is logged."""
    handler = BufferingHandler(1000)
    logger = logging.getLogger("fastlstm")
    logger.addHandler(handler)
    yield handler.buffer
    logger.removeHandler(handler)


def test_wrong_kernels_are_not_used(gpu: Mock, monkeypatch: pytest.MonkeyPatch, said: list[logging.LogRecord]) -> None:
    gpu.return_value = "y of a case differs"
    for _ in range(2):
        assert backends.choose(*PEEPHOLE).backend == "reference"
        forget(monkeypatch)
    (record,) = said
    assert "its kernels are wrong on this GPU, please report it: y of a case differs" in record.getMessage()
    row = chosen("peephole_lstm", "cuda", "bf16")
    assert row["backend"] == "reference"
    assert "y of a case differs" in row["reason"]
    assert gpu.call_count == 1
    assert backends.choose(*PEEPHOLE, "triton").backend == "triton"


@pytest.mark.parametrize("kept", ["not json", "[]", '{"of": {}, "differs": "yes"}', ""])
def test_a_damaged_file_is_as_good_as_none(
    kept: str, gpu: Mock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backends.choose(*PEEPHOLE)
    (file,) = (tmp_path / "cache" / "fastlstm").iterdir()
    file.write_text(kept)
    forget(monkeypatch)
    assert backends.choose(*PEEPHOLE).backend == "triton"
    assert gpu.call_count == 2
    assert list(file.parent.iterdir()) == [file]


def test_a_home_that_nothing_can_be_written_to(gpu: Mock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where there should be a folder")
    assert backends.choose(*PEEPHOLE).backend == "triton"
    forget(monkeypatch)
    assert backends.choose(*PEEPHOLE).backend == "triton"
    assert gpu.call_count == 2


def test_a_file_is_whole_before_it_has_its_name(gpu: Mock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that ranks that try at once don't read each other's halves: the last one's counts."""
    replace, moved = os.replace, []

    def watched(source: str, to: Path) -> None:
        moved.append(json.loads(Path(source).read_text()))
        assert Path(source).parent == to.parent
        assert to.exists() == (len(moved) > 1)
        replace(source, to)

    monkeypatch.setattr(os, "replace", watched)
    first_use.store(FACTS, "")
    first_use.store(FACTS, "it differs")
    assert moved == [{"of": FACTS, "differs": ""}, {"of": FACTS, "differs": "it differs"}]
    assert first_use.stored(FACTS) == "it differs"
    assert len(list((tmp_path / "cache" / "fastlstm").iterdir())) == 1


class Dispatching(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return op(*args, **(kwargs or {}))


def inside(mode: AbstractContextManager, run: Callable[[], object]) -> None:
    with mode:
        run()


BUSY = {
    "of fake tensors": lambda look: inside(FakeTensorMode(), look),
    "of a dispatch mode": lambda look: inside(Dispatching(), look),
    "of torch.jit.trace": lambda look: torch.jit.trace(lambda x: [look(), x + 1][1], torch.ones(2), check_trace=False),
    "of torch.func.grad": lambda look: torch.func.grad(lambda x: [look(), x.sum()][1])(torch.ones(2)),
    "of torch.vmap": lambda look: torch.vmap(lambda x: [look(), x][1])(torch.ones(2)),
    "of torch.compile": lambda look: inside(mock.patch.object(torch.compiler, "is_compiling", return_value=True), look),
    "of a capture": lambda look: inside(
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True), look
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("within", BUSY.values(), ids=BUSY)
def test_nothing_is_tried_in_the_middle(within: Callable, gpu: Mock) -> None:
    found = []
    assert first_use.can_try()
    within(lambda: found.append(first_use.can_try()))
    assert found == [False]


@pytest.mark.parametrize("variant", [*backends.VARIANTS, *backends.CONVOLUTIONAL, *backends.ATTENTION])
def test_what_pytorch_lacks_is_no_loop_in_python(variant: str, gpu: Mock) -> None:
    if variant not in backends.IN_PYTORCH:
        assert backends.choose(variant, CUDA, torch.bfloat16).backend == "triton"


@pytest.mark.parametrize("kept", [False, True])
def test_nothing_is_tried_inside_a_trace(kept: bool, gpu: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    if kept:
        backends.choose(*PEEPHOLE)
        forget(monkeypatch)
    before = gpu.call_count
    with FakeTensorMode():
        choice = backends.choose(*PEEPHOLE)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert backends.choose(*PEEPHOLE) == choice
    assert choice.backend == ("triton" if kept else "reference")
    assert gpu.call_count == before


@pytest.mark.parametrize("variant", backends.IN_PYTORCH)
def test_cudnn_keeps_what_it_can(variant: str, gpu: Mock, said: list[logging.LogRecord]) -> None:
    value = backends.VARIANTS[variant]
    choice = backends.choose(value, CUDA, torch.float32)
    assert choice.backend == "torch"
    assert "cuDNN" in choice.reason
    assert not said
    assert not gpu.called
    assert backends.choose(value, CUDA, torch.float32, beyond_torch=True).backend == "triton"


def test_without_a_gpu_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert first_use.verdict("lstm", torch.float32, CUDA, may_try=True) is None
