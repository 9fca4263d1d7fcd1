"""`fastlstm bench` as a command: what it refuses at its start, interruptions, and results that are made up here."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from test_results import MACHINE
from typer.testing import CliRunner

from fastlstm.benchmarks import compare, predict, results, runner
from fastlstm.benchmarks.machine import Others, commit
from fastlstm.benchmarks.report import made
from fastlstm.case import Case
from fastlstm.cli import app, measuring

A, B = "lstm T5 B2 I3 H4 fp32 infer", "gru T5 B2 I3 H4 fp32 infer"


RATIOS: dict[str, list[float]] = {}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that are measured, in order. Their ratios are what `RATIOS` says, or 2; no time goes by."""
    cases: list[str] = []

    def measure(case: Case, against: str, *, name: str | None = None, pairs: int, device: str, memory: bool) -> dict:
        cases.append(str(case))
        row = {"case": str(case), "variant": case.variant, "mode": case.mode, "against": against}
        if against == "onnx":
            return row | {"reason": "ONNX Runtime is measured in inference only"}
        return row | {
            "ratios": RATIOS.get(str(case), [2.0] * pairs), "ours_s": 1.0, "theirs_s": 2.0, "path": "", "gflops": 10.0,
            "gemm_gflops": 20.0, "compile_s": None,
        }  # fmt: skip

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr(Others, "cpus", lambda self: 0.0)
    return cases


def bench(*arguments: object) -> tuple[int, str, str]:
    """The exit status, and what was written to stdout and to stderr."""
    command = ["bench", "--threads", "1", *map(str, arguments)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def both(file: Path) -> tuple[object, ...]:
    return "--case", A, "--case", B, "--pairs", 4, "--json", file


def test_it_is_interrupted_and_goes_on(tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file, measure = tmp_path / "a.json", runner.measure

    def interrupted(case: Case, *args: object, **options: object) -> dict:
        if measured:
            raise KeyboardInterrupt
        return measure(case, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "measure", interrupted)
        code, out, err = bench(*both(file))
    assert code == 130
    assert f"Interrupted: 1 of 2 rows are measured; the same command with --resume goes on from {file}." in err
    assert "geometric mean of inference" in out
    assert [row["case"] for row in results.read(file)["rows"]] == [A]

    assert bench(*both(file), "--resume")[0] == 0
    assert measured == [A, B]
    written = results.read(file)
    assert [row["case"] for row in written["rows"]] == [A, B]
    assert written["others_cpus"] == 0
    assert bench(*both(file), "--resume")[0] == 0
    assert measured == [A, B]


@pytest.mark.parametrize("alive", [True, False])
def test_a_row_that_fails_ends_no_other(
    alive: bool, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a GPU goes with it."""
    file, measure = tmp_path / "a.json", runner.measure

    def broken(case: Case, *args: object, **options: object) -> dict:
        row = measure(case, *args, **options)
        if len(measured) == 1:
            raise RuntimeError("an illegal address")
        return row

    monkeypatch.setattr(runner, "measure", broken)
    monkeypatch.setattr(measuring, "goes_on", lambda device: alive)
    code, _, err = bench(*both(file))
    assert code == 1
    assert "RuntimeError: an illegal address" in err
    assert ("The GPU refuses to go on" in err) != alive
    failed, *others = results.read(file)["rows"]
    assert failed["reason"] == "RuntimeError: an illegal address"
    assert failed["miss"]
    assert failed["case"] == A
    assert [row["case"] for row in others] == [B] * alive


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": 5}, "has pairs 5, expected 4, as asked for now"),
        ({"machine": {"torch": "1.0"}}, "has torch 1.0 of its machine, expected"),
        ({"version": 7}, "has version 7 of the schema, expected 1"),
    ],
)
def test_what_it_does_not_go_on_with(tmp_path: Path, measured: list[str], change: dict, message: str) -> None:
    file = tmp_path / "a.json"
    bench(*both(file))
    result = json.loads(file.read_text())
    machine = result["machine"] | change.get("machine", {})
    file.write_text(json.dumps(result | change | {"machine": machine}))
    code, _, err = bench(*both(file), "--resume")
    assert (code, measured) == (2, [A, B])
    assert message in err


def test_lines_where_there_is_no_terminal(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [f"lstm T{T} B2 I3 H4 fp32 infer" for T in range(1, 6)]
    command = [word for case in cases for word in ("--case", case)]
    lines = bench(*command)[2].splitlines()
    assert [line.split(",")[0] for line in lines] == ["1 of 5", "5 of 5"]
    assert lines[0].endswith(f"lstm, {cases[0]}, infer, against torch: 2.00 (2.00–2.00)")
    monkeypatch.setattr(measuring, "EVERY_S", 0)
    assert len(bench(*command)[2].splitlines()) == 5


def test_a_busy_machine_is_told(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Others, "cpus", lambda self: 1.5)
    assert bench("--case", A)[2].count("the machine is busy: other processes keep 1.5 CPUs") == 2


def test_what_this_process_does_is_not_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlstm.benchmarks import machine

    monkeypatch.setattr(machine, "_busy_s", lambda: busy[0])
    monkeypatch.setattr(machine, "_own_s", lambda: own[0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    busy, own, now = [100.0], [7.0], [50.0]
    others = Others()
    busy, own, now = [116.0], [10.0], [60.0]
    assert others.cpus() == pytest.approx(1.3)


def test_nothing_measured_is_no_success(measured: list[str]) -> None:
    code, out, err = bench("--case", "lstm T5 B2 I3 H4 fp32 train", "--against", "onnx")
    assert code == 1
    assert "Left out, 1 of 1 rows: against onnx: ONNX Runtime is measured in inference only." in out
    assert "Nothing was measured" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu:1"], "--device is 'cpu:1', expected 'cpu': it has no numbers"),
        (["--plot", "a.png"], "--plot needs matplotlib, which is not installed: pip install 'fastlstm[plot]'"),
        (["--readme", "a.json"], "--readme needs matplotlib, which is not installed"),
        (["--resume"], "--resume is given without --json, expected both"),
        (["--isa", "sse"], "--isa is 'sse', expected one of avx512, avx2, portable"),
        (["--isa", "avx2", "--device", "cuda"], "--isa is given with --device cuda, expected cpu"),
        (
            ["--from", "a.json", "--mode", "train", "--dtype", "bf16"],
            "--from is given with --mode, --dtype, expected it",
        ),
        (
            ["--from", "none.json"],
            "--from is none.json, expected a file that `fastlstm trace` wrote: No such file or directory",
        ),
        (["--compare", "none.json", "none.json"], "--compare: [Errno 2] No such file or directory: 'none.json'"),
    ],
)
def test_what_is_refused_at_the_start(
    arguments: list[str], message: str, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    code, _, err = bench(*arguments)
    assert (code, measured) == (2, [])
    assert message in err


def test_a_picture_of_nothing_is_refused(measured: list[str], tmp_path: Path) -> None:
    code, _, err = bench("--case", A, "--against", "cell", "--plot", tmp_path / "a.png")
    assert (code, measured) == (2, [])
    assert "expected a main peer in --against" in err


def test_a_file_of_a_folder_that_cannot_be_written_is_refused(measured: list[str], tmp_path: Path) -> None:
    bench("--case", A, "--json", tmp_path)
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.mkdir()
    measured.clear()
    code, _, err = bench("--case", A, "--json", tmp_path)
    assert (code, measured) == (2, [])
    assert "this is a folder" in err


def test_all_libraries_are_held_to_lesser_instructions(tmp_path: Path) -> None:
    case = ["--case", "lstm T3 B2 I3 H4 fp32 infer", "--threads", "1", "--pairs", "1", "--json", str(tmp_path)]
    command = [sys.executable, "-W", "error", "-m", "fastlstm", "bench", "--isa", "portable", *case]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (file,) = tmp_path.iterdir()
    result = results.read(file)
    assert "(held to portable)" in out
    assert file.stem.endswith("-1-threads-portable")
    assert (result["machine"]["held_to"], result["machine"]["vectors"]) == ("portable", "DEFAULT")
    (row,) = result["rows"]
    assert row["limit_gflops"] > row["gflops"] > 0


def test_the_list_says_sizes() -> None:
    code, out, _ = bench("--list")
    assert code == 0
    assert "tagger-lengths" in out
    assert "T80 B32 I300 H256 bi lengths:20-80" in out


def test_the_runner_is_no_command() -> None:
    with pytest.raises(SystemExit, match="run `fastlstm bench`"):
        runpy.run_path(runner.__file__, run_name="__main__")


def test_an_installed_package_is_told_by_its_version() -> None:
    assert made({"commit": None, "fastlstm": "1.2"}) == "fastlstm 1.2"
    assert made({"commit": "abc"}) == "commit abc"
    assert commit() is None or len(commit()) >= 7


def result_of(rows: dict[str, list[float]], **machine: str) -> dict:
    fields = {"mode": "infer", "against": "torch", "ours_s": 1e-3, "theirs_s": 2e-3}
    return {
        "schema": "fastlstm bench", "version": 1, "machine": MACHINE | machine, "dtype": "fp32", "pairs": 5,
        "rows": [fields | {"case": case, "variant": case.split()[0], "ratios": ratios} for case, ratios in rows.items()],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([1.0, 1.1, 1.2, 1.3, 1.4], [1.35, 1.4, 1.5, 1.6, 1.7], "faster"),
        ([1.35, 1.4, 1.5, 1.6, 1.7], [1.0, 1.1, 1.2, 1.3, 1.4], "slower"),
        ([1.0, 1.1, 1.2, 1.3, 1.4], [1.1, 1.2, 1.3, 1.4, 1.5], "noise"),
        ([1.0, 1.1, 1.2, 1.3, 1.4], [9.0, 9.0, 9.0], "?"),
    ],
)
def test_which_differences_are_larger_than_the_noise(a: list[float], b: list[float], verdict: str) -> None:
    tables, _ = compare.compared(result_of({A: a}), result_of({A: b}))
    assert tables.rows[0][-1] == verdict


def test_two_results_side_by_side(tmp_path: Path) -> None:
    files = []
    for name, rows in (("a", {A: [1.0] * 5, B: [2.0] * 5}), ("b", {A: [1.5] * 5})):
        files.append(tmp_path / f"{name}.json")
        results.write(result_of(rows, chip=f"Chip {name}", commit=f"{name}1"), files[-1])
    code, out, _ = bench("--compare", *files)
    assert code == 0
    line = next(line for line in out.splitlines() if line.strip().startswith(A))
    assert line.split()[-6:] == ["1.00", "(1.00–1.00)", "1.50", "(1.50–1.50)", "1.50", "faster"]
    assert "a: Chip a (AVX2), threads: 1, fp32, torch 2.13, Python 3.11, commit a1, 5 pairs" in out
    assert "faster: 1. b / a, geometric mean: 1.500." in out
    assert "Only in a: 1 rows." in out


def traced(*rows: dict, seconds: float = 10.0) -> dict:
    base = {"by": "torch.nn.modules.rnn.LSTM", "device": "cpu", "calls": 10, "backward_s": 0.0, "reason": None}
    return {
        "schema": "fastlstm trace", "version": 1, "machine": MACHINE, "program": "x.py", "ended": "normally",
        "seconds": seconds + 1, "watching_s": 1.0, "undescribed": 0, "rows": [base | row for row in rows],
    }  # fmt: skip


def test_what_a_run_would_gain(tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 s, 4 s become 2 s and 1 s stays as it is: by Amdahl's law 10 / 8."""
    monkeypatch.setitem(RATIOS, A, [1.0, 1.6, 2.0, 4.0, 5.0])
    file, written = tmp_path / "run.json", tmp_path / "bench.json"
    trace = traced(
        {"case": A, "forward_s": 4.0},
        {
            "case": "rnn T5 B2 I3 H4 fp32 infer",
            "forward_s": 0.75,
            "reason": "torch.nn.RNN has no counterpart in fastlstm",
        },
        {"case": B, "forward_s": 0.25, "by": "fastlstm"},
    )
    results.write(trace, file)
    code, out, _ = bench("--from", file, "--json", written)
    assert code == 0
    assert measured == [A]
    words = " ".join(out.split())
    assert "Recurrent part: 5.00 s of 10.00 s, 50% of the run; with ours 3.00 s (2.00–3.50)." in words
    assert "The whole run, by Amdahl's law: 10.00 s, with ours 8.00 s: 1.25 (1.17–1.42) times as fast." in words
    assert "torch.nn.RNN has no counterpart in fastlstm" in words
    assert "it is ours already" in words
    assert "The trace is of another machine (a)" in words
    assert [row["case"] for row in results.read(written)["rows"]] == [A]


def test_similar_batches_are_measured_once() -> None:
    many = [{"case": f"lstm T{T} B8 I3 H4 zero_state fp32 train", "forward_s": 1.0} for T in range(10, 40)]
    kept, left = predict.groups(traced(*many, {"case": B, "forward_s": 0.01}, seconds=60.0), "cpu")
    assert [len(group.rows) for group in kept] == [10, 10, 10]
    assert {group.case.T // 10 for group in kept} == {1, 2, 3}
    assert [(case, reason) for case, _, reason in left] == [(B, "it is among the last 1% of the time")]
    assert "--device cuda" in predict.groups(traced({"case": A, "forward_s": 1.0, "device": "cuda"}), "cpu")[1][0][2]


def test_a_case_that_was_not_timed_counts_as_it_is() -> None:
    trace = traced({"case": A, "forward_s": 4.0}, {"case": B, "forward_s": 4.0})
    kept, left = predict.groups(trace, "cpu")
    result = result_of({A: [2.0] * 5})
    result["rows"].append({"case": B, "against": "torch", "reason": "ours: the error of y is 1", "miss": True})
    assert predict.predict(trace, kept, result).gain.median == pytest.approx(10 / 8)
    _, others, _ = predict.told(trace, kept, left, result)
    assert others.rows == [[B, "4.000", "ours: the error of y is 1"]]
