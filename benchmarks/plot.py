"""The picture of a result: speed beside PyTorch's own modules, or beside the loop that stands for one."""

from pathlib import Path
from typing import Any

from fastlstm.backends import ATTENTION, CONVOLUTIONAL, VARIANTS
from fastlstm.benchmarks.cases import find, main_peer
from fastlstm.benchmarks.names import MODULES, called, peer, processor
from fastlstm.benchmarks.spread import spread
from fastlstm.case import Case

TICKS = (0.25, 0.5, 0.8, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24)
MODES = {"train": ("training", "tab:blue"), "infer": ("inference", "tab:orange")}
FAMILIES = (tuple(VARIANTS), tuple(CONVOLUTIONAL), tuple(ATTENTION))  # those that take the same cases


def plot(result: dict, file: Path) -> None:
    """A panel per variant; a bar per case and mode from 1.0 to the median speed-up, with the quartiles, logarithmic.

    Each variant is shown beside its main peer.
    """
    from matplotlib.figure import Figure

    rows = drawn(result)
    names: dict[str, dict[str, Case]] = {}  # variant: the cases of its family, by what they are called
    for family in FAMILIES:
        of_family = [row for row in rows if row["variant"] in family]
        for variant in family:
            if any(row["variant"] == variant for row in of_family):
                names[variant] = {called(row): find(row["case"]) for row in of_family}
    if not names:
        raise ValueError(
            "the result has no timed row against torch, or of a ConvLSTM or an AttentionLSTM against cell, expected at least "
            "one: the picture shows those"
        )
    most = max(map(len, names.values()))
    figure = Figure(figsize=(2 + 4.5 * len(names), 1.4 + 0.4 * most), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    shown: dict[str, Case] = {}
    for axes, (variant, cases) in zip(panels, names.items(), strict=True):
        some = [row for row in rows if row["variant"] == variant]
        draw(axes, some, list(cases))
        axes.set_title(f"{MODULES[variant].replace('2d', '')}, beside\n{peer(some[0])}", fontsize=9)
        labels = [f"{name}\n{case.shape()}" for name, case in cases.items()]
        axes.set_yticks(range(len(cases)), labels if list(cases) != list(shown) else [""] * len(cases), fontsize=7)
        axes.set_ylim(len(cases) - 0.5, -0.5)
        shown = cases
    panels[0].legend(loc="best", fontsize=8)
    m = result["machine"]
    figure.suptitle(f"{processor(result)}, threads: {m['threads']}, {result['dtype']}, torch {m['torch']}", fontsize=9)
    figure.supxlabel("speed-up (median, quartiles); right of 1, fastlstm is the faster", fontsize=9)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def drawn(result: dict) -> list[dict]:
    """The rows that the picture shows."""
    return [row for row in result["rows"] if row["against"] == main_peer(row["variant"]) and "ratios" in row]


def draw(axes: Any, rows: list[dict], names: list[str]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    height = 0.8 / len(MODES)
    for m, (mode, (label, color)) in enumerate(MODES.items()):
        chosen = [row for row in rows if row["mode"] == mode]
        spreads = [spread(row) for row in chosen]
        axes.barh(
            [names.index(called(row)) + (m - (len(MODES) - 1) / 2) * height for row in chosen],
            [s.median - 1 for s in spreads],
            left=1,
            height=height,
            xerr=[[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]],
            color=color,
            ecolor="0.25",
            capsize=2,
            label=label,
        )
    low, high = min(spread(row).low for row in rows), max(spread(row).high for row in rows)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(left=0.9 * min(1, low))
    coarse = high / low > 10  # ticks beside 1 would touch it
    ticks = [tick for tick in TICKS if low / 1.3 <= tick <= high * 1.3 and not (coarse and tick in (0.8, 1.25))]
    axes.set_xticks(sorted({1, *ticks}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", alpha=0.3)
