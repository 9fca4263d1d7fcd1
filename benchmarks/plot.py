"""The picture of a result: speed-ups over PyTorch's own modules."""

from pathlib import Path
from typing import Any

from fastlstm.backends import IN_PYTORCH
from fastlstm.benchmarks.cases import find
from fastlstm.benchmarks.names import called
from fastlstm.benchmarks.spread import spread

TICKS = (0.25, 0.5, 0.8, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24)
MODES = {"train": ("training", "tab:blue"), "infer": ("inference", "tab:orange")}


def plot(result: dict, file: Path) -> None:
    """A panel per variant that PyTorch has; a bar per case and mode from 1.0 to the median speed-up, with the quartiles. The
    scale is logarithmic."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row["against"] == "torch" and "ratios" in row]
    if not rows:
        raise ValueError("the result has no row against torch, expected at least one: the picture shows those")
    variants = [v for v in IN_PYTORCH if any(row["variant"] == v for row in rows)] or [rows[0]["variant"]]
    rows = [row for row in rows if row["variant"] in variants]
    cases = {called(row): find(row["case"]) for row in rows}
    names = list(cases)
    figure = Figure(figsize=(2 + 4.5 * len(variants), 1.4 + 0.4 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    for axes, variant in zip(panels, variants, strict=True):
        draw(axes, [row for row in rows if row["variant"] == variant], names)
        axes.set_title(f"fastlstm.{variant.upper()} over nn.{variant.upper()}", fontsize=10)
    panels[0].set_yticks(range(len(names)), [f"{name}\n{case.shape()}" for name, case in cases.items()], fontsize=7)
    panels[0].invert_yaxis()
    panels[0].legend(loc="best", fontsize=8)
    m = result["machine"]
    figure.suptitle(
        f"{m['chip']} ({m['vectors']}), threads: {m['threads']}, {result['dtype']}, torch {m['torch']}", fontsize=9
    )
    figure.supxlabel("speed-up (median, quartiles); right of 1, fastlstm is the faster", fontsize=9)
    figure.savefig(file, dpi=110, metadata={"Software": None})


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
    axes.margins(y=0.01)
    axes.grid(axis="x", alpha=0.3)
