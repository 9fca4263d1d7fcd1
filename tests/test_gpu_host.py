"""What a call of a GPU's op costs the host: Python calls, and launches, PyTorch's and ours, which run nothing here."""

import gc
import sys
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from gpu_interpreter import Interpreter
from torch.utils._python_dispatch import TorchDispatchMode

from fastlstm import alarm, backends
from fastlstm.benchmarks import floor
from fastlstm.gpu import gru, launch, lstm, plan
from fastlstm.kernels import gpu_compile

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")

B, H = 16, 64
# PyTorch's ops that launch nothing
VIEWS = {
    "detach", "empty", "empty_like", "new_empty", "reshape", "slice", "split_with_sizes", "t", "view", "_unsafe_view",
}  # fmt: skip


@pytest.fixture
def launched(interpreter: Interpreter, fake_cuda, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each launch of ours whether it is cooperative; none of them computes anything."""
    found: list[bool] = []
    fake_cuda.on_launch = lambda *given: found.append(given[-1])
    monkeypatch.setattr(launch, "gpu", lambda device: launch.H100)
    return found


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        if name not in VIEWS and not (name == "_to_copy" and args[0].dtype == (kwargs or {}).get("dtype")):
            self.names.append(name)
        return op(*args, **(kwargs or {}))


def python_calls(run: Callable[[], object]) -> Counter:
    """By the names of functions, but for those of the test's doubles."""
    calls: Counter = Counter()

    def note(frame, event: str, arg: object) -> None:
        if event == "call" and "/tests/" not in frame.f_code.co_filename:
            calls[frame.f_code.co_qualname] += 1

    gc.disable()  # a collection calls what Hypothesis has put there
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


def pair(kind: str, T: int, dtype: torch.dtype) -> tuple[Callable[[], tuple], Callable[[], tuple]]:
    """Forward and backward of a layer of which all gradients are asked for, but those of the final states."""
    gates = 4 if kind == "lstm" else 3
    x, h, c, dy = (torch.randn(*shape, H, dtype=dtype) for shape in ((T, B), (B,), (B,), (T, B)))
    w_ih, w_hh, b_ih, b_hh = (torch.randn(gates * H, *n, dtype=dtype) for n in ((H,), (H,), (), ()))
    batch = x, None, None
    if kind == "lstm":
        forward = (*batch, h, c, w_ih, w_hh, b_ih, b_hh, None, None, False, False, False, True)
        *_, saved = lstm.lstm_fwd(*forward)
        backward = (dy, None, None, None, *batch, h, c, w_ih, w_hh, None, None, saved, False, False, True, True, True)
        return (lambda: lstm.lstm_fwd(*forward)), (lambda: lstm.lstm_bwd(*backward))
    forward = *batch, h, w_ih, w_hh, b_ih, b_hh, False, True
    *_, saved = gru.gru_fwd(*forward)
    backward = dy, None, *batch, h, w_ih, w_hh, saved, False, True, True, True
    return (lambda: gru.gru_fwd(*forward)), (lambda: gru.gru_bwd(*backward))


# Of a forward and a backward in bfloat16: PyTorch's launches, beside one of ours for all steps; and the most Python calls.
# Before launches were prepared they were 9 and 19 with 116 and 127 calls (GRU: 10 and 20, 116 and 119): decision 29
BOUNDS = {
    "lstm": ((["mm"], 38), (["clone", *["mm"] * 4, "addmm", "sum"], 48)),
    "gru": (
        (["mm", "copy_"], 36),
        (["clone", "roll", "mm", "mm", "add", "_to_copy", "sum", "mm", "roll", "mm", "addmm", "roll", "clone"], 44),
    ),
}


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("T", [5, 1])
def test_what_a_call_costs_the_host(kind: str, T: int, launched: list[bool]) -> None:
    for run, (wanted, most) in zip(pair(kind, T, torch.bfloat16), BOUNDS[kind], strict=True):
        run()
        launched.clear()
        with Launches() as launches:
            run()
        assert launched == [T > 1], "one cooperative launch; of a single step, which waits for nobody, a plain one"
        # the first step has no h of a step before
        assert launches.names == [name for name in wanted if T > 1 or name != "addmm"]
        calls = python_calls(run)
        assert calls.total() <= most - 3 * (T == 1), calls


def test_what_is_predicted_is_what_is_counted() -> None:
    counted = {
        f"{kind} {of}": (1 + len(names), most)
        for kind, both in BOUNDS.items()
        for of, (names, most) in zip(("forward", "backward"), both, strict=True)
    }
    assert counted == floor.CALLS
    assert floor.predicted_call_s(2, 38) == pytest.approx(11.8e-6)


def test_a_launch_is_prepared_once(launched: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = pair("lstm", 3, torch.float16)
    run()
    for planner in ("tile", "grid", "resident"):
        monkeypatch.setattr(plan, planner, lambda *_, **__: pytest.fail("a launch was planned again"))
    run()
    assert launched == [True] * 3


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_captured_graph_has_a_barrier_of_its_own(kind: str, launched: list[bool], monkeypatch) -> None:
    """Which it fills itself, at every replay: those may be on any stream."""
    cuda = SimpleNamespace(type="cuda")
    asked = SimpleNamespace(spec=gpu_compile.Spec(f"{kind}_forward", torch.float32, ()), grid=(3, 2), device=cuda)
    monkeypatch.setattr(torch, "zeros", lambda *shape, dtype, device: (shape, device))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(alarm, "arguments", lambda *_: {"barrier": None})
    assert launch.waiting(asked) == {"barrier": None}
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert launch.waiting(asked) == {"barrier": ((3, launch.BARRIER), cuda)}
