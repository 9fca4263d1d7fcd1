"""The persistent form with many programs at once, which wait for each other at every step: see `gpu_programs`."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gpu_interpreter import FEW, MANY, Interpreter
from gpu_programs import Launch, at_once
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import alarm, backends
from fastlstm.gpu import launch, plan
from fastlstm.gpu.rows import Rows
from fastlstm.kernels import gpu_compile, gpu_math

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")

T, B, I, H = 3, 20, 3, 9  # two tiles of sequences and two of units
RAGGED = {"lengths": [3] * 9 + [2] * 8 + [1] * 3, "reset": torch.arange(T * B).reshape(T, B) % 5 == 0}
USES = {
    "dense": ({}, False),
    "of different lengths, with resets, in both directions": (RAGGED, True),
    "packed": ({"packed": RAGGED["lengths"]}, False),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights that stay, and features of which each warp sums a part."""
    monkeypatch.setattr(
        plan, "tile", lambda B, H, K, *_, **__: plan.Tile(16, 8, *plan.whole(K), keep=True, warps=1, stages=1, split=2)
    )


def trained(kind: str, given: dict, bidirectional: bool) -> list[Tensor]:
    torch.manual_seed(0)
    layer = getattr(fastlstm, kind)(I, H, bidirectional=bidirectional)
    x = torch.randn(T, B, I, requires_grad=True)
    if packed := given.get("packed"):
        y, finals = layer(pack_padded_sequence(x, packed))
        y = y.data
    else:
        y, finals = layer(x, **given)
    outputs = [y, *(finals if isinstance(finals, tuple) else [finals])]
    if not torch.is_grad_enabled():
        return outputs
    goal = sum(t.sin().sum() for t in outputs)
    return [*(t.detach() for t in outputs), *torch.autograd.grad(goal, [x, *layer.parameters()])]


def run_at_once(
    kind: str, given: dict, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[Launch]]:
    monkeypatch.setattr(launch, "gpu", lambda device: MANY)
    with at_once(monkeypatch) as launches:
        results = trained(kind, given, bidirectional)
    assert all(len(one.places) == 2 * -(-H // 8) for one in launches)
    return results, launches


@pytest.mark.parametrize(("given", "bidirectional"), USES.values(), ids=USES)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_bits_of_one_launch_per_step_and_no_race(
    kind: str, given: dict, bidirectional: bool, interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, launches = run_at_once(kind, given, bidirectional, monkeypatch)
    assert len(launches) == (4 if bidirectional else 2)
    assert all(cooperative for *_, cooperative in interpreter.launched)
    assert not [one.races for one in launches if one.races]
    monkeypatch.setattr(launch, "gpu", lambda device: FEW)
    for one, other in zip(results, trained(kind, given, bidirectional), strict=True):
        assert torch.equal(one, other)


# (file, function, old, new): what is wrong with each
STORE = "        tl.store(m + at_h, m_new.to(m.dtype.element_ty), mine)\n"
STORE_GRADIENTS = "        store_gates(dgates, at, mine, H, da_i, da_f, da_g, da_o, COUPLED)\n"
STORE_GRU = "        tl.store(y + at_h, h_new.to(y.dtype.element_ty), mine)\n"
STORE_GRU_GRADIENT = "        tl.store(to + 3 * H, (da_n * r).to(out), mine)\n"
WAIT = "wait(barrier + batch_tile * 32, arrivals, hope"
ARRIVE = "        if PERSISTENT:\n            arrive(barrier + batch_tile * 32)\n"
FAULTS = {
    "arrives before it stores": ("lstm/gpu.py", "lstm_forward", STORE + ARRIVE, ARRIVE + STORE),
    "arrives before it stores gradients": (
        "lstm/gpu.py", "lstm_backward", STORE_GRADIENTS + ARRIVE, ARRIVE + STORE_GRADIENTS,
    ),
    "a GRU arrives before it stores": ("gru/gpu.py", "gru_forward", STORE_GRU + ARRIVE, ARRIVE + STORE_GRU),
    "a GRU arrives before it stores a gradient": (
        "gru/gpu.py", "gru_backward", STORE_GRU_GRADIENT + ARRIVE, ARRIVE + STORE_GRU_GRADIENT,
    ),
    "waits for one too few": ("lstm/gpu.py", "lstm_forward", WAIT, WAIT.replace("arrivals", "arrivals - 1")),
    "waits for a step too few": (
        "gru/gpu.py", "gru_backward", WAIT, WAIT.replace("arrivals", "arrivals - tl.num_programs(1)"),
    ),
    "acquires nothing": ("gpu_math.py", "lstm_forward", 'sem="acquire"', 'sem="relaxed"'),
}  # fmt: skip


@pytest.mark.parametrize(("file", "name", "old", "new"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_seen(file, name, old, new, interpreter: Interpreter, monkeypatch, tmp_path: Path) -> None:
    broken = altered(file, old, new, tmp_path)
    if file == "gpu_math.py":
        monkeypatch.setattr(importlib.import_module("fastlstm.kernels.lstm.gpu"), "wait", broken.wait)
    else:
        function = gpu_compile.function
        monkeypatch.setattr(gpu_compile, "function", lambda n: getattr(broken, n) if n == name else function(n))
    monkeypatch.setattr(sys.modules[__name__], "H", 20)  # three tiles: an order in which it shows is sooner found
    with torch.set_grad_enabled("backward" in name):
        _, launches = run_at_once("GRU" if "gru" in name else "LSTM", {}, False, monkeypatch)
    assert launches[-1].races


def altered(file: str, old: str, new: str, folder: Path) -> ModuleType:
    """A file of kernels with another text in it."""
    source = (Path(gpu_math.__file__).parent / file).read_text()
    assert old in source
    path = folder / "altered.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("altered", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# of (steps + 1) arrivals and leavings of each program
COUNTS = {"never": "(steps + 2)", "before others have arrived": "(steps + 0)"}


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_a_barrier_that_is_zeroed_at_another_count_is_seen(
    count: str, interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = altered("gpu_math.py", "(steps + 1)", count, tmp_path)
    monkeypatch.setattr(importlib.import_module("fastlstm.kernels.lstm.gpu"), "leave", broken.leave)
    monkeypatch.setattr(alarm, "PATIENCE", 300)
    monkeypatch.setattr(alarm, "steps_only", False)
    with torch.no_grad(), pytest.raises(RuntimeError, match="cuLaunchCooperativeKernel of lstm_forward"):
        run_at_once("LSTM", {}, False, monkeypatch)
    alarm._reading[:] = 0  # whoever waited in vain has said so, too


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short, and nothing is NaN that no kernel has written: memory is zeros."""
    monkeypatch.setattr(Rows, "new", lambda self, columns, like: like.new_zeros((*self.leading, columns)))
    monkeypatch.setattr(alarm, "PATIENCE", 9)
    monkeypatch.setattr(alarm, "steps_only", False)
    monkeypatch.setattr(launch, "gpu", lambda device: MANY)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_wait_ends(kind: str, interpreter: Interpreter, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after another: the first ones wait in vain, and nothing hangs."""
    layer, x = getattr(fastlstm, kind)(I, H), torch.randn(T, B, I)
    with torch.no_grad():
        y, finals = layer(x)
        assert y[0].isfinite().all()
        assert y[1, :, :8].isnan().all()
        assert y[2].isnan().all()
        assert all(state.isnan().all() for state in finals)
        with pytest.raises(
            RuntimeError, match=f"{kind.lower()}_forward gave up: its grid of 2 x 2 programs.*earlier call"
        ):
            layer(x)
        # once; and from then on nobody waits
        before = len(interpreter.launched)
        y, _ = layer(x)
        assert y.isfinite().all()
        assert len(interpreter.launched) == before + T
        backends.check_gpu()


def test_check_gpu_tells_what_the_next_call_would(interpreter: Interpreter, impatient: None) -> None:
    layer, x = fastlstm.LSTM(I, H), torch.randn(T, B, I, requires_grad=True)
    with torch.no_grad():
        layer(x)
    with pytest.raises(RuntimeError, match=r'lstm_forward gave up.*force_form\("steps"\).*backend="reference"'):
        backends.check_gpu()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gradients_of_a_launch_that_gave_up_are_nan(
    kind: str, interpreter: Interpreter, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = getattr(fastlstm, kind)(I, H), torch.randn(T, B, I, requires_grad=True)
    monkeypatch.setattr(alarm, "PATIENCE", 1 << 20)
    with at_once(monkeypatch):
        y, _ = layer(x)
    monkeypatch.setattr(alarm, "PATIENCE", 9)
    y.sum().backward()
    assert x.grad[0].isnan().all()
    with pytest.raises(RuntimeError, match=f"{kind.lower()}_backward gave up"):
        backends.check_gpu()


def test_force_form(interpreter: Interpreter, impatient: None) -> None:
    layer, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    backends.force_form("steps")
    with torch.no_grad():
        layer(x)
    assert [cooperative for *_, cooperative in interpreter.launched] == [False] * T
    backends.force_form(None)
    assert not alarm.steps_only
    with pytest.raises(ValueError, match="form is 'one', expected 'steps', or None"):
        backends.force_form("one")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_refused_launch_is_run_step_by_step(
    kind: str, interpreter: Interpreter, fake_cuda, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this process has too small a share of the GPU for all programs: forward and backward have the bits of a launch per
    step, and the driver is asked once for each."""
    fake_cuda.fail("cuLaunchCooperativeKernel", 720)
    results = [trained(kind, RAGGED, False) for _ in range(2)]
    assert fake_cuda.called.count("cuLaunchCooperativeKernel") == 2
    monkeypatch.setattr(launch, "gpu", lambda device: FEW)
    expected = trained(kind, RAGGED, False)
    assert not any(cooperative for *_, cooperative in interpreter.launched)
    for found in results:
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
