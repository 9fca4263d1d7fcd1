"""GPU kernels are compiled for every kind of GPU, in one go that all tests here share; Triton keeps it for later runs.

Each kernel, with every value of each flag, in the dtypes that make other code; `fastlstm info --kernels` compiles all sizes.
"""

import json
import os
import pickle
import re
import subprocess
import sys
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from fastlstm import backends
from fastlstm.benchmarks import floor, step_model
from fastlstm.cli import app
from fastlstm.cli.kernels import SPILL_BUDGET
from fastlstm.gpu import ahead, catalogue, launch
from fastlstm.gpu.attention_catalogue import DECODERS, decoder_launched
from fastlstm.gpu.catalogue import entries as all_entries
from fastlstm.kernels import gpu_compile
from fastlstm.kernels import gpu_machine_code as machine_code

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")

COMPILED = {"sm_80": ["bf16"], "sm_90": ["bf16", "fp32", "tf32"], "gfx942": ["bf16"]}
READ = {
    (kind, dtype) for kind in ("lstm", "gru") for dtype in ("bf16", "tf32", "fp32")
}  # their machine code, at all sizes
Jobs = list[tuple[catalogue.Entry, str]]


@cache
def entries(target: str) -> list[catalogue.Entry]:
    found = all_entries(target, COMPILED[target])
    if target not in catalogue.READ:  # nobody reads what they become there: each kernel in each form
        return list({(e.spec.name, dict(e.spec.constants).get("PERSISTENT")): e for e in found}.values())
    return list(dict.fromkeys([*catalogue.differing(found), *(e for e in found if is_read(e, target))]))


def is_read(entry: catalogue.Entry, target: str) -> bool:
    persistent = dict(entry.spec.constants).get("PERSISTENT")
    return bool(target in catalogue.READ and (entry.variant, entry.dtype) in READ and persistent)


PROGRAM = """
import pickle, sys
from pathlib import Path
from fastlstm.gpu.catalogue import compile_one
file = Path(sys.argv[1])
file.write_bytes(pickle.dumps([compile_one(*job) for job in pickle.loads(file.read_bytes())]))
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


Found = dict[tuple[catalogue.Entry, str], catalogue.Compiled]


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """All kernels that the tests of this run look at: `make machine-code` has another Triton compile those that are read, and
    no others."""
    jobs: Jobs = [(e, target) for target in COMPILED for e in entries(target)]
    if all(item.function is reading for item in request.session.items if "compiled" in item.fixturenames):
        jobs = [job for job in jobs if is_read(*job)]
    else:
        jobs += floor_jobs()
    return compile_all(jobs, tmp_path_factory.mktemp("kernels"))


def compile_all(jobs: Jobs, folder: Path) -> Found:
    """What each kernel compiles to, where Triton compiles and does not interpret: in processes that have a share each."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    running, found = [], {}
    with ExitStack() as ends:
        for k in range(processes := min(len(os.sched_getaffinity(0)), 8)):
            share, file = jobs[k::processes], folder / f"{k}.pickle"
            file.write_bytes(pickle.dumps(share))
            said = ends.enter_context(file.with_suffix(".txt").open("w"))
            one = subprocess.Popen([sys.executable, "-c", PROGRAM, file], env=env, stdout=said, stderr=said)
            # where another one fails, none goes on alone
            ends.enter_context(one)
            ends.callback(one.kill)
            running.append((share, file, one))
        for share, file, one in running:
            assert one.wait(600) == 0, file.with_suffix(".txt").read_text()
            found |= dict(zip(share, pickle.loads(file.read_bytes()), strict=True))
    return {job: found[job] for job in jobs}


def test_no_process_goes_on_where_another_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, popen = [], subprocess.Popen

    def start(*args: Any, **options: Any) -> subprocess.Popen:
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setitem(
        globals(), "PROGRAM", "import sys, time; time.sleep(99 if '1.pickle' in sys.argv[1] else 0); what"
    )
    with pytest.raises(AssertionError, match="NameError"):
        compile_all([], tmp_path)
    codes = [one.poll() for one in started]
    for one in started:
        one.kill()
        one.wait()
    assert codes == [1, -9]


def info(found: dict, target: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    """`fastlstm info --kernels`, which finds everything compiled."""
    monkeypatch.setattr(catalogue, "entries", lambda target, dtypes: entries(target))
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


def test_floor_compiles_and_hardly_spills(compiled: dict) -> None:
    specs = [job[0].spec for job in floor_jobs()]
    assert all(dict(spec.constants)["PERSISTENT"] for spec in specs)
    assert all(compiled[job].resources.spilled <= SPILL_BUDGET["sm_90"] for job in floor_jobs())


# Instructions of a step: more of them would be a step back, see docs/decisions/0020-steps-by-machine-code.md
CHAIN, BARRIERS = {"exact": 160, "": 16}, {"in pieces": 8, "of all warps": 11, "exact": 9}
# transcendentals behind the wait, of each of a thread's numbers: all of a forward's depend on the product, none of a backward's
LATE = {"lstm_forward": 10, "lstm_backward": 0, "gru_forward": 6, "gru_backward": 0}


def test_a_step_keeps_the_order_of_its_barrier_and_is_short(compiled: Found) -> None:
    """By the machine code for an H100: `catalogue.read` says what breaks the order, and then a kernel is one that fails."""
    rows = [row for (entry, target), row in compiled.items() if is_read(entry, target)]
    assert not [row.error for row in rows if row.error]
    kinds = {(row.entry.spec.name, row.entry.dtype) for row in rows}
    assert kinds >= {(f"{v}_{p}", d) for v, d in READ for p in ("forward", "backward")}
    for row in rows:
        constants, exact = dict(row.entry.spec.constants), row.entry.dtype == "fp32"
        split, numbers = constants["SPLIT"] > 1, constants["BM"] * constants["BH"] // (32 * row.entry.spec.warps)
        assert row.step.chain <= CHAIN["exact" if exact else ""], row
        assert row.step.barriers <= BARRIERS["exact" if exact else "in pieces" if split else "of all warps"], row
        assert row.step.late <= LATE[row.entry.spec.name] * max(numbers, 1), row
        if constants["KEEP"] and constants["ALIGN"] == 16:  # an odd H has many narrow loads
            assert row.step.trips == 1, row
    assert any(dict(row.entry.spec.constants)["SPLIT"] > 1 for row in rows)


def test_the_model_of_a_step_has_what_the_kernels_compile_to(compiled: Found) -> None:
    """The kernels as they are, in the table that predicts what each change brings."""
    _, *now = step_model.changes()[len(step_model.CHANGES)]
    for of, expected in zip(("forward", "backward"), now, strict=True):
        (row,) = [
            row
            for row in compiled.values()
            if (row.entry.spec.name, row.entry.dtype, row.entry.H, row.target) == (f"lstm_{of}", "bf16", 768, "sm_90")
            and row.step is not None
        ]
        grid = (1, 768 // dict(row.entry.spec.constants)["BH"])
        assert step_model.counts(row.entry.spec, grid, row.step) == expected


PTX = """
import pickle, sys
from fastlstm.gpu.catalogue import TARGETS
from fastlstm.kernels.gpu_compile import compiled
specs = pickle.loads(bytes.fromhex(sys.argv[1]))
sys.stdout.buffer.write(pickle.dumps([compiled(spec, TARGETS["sm_90"][0]).asm["ptx"] for spec in specs]))
"""


def accesses(ptx: str, parameter: int) -> str:
    """Of the array that is that parameter of a kernel, in the order of the code: L a load, S a store; and B a barrier."""
    known, found = set[str](), ""
    for line in ptx.splitlines():
        registers = re.findall(r"%rd\d+", line)
        if re.search(rf"ld\.param\.b64.*_param_{parameter}\]", line):
            known.add(registers[0])
        elif "bar.sync" in line:
            found += "B"
        elif access := re.search(r"\b(ld|st)\.global.*?\[\s*(%rd\d+)", line):
            found += access[1][0].upper() if access[2] in known else ""
        elif registers and not known.isdisjoint(registers[1:]):
            known.add(registers[0])
    return found


def test_what_is_written_in_its_place_was_read_by_every_warp() -> None:
    """Each warp of a program reads the gradient of a row's context, to which one of them adds what the next step feeds back."""
    flags = {"GIVEN": True, "FED": True}.items()
    launched = [s for one in DECODERS for s in decoder_launched(one, torch.bfloat16, "tf32", launch.H100)]
    specs = [s for s in launched if s.name == "attend_backward" and flags <= dict(s.constants).items()]
    assert specs
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PTX, pickle.dumps(specs).hex()], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    for ptx in pickle.loads(done.stdout):
        order = accesses(ptx, gpu_compile.arguments("attend_backward").index("dcontext"))
        assert re.fullmatch(r"B*(L+B+)+S[BS]*", order), order


reading = test_a_step_keeps_the_order_of_its_barrier_and_is_short
STEP = """
  /*0010*/ MUFU.EX2 R1, R2 ;
  /*0020*/ LDG.E.STRONG.GPU R16, desc[UR18][R16.64] ;
  /*0030*/ CCTL.IVALL ;
  /*0040*/ @!P2 BRA 0x20 ;
  /*0050*/ LDG.E.128.STRONG.GPU R16, desc[UR18][R26.64] ;
  /*0060*/ HMMA.16816.F32.BF16 R32, R32, R24, RZ ;
  /*0070*/ HMMA.16816.F32.BF16 R36, R32, R24, RZ ;
  /*0080*/ HMMA.16816.F32.BF16 R32, R16, R20, R32 ;
  /*0090*/ BAR.SYNC.DEFER_BLOCKING 0x0 ;
  /*00a0*/ MUFU.RCP R1, R2 ;
  /*00b0*/ @P0 STG.E.U16 desc[UR18][R16.64], R24 ;
  /*00c0*/ BAR.SYNC.DEFER_BLOCKING 0x0 ;
  /*00d0*/ MEMBAR.ALL.GPU ;
  /*00e0*/ REDG.E.ADD.STRONG.GPU desc[UR18][R8.64], R7 ;
  /*00f0*/ @P0 STG.E desc[UR18][R16.64], R23 ;
  /*0100*/ @P1 BRA 0x10 ;
"""
WRONG = {
    "cached": ("LDG.E.128.STRONG.GPU", "LDG.E.128", "no load behind the acquire goes past"),
    "one cached": ("/*0060*/", "/*0058*/ LDG.E.64 R2, desc[UR18][R26.64] ;\n  /*0060*/", "goes through .* LDG.E.64 R2"),
    "no fence": ("MEMBAR.ALL.GPU", "NOP", "no fence precedes"),
    "no store": ("@P0 STG.E.U16", "NOP.U16", "stored behind the fence, or not at all"),
    "late": ("MEMBAR.ALL.GPU ;", "MEMBAR.ALL.GPU ;\n  /*00d8*/ STG.E desc[UR18][R16.64], R24 ;", "between the fence and the"),
}  # fmt: skip


def test_an_exact_step_is_read() -> None:
    """Whose products are multiply-adds, as parts of the activations are."""
    text = STEP.replace("HMMA.16816.F32.BF16", "FFMA").replace("R16, R20, R32 ;", "R16, R20.reuse, R32.reuse ;")
    code = machine_code.parsed(text, exact=True)
    assert machine_code.cost(code) == (1, 2, 2, 1, 1)
    assert not machine_code.faults(code, streams=True, stores=1)
    (said,) = machine_code.faults(
        machine_code.parsed(text.replace("128.STRONG.GPU", "128"), exact=True), streams=True, stores=1
    )
    assert "no load behind the acquire goes past" in said


def test_a_step_is_read() -> None:
    code = machine_code.parsed(STEP)
    assert machine_code.cost(code) == (1, 2, 2, 1, 1)
    assert not machine_code.faults(code, streams=False, stores=1)
    with pytest.raises(ValueError, match="there is no"):
        machine_code.parsed(STEP.replace("HMMA", "FFMA"))


# what follows the load of R16 to R19: how many round trips it and the next load take
LOADS = {
    "at once": ("LDG.E.128.STRONG.GPU R20, desc[UR18][R26.64+0x80] ;", 1),
    "by an address that it brought": ("LDG.E.128.STRONG.GPU R20, desc[UR18][R18.64] ;", 2),
    "into the same registers": (
        "STS.128 [R9], R16 ;\n  /*0056*/ LDG.E.128.STRONG.GPU R16, desc[UR18][R26.64+0x80] ;",
        2,
    ),
    "after use of its last": ("IADD3 R9, R19, R8, RZ ;\n  /*0056*/ LDG.E.STRONG.GPU R2, desc[UR18][R26.64+0x80] ;", 2),
}


@pytest.mark.parametrize(("lines", "trips"), LOADS.values(), ids=LOADS)
def test_round_trips_are_counted(lines: str, trips: int) -> None:
    code = machine_code.parsed(STEP.replace("  /*0060*/", f"  /*0054*/ {lines}\n  /*0060*/"))
    assert machine_code.cost(code).trips == trips


@pytest.mark.parametrize(("old", "new", "words"), WRONG.values(), ids=WRONG)
def test_a_broken_order_is_seen(old: str, new: str, words: str) -> None:
    assert old in STEP
    (said,) = machine_code.faults(machine_code.parsed(STEP.replace(old, new)), streams=False, stores=1)
    assert re.search(words, said)


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
    assert f"sm_90: {broken[0].spec.name} of gru, tf32, B {broken[0].B}, H {broken[0].H}: {words}" in said.output
