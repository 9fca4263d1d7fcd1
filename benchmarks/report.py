"""From a result to its tables, its picture, and the README's section. Nothing in them is typed by hand."""

import json
import math
import statistics
from pathlib import Path
from typing import NamedTuple

from fastlstm.benchmarks.cases import CASES

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
PEERS = {
    "torch": "nn.LSTM",
    "cell": "loop over nn.LSTMCell",
    "compile": "torch.compile of that loop",
    "onnx": "ONNX Runtime",
    "dense": "fastlstm.LSTM on as many dense steps",
}
MODES = {"train": "training", "infer": "inference"}


class Spread(NamedTuple):
    """Median and quartiles of the ratios: above 1, ours is the faster."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{down(self.median)} ({down(self.low)}–{down(self.high)})"


class Tables(NamedTuple):
    headers: list[str]
    rows: list[list[str]]


def spread(row: dict) -> Spread:
    if len(row["ratios"]) == 1:
        return Spread(*row["ratios"] * 3)
    return Spread(*statistics.quantiles(row["ratios"], n=4, method="inclusive"))


def down(ratio: float) -> str:
    """Two decimals, never rounded up."""
    return f"{math.floor(ratio * 100) / 100:.2f}"


def mean_lines(result: dict, mode: str) -> list[str]:
    """The geometric means of the speed-up over `nn.LSTM`: over all cases, and over those that oneDNN runs."""
    rows = [row for row in result["rows"] if row["against"] == "torch" and row["mode"] == mode and "ratios" in row]
    lines = []
    for label, chosen in (
        ("all cases", rows),
        ("where nn.LSTM is oneDNN's", [row for row in rows if row["path"] == "oneDNN"]),
    ):
        if chosen:
            mean = statistics.geometric_mean(spread(row).median for row in chosen)
            lines.append(f"geometric mean of {MODES[mode]}, {label} ({len(chosen)}): {down(mean)}")
    return lines


def main_table(result: dict, mode: str) -> Tables:
    """Ours against `nn.LSTM`, one line per case."""
    headers = ["case", "L x H", "I", "T", "B", "nn.LSTM is", "ms", "speed-up", "GFLOP/s"]
    lines = []
    for row in result["rows"]:
        if (row["mode"], row["against"]) != (mode, "torch"):
            continue
        case = CASES[row["case"]]
        line = [row["case"], case.shape(), str(case.I), case.time(), str(case.B), row.get("path", "–"), *timing(row)]
        if mode == "train":
            memory = row.get("memory")
            line.append(f"{megabytes(memory['ours'])} / {megabytes(memory['torch'])}" if memory else "–")
        lines.append([*line, case.stands_for])
    return Tables([*headers, *(["peak MB"] if mode == "train" else []), "stands for"], lines)


def timing(row: dict) -> list[str]:
    if "reason" in row:
        return ["–", "not timed", "–"]
    times = f"{milliseconds(row['ours_s'])} / {milliseconds(row['theirs_s'])}"
    return [times, str(spread(row)), f"{row['gflops']:.0f} of {row['gemm_gflops']:.0f}"]


def peer_table(result: dict) -> Tables:
    """Ours against everyone else."""
    lines = []
    for row in result["rows"]:
        if row["against"] != "torch" and "ratios" in row:
            compiled = f"{row['compile_s']:.0f}" if row["compile_s"] else "–"
            times, ratio, _ = timing(row)
            lines.append([row["case"], MODES[row["mode"]], PEERS[row["against"]], times, ratio, compiled])
    return Tables(["case", "work", "peer", "ms", "speed-up", "compile s"], lines)


def notes(result: dict) -> list[str]:
    """What ran on what, and what was not timed because it was wrong."""
    m = result["machine"]
    lines = [
        f"{m['chip']} ({m['vectors']}), threads: {m['threads']}, {result['dtype']}, torch {m['torch']}, "
        f"Python {m['python']}, commit {m['commit']}. Median (quartiles) of interleaved pairs, {result['pairs']} a case.",
        "Two numbers are ours / nn.LSTM's. GFLOP/s: ours, of what PyTorch's GEMM reaches on the same sizes. "
        "MB: the peak of a training step, beyond the batch and the weights.",
    ]
    return lines + [
        f"Not timed: {row['case']}, {MODES[row['mode']]}, {PEERS[row['against']]}: {row['reason']}."
        for row in result["rows"]
        if row.get("miss")
    ]


def markdown(result: dict, picture: str) -> str:
    """The README's section."""
    parts = [f"![Speed-up over nn.LSTM]({picture})"]
    for mode, title in MODES.items():
        rows = main_table(result, mode)
        if rows.rows:
            parts += [f"**{title.capitalize()}**", table(rows), "  \n".join(mean_lines(result, mode))]
    peers = peer_table(result)
    if peers.rows:
        parts.append(f"<details><summary>Other peers</summary>\n\n{table(peers)}\n\n</details>")
    parts += notes(result)
    return "\n\n".join(parts)


def table(tables: Tables) -> str:
    lines = [tables.headers, ["---"] * len(tables.headers), *tables.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    ms = seconds * 1e3
    return f"{ms:.{max(0, 2 - math.floor(math.log10(ms)))}f}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 1e8 else f"{count / 1e6:.0f}"


def plot(result: dict, file: Path) -> None:
    """A bar per case and mode from 1.0 to the median speed-up, with the quartiles; the scale is logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    rows = [row for row in result["rows"] if row["against"] == "torch" and "ratios" in row]
    names = list(dict.fromkeys(row["case"] for row in rows))
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    figure = Figure(figsize=(8, 1.4 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(modes)
    for m, (mode, color) in enumerate(zip(modes, ("tab:blue", "tab:orange"), strict=False)):
        chosen = [row for row in rows if row["mode"] == mode]
        spreads = [spread(row) for row in chosen]
        axes.barh(
            [names.index(row["case"]) + (m - (len(modes) - 1) / 2) * height for row in chosen],
            [s.median - 1 for s in spreads],
            left=1,
            height=height,
            xerr=[[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]],
            color=color,
            ecolor="0.25",
            capsize=2,
            label=MODES[mode],
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(left=0.9 * min(1, *(spread(row).low for row in rows)))
    axes.set_xticks([tick for tick in (0.25, 0.5, 0.8, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16) if in_reach(tick, rows)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(names)), [f"{name}\n{CASES[name].shape()}" for name in names], fontsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("speed-up over torch.nn.LSTM (median, quartiles); right of 1, fastlstm is the faster")
    m = result["machine"]
    axes.set_title(f"{m['chip']}, threads: {m['threads']}, {result['dtype']}, torch {m['torch']}", fontsize=9)
    axes.legend(loc="best", fontsize=8)
    figure.savefig(file, dpi=130, metadata={"Software": None})


def in_reach(tick: float, rows: list[dict]) -> bool:
    low, high = min(spread(row).low for row in rows), max(spread(row).high for row in rows)
    return tick == 1 or low / 1.3 <= tick <= high * 1.3


def update_readme(file: Path, readme: Path) -> Path:
    """Writes the README's section between its markers, and the picture; gives the picture's file."""
    result = json.loads(file.read_text())
    if not (isinstance(result, dict) and {"machine", "dtype", "pairs", "rows"} <= result.keys() and result["rows"]):
        raise ValueError(f"{file} lacks the machine, the dtype, the number of pairs or the rows")
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
    readme.write_text(f"{before}{START}\n{markdown(result, picture.as_posix())}\n{END}{after}")
    return readme.parent / picture
