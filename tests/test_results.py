"""The files of results: what is checked when one is read."""

import copy
import json
from pathlib import Path

import pytest

from fastlstm.benchmarks import results
from fastlstm.benchmarks.cases import CASES
from fastlstm.case import parse

ROOT = Path(__file__).parents[1]
MACHINE = {
    "name": "a", "device": "cpu", "chip": "A", "vectors": "AVX2", "threads": 1, "python": "3.11", "torch": "2.13",
}  # fmt: skip
ROW = {"case": "lstm T1 B1 I1 H1 fp32 infer", "against": "torch", "ratios": [1.5], "ours_s": 1e-3, "theirs_s": 2e-3}
BENCH = {
    "schema": "fastlstm bench", "version": 1, "machine": MACHINE, "dtype": "fp32", "pairs": 1, "rows": [ROW],
}  # fmt: skip


def changed(path: str, value: object) -> dict:
    """BENCH with another value at a path; without what stands there, where the value is None."""
    result = copy.deepcopy(BENCH)
    *parts, last = path.split(".")
    at = result
    for part in parts:
        at = at[int(part)] if part.isdigit() else at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return result


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("{", "is no JSON"),
        ([], "has the schema None, expected what `fastlstm bench --json` writes"),
        (changed("schema", None), "has the schema None, expected what `fastlstm bench --json` writes"),
        (changed("schema", "fastlstm trace"), "was written by `fastlstm trace`, expected what `fastlstm bench --json`"),
        (changed("version", 2), "has version 2 of the schema, expected 1: another fastlstm wrote it"),
        (changed("pairs", None), "lacks 'pairs'"),
        (changed("pairs", True), "pairs is True, expected int"),
        (changed("machine", "mine"), "machine is 'mine', expected dict"),
        (changed("machine.threads", "2"), "machine: threads is '2', expected int"),
        (changed("rows", [1]), r"rows\[0\] is 1, expected an object with case, against"),
        (changed("rows.0.case", None), r"rows\[0\] lacks 'case'"),
        (changed("rows.0.ratios", None), r"rows\[0\] lacks 'ratios'"),
        (changed("rows.0.ratios", [1.0, -1.0]), r"rows\[0\]: ratios is \[1.0, -1.0\], expected numbers above 0"),
        (changed("rows.0.ours_s", "fast"), r"rows\[0\]: ours_s is 'fast', expected int or float"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, result: object, message: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(result if isinstance(result, str) else json.dumps(result))
    with pytest.raises(results.ResultError, match=message):
        results.read(file)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    rows = [ROW, {"case": "gru T1 B1 I1 H1 fp32 infer", "against": "onnx", "reason": "it can't"}]
    result = results.new("bench") | {"dtype": "fp32", "pairs": 1, "rows": rows}
    results.write(result, file)
    assert results.read(file) == result
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_write_that_fails_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    results.write(BENCH, file)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.write(BENCH | {"pairs": 2}, file)
    assert results.read(file) == BENCH


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda file: file.stem)
def test_results_of_this_repository_are_read(file: Path) -> None:
    for row in results.read(file)["rows"]:
        case = parse(row["case"])
        assert str(case) == row["case"]
        assert (case.variant, case.mode) == (row["variant"], row["mode"])
        if "name" not in row:  # a case of its own, in words
            continue
        of_name = CASES[row["name"]]
        assert (case.T, case.B, case.I, case.H, case.lengths) == (
            of_name.T,
            of_name.B,
            of_name.I,
            of_name.H,
            of_name.lengths,
        )
