"""What `make gpu-check` measures, as far as it can be seen without a GPU."""

import dataclasses
import importlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from fastlstm import backends
from fastlstm.benchmarks import contenders, floor, rollouts, runner, step_model, work
from fastlstm.benchmarks.cases import ATTENTION_CASES, CONV_CASES, CPU_CASES, GPU_CASES, default_cases, find
from fastlstm.case import parse
from fastlstm.cli import app
from fastlstm.cli.bench import AGAINST
from fastlstm.gpu import ahead, launch
from fastlstm.kernels import gpu_compile
from fastlstm.kernels.gpu_machine_code import Step

MACHINE = {"chip": "a GPU", "vectors": "-", "threads": 1, "torch": "2", "python": "3", "commit": "-", "name": "x"}
ROOT = Path(__file__).parents[1]
built = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")


def test_a_gpu_has_cases_of_its_own() -> None:
    assert default_cases("cpu") == CPU_CASES | CONV_CASES | ATTENTION_CASES
    assert default_cases("cuda") == default_cases("cuda:1") == GPU_CASES | CONV_CASES | ATTENTION_CASES
    assert not CPU_CASES.keys() & GPU_CASES.keys()
    for name in ("b16-h256", "b64-h768", "b128-h1024"):
        B, H = (int(part[1:]) for part in name.split("-"))
        case = GPU_CASES[name]
        assert (case.B, case.H, case.I, case.T) == (B, H, H, 512)


def test_bench_takes_the_cases_of_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled = []
    monkeypatch.setattr(importlib.import_module("fastlstm.cli.bench"), "check_device", lambda device: None)
    of_machine = importlib.import_module("fastlstm.benchmarks.machine")
    monkeypatch.setattr(of_machine, "machine", lambda device: MACHINE | {"device": device})
    monkeypatch.setattr(runner, "compile_ahead", lambda rows, device: compiled.extend(rows))
    monkeypatch.setattr(
        runner,
        "measure",
        lambda case, against, name, **_: {
            "case": str(case), "name": name, "variant": case.variant, "mode": case.mode, "against": against, "reason": "no GPU",
        },
    )  # fmt: skip
    file = tmp_path / "result.json"
    options = ["--device", "cuda", "--variant", "lstm", "--mode", "train", "--dtype", "bf16", "--json", str(file)]
    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code == 1  # no row has a time
    assert "Nothing was measured" in result.output
    written = json.loads(file.read_text())
    assert [row["name"] for row in written["rows"]] == list(GPU_CASES)
    assert [(case.dtype, case.mode, peer) for case, peer in compiled] == [("bf16", "train", "torch")] * len(GPU_CASES)
    assert [(case.T, case.B, case.H) for case, _ in compiled] == [(c.T, c.B, c.H) for c in GPU_CASES.values()]


@pytest.fixture
def planning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU are planned for an H100."""
    monkeypatch.setattr(launch, "gpu", lambda device: launch.H100)
    monkeypatch.setattr(launch, "precision", lambda dtype, device: "ieee" if dtype == torch.float32 else "tf32")


@pytest.mark.parametrize(
    ("op", "path"), [("aten::_cudnn_rnn", "cuDNN"), ("aten::mkldnn_rnn_layer", "oneDNN"), ("aten::mm", "op chain")]
)
def test_a_row_says_whose_kernels_ran(op: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN has bfloat16 for recurrent nets since 9.13 only: whether it ran is seen, not assumed."""
    monkeypatch.setattr(contenders, "SeenOps", lambda: nullcontext(SimpleNamespace(names={op})))
    given = work.make_work(parse("lstm T3 B2 I3 H4 bf16 infer"))
    assert contenders.contender("torch", given).path == path


@built
@pytest.mark.parametrize("product", [True, False])
def test_floor_steps(product: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, program by program, one launch per step."""

    def run(calls: list, T: int, device: torch.device, *, resident: bool) -> bool:
        (call,) = calls
        names = gpu_compile.arguments("floor")
        for first in range(T):
            given = {**call.given, "first": first, "steps": 1}
            kernel = gpu_compile.function("floor")[call.grid]
            kernel(**{name: given[name] for name in names}, **dict(call.spec.constants))
        return True

    monkeypatch.setattr(launch, "gpu", lambda device: launch.H100._replace(processors=0))
    monkeypatch.setattr(launch, "run", run)
    B, H, steps = 20, 37, 4
    states = floor.floor(B, H, torch.float32, steps, product=product, device="cpu")
    w = floor.weights(H, torch.float32, "cpu")[:H]
    for before, after in pairwise(states):
        torch.testing.assert_close(after, before @ w.t() if product else torch.zeros_like(before))


@built
def test_kernels_are_planned_without_launching(planning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(ahead, "ProcessPoolExecutor", lambda *_: started.append(1))
    monkeypatch.setattr(launch, "target", lambda index: None)
    few = [partial(floor.floor, 16, H, torch.bfloat16, 2, device="cpu") for H in (64, 128)]
    assert len(list(ahead.planned(few * 2))) == 2
    ahead.compile_ahead(few, torch.device("cpu"))
    assert not started


def nothing_to_plan() -> None:
    raise ValueError("its own affair")


@built
@pytest.mark.parametrize("places", [100, 3])
def test_kernels_are_compiled_meanwhile(places: int, planning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they are met; neither what raises, nor a process that is killed, ends those who use them."""
    submitted = []

    class Pool:
        def __init__(self, processes: int, context: object, **options: object) -> None: ...
        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, function: object, spec: gpu_compile.Spec, target: object) -> str:
            if len(submitted) == places:
                raise BrokenProcessPool
            submitted.append(spec)
            return "a job"

        def shutdown(self, *, cancel_futures: bool) -> None:
            assert cancel_futures

    monkeypatch.setattr(ahead, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(launch, "target", lambda index: None)
    sizes = [64 * k for k in range(1, ahead.FEW + 2)]
    many = [partial(floor.floor, 16, H, torch.bfloat16, 2, device="cpu") for H in sizes]
    with ahead.compiling([nothing_to_plan, *many], torch.device("cpu")) as found:
        assert found == ["a job"] * min(places, len(many))
    assert [dict(spec.constants)["H"] for spec in submitted] == sizes[:places]


def test_a_step_is_the_sum_of_its_terms() -> None:
    """In which each count has its part; streamed weights come while products are taken."""
    c = step_model.Counts(programs=96, warps=8, rows=24576, weights=0, trips=2, chain=6, barriers=3, late=10)
    terms = step_model.terms(c)
    assert terms == pytest.approx({
        "wait": 1.2e-6, "trips": 0.6e-6, "bytes": 96 * 24576 / 5.5e12, "products": 114e-9, "barriers": 66e-9,
        "activations": 10 * 8 * 32 / 16 / 1.755e9,
    })  # fmt: skip
    assert step_model.predicted_s(c) == pytest.approx(sum(terms.values()))
    few = step_model.terms(c._replace(programs=1))
    assert few["bytes"] == pytest.approx(24576 / 64 / 1.755e9), "one processor takes no more than its share"
    streamed = c._replace(weights=98304, chain=6)
    assert step_model.terms(streamed)["bytes"] == pytest.approx(96 * (24576 + 98304) / 5.5e12 - 114e-9)
    assert step_model.terms(streamed._replace(chain=999))["bytes"] == 0


def test_every_change_is_predicted() -> None:
    rows = step_model.changes()
    assert [what.partition(".")[0] for what, *_ in rows[:5]] == ["before", "1", "2", "3", "4"]
    forward, backward = ([step_model.predicted_s(row[k]) for row in rows] for k in (1, 2))
    assert forward[0] / forward[-2] > 1.8
    assert backward[0] / backward[-2] > 1.5
    said = step_model.table().splitlines()
    assert len([line for line in said if line.startswith("| ")]) == len(rows) + 2 + 4
    record = (ROOT / "docs/decisions/0036-a-step-predicted.md").read_text()
    assert step_model.table() in record, "python -m fastlstm.benchmarks.step_model prints it"


@built
def test_predictions_stand_beside_what_is_measured(planning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "step_of", lambda spec, target: Step(1, 6, 3, 0, 0))
    (seconds,) = floor.predicted(partial(floor.floor, 16, 768, torch.bfloat16, device="cpu"))
    counts = step_model.Counts(programs=96, warps=8, rows=24576, weights=0, trips=1, chain=6, barriers=3, late=0)
    assert seconds == step_model.predicted_s(counts)


def test_a_floor_that_fails_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a prediction take along what was measured."""
    file, seconds, broken = tmp_path / "floor.json", (3e-6, 4e-6), iter([True])

    def loop(*_: object) -> tuple[float, float]:
        if next(broken, False):
            raise RuntimeError("an illegal address")
        return seconds

    monkeypatch.setattr(floor, "machine", lambda device: MACHINE)
    monkeypatch.setattr(ahead, "compile_ahead", lambda work, device: None)
    monkeypatch.setattr(floor, "loop_seconds_per_step", loop)
    monkeypatch.setattr(floor, "floor_seconds_per_step", lambda *_, product=True: 2e-6 if product else 1e-6)
    monkeypatch.setattr(floor, "predicted", lambda run: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        floor.main(file)
    assert ended.value.code == 1
    failed, right, *_ = json.loads(file.read_text())["rows"]
    assert failed == {"case": "b16-h256", "dtype": "bf16", "failed": "RuntimeError: an illegal address"}
    assert [value for key, value in right.items() if key.endswith("_s")] == [1e-6, 2e-6, *seconds]
    assert right["not_predicted"].startswith("ZeroDivisionError")


@pytest.fixture(autouse=True)
def no_make_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make test ARGS=...` hands to the make that a test runs."""
    for name in ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_on_gpu(tmp_path: Path) -> None:
    """Every part is there, by the package that was built, in at most 8 files; nothing is installed."""
    command = ["make", "-n", "on-gpu", "PYTHON=the-python", f"OUT={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = [line for line in done.stdout.splitlines() if "PYTHONPATH=build/gpu " in line]
    for words in (
        "fastlstm info", "tests/on_gpu.py --json", "parity --device cuda --backend triton --dtype bf16", "--mode train",
        "--against cell", "--against lstm", "--against dense", "--against compile", "--against torchrl", "--dtype fp16",
        "benchmarks.floor",
    ):  # fmt: skip
        assert any(words in part for part in parts), words
    assert all("the-python -P -m fastlstm" in part or "the-python tests/on_gpu.py" in part for part in parts)
    assert "pip" not in done.stdout
    files = {word for part in parts for word in part.split() if word.startswith(str(tmp_path) + "/")}
    assert len(files) + 3 <= 8  # and the three of bench, one per dtype


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_says_what_python_lacks(tmp_path: Path) -> None:
    """Before minutes of parts that can't be imported. An interpreter with a GPU, and without site-packages."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *find_spec*) exec {sys.executable} -S "$@";; esac\n')
    python.chmod(0o755)
    done = subprocess.run(["make", "gpu-check", f"PYTHON={python}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.splitlines()[0].endswith(": numpy pybind11 rich safetensors triton typer setuptools>=77")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_leaves_out_what_it_has_no_time_for(tmp_path: Path) -> None:
    command = ["make", "-k", "END=1", "PYTHON=no-such", f"OUT={tmp_path}", "on-gpu-info", "on-gpu-floor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert [line for line in done.stdout.splitlines() if line.endswith("no time is left for it")] == [
        "on-gpu-info: no time is left for it", "on-gpu-floor: no time is left for it",
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_names_no_option_that_is_gone() -> None:
    done = subprocess.run(["make", "-n", "-k", "bench", "on-gpu"], cwd=ROOT, capture_output=True, text=True)
    command = get_command(app).commands["bench"]
    lines = [line.partition("fastlstm bench ")[2] for line in done.stdout.splitlines() if "fastlstm bench " in line]
    assert len(lines) > 20
    for line in lines:
        given = command.make_context("bench", shlex.split(line)).params
        assert set(given["against"] or ()) <= set(AGAINST), line
        for case in given["case"] or ():
            find(case)


def test_every_contender_can_be_asked_for() -> None:
    assert contenders.CONTENDERS.keys() - {"ours", "reference"} <= set(AGAINST)


class RolloutModule(torch.nn.Module):
    """A double of torchrl's: by a cell, step by step; where an episode begins, from the state that is given for that step."""

    def __init__(self, I: int, H: int, layers: int, *, in_keys: list, out_keys: list, **options: object) -> None:
        super().__init__()
        assert (layers, options["recurrent_backend"]) == (1, "scan")
        self.in_keys, self.out_keys = in_keys, out_keys
        kind = "lstm" if len(in_keys) == 3 else "gru"
        setattr(self, kind, getattr(torch.nn, kind.upper())(I, H, batch_first=True))
        self.run = getattr(self, kind)

    def forward(self, data: dict) -> dict:
        x, is_init, given = data["x"], data["is_init"], [data[name] for name in self.in_keys[1:]]
        states, y = [s[:, 0] for s in given], []
        for t in range(x.shape[1]):
            states = [torch.where(is_init[:, t, :, None], new[:, t], s) for new, s in zip(given, states, strict=True)]
            hx = [s.transpose(0, 1).contiguous() for s in states]
            row, finals = self.run(x[:, t, None], tuple(hx) if len(hx) == 2 else hx[0])
            states = [s.transpose(0, 1) for s in (finals if len(hx) == 2 else [finals])]
            y.append(row)
        finals = [s[:, None].expand(-1, x.shape[1], -1, -1) for s in states]
        return dict(zip(self.out_keys, [torch.cat(y, 1), *finals], strict=True))


@pytest.mark.parametrize("variant", ["lstm", "gru"])
@pytest.mark.parametrize("more", ["", "zero_state"])
def test_rollouts_of_torchrl_are_the_same_work(variant: str, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a double tells; the real one was tried by hand, on the CPU."""
    doubles = {
        "torchrl": SimpleNamespace(modules=SimpleNamespace(LSTMModule=RolloutModule, GRUModule=RolloutModule)),
        "tensordict": SimpleNamespace(TensorDict=lambda data, size: data),
    }
    for name, double in doubles.items():
        monkeypatch.setitem(sys.modules, name, double)
    case = parse(f"{variant} T9 B5 I3 H7 resets:0.3 {more} fp32 train")
    given = work.make_work(case)
    assert given.reset[0].any()
    module = rollouts.Rollouts(given, "scan")
    assert runner.disagreement(work.Contender(given, work.step(given, module, module)), strict=False) is None
    for setting in ("tf32", "ieee"):
        monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", setting)
        module(given.x, *given.states)
        assert module.rollout.recurrent_matmul_precision == setting


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], Callable[[work.Contender], work.Contender]]]:
    """What recurrent nets are set to at each step of a contender, where "tf32" is set; and the contender that notes it."""
    rnn, seen = torch.backends.cudnn.rnn, list[str]()
    before, rnn.fp32_precision = rnn.fp32_precision, "tf32"
    yield (
        seen,
        lambda one: dataclasses.replace(one, step=lambda: seen.append(rnn.fp32_precision) or one.step()),
    )
    rnn.fp32_precision = before


def test_results_are_compared_exactly_and_timed_as_is_set(noting: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, note = noting
    monkeypatch.setitem(contenders.CONTENDERS, "cell", lambda w: note(contenders.ours(w)))
    row = runner.measure(parse("lstm T3 B2 I3 H4 fp32 infer"), "cell", pairs=2, device="cpu")
    assert "ratios" in row
    assert seen[0] == "ieee"
    assert set(seen[1:]) == {"tf32"}


def test_kernels_are_compiled_as_compared_and_as_timed(noting: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, note = noting
    monkeypatch.setitem(contenders.CONTENDERS, "ours", lambda w: note(contenders.ours(w)))
    monkeypatch.setattr(ahead, "compile_ahead", lambda steps, device: [step() for step in steps])
    make = work.make_work
    monkeypatch.setattr(runner, "make_work", lambda case, device: make(case, device) if case.B == 2 else 1 / 0)
    rows = [(parse(f"lstm T3 B{B} I3 H4 fp32 infer"), "torch") for B in (3, 2)]
    runner.compile_ahead(rows, "cpu")  # what can't be made is the affair of who measures it
    assert seen == ["ieee", "tf32"]
