"""Every GPU kernel is compiled for every kind of GPU, in one go that all tests here share; Triton keeps it for later runs."""

import json
import os
import pickle
import subprocess
import sys
from functools import cache, partial

import pytest
import torch
from typer.testing import CliRunner, Result

from fastlstm import backends
from fastlstm.benchmarks import floor
from fastlstm.cli import app
from fastlstm.cli.kernels import SPILL_BUDGET
from fastlstm.gpu import ahead, catalogue, launch

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")

# the others differ in little from these, and take a minute more: `fastlstm info --kernels` compiles all
COMPILED = {"sm_80": ["bf16", "tf32"], "sm_90": ["bf16", "fp32", "tf32"], "gfx942": ["bf16"]}
Jobs = list[tuple[catalogue.Entry, str]]
entries = cache(catalogue.entries)

PROGRAM = """
import os, pickle, sys
from fastlstm.gpu.catalogue import compile_all
with open(sys.argv[1], "rb") as file:
    jobs = pickle.load(file)
rows = list(compile_all(jobs, len(os.sched_getaffinity(0))))
with open(sys.argv[1], "wb") as file:
    pickle.dump(rows, file)
"""


def floor_jobs() -> Jobs:
    """The kernels that `benchmarks.floor` times, planned for an H100."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "gpu", lambda device: launch.H100)
        patch.setattr(launch, "precision", lambda dtype, device: "tf32")
        return [
            (catalogue.Entry("floor", "bf16", B, H, spec), "sm_90")
            for B, H in ((16, 768), (128, 1024))
            for spec in ahead.planned(
                partial(floor.floor, B, H, torch.bfloat16, 2, product=product, device="cpu")
                for product in (True, False)
            )
        ]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[catalogue.Entry, str], catalogue.Compiled]:
    """What each kernel compiles to, where Triton compiles and does not interpret."""
    jobs = [(e, target) for target in COMPILED for e in entries(target) if e.dtype in COMPILED[target]]
    jobs += floor_jobs()
    file = tmp_path_factory.mktemp("kernels") / "jobs.pickle"
    file.write_bytes(pickle.dumps(jobs))
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    said = file.with_suffix(".txt")  # no pipe, which a process that is left over would hold open
    with said.open("w") as stream:
        done = subprocess.run([sys.executable, "-c", PROGRAM, file], env=env, stdout=stream, stderr=stream, timeout=600)
    assert done.returncode == 0, said.read_text()
    return dict(zip(jobs, pickle.loads(file.read_bytes()), strict=True))


def info(found: dict, target: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    """`fastlstm info --kernels`, which finds everything compiled."""
    monkeypatch.setattr(catalogue, "entries", entries)
    monkeypatch.setattr(catalogue, "compile_all", lambda jobs, processes: [found[job] for job in jobs])
    dtypes = [word for dtype in COMPILED[target] for word in ("--dtype", dtype)]
    return CliRunner().invoke(app, ["info", "--kernels", "--target", target, *dtypes, "--json"])


@pytest.mark.parametrize("target", catalogue.TARGETS)
def test_every_kernel_compiles_and_hardly_spills(target: str, compiled: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    said = info(compiled, target, monkeypatch)
    assert said.exit_code == 0, said.output
    rows = json.loads(said.stdout)
    assert {row["kernel"] for row in rows} == {
        "lstm_forward", "lstm_backward", "gru_forward", "gru_backward", "project", "conv_lstm_forward", "conv_lstm_backward",
        "attention_lstm_forward", "attention_lstm_backward", "attend_forward", "attend_backward", "attend_keys",
    }  # fmt: skip
    assert {row["dtype"] for row in rows} == set(COMPILED[target])
    assert all(row["spilled"] <= SPILL_BUDGET[target] and row["registers"] > 0 for row in rows)


def test_floor_compiles_and_spills_nothing(compiled: dict) -> None:
    specs = [job[0].spec for job in floor_jobs()]
    assert all(dict(spec.constants)["PERSISTENT"] for spec in specs)
    assert [compiled[job].resources.spilled for job in floor_jobs()] == [0] * len(specs)


FAILURES = {
    "spills": (catalogue.Resources(255, 4096, 0), "", "spills 4096 bytes"),
    "does not compile": (None, "RuntimeError: PassManager::run failed", "RuntimeError: PassManager::run failed"),
}


@pytest.mark.parametrize(("resources", "error", "words"), FAILURES.values(), ids=FAILURES)
def test_a_kernel_that_fails_is_named(resources, error, words, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [(e, "sm_90") for e in entries("sm_90")]
    good = catalogue.Resources(64, 0, 0)
    found = {job: catalogue.Compiled(*job, good, "") for job in jobs}
    broken = next(job for job in jobs if job[0].variant == "gru" and job[0].dtype == "tf32")
    found[broken] = catalogue.Compiled(*broken, resources, error)
    said = info(found, "sm_90", monkeypatch)
    assert said.exit_code == 1
    assert f"sm_90: gru_forward of gru, tf32, B 16, H 768: {words}" in said.output
