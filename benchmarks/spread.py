"""The spread of a row's ratios."""

import math
import statistics
from typing import NamedTuple


class Spread(NamedTuple):
    """Median and quartiles of the ratios: above 1, ours is the faster."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{down(self.median)} ({down(self.low)}–{down(self.high)})"


def spread(row: dict) -> Spread:
    if len(row["ratios"]) == 1:
        return Spread(*row["ratios"] * 3)
    return Spread(*statistics.quantiles(row["ratios"], n=4, method="inclusive"))


def down(ratio: float) -> str:
    """Two decimals, never rounded up."""
    return f"{math.floor(ratio * 100) / 100:.2f}"
