"""For whom it is faster, by how much, and for whom it is not."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from fastlstm.backends import IN_PYTORCH
from fastlstm.benchmarks.cases import find
from fastlstm.benchmarks.names import MODES
from fastlstm.benchmarks.report import Tables, is_dense, memory_share
from fastlstm.benchmarks.spread import down, spread
from fastlstm.case import Case

FASTER, SLOWER = 1.1, 0.95  # means beyond these are told as a gain, or a loss


class Answer(NamedTuple):
    """Of a kind of model: how many times as fast as its peer, case by case, and our share of the peer's memory."""

    model: str
    beside: str
    training: list[float]
    inference: list[float]
    memory: str

    @property
    def line(self) -> list[str]:
        """Of a table of one machine's."""
        both = self.training, self.inference
        return [self.model, self.beside, *map(mean_and_range, both), self.memory, verdict(*map(mean, both))]

    @property
    def cell(self) -> str:
        """Of a table of several machines': training / inference (the lowest case), bold where it helps."""
        means = [mean(speeds) for speeds in (self.training, self.inference)]
        words = ["–" if m is None else f"**{down(m)}**" if m >= FASTER else down(m) for m in means]
        cases = [*self.training, *self.inference]
        return " / ".join(words) + (f" ({down(min(cases))})" if len(cases) > 1 else "")


class Question(NamedTuple):
    """A kind of model, in words, whether a row of a result is of that kind, and what it is measured beside."""

    model: str
    fits: Callable[[dict, Case], bool]
    beside: str


def is_layer(row: dict) -> bool:
    return (
        row["variant"] in IN_PYTORCH
        and row["against"] == "torch"
        and find(row["case"]).layout not in ("cell", "stream")
    )


def is_dense_lstm(row: dict) -> bool:
    return is_layer(row) and row["variant"] == "lstm" and is_dense(row)


LIKE_PYTORCHS = (
    Question(
        "sequences of different lengths, packed or padded",
        lambda row, case: is_layer(row) and bool(case.lengths),
        "nn.LSTM, nn.GRU",
    ),
    Question(
        "a GRU, dense batches",
        lambda row, _: is_layer(row) and row["variant"] == "gru" and is_dense(row),
        "nn.GRU",
    ),
    Question(
        "a small LSTM (H up to 128), dense batches",
        lambda row, case: is_dense_lstm(row) and case.H <= 128,
        "nn.LSTM",
    ),
    Question(
        "a large LSTM (H from 256), dense batches",
        lambda row, case: is_dense_lstm(row) and case.H >= 256 and case.T > 1,
        "nn.LSTM",
    ),
    Question(
        "resets inside sequences (episodes)",
        lambda row, _: row["against"] == "cut",
        "nn.LSTM, nn.GRU, on the pieces between",
    ),
)
IN_HALF = (
    Question("small layers (H up to 128)", lambda row, case: is_layer(row) and case.H <= 128, "nn.LSTM, nn.GRU"),
    Question("large layers (H above 128)", lambda row, case: is_layer(row) and case.H > 128, "nn.LSTM, nn.GRU"),
)
BEYOND_PYTORCH = (
    Question(
        "a ConvLSTM over images",
        lambda row, case: is_loop(row, "conv_lstm") and len(case.S) == 2,
        "a loop over one convolution",
    ),
    Question(
        "a ConvLSTM over volumes",
        lambda row, case: is_loop(row, "conv_lstm") and len(case.S) == 3,
        "a loop over one convolution",
    ),
    Question(
        "a decoder with attention, fed back",
        lambda row, case: is_loop(row, "attention_lstm") and bool(case.feed),
        "a loop over nn.LSTMCell",
    ),
    Question(
        "a decoder with attention, nothing fed back",
        lambda row, _: row["against"] == "sdpa",
        "nn.LSTM and scaled_dot_product_attention",
    ),
)


def is_loop(row: dict, variant: str) -> bool:
    return row["variant"] == variant and row["against"] == "cell" and find(row["case"]).layout not in ("step", "stream")


def like_pytorchs(results: Sequence[dict], halves: Sequence[dict]) -> list[Answer]:
    """What PyTorch has modules for, from the results of one machine, and those in half precision."""
    return answers(LIKE_PYTORCHS, IN_HALF, results, halves)


def beyond_pytorch(results: Sequence[dict], halves: Sequence[dict]) -> list[Answer]:
    """What it has none for, beside what people write instead, and the same in half precision."""
    return answers(BEYOND_PYTORCH, BEYOND_PYTORCH, results, halves)


def answers(
    questions: Sequence[Question], in_half: Sequence[Question], results: Sequence[dict], halves: Sequence[dict]
) -> list[Answer]:
    asked = [(question, results) for question in questions]
    for half, question in product(halves, in_half):
        asked.append((question._replace(model=f"{question.model}, in {half['dtype']}"), [half]))
    return [answer(question, rows) for question, of in asked if (rows := rows_of(of, question))]


def one_machine(found: Sequence[Answer]) -> Tables:
    return Tables(HEADERS, [a.line for a in found])


def side_by_side(machines: Mapping[str, Sequence[Answer]]) -> Tables:
    """A column for each machine that has an answer."""
    machines = {name: found for name, found in machines.items() if found}
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for name, found in machines.items():
        for a in found:
            lines.setdefault((a.model, a.beside), {})[name] = a.cell
    return Tables(
        [*HEADERS[:2], *machines],
        [[*line, *[cells.get(name, "–") for name in machines]] for line, cells in lines.items()],
    )


HEADERS = ["your model", "beside", "training", "inference", "memory", "does it help?"]


def rows_of(results: Sequence[dict], question: Question) -> list[dict]:
    return [
        row for result in results for row in result["rows"] if "ratios" in row and question.fits(row, find(row["case"]))
    ]


def answer(question: Question, rows: list[dict]) -> Answer:
    speeds = [[spread(row).median for row in rows if row["mode"] == mode] for mode in MODES]
    return Answer(question.model, question.beside, *speeds, memory_share(rows))


def mean(speeds: list[float]) -> float | None:
    return statistics.geometric_mean(speeds) if speeds else None


def mean_and_range(speeds: list[float]) -> str:
    if len(speeds) < 2:
        return down(speeds[0]) if speeds else "–"
    return f"{down(statistics.geometric_mean(speeds))} ({down(min(speeds))}–{down(max(speeds))})"


def verdict(training: float | None, inference: float | None) -> str:
    gains = [
        name
        for name, speed in (("in training", training), ("at inference", inference))
        if speed is not None and speed >= FASTER
    ]
    known = [speed for speed in (training, inference) if speed is not None]
    if gains:
        return "**yes**" if len(gains) == len(known) else f"**yes**, {gains[0]}"
    return "**no**, slower" if statistics.geometric_mean(known) < SLOWER else "**no**, as fast"
