"""Two results side by side: of two machines, or of two commits."""

import statistics
from collections import Counter
from typing import Any

from fastlstm.benchmarks.names import MODES, peer
from fastlstm.benchmarks.report import Tables, made
from fastlstm.benchmarks.spread import spread

LEAST = 4  # pairs, for quartiles to say something
FASTER, SLOWER, NOISE, FEW = "faster", "slower", "noise", "?"


def compared(a: dict[str, Any], b: dict[str, Any]) -> tuple[Tables, list[str]]:
    """One line per row that both have: the two speed-ups over the same peer, and whether b's differs by more than the noise."""
    rows = [{(row["case"], row["against"]): row for row in one["rows"] if "ratios" in row} for one in (a, b)]
    both = [key for key in rows[0] if key in rows[1]]
    lines, verdicts, changes = [], Counter[str](), []
    for key in both:
        one, other = rows[0][key], rows[1][key]
        was, now = spread(one), spread(other)
        said = verdict(one, other)
        verdicts[said] += 1
        changes.append(now.median / was.median)
        what = f"{one['variant']}, {one['name']}, {MODES[one['mode']]}" if one.get("name") else one["case"]
        lines.append([what, peer(one), str(was), str(now), f"{changes[-1]:.2f}", said])
    notes = [
        *[f"{letter}: {about(one)}" for letter, one in (("a", a), ("b", b))],
        "Speed-ups over the same peer: median (quartiles) of interleaved pairs. b is faster where its quartiles lie above a's "
        "and don't touch them; where they do, the difference is within the noise. A drift from run to run is in neither's "
        "spread: before you believe a few percent, run both again.",
        ", ".join(f"{word}: {verdicts[word]}" for word in (FASTER, SLOWER, NOISE, FEW) if verdicts[word])
        + (f". b / a, geometric mean: {statistics.geometric_mean(changes):.3f}." if changes else "nothing is in both."),
        *[
            f"Only in {letter}: {len(mine) - len(both)} rows."
            for letter, mine in (("a", rows[0]), ("b", rows[1]))
            if len(mine) > len(both)
        ],
    ]
    return Tables(["case", "peer", "a", "b", "b / a", "b is"], lines), notes


def verdict(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Of b, by the quartiles of both."""
    if min(len(a["ratios"]), len(b["ratios"])) < LEAST:
        return FEW
    was, now = spread(a), spread(b)
    return FASTER if now.low > was.high else SLOWER if now.high < was.low else NOISE


def about(result: dict[str, Any]) -> str:
    m = result["machine"]
    facts = f"{m['chip']} ({m['vectors']}), threads: {m['threads']}, {result['dtype']}, torch {m['torch']}"
    return f"{facts}, Python {m['python']}, {made(m)}, {result['pairs']} pairs"
