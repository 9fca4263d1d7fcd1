"""What the README and docs/speed.md say of speed, from the results that lie in one folder. Nothing in it is typed by hand."""

import re
import statistics
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from fastlstm.backends import ATTENTION, CONVOLUTIONAL, IN_PYTORCH
from fastlstm.benchmarks.answers import FASTER, Answer, beyond_pytorch, like_pytorchs, one_machine, side_by_side
from fastlstm.benchmarks.cases import find
from fastlstm.benchmarks.names import MODES, MODULES, PURPOSES, processor
from fastlstm.benchmarks.plot import drawn, plot
from fastlstm.benchmarks.report import Tables, chosen, main_table, mean_lines, notes, peer_table, summary
from fastlstm.benchmarks.results import read
from fastlstm.benchmarks.spread import spread

DETAILS, IMAGES = Path("docs/speed.md"), Path("docs/images")
START, END = "<!-- bench:{} -->", "<!-- bench:end -->"
PARTS = ("helps", "variants", "speed")


class Machine(NamedTuple):
    """Results of one machine, in the order of their files; those in half precision apart, where there are others."""

    results: list[dict]
    halves: list[dict]

    @property
    def is_cpu(self) -> bool:
        return self.whole["machine"].get("device", "cpu") == "cpu"

    @property
    def name(self) -> str:
        return processor(self.whole)

    @property
    def where(self) -> str:
        return self.name + (f", {self.whole['machine']['threads']} threads" if self.is_cpu else "")

    @property
    def whole(self) -> dict:
        """All rows of `results`, as if of one."""
        return self.results[0] | {"rows": [row for result in self.results for row in result["rows"]]}

    @property
    def picture(self) -> Path | None:
        """From the folder of the README; none where nothing would be drawn."""
        return IMAGES / f"speed-{self.whole['machine']['name']}.png" if drawn(self.whole) else None


def update_readme(file: Path, readme: Path) -> list[Path]:
    """Writes the README's parts between their markers, a picture for each machine, and the page of all cases.

    The file's own machine comes first; those of the other results in its folder follow. Gives the pictures.
    """
    machines = with_those_beside(file)
    if not readme.exists():
        raise ValueError(f"there is no {readme} in this folder to write to")
    text = readme.read_text()
    for part, content in zip(PARTS, (helps(machines), variants(machines), speed(machines)), strict=True):
        before, start, rest = text.partition(START.format(part))
        _, end, after = rest.partition(END)
        if not (start and end):
            raise ValueError(
                f"{readme} has no {START.format(part)} ... {END}, expected both: a table goes between them"
            )
        text = f"{before}{start}\n{content}\n{end}{after}"
    pictures = {readme.parent / m.picture: m.whole for m in machines if m.picture}
    (readme.parent / IMAGES).mkdir(parents=True, exist_ok=True)
    for picture, result in pictures.items():
        plot(result, picture)
    (readme.parent / DETAILS).write_text(details(machines))
    readme.write_text(text)
    return [*pictures]


def with_those_beside(file: Path) -> list[Machine]:
    """The results in the file's folder by machine, the file's own first; those in half precision are known by their dtype."""
    machines: dict[str, Machine] = {}
    for path in [file, *(other for other in sorted(file.parent.glob("*.json")) if other != file)]:
        result = read(path)
        results, halves = machines.setdefault(result["machine"]["name"], Machine([], []))
        (results if result["dtype"] == "fp32" else halves).append(result)
    return [m if m.results else Machine(m.halves, []) for m in machines.values()]


ABOUT = (
    "How many times as fast, training / inference: the geometric mean over the cases measured (in brackets the lowest), bold "
    f"from {FASTER} on."
)
ABOUT_ONE = (
    "How many times as fast: the geometric mean (lowest to highest case). Memory: our peak in a training step, as a share of "
    "theirs. H: hidden_size."
)
NO_OTHER_CPU = (
    "There is no result yet of a CPU without AVX-512: gains are smaller there, and a large LSTM may be slower. "
    "**Measure yours.**"
)

HELD = "Held to AVX2: a CPU with more, whose libraries and ours were kept from using it (`fastlstm bench --isa avx2`)."


def helps(machines: Sequence[Machine]) -> str:
    """For whom it is faster: a column for each machine that has an answer."""
    parts = [table(asked(like_pytorchs, machines)), f"{ABOUT} With memory, and every case: [{DETAILS}]({DETAILS})."]
    if {m.whole["machine"]["vectors"] for m in machines if m.is_cpu} == {"AVX512"}:
        parts.append(NO_OTHER_CPU)
    if any(m.whole["machine"].get("held_to") for m in machines):
        parts.append(HELD)
    return "\n\n".join(parts)


def asked(question: Callable[[list[dict], list[dict]], list[Answer]], machines: Sequence[Machine]) -> Tables:
    return side_by_side({m.where: question(m.results, m.halves) for m in machines})


def variants(machines: Sequence[Machine]) -> str:
    """What there is, what it costs, and whom that helps which PyTorch has no module for."""
    parts = [
        table(variants_table(machines[0].whole)),
        "Time: beside `fastlstm.LSTM` (`ConvLSTM2d`) of the same size, the mean over the cases measured on "
        f"{machines[0].where}; – is not measured. k: a kernel's taps. A: the width in which an attention is scored.",
    ]
    beyond = asked(beyond_pytorch, machines)
    if beyond.rows:
        parts += [f"What PyTorch has no module for, beside what people write instead. {ABOUT}", table(beyond)]
    return "\n\n".join(parts)


def variants_table(result: dict) -> Tables:
    """What each variant is for and costs: parameters, and time per step beside our own LSTM of the same size."""
    lines = []
    for variant, (purpose, parameters) in PURPOSES.items():
        costs = [cost(result, variant, mode) for mode in MODES]
        lines.append([f"`{MODULES[variant]}`", purpose, parameters, *costs])
    return Tables(["module", "for", "parameters", "time, training", "inference"], lines)


def cost(result: dict, variant: str, mode: str) -> str:
    if variant in ("lstm", "conv_lstm"):
        return "1"
    rows = [
        r
        for r in chosen(result, variant, mode, "lstm")
        if "ratios" in r and find(r["case"]).layout not in ("cell", "step", "stream")
    ]
    if not rows:
        return "–"
    return f"{1 / statistics.geometric_mean(spread(row).median for row in rows):.2f}"


def speed(machines: Sequence[Machine]) -> str:
    """A picture and a table of the first machine, and where those of the others are."""
    first, *others = machines
    parts = [
        "How many times as fast as each peer: the geometric mean over the cases, and the case where it is lowest. "
        f"Memory: our peak in a training step, as a share of theirs. Every case, and half precision: [{DETAILS}]({DETAILS}).",
        f"### {first.name}",
        *picture_of(first, Path()),
        table(summary(first.whole, ourselves=False)),
    ]
    said = [line for about, _, *missed in map(notes, first.results) for line in (about, *missed)]
    parts += dict.fromkeys(said)
    if others:
        parts.append(
            "The same of others: " + ", ".join(f"[{m.name}]({DETAILS}#{anchor(m.name)})" for m in others) + "."
        )
    return "\n\n".join(parts)


def anchor(title: str) -> str:
    """Of a heading of a page, on GitHub and on the site of `make docs`."""
    return re.sub(r"[^\w\s-]", "", title.lower()).strip().replace(" ", "-")


def picture_of(m: Machine, page: Path) -> list[str]:
    return [f"![Speed beside PyTorch on {m.name}]({m.picture.relative_to(page).as_posix()})"] if m.picture else []


def details(machines: Sequence[Machine]) -> str:
    """The page of all cases."""
    parts = ["# Speed, case by case", "Written by `fastlstm bench --readme` from result files."]
    for m in machines:
        parts += [f"## {m.name}", *picture_of(m, DETAILS.parent)]
        helped = one_machine(like_pytorchs(m.results, m.halves) + beyond_pytorch(m.results, m.halves))
        if helped.rows:
            parts += [ABOUT_ONE, table(helped)]
        parts.append(table(summary(m.whole)))
        for result in m.results:
            parts += [*notes(result), *every_case(result)]
        for half in m.halves:
            parts += [f"### In {half['dtype']}", *notes(half), table(summary(half)), *every_case(half)]
    return "\n\n".join(parts) + "\n"


def every_case(result: dict) -> list[str]:
    parts = []
    for (variant, name), (mode, title) in product(MODULES.items(), MODES.items()):
        rows = main_table(result, variant, mode)
        if rows.rows:
            beside = "PyTorch's" if variant in IN_PYTORCH else "PyTorch's, beside the LSTM of the same size"
            beside = "a loop over one convolution" if variant in CONVOLUTIONAL else beside
            beside = "a loop over nn.LSTMCell and an attention" if variant in ATTENTION else beside
            in_half = "" if result["dtype"] == "fp32" else f", in {result['dtype']}"
            parts += [f"### {name}: {title} against {beside}{in_half}", table(rows)]
            parts.append("  \n".join(mean_lines(result, variant, mode)))
    peers = peer_table(result)
    return [*parts, "### Other peers", table(peers)] if peers.rows else parts


def table(tables: Tables) -> str:
    lines = [tables.headers, ["---"] * len(tables.headers), *tables.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
