"""A case is one line of text: read, checked, and written back."""

import re
from pathlib import Path

import pytest
from drawn_cases import convolutional, decoding, rowwise
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlstm.case import AttentionCase, Case, CaseError, ConvCase, parse
from fastlstm.case.words import Word


@settings(max_examples=300)
@given(st.one_of(rowwise(), convolutional(), decoding()), st.randoms())
def test_what_a_case_says_is_read_back(case: Case, random) -> None:
    assert parse(str(case)) == case
    words = str(case).split()
    random.shuffle(words)
    assert parse(" ".join(words)) == case


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("train bf16 lstm H256 I128 B32 packed:20-80 L2 bi", "lstm T80 B32 I128 H256 L2 bi packed:20-80 bf16 train"),
        ("gru T9 B3 I4 H5 lengths:7,4,1 float32", "gru T9 B3 I4 H5 lengths:1-7 fp32"),
        ("lstm T9 B3 I4 H5 lengths:7,3,1", "lstm T9 B3 I4 H5 lengths:7,3,1"),
        ("lstm T4 B2 I4 H5 packed:4,4", "lstm T4 B2 I4 H5 packed:4-4"),
        ("cell B16 I256 H256", "T1 B16 I256 H256 cell"),
        ("T5 B3 I4 H8 resets:.5e-1 gain:100.0", None),
        ("T5 B3 I4 H8 resets:5e-2 gain:100.0 L1", "T5 B3 I4 H8 resets:0.05 gain:100"),
        ("T10 B4 I16 H64,8 S32x32 k5x5 stride:2x2", "T10 B4 I16 H64,8 S32x32 k5 stride:2"),
        ("T2 B1 I1 H1 S5x6 k3x2 padding:1+1x0", "T2 B1 I1 H1 S5x6 k3x2 padding:1x0"),
        ("B2 T3 I4 H4 M4 memory:3,7 dot feed:None", "T3 B2 I4 H4 S7 M4 dot feed:None memory:3,7"),
    ],
)
def test_the_canonical_form(text: str, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(CaseError, match="was not understood"):
            parse(text)
    else:
        assert str(parse(text)) == canonical


def test_the_family_is_told_by_the_variant_or_by_the_sizes() -> None:
    assert type(parse("T1 B1 I1 H1")) is Case
    assert type(parse("T1 B1 I1 H1 S3 k3")) is ConvCase
    assert type(parse("T1 B1 I1 H1 S3 M4")) is AttentionCase
    assert parse("T1 B1 I1 H1").variant is None
    assert parse("cifg_lstm T1 B1 I1 H1").kind.coupled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lstm T100 B3 I2 H3 Q5", r"'Q5' is no word of such a case, expected T100, B32.*train, infer$"),
        ("lstm T3 B3 I2 H3 packd:2-3", "'packd:2-3' is no word of such a case, did you mean 'packed:20-80'"),
        ("lsmt T3 B3 I2 H3", "'lsmt' is no word of such a case, did you mean 'lstm'"),
        ("lstm T3 B3 I4 H5 k3", "'k3' is no word of such a case, but of one of conv_lstm"),
        ("lstm T3 B3", r"it lacks I \(input features\), H \(hidden features\)"),
        ("lstm T3 B3 I4 H5 T4", "'T4' says T once more"),
        ("lstm T3 B3 I4 H5x", "'H5x' was not understood, expected it as 'H256': hidden features"),
        ("lstm T0 B3 I4 H5", "T is 0, expected at least 1"),
        ("lstm B3 I4 H5 packed:5-3", "'packed:5-3' was not understood, expected it as 'packed:20-80'"),
        ("lstm B3 I4 H5 packed:0-3", "the lengths are 0 to 3, expected 1 to 3"),
        ("lstm T2 B3 I4 H5 lengths:0-3", "the lengths are 0 to 3, expected 0 to 2, the steps of the batch"),
        ("lstm B3 I4 H5 packed:3,2", "packed has 2 lengths, expected 3, the batch"),
        ("lstm B2 I4 H5 packed:2,3", r"the lengths are \[2, 3\], expected none to be longer than the one before"),
        ("lstm B3 I4 H5 packed:1-3 cell", "more than one of packed, lengths, cell, stream and step"),
        ("lstm T3 B3 I4 H5 cell", "a cell is one step of one layer: expected T1"),
        ("lstm T3 B3 I4 H5 bi stream", "a stream goes one way, to its end: expected no bi"),
        ("lstm T3 B3 I4 H5 bi reverse", "reverse is one direction, and bi is both"),
        ("lstm T3 B3 I4 H5 P5", "proj_size has to be smaller than hidden_size"),
        ("gru T3 B3 I4 H5 P2", "P is 2, and a gru has no projection"),
        ("gru T3 B3 I4 H5 return_cells", "which has none"),
        ("cifg_peephole_lstm B3 I4 H5 cell", "there is no cell of a cifg_peephole_lstm"),
        ("T3 B3 I4 H5 S5x5 k3x3x3", "kernel is of 3 dimensions, expected 2, those of S"),
        ("T3 B3 I4 H5 S5x5 k7 padding:0", "finds no room in an image"),
        ("T3 B3 I4 H5,4 L2 S5x5 k3", "H gives the channels of each layer, expected no other H and no L"),
        ("conv_lstm T3 B3 I4 H5 S5x5 k3 hadamard", "hadamard is of peepholes, and a conv_lstm has none"),
        ("T3 B3 I4 H5 S5 M5 memory:2-7", "the memory's lengths are 2 to 7, expected 0 to 5, its slots"),
        ("attention_lstm T3 B3 I4 H5 S5 M6 dot", "memory_size is 6, expected 5, the hidden_size"),
        ("", "it lacks T"),
    ],
)
def test_what_is_no_case_is_told_which_word_and_why(text: str, message: str) -> None:
    with pytest.raises(CaseError, match=message) as error:
        parse(text)
    assert str(error.value).startswith(f"case {text!r}: ")


ROOT = Path(__file__).parents[1]


def page(kind: type[Case], before: tuple[Word, ...] = ()) -> str:
    """A family's words as docs/cases.md has them, without those of an earlier table."""
    lines = [f"| `{word.written}` | {word.means} |" for word in kind.words if word not in before]
    return "\n".join(["| word | means |", "| --- | --- |", *lines])


@pytest.mark.parametrize(
    ("kind", "before"),
    [(Case, ()), (ConvCase, Case.words), (AttentionCase, Case.words)],
    ids=["rows", "images", "memory"],
)
def test_the_page_has_every_word(kind: type[Case], before: tuple[Word, ...]) -> None:
    assert page(kind, before) in (ROOT / "docs/cases.md").read_text()


def test_the_lines_of_the_pages_are_cases() -> None:
    found = []
    for name in ("docs/cases.md", "docs/parity.md"):
        text = (ROOT / name).read_text()
        found += re.findall(r"(?:--case|--impl \S+ --case) '([^']* [^']*)'", text)
        found += [line for block in re.findall(r"```text\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert len(found) > 5
    for line in found:
        assert str(parse(line)) == line
