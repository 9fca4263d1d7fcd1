"""The README's numbers are what the committed results generate."""

import json
import re
from pathlib import Path

import pytest

from fastlstm.benchmarks import answers, plot, readme

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
EMPTY = "".join(f"{readme.START.format(part)}\nstale\n{readme.END}\n" for part in readme.PARTS)


def row(case: str, variant: str, mode: str, against: str, *ratios: float, memory: float | None = None) -> dict:
    """Of a result; `memory` is our share of the peer's."""
    of_memory = {"memory": {"ours": int(1e6 * memory), against: 1_000_000}} if memory else {}
    times = {"ours_s": 0.001, "theirs_s": 0.002, "gflops": 10.4, "gemm_gflops": 20.0, "compile_s": None}
    return (
        {"case": case, "variant": variant, "mode": mode, "against": against, "path": "", "ratios": [*ratios]}
        | times
        | of_memory
    )


def result(*rows: dict, chip: str = "A(R) Chip", vectors: str = "AVX512", dtype: str = "fp32") -> dict:
    name = chip.lower().replace(" ", "-")
    machine = {
        "name": name,
        "device": "cpu",
        "chip": chip,
        "vectors": vectors,
        "threads": 2,
        "python": "3.11",
        "torch": "2.13",
        "commit": "abc",
    }
    return {"schema": "fastlstm bench", "version": 1, "machine": machine, "dtype": dtype, "pairs": 3, "rows": [*rows]}


RESULT = result(
    row("tagger", "lstm", "train", "torch", 2.0, memory=0.5),
    row("packed", "gru", "train", "torch", 8.0, memory=0.125),
    row("tagger", "lstm", "infer", "torch", 1.5),
    row("square", "lstm", "train", "torch", 1.02),
    row("square", "lstm", "infer", "torch", 0.96),
    row("darts", "lstm", "train", "torch", 1.3),
    row("darts", "lstm", "infer", "torch", 1.0),
    row("cell-1", "lstm", "infer", "torch", 9.0),
    row("square", "gru", "train", "lstm", 1.25),
    {
        "case": "lm",
        "variant": "lstm",
        "mode": "train",
        "against": "torch",
        "reason": "the error of y is 1",
        "miss": True,
    },
)


def test_whom_it_helps():
    half = result(row("square", "gru", "infer", "torch", 0.9), dtype="bf16")
    found = answers.like_pytorchs([RESULT], [half])
    assert answers.one_machine(found).rows == [
        ["sequences of different lengths, packed or padded", "nn.LSTM, nn.GRU", "4.00 (2.00–8.00)", "1.50", "0.25", "**yes**"],
        ["a small LSTM (H up to 128), dense batches", "nn.LSTM", "1.30", "1.00", "–", "**yes**, in training"],
        ["a large LSTM (H from 256), dense batches", "nn.LSTM", "1.02", "0.96", "–", "**no**, as fast"],
        ["large layers (H above 128), in bf16", "nn.LSTM, nn.GRU", "–", "0.90", "–", "**no**, slower"],
    ]  # fmt: skip
    assert answers.side_by_side({"A": found, "none": [], "B": found[1:2]}) == answers.Tables(
        ["your model", "beside", "A", "B"],
        [
            ["sequences of different lengths, packed or padded", "nn.LSTM, nn.GRU", "**4.00** / **1.50** (1.50)", "–"],
            [
                "a small LSTM (H up to 128), dense batches",
                "nn.LSTM",
                "**1.30** / 1.00 (1.00)",
                "**1.30** / 1.00 (1.00)",
            ],
            ["a large LSTM (H from 256), dense batches", "nn.LSTM", "1.02 / 0.96 (0.96)", "–"],
            ["large layers (H above 128), in bf16", "nn.LSTM, nn.GRU", "– / 0.90", "–"],
        ],
    )


def test_what_pytorch_lacks_stands_beside_what_people_write():
    some = result(
        row("radar", "conv_lstm", "train", "cell", 0.9, memory=0.7),
        row("volume", "conv_lstm", "infer", "cell", 2.0),
        row("decode", "attention_lstm", "train", "cell", 3.0),
        row("decode-unfed", "attention_lstm", "train", "cell", 5.0),
        row("decode-unfed", "attention_lstm", "train", "sdpa", 1.0),
    )
    half = result(row("radar", "conv_lstm", "infer", "cell", 1.5), dtype="bf16")
    assert [[a.line[0], *a.line[2:]] for a in answers.beyond_pytorch([some], [half])] == [
        ["a ConvLSTM over images", "0.90", "–", "0.70", "**no**, slower"],
        ["a ConvLSTM over volumes", "–", "2.00", "–", "**yes**"],
        ["a decoder with attention, fed back", "3.00", "–", "–", "**yes**"],
        ["a decoder with attention, nothing fed back", "1.00", "–", "–", "**no**, as fast"],
        ["a ConvLSTM over images, in bf16", "–", "1.50", "–", "**yes**"],
    ]


def test_costs_are_beside_our_own_lstm():
    costs = {line[0]: line[3:] for line in readme.variants_table(RESULT).rows}
    assert (costs["`LSTM`"], costs["`GRU`"], costs["`CIFGLSTM`"]) == (["1", "1"], ["0.80", "–"], ["–", "–"])


def test_parts_are_written_between_their_markers(tmp_path):
    """A picture for each machine; what another kind of CPU does stands beside."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"before\n{EMPTY}after\n")
    lesser = result(row("square", "lstm", "train", "torch", 0.8), chip="Lesser", vectors="AVX2")
    half = result(row("square", "lstm", "train", "torch", 1.7), dtype="bf16")
    for name, one in {"b": RESULT, "b-bf16": half, "a": lesser}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    held = result(row("square", "lstm", "train", "torch", 0.9), chip="Lesser")
    held["machine"] |= {"held_to": "avx2", "name": "lesser-avx2"}
    (tmp_path / "c.json").write_text(json.dumps(held))
    pictures = readme.update_readme(tmp_path / "b.json", tmp_path / "README.md")
    assert [picture.name for picture in pictures] == [
        "speed-a(r)-chip.png",
        "speed-lesser.png",
        "speed-lesser-avx2.png",
    ]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    text, page = (tmp_path / "README.md").read_text(), (tmp_path / "docs/speed.md").read_text()
    assert text.startswith("before\n<!-- bench:helps -->\n| your model | beside | A Chip (AVX-512), 2 threads |")
    assert text.endswith("<!-- bench:end -->\nafter\n")
    assert "stale" not in text
    assert " | Lesser (AVX2), 2 threads | Lesser (held to AVX2), 2 threads |\n| ---" in text
    assert text.count(readme.HELD) == 1
    assert "no result yet of a CPU without AVX-512" not in text
    assert "| fastlstm.LSTM | nn.LSTM, dense cases | 1.15 (square: 1.02) | 0.97 (square: 0.96) | – | 2 |" in text
    assert "### In bf16\n" in page
    assert "Not timed: fastlstm.LSTM, lm, training, nn.LSTM: the error of y is 1." in text
    of_others = (
        "[Lesser (AVX2)](docs/speed.md#lesser-avx2), [Lesser (held to AVX2)](docs/speed.md#lesser-held-to-avx2)."
    )
    assert f"The same of others: {of_others}" in text
    assert text.count("### ") == 1
    assert "fastlstm.GRU | fastlstm.LSTM" in page
    assert "fastlstm.GRU | fastlstm.LSTM" not in text, "beside ourselves"
    assert "### LSTM: training against PyTorch's, in bf16\n" in page


def test_markers_are_needed(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "README.md").write_text(EMPTY.replace("bench:speed", "bench:fast"))
    with pytest.raises(
        ValueError, match=r"README\.md has no <!-- bench:speed --> ... <!-- bench:end -->, expected both"
    ):
        readme.update_readme(tmp_path / "result.json", tmp_path / "README.md")


def test_a_picture_needs_rows_that_it_shows(tmp_path):
    with pytest.raises(ValueError, match="has no timed row against torch"):
        plot.plot(result(row("square", "gru", "train", "lstm", 1.25)), tmp_path / "x.png")


def test_the_numbers_are_what_committed_results_generate():
    """On which machine's file `bench --readme` was run, the first picture tells."""
    picture = re.search(r"!\[.*?\]\((.*?)\)", TEXT)[1]
    file = ROOT / "benchmarks/results" / f"{Path(picture).stem.removeprefix('speed-')}.json"
    machines = readme.with_those_beside(file)
    for part, content in zip(readme.PARTS, (readme.helps, readme.variants, readme.speed), strict=True):
        written = TEXT.partition(readme.START.format(part))[2].partition(readme.END)[0]
        assert written == f"\n{content(machines)}\n", part
    assert (ROOT / readme.DETAILS).read_text() == readme.details(machines)
    assert all((ROOT / m.picture).is_file() for m in machines)
