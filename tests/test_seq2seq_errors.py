"""What is wrong with a Seq2Seq's arguments is told by name."""

from collections.abc import Callable

import pytest
import torch

from fastlstm import Seq2Seq

SOURCES = torch.randint(0, 11, (7, 5), generator=torch.Generator().manual_seed(1))


def build(**options) -> Seq2Seq:
    return Seq2Seq(
        **{"source_vocabulary": 11, "target_vocabulary": 9, "embedding_size": 5, "hidden_size": 6, **options}
    )


ONES = torch.ones(4, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: build(source_vocabulary=0), ValueError, "source_vocabulary is 0, expected at least 1"),
        (lambda m: build(target_vocabulary="9"), TypeError, "target_vocabulary should be of type int, got: str"),
        (lambda m: build(hidden_size=1.5), TypeError, "hidden_size should be of type int"),
        (lambda m: build(end=9), ValueError, "end is 9, expected 0 to 8: target_vocabulary has 9 tokens"),
        (lambda m: build(begin=None), TypeError, "begin should be of type int, got: NoneType"),
        (lambda m: build(pad=10), ValueError, "pad is 10, expected 0 to 8: target_vocabulary has 9 tokens"),
        (lambda m: build(pad=2), ValueError, "pad is 2, expected another token than end"),
        (lambda m: build(attention="dot"), ValueError, "expected bidirectional=False or attention='general'"),
        (lambda m: build(attention="cosine"), ValueError, "attention is 'cosine'"),
        (lambda m: build(dropout=2), ValueError, "dropout should be a number in range"),
        (lambda m: build(bidirectional=1), TypeError, "bidirectional should be of type bool, got: int"),
        (
            lambda m: m([1, 2], None, ONES),
            TypeError,
            r"source is of type list, expected a Tensor of token ids \(S, B\)",
        ),
        (lambda m: m(SOURCES.float(), None, ONES), TypeError, "source has dtype torch.float32, expected torch.int64"),
        (lambda m: m(SOURCES.to_sparse(), None, ONES), TypeError, "source has layout torch.sparse_coo, expected"),
        (lambda m: m(SOURCES, None, ONES.to_sparse()), TypeError, "target has layout torch.sparse_coo, expected"),
        (lambda m: m(SOURCES, "7", ONES), TypeError, "source_lengths is '7', expected a Tensor or a list of integers"),
        (lambda m: m(SOURCES[0], None, ONES), ValueError, r"source has shape \(5,\), expected \(S, B\)"),
        (lambda m: m(SOURCES[:0], None, ONES), ValueError, r"source has shape \(0, 5\), expected at least one token"),
        (
            lambda m: m(SOURCES + 5, None, ONES),
            ValueError,
            "source holds 15, expected 0 to 10: its vocabulary has 11",
        ),
        (lambda m: m(SOURCES, None, -ONES), ValueError, "target holds -1, expected 0 to 8: its vocabulary has 9"),
        (lambda m: m(SOURCES, None, ONES[:0]), ValueError, r"target has shape \(0, 5\), expected at least one token"),
        (
            lambda m: m(SOURCES, None, ONES[:, 1:]),
            ValueError,
            "target is of 4 sentences, expected 5: those of source",
        ),
        (lambda m: m(SOURCES, [1], ONES), ValueError, r"source_lengths has shape \(1,\), expected \(5,\)"),
        (lambda m: m(SOURCES, [8] * 5, ONES), ValueError, "source_lengths holds 8, expected values from 0 to 7"),
        (lambda m: m.generate(SOURCES, None, 0), ValueError, "max_length is 0, expected at least 1"),
        (lambda m: m.generate(SOURCES, None, 5, beam_size=0), ValueError, "beam_size is 0, expected at least 1"),
        (
            lambda m: m.generate(SOURCES, None, 5, length_penalty=-1.0),
            ValueError,
            "length_penalty is -1.0, expected 0",
        ),
        (
            lambda m: m.generate(SOURCES, None, 5, length_penalty=500.0),
            ValueError,
            "length_penalty is 500.0 and max_length 5",
        ),
        (
            lambda m: m.generate(SOURCES, None, 5, length_penalty=60),
            ValueError,
            "length_penalty is 60 and max_length 5",
        ),
        (lambda m: m.generate(SOURCES, None, 5, length_penalty=10**400), ValueError, "which is too large a number"),
        (lambda m: m.generate(SOURCES, None, 5, length_penalty="a"), TypeError, "length_penalty should be a number"),
    ],
)
def test_errors(call: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(build())
