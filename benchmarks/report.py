"""From a result to its tables, the README's section and docs/speed.md. Nothing in them is typed by hand."""

import math
import re
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from fastlstm.backends import ATTENTION, CONVOLUTIONAL, IN_PYTORCH
from fastlstm.benchmarks.cases import STANDS_FOR, find, main_peer
from fastlstm.benchmarks.names import MODES, MODULES, PURPOSES, called, module, peer
from fastlstm.benchmarks.plot import plot
from fastlstm.benchmarks.results import read
from fastlstm.benchmarks.spread import down, spread

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
DETAILS = Path("docs/speed.md")


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


def summary(result: dict) -> Tables:
    """One line per module and peer: the geometric mean over cases, and the lowest."""
    lines: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for row in result["rows"]:
        if "ratios" in row:
            lines.setdefault((module(row), peer(row)), {}).setdefault(row["mode"], []).append(row)
    headers = ["module", "against", "training", "inference", "cases"]
    return Tables(
        headers,
        [
            [
                one,
                against,
                *(mean_and_lowest(modes.get(mode, [])) for mode in MODES),
                str(max(map(len, modes.values()))),
            ]
            for (one, against), modes in sorted(lines.items(), key=lambda item: order(item[0][0]))
        ],
    )


def variants_table(results: list[dict]) -> Tables:
    """What each variant is for and costs: parameters, and time per step beside our own LSTM of the same size, from the first of
    the results that has it."""
    lines = []
    for variant, (purpose, parameters) in PURPOSES.items():
        costs = [next((c for c in (cost(r, variant, mode) for r in results) if c), "–") for mode in MODES]
        lines.append([f"`fastlstm.{MODULES[variant]}`", purpose, parameters, *costs])
    return Tables(["module", "for", "parameters", "time per step, training", "inference"], lines)


def cost(result: dict, variant: str, mode: str) -> str | None:
    if variant in ("lstm", "conv_lstm"):
        return "1"
    rows = [
        r
        for r in chosen(result, variant, mode, "lstm")
        if "ratios" in r and find(r["case"]).layout not in ("cell", "step")
    ]
    if not rows:
        return None
    return f"{1 / statistics.geometric_mean(spread(row).median for row in rows):.2f}"


def order(name: str) -> int:
    """Layers before cells, in the order of MODULES."""
    bare = re.sub(r"LSTM[13]d", "LSTM2d", name.removeprefix("fastlstm."))
    names = list(MODULES.values())
    return names.index(bare) if bare in names else len(names) + names.index(re.sub(r"Cell$|\.step$", "", bare))


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
    headers = ["case", "L x H", "I", "T", "B", "PyTorch's is", "ms", "speed-up", "GFLOP/s"]
    lines = []
    for row in chosen(result, variant, mode, main_peer(variant)):
        case = find(row["case"])
        if "reason" in row and not row.get("miss"):
            continue
        path = row.get("path") or "–"
        line = [called(row), case.shape(), str(case.I), case.time(), case.batch(), path, *timing(row)]
        if mode == "train":
            line.append(" / ".join(map(megabytes, row.get("memory", {}).values())) or "–")
        lines.append([*line, STANDS_FOR.get(called(row), "–")])
    return Tables([*headers, *(["peak MB"] if mode == "train" else []), "stands for"], lines)


def timing(row: dict) -> list[str]:
    if "reason" in row:
        return ["–", "not timed", "–"]
    times = f"{milliseconds(row['ours_s'])} / {milliseconds(row['theirs_s'])}"
    rates = f"{row['gflops']:.0f} of {row['gemm_gflops']:.0f}"
    if "read_gbs" in row:
        rates += f"; {row['read_mb']:.1f} MB a step, {row['read_gbs']:.1f} of {row['sum_gbs']:.0f} GB/s"
    return [times, str(spread(row)), rates]


def peer_table(result: dict) -> Tables:
    """Ours against everyone else."""
    lines = []
    for row in result["rows"]:
        if row["against"] != main_peer(row["variant"]) and "ratios" in row:
            compiled = f"{row['compile_s']:.0f}" if row["compile_s"] else "–"
            times, ratio, _ = timing(row)
            lines.append([module(row), called(row), MODES[row["mode"]], peer(row), times, ratio, compiled])
    return Tables(["module", "case", "work", "peer", "ms", "speed-up", "compile s"], lines)


def machine(result: dict) -> str:
    m = result["machine"]
    return f"{m['chip']} ({m['vectors']})"


def notes(result: dict) -> list[str]:
    """What ran on what, and what was not timed because it was wrong."""
    m = result["machine"]
    lines = [
        f"{machine(result)}, threads: {m['threads']}, {result['dtype']}, torch {m['torch']}, "
        f"Python {m['python']}, commit {m['commit']}. Median (quartiles) of interleaved pairs, {result['pairs']} a case.",
        "Two numbers are ours / the peer's. GFLOP/s: ours, of what PyTorch's GEMM reaches on the same sizes. "
        "MB: the peak of a training step, beyond the batch and the weights.",
    ]
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


def markdown(result: dict, picture: str, half: dict | None = None, others: Sequence[dict] = ()) -> str:
    """The README's section; `half` is a result of the same machine in half precision, `others` are those of other machines."""
    about, _, *missed = notes(result)
    parts = [
        "## Variants",
        table(variants_table([result, *others])),
        "Time per step: beside `fastlstm.LSTM`, or `fastlstm.ConvLSTM2d`, of the same size, the mean over the cases measured "
        "on the machines below; k is the number of a kernel's taps, A the width in which an attention is scored. Each has "
        "layers, dropout, sequences of different lengths, and a stateless function in `fastlstm.functional`. All but the "
        "AttentionLSTM, a decoder that also goes step by step, have two directions, resets and a cell. All but it and the GRU "
        "give all cell states, the LSTM and its two siblings have projections, and they and the GRU take packed input. On "
        'a GPU, `backend="triton"` runs all of them on Triton kernels, which have been interpreted and compiled but not run on '
        """one yet: until then "auto" leaves the LSTM and the GRU to PyTorch's own ops, the others to a loop in Python. """
        "GPU speed is not yet measured.",
        f"## Speed on one machine: {machine(result)}",
        f"![Speed-up over PyTorch's modules]({picture})",
        "Speed-up over each peer: the geometric mean over the cases, and the case where it is lowest. Another CPU, "
        f"above all one with other instructions, gives other numbers. Every case: [{DETAILS}]({DETAILS}).",
        table(summary(result)),
        *([f"In {half['dtype']}:", table(summary(half))] if half else []),
        about,
        *missed,
    ]
    for other in others:
        about, _, *missed = notes(other)
        parts += [f"## On another machine: {machine(other)}", table(summary(other)), about, *missed]
    return "\n\n".join(parts)


def details(result: dict, picture: str, half: dict | None = None, others: Sequence[dict] = ()) -> str:
    """The page of all cases."""
    parts = ["# Speed, case by case", "Written by `fastlstm bench --readme` from result files.", *notes(result)]
    parts += [f"![Speed-up over PyTorch's modules]({picture})", *every_case(result)]
    if half:
        parts += [f"## In {half['dtype']}", *notes(half)]
        for variant, mode in product(MODULES, MODES):
            rows = main_table(half, variant, mode)
            if rows.rows:
                parts += [f"{MODULES[variant]}, {MODES[mode]}:", table(rows)]
        parts.append(table(peer_table(half)))
    for other in others:
        parts += [f"# On another machine: {machine(other)}", *notes(other), *every_case(other)]
    return "\n\n".join(parts) + "\n"


def every_case(result: dict) -> list[str]:
    parts = []
    for variant, name in MODULES.items():
        for mode, title in MODES.items():
            rows = main_table(result, variant, mode)
            if rows.rows:
                beside = "PyTorch's" if variant in IN_PYTORCH else "PyTorch's, beside the LSTM of the same size"
                beside = "a loop over one convolution" if variant in CONVOLUTIONAL else beside
                beside = "a loop over nn.LSTMCell and an attention" if variant in ATTENTION else beside
                parts += [f"## {name}: {title} against {beside}", table(rows)]
                parts.append("  \n".join(mean_lines(result, variant, mode)))
    peers = peer_table(result)
    return [*parts, "## Other peers", table(peers)] if peers.rows else parts


def table(tables: Tables) -> str:
    lines = [tables.headers, ["---"] * len(tables.headers), *tables.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    ms = seconds * 1e3
    return f"{ms:.{max(0, 2 - math.floor(math.log10(ms)))}f}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 1e8 else f"{count / 1e6:.0f}"


def update_readme(file: Path, readme: Path) -> Path:
    """Writes the README's section between its markers, the picture and the page of all cases; gives the picture's file.

    A result in half precision is found beside the file, by its name; so are those of other machines.
    """
    result, half, others = with_those_beside(file)
    if not readme.exists():
        raise ValueError(f"there is no {readme} in this folder to write to")
    text = readme.read_text()
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{readme} has no {START} ... {END}, expected both: the table goes between them")
    picture = Path("docs/images") / f"speed-{result['machine']['name']}.png"
    (readme.parent / picture).parent.mkdir(parents=True, exist_ok=True)
    plot(result, readme.parent / picture)
    (readme.parent / DETAILS).write_text(details(result, f"images/{picture.name}", half, others))
    readme.write_text(f"{before}{START}\n{markdown(result, picture.as_posix(), half, others)}\n{END}{after}")
    return readme.parent / picture


def with_those_beside(file: Path) -> tuple[dict, dict | None, list[dict]]:
    """A result, that of the same machine in half precision, and those of other machines, as they lie in one folder."""
    half = file.with_name(f"{file.stem}-bf16.json")
    others = [path for path in sorted(file.parent.glob("*.json")) if path != file and not path.stem.endswith("-bf16")]
    return read(file), read(half) if half.exists() else None, [read(path) for path in others]
