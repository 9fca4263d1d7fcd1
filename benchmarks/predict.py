"""What ours would bring to a program: the cases of a trace, those that are measured, and Amdahl's law."""

from dataclasses import replace
from typing import Any, NamedTuple

from fastlstm.benchmarks.report import Tables
from fastlstm.benchmarks.spread import Spread, spread
from fastlstm.benchmarks.traced import named, run_s, seconds
from fastlstm.case import Case, parse

GROUPS = 3  # of a module whose batches differ: so many of them are measured, and each stands for those nearest in size
ENOUGH = 0.99  # of the seconds of the calls that ours can take


class Group(NamedTuple):
    """Calls of one module, of batches of similar size. The one of most seconds is measured, and stands for all."""

    case: Case
    rows: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        return sum(map(seconds, self.rows))

    @property
    def calls(self) -> int:
        return sum(row["calls"] for row in self.rows)


def groups(trace: dict[str, Any], device: str) -> tuple[list[Group], list[tuple[str, float, str]]]:
    """What to measure, the longest first; and what is left as it is: the case, its seconds, and why."""
    modules: dict[Case, list[dict[str, Any]]] = {}
    left = []
    for row in trace["rows"]:
        reason = "it is ours already" if row["by"] == "fastlstm" else row["reason"]
        if not reason and row["device"] != device:
            reason = f"it ran on {row['device']}, and {device} is measured: --device {row['device']}"
        if reason:
            left.append((named(row), seconds(row), reason))
        else:
            modules.setdefault(_of_module(parse(row["case"])), []).append(row)
    found = sorted(
        (group for rows in modules.values() for group in _split(rows)), key=lambda g: g.seconds, reverse=True
    )
    whole, so_far, kept = sum(group.seconds for group in found), 0.0, []
    for group in found:
        if so_far < ENOUGH * whole:
            kept.append(group)
        else:
            left.append((str(group.case), group.seconds, f"it is among the last {1 - ENOUGH:.0%} of the time"))
        so_far += group.seconds
    return kept, left


def _of_module(case: Case) -> Case:
    """The case without its batch: what the calls of one module share."""
    return replace(case, T=1, B=1, lengths=(1,) if case.lengths else ())


def _split(rows: list[dict[str, Any]]) -> list[Group]:
    """By size, into groups of as many seconds."""
    rows = sorted(rows, key=lambda row: parse(row["case"]).rows)
    whole, so_far = sum(map(seconds, rows)), 0.0
    parts: list[list[dict[str, Any]]] = [[] for _ in range(GROUPS)]
    for row in rows:
        middle = so_far + seconds(row) / 2
        parts[min(GROUPS - 1, int(GROUPS * middle / max(whole, 1e-12)))].append(row)
        so_far += seconds(row)
    return [Group(parse(max(part, key=seconds)["case"]), part) for part in parts if part]


class Prediction(NamedTuple):
    """Seconds of a run as they were, and as they would be with ours: by the quartiles of all cases at once, and the medians."""

    run: float
    recurrent: float
    ours: Spread  # of the recurrent part; low is that of the low speed-ups

    def run_with(self, ours: float) -> float:
        return self.run - self.recurrent + ours

    @property
    def gain(self) -> Spread:
        """How many times as fast the whole run would be: Amdahl's law."""
        return Spread(*[self.run / self.run_with(one) for one in self.ours])


def predict(trace: dict[str, Any], kept: list[Group], result: dict[str, Any]) -> Prediction:
    """What was not timed is counted as it is."""
    timed = {row["case"]: spread(row) for row in result["rows"] if "ratios" in row and row["against"] == "torch"}
    recurrent = sum(map(seconds, trace["rows"]))
    with_ours = [recurrent] * 3
    for group in kept:
        for k, ratio in enumerate(timed.get(str(group.case), Spread(1, 1, 1))):
            with_ours[k] -= group.seconds * (1 - 1 / ratio)
    return Prediction(run_s(trace), recurrent, Spread(*with_ours))


def told(trace: dict[str, Any], kept: list[Group], left: list[tuple[str, float, str]], result: dict[str, Any]) -> Any:
    """Two tables, of what would be ours and of what would not, and the sum in words."""
    rows = {row["case"]: row for row in result["rows"] if row["against"] == "torch"}
    lines, others = [], list(left)
    for group in kept:
        row = rows.get(str(group.case))
        if row is None or "ratios" not in row:
            others.append((str(group.case), group.seconds, row["reason"] if row else "it was not measured"))
            continue
        more = f" and {len(group.rows) - 1} of similar size" if len(group.rows) > 1 else ""
        s = spread(row)
        lines.append(
            [
                f"{group.case}{more}",
                f"{group.calls:,}",
                f"{group.seconds:.3f}",
                str(s),
                f"{group.seconds / s.median:.3f}",
            ]
        )
    as_it_is = [
        [case, f"{took:.3f}", reason] for case, took, reason in sorted(others, key=lambda one: one[1], reverse=True)
    ]
    p = predict(trace, kept, result)
    low, median, high = p.ours
    words = [
        f"Recurrent part: {p.recurrent:.2f} s of {p.run:.2f} s, {p.recurrent / p.run:.0%} of the run; with ours "
        f"{median:.2f} s ({min(low, high):.2f}–{max(low, high):.2f}).",
        f"The whole run, by Amdahl's law: {p.run:.2f} s, with ours {p.run_with(median):.2f} s: {p.gain} times as fast. "
        "The spread is that of all cases at their quartiles at once.",
        "Each case is measured alone, with data of its sizes; what is not timed counts as it is.",
    ]
    if trace["machine"]["name"] != result["machine"]["name"]:
        words.append(
            f"The trace is of another machine ({trace['machine']['name']}): its shares of the time are taken, speed-ups are "
            "those here."
        )
    return (
        Tables(["case", "calls", "s", "speed-up", "with ours, s"], lines),
        Tables(["case", "s", "left as it is"], as_it_is),
        words,
    )
