"""From a result to its tables. Nothing in them is typed by hand."""

import math
import re
import statistics
from typing import NamedTuple

from fastlstm.benchmarks.cases import STANDS_FOR, find, main_peer
from fastlstm.benchmarks.names import MODES, MODULES, OURSELVES, called, module, peer, processor
from fastlstm.benchmarks.spread import down, spread


class Tables(NamedTuple):
    headers: list[str]
    rows: list[list[str]]


def chosen(result: dict, variant: str, mode: str, against: str) -> list[dict]:
    return [r for r in result["rows"] if (r["variant"], r["mode"], r["against"]) == (variant, mode, against)]


def mean_lines(result: dict, variant: str, mode: str) -> list[str]:
    """The geometric means of the speed-up over the main peer: over all cases, and over those that oneDNN's LSTM runs."""
    rows = [row for row in chosen(result, variant, mode, main_peer(variant)) if "ratios" in row]
    lines = []
    for label, some in (
        ("all cases", rows),
        ("where nn.LSTM is oneDNN's", [row for row in rows if row["path"] == "oneDNN"]),
    ):
        if some:
            mean = statistics.geometric_mean(spread(row).median for row in some)
            lines.append(f"geometric mean of {MODES[mode]}, {label} ({len(some)}): {down(mean)}")
    return lines


def summary(result: dict, ourselves: bool = True) -> Tables:
    """One line per module and peer: the geometric mean over cases, and the lowest.

    Beside PyTorch's modules there is one of dense batches as well; those where the peer is ours too can be left out.
    """
    lines: dict[tuple[str, str], list[dict]] = {}
    for row in result["rows"]:
        if "ratios" in row and (ourselves or row["against"] not in OURSELVES):
            lines.setdefault((module(row), peer(row)), []).append(row)
    table = []
    for (one, against), rows in sorted(lines.items(), key=lambda item: order(item[0][0])):
        table.append(summary_line(one, against, rows))
        dense = [row for row in rows if row["against"] == "torch" and is_dense(row)]
        if 0 < len(dense) < len(rows):
            table.append(summary_line(one, f"{against}, dense cases", dense))
    return Tables(["module", "against", "training", "inference", "memory", "cases"], table)


def summary_line(one: str, against: str, rows: list[dict]) -> list[str]:
    modes = [[row for row in rows if row["mode"] == mode] for mode in MODES]
    return [one, against, *map(mean_and_lowest, modes), memory_share(rows), str(max(map(len, modes)))]


def is_dense(row: dict) -> bool:
    """All sequences of one length, without a projection: what nn.LSTM leaves to oneDNN."""
    case = find(row["case"])
    return case.layout == "dense" and not case.P


def memory_share(rows: list[dict]) -> str:
    """The geometric mean of our peak memory over the peer's, in training."""
    shares = [
        peaks["ours"] / peaks[row["against"]] for row in rows if row["against"] in (peaks := row.get("memory", {}))
    ]
    return f"{statistics.geometric_mean(shares):.2f}" if shares else "–"


def order(name: str) -> int:
    """Layers before cells and streams, in the order of MODULES."""
    bare = re.sub(r"LSTM[13]d", "LSTM2d", name.removeprefix("fastlstm."))
    names = list(MODULES.values())
    return (
        names.index(bare)
        if bare in names
        else len(names) + names.index(re.sub(r"Cell$|\.step$| in a Stream$", "", bare))
    )


def mean_and_lowest(rows: list[dict]) -> str:
    if not rows:
        return "–"
    if len(rows) == 1:
        return down(spread(rows[0]).median)
    mean = statistics.geometric_mean(spread(row).median for row in rows)
    lowest = min(rows, key=lambda row: spread(row).median)
    return f"{down(mean)} ({called(lowest)}: {down(spread(lowest).median)})"


def main_table(result: dict, variant: str, mode: str) -> Tables:
    """Ours against the main peer, one line per case."""
    rows = [row for row in chosen(result, variant, mode, main_peer(variant)) if "ratios" in row or row.get("miss")]
    limited, training = any(row.get("limit_gflops") for row in rows), mode == "train"
    headers = ["case", "L x H", "I", "T", "B", "PyTorch's is", "ms", "speed-up", "GFLOP/s"]
    headers += ["of the limit"] * limited + ["peak MB"] * training + ["stands for"]
    lines = []
    for row in rows:
        case = find(row["case"])
        line = [called(row), case.shape(), str(case.I), case.time(), case.batch(), row.get("path") or "–", *timing(row)]
        if limited:
            line.append(limit(row))
        if training:
            line.append(" / ".join(map(megabytes, row.get("memory", {}).values())) or "–")
        lines.append([*line, STANDS_FOR.get(called(row), "–")])
    return Tables(headers, lines)


def timing(row: dict) -> list[str]:
    if "reason" in row:
        return ["–", "not timed", "–"]
    times = f"{milliseconds(row['ours_s'])} / {milliseconds(row['theirs_s'])}"
    rates = f"{row['gflops']:.0f} of {row['gemm_gflops']:.0f}" if "gflops" in row else "–"
    if "read_gbs" in row:
        rates += f"; {row['read_mb']:.1f} MB a step, {row['read_gbs']:.1f} of {row['sum_gbs']:.0f} GB/s"
    return [times, str(spread(row)), rates]


def limit(row: dict) -> str:
    """Our rate as a share of multiply-adds alone."""
    most = row.get("limit_gflops")
    return f"{row['gflops'] / most:.0%}" if most else "–"


def peer_table(result: dict) -> Tables:
    """Ours against everyone else."""
    lines = []
    for row in result["rows"]:
        if row["against"] != main_peer(row["variant"]) and "ratios" in row:
            compiled = f"{row['compile_s']:.0f}" if row["compile_s"] else "–"
            times, ratio, _ = timing(row)
            lines.append([module(row), called(row), MODES[row["mode"]], peer(row), times, ratio, compiled])
    return Tables(["module", "case", "work", "peer", "ms", "speed-up", "compile s"], lines)


def notes(result: dict) -> list[str]:
    """What ran on what, and what was not timed because it was wrong."""
    m = result["machine"]
    lines = [
        f"{processor(result)}, threads: {m['threads']}, {result['dtype']}, torch {m['torch']}, "
        f"Python {m['python']}, {made(m)}. Median (quartiles) of interleaved pairs, {result['pairs']} a case.",
        "Two numbers are ours / the peer's. 10 of 20 GFLOP/s: ours did its matrix products at 10, where PyTorch's GEMM does "
        "them at 20, alone. "
        "MB: the peak of a training step, beyond the batch and the weights.",
    ]
    if any(row.get("limit_gflops") for row in result["rows"]):
        lines[-1] += " Of the limit: our rate as a share of multiply-adds alone."
    if any("checkpoint" in row.get("memory", {}) for row in result["rows"]):
        lines[-1] += " Of three numbers, the second is that of checkpoint=True."
    if any("read_gbs" in row for row in result["rows"]):
        lines[-1] += (
            " MB a step and GB/s: memory and keys, each read once by every step and once more by the backward of it, and the "
            "rate of PyTorch's sum over as much."
        )
    if "l2" in m:
        lines.append(f"The GPU's L2 cache: {m['l2']}.")
    return lines + [
        f"Not timed: {module(row)}, {called(row)}, {MODES[row['mode']]}, {peer(row)}: {row['reason']}."
        for row in result["rows"]
        if row.get("miss")
    ]


def made(machine: dict) -> str:
    """Which fastlstm ran: its commit, or the version of one that was installed."""
    commit = machine.get("commit")
    return f"commit {commit}" if commit else f"fastlstm {machine.get('fastlstm', 'of an unknown version')}"


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    ms = seconds * 1e3
    return f"{ms:.{max(0, 2 - math.floor(math.log10(ms)))}f}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 1e8 else f"{count / 1e6:.0f}"
