"""Search over a step that we made up: against enumeration, and a greedy loop of its own."""

import math
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastlstm.generation import Generated, beam_search, largest

PAD, BEGIN, END = 0, 1, 2
V, S = 6, 5


class State(NamedTuple):
    """What was said so far, by which the next token is drawn: a reordering that is forgotten or wrong shows."""

    said: Tensor  # (R, t)
    sentence: Tensor  # (R)

    def index_select(self, rows: Tensor) -> "State":
        return State(self.said[rows], self.sentence[rows])


def logits_of(said: tuple[int, ...], sentence: int, scale: float = 2.0) -> Tensor:
    """Of any history: those of a sequence that begins alike tell nothing."""
    seed = sentence
    for token in said:
        seed = seed * 7 + token + 1
    return scale * torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(tokens: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
    said = torch.cat([state.said, tokens[:, None]], 1)
    logits = torch.stack(
        [logits_of(tuple(row), n) for row, n in zip(said.tolist(), state.sentence.tolist(), strict=True)]
    )
    alignments = torch.zeros(len(said), S)
    # who looked, in what step, at what
    alignments[:, 0], alignments[:, 1], alignments[:, 2] = state.sentence, float(said.shape[1]), tokens.float()
    return logits, State(said, state.sentence), alignments


def search(sentences: list[int], max_length: int, beam_size: int = 1, length_penalty: float = 0.0) -> Generated:
    rows = torch.tensor(sentences, dtype=torch.int64).repeat_interleave(beam_size)
    state = State(torch.empty(len(rows), 0, dtype=torch.int64), rows)
    return beam_search(
        step, state, len(sentences), max_length, begin=BEGIN, end=END, pad=PAD,
        beam_size=beam_size, length_penalty=length_penalty,
    )  # fmt: skip


def log_p(said: tuple[int, ...], sentence: int) -> float:
    steps = [logits_of((BEGIN, *said[:t]), sentence).log_softmax(0)[token].item() for t, token in enumerate(said)]
    return sum(steps)


def everything(max_length: int) -> list[tuple[int, ...]]:
    """All that can be said: what ends, and what is as long as it may be."""
    words = [token for token in range(V) if token not in (PAD, BEGIN, END)]
    open_ended = [list(product(words, repeat=n)) for n in range(max_length + 1)]
    return [(*said, END) for row in open_ended[:-1] for said in row] + open_ended[-1]


def said(tokens: Tensor) -> tuple[int, ...]:
    row = [token for token in tokens.tolist() if token != PAD]
    assert row + [PAD] * (len(tokens) - len(row)) == tokens.tolist()
    assert END not in row[:-1]
    return tuple(row)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 3.0])
def test_full_width_finds_the_best(length_penalty: float) -> None:
    max_length, sentences = 4, [3, 14, 15, 92]
    all_said = everything(max_length)
    assert len(all_said) == 1 + 3 + 9 + 27 + 81
    found = search(sentences, max_length, len(all_said), length_penalty)
    best_said = set()
    for b, sentence in enumerate(sentences):
        scores = {y: log_p(y, sentence) / len(y) ** length_penalty for y in all_said}
        best = max(scores, key=scores.__getitem__)
        best_said.add(best)
        assert said(found.tokens[b]) == best
        assert found.scores[b].item() == pytest.approx(scores[best], rel=1e-6)
    assert found.tokens.shape[1] == max(map(len, best_said))
    if length_penalty == 3:
        assert {END in best for best in best_said} == {True, False}


def searched(sentence: int, max_length: int, K: int, length_penalty: float) -> tuple[int, ...]:
    """The rule once more, on lists, until K have ended: no look at what can still be reached."""
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    while len(ended) < K and beams and len(beams[0][1]) < max_length:
        found = []
        for p, row in beams:
            after = logits_of((BEGIN, *row), sentence).log_softmax(0).tolist()
            found += [(p + after[token], (*row, token)) for token in range(V) if token not in (PAD, BEGIN)]
        found.sort(key=lambda one: -one[0])
        ended += [(p / len(row) ** length_penalty, row) for p, row in found[:K] if row[-1] == END]
        beams = [one for one in found if one[1][-1] != END][:K]
    if len(ended) < K:
        ended += [(p / len(row) ** length_penalty, row) for p, row in beams]
    return max(ended, key=lambda one: one[0])[1]


@pytest.mark.parametrize("beam_size", [1, 2, 3, 7])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_searched(beam_size: int, length_penalty: float) -> None:
    sentences = list(range(40, 70))
    found = search(sentences, 6, beam_size, length_penalty)
    for b, sentence in enumerate(sentences):
        assert said(found.tokens[b]) == searched(sentence, 6, beam_size, length_penalty)


@pytest.mark.parametrize("beam_size", [1, 2, 3, 7])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_scores_are_of_the_tokens(beam_size: int, length_penalty: float) -> None:
    sentences = list(range(40, 60))
    found = search(sentences, 9, beam_size, length_penalty)
    lengths = set()
    for b, sentence in enumerate(sentences):
        row = said(found.tokens[b])
        lengths.add((len(row), row[-1] == END))
        assert row[-1] == END or len(row) == 9
        assert found.scores[b].item() == pytest.approx(log_p(row, sentence) / len(row) ** length_penalty, rel=1e-6)
    assert len(lengths) > 2


def test_one_beam_is_greedy() -> None:
    sentences = list(range(30))
    found = search(sentences, 8)
    for b, sentence in enumerate(sentences):
        row: list[int] = []
        while len(row) < 8 and END not in row:
            logits = logits_of((BEGIN, *row), sentence)
            logits[[PAD, BEGIN]] = -torch.inf
            row.append(int(logits.argmax()))
        assert said(found.tokens[b]) == tuple(row)
    ends = (found.tokens == END).any(1)
    assert ends.any()
    assert not ends.all()


def test_more_beams_find_more() -> None:
    scores = [search(list(range(50)), 8, K).scores.mean().item() for K in (1, 3, 20)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_sentence_is_as_if_alone(beam_size: int, length_penalty: float) -> None:
    sentences = list(range(70, 90))
    together = search(sentences, 8, beam_size, length_penalty)
    backwards = search(sentences[::-1], 8, beam_size, length_penalty)
    for b, sentence in enumerate(sentences):
        alone = search([sentence], 8, beam_size, length_penalty)
        U = alone.tokens.shape[1]
        for batch, row in ((together, b), (backwards, len(sentences) - 1 - b)):
            assert torch.equal(batch.tokens[row, :U], alone.tokens[0])
            assert (batch.tokens[row, U:] == PAD).all()
            assert torch.equal(batch.scores[row], alone.scores[0])
            assert torch.equal(batch.alignments[row, :U], alone.alignments[0])


def test_alignments_are_those_of_the_best_beam() -> None:
    sentences = list(range(30))
    found = search(sentences, 8, 4, 1.0)
    for b, sentence in enumerate(sentences):
        row = said(found.tokens[b])
        for t, before in enumerate((BEGIN, *row[:-1])):
            assert found.alignments[b, t].tolist() == [sentence, t + 1, before, 0, 0]
        assert (found.alignments[b, len(row) :] == 0).all()


def test_what_has_ended_never_grows_and_stays() -> None:
    """By hand: `end` has p = 0.5 at each step, 3 has 0.3 and 4 has 0.2."""

    def halves(tokens: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        p = torch.tensor([0.0, 0.0, 0.5, 0.3, 0.2, 0.0]).log().expand(len(tokens), V)
        return p, state, torch.zeros(len(tokens), S)

    for K, alpha, expected, p in (
        (1, 0.0, [END], 0.5),
        (3, 0.0, [END], 0.5),
        (1, 5.0, [END], 0.5),  # greedy search is over there
        (2, 5.0, [3, END], 0.15),  # two have ended
        (4, 5.0, [3, 3, END], 0.045),  # four have ended only with these
    ):
        state = State(torch.empty(K, 0, dtype=torch.int64), torch.zeros(K, dtype=torch.int64))
        found = beam_search(halves, state, 1, 3, begin=BEGIN, end=END, pad=PAD, beam_size=K, length_penalty=alpha)
        assert found.tokens.tolist() == [expected]
        assert found.scores.item() == pytest.approx(math.log(p) / len(expected) ** alpha, rel=1e-6)


def test_ties() -> None:
    """All that may be said is as probable: of equal scores the one that ended first, else the lower token of the first beam."""

    def even(tokens: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        return torch.zeros(len(tokens), V), state, torch.zeros(len(tokens), S)

    for K in (1, 2, 3, 4, 9):
        state = State(torch.empty(2 * K, 0, dtype=torch.int64), torch.zeros(2 * K, dtype=torch.int64))
        found = beam_search(even, state, 2, 3, begin=BEGIN, end=END, pad=PAD, beam_size=K)
        assert found.tokens.tolist() == [[END]] * 2
        found = beam_search(even, state, 2, 3, begin=BEGIN, end=5, pad=PAD, beam_size=K, length_penalty=1.0)
        assert found.tokens.tolist() == [[2, 2, 2] if K < 4 else [5, PAD, PAD][:1]] * 2


def test_largest() -> None:
    x = torch.randint(0, 4, (50, 12), generator=torch.Generator().manual_seed(0)).float()
    x[:, 3] = torch.inf
    expected = x.sort(dim=1, descending=True, stable=True)
    for count in (1, 5, 11, 12):
        values, places = largest(x, count)
        assert torch.equal(values, expected.values[:, :count])
        assert torch.equal(places, expected.indices[:, :count])
    clear = torch.randn(50, 12)
    assert torch.equal(largest(clear, 5)[1], clear.topk(5).indices)


def test_begin_is_end() -> None:
    """As in fairseq: the target begins with `end`, which is generated all the same."""
    state = State(torch.empty(1, 0, dtype=torch.int64), torch.tensor([5]))
    found = beam_search(step, state, 1, 30, begin=END, end=END, pad=PAD)
    assert found.tokens[0, -1] == END


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_logits_that_tell_nothing(value: float, beam_size: int) -> None:
    """Of one sentence: the others are as they were."""

    def spoilt(tokens: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        logits, after, alignments = step(tokens, state)
        return logits.masked_fill((state.sentence == 4).unsqueeze(1), value), after, alignments

    rows = torch.tensor([4, 5]).repeat_interleave(beam_size)
    state = State(torch.empty(len(rows), 0, dtype=torch.int64), rows)
    found = beam_search(spoilt, state, 2, 6, begin=BEGIN, end=END, pad=PAD, beam_size=beam_size)
    alone = search([5], 6, beam_size)
    assert said(found.tokens[1]) == said(alone.tokens[0])
    assert found.scores[1] == alone.scores[0]
    assert found.scores[0] == -torch.inf
    assert (found.tokens[0, 1:] == PAD).all()


def test_no_sentence() -> None:
    def none(tokens: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        return torch.zeros(0, V), state, torch.zeros(0, S)

    empty = torch.empty(0, dtype=torch.int64)
    found = beam_search(none, State(empty, empty), 0, 5, begin=BEGIN, end=END, pad=PAD, beam_size=3)
    assert [tuple(x.shape) for x in found] == [(0, 0), (0,), (0, 0, S)]
