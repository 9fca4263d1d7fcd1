"""Seq2Seq: training and searching say the same, sentences are as if alone, and what is wrong is told."""

import doctest
import importlib
import pickle
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import fastlstm
from fastlstm import Seq2Seq

V, S, B = 9, 7, 5
LENGTHS = [7, 3, 0, 1, 6]
SMALL = {"embedding_size": 5, "hidden_size": 6}
KINDS = {
    "default": {},
    "layers": {"num_layers": 3, "dropout": 0.3},
    "one direction": {"bidirectional": False, "attention": "dot", "num_layers": 2},
    "general": {"attention": "general"},
    "normalized": {"attention": "normalized_additive", "bidirectional": False},
}
kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def taught(kind: str, vocabulary: int) -> dict[str, Tensor]:
    """Weights that have half learned a sentence each for some sources: what they say depends on what they see."""
    torch.manual_seed(3)
    model = Seq2Seq(11, vocabulary, **SMALL, **KINDS[kind], dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    source, target = sources(40, seed=7), torch.randint(3, vocabulary, (8, 40))
    target[0] = 1
    for b in range(40):
        target[2 + b % 6, b], target[3 + b % 6 :, b] = 2, 0
    for _ in range(60):
        logits = model(source, 8 * LENGTHS, target[:-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[1:].flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def make(kind: str = "default", vocabulary: int = V, **options) -> Seq2Seq:
    """In eval mode."""
    model = Seq2Seq(11, vocabulary, **SMALL, **KINDS[kind], dtype=torch.float64, **options).eval()
    model.load_state_dict(taught(kind, vocabulary))
    return model


def sources(size: int = B, seed: int = 1) -> Tensor:
    return torch.randint(0, 11, (S, size), generator=torch.Generator().manual_seed(seed))


def said(row: Tensor, end: int = 2) -> list[int]:
    """A row of `tokens`, without what pads it."""
    tokens = row.tolist()
    n = tokens.index(end) + 1 if end in tokens else len([token for token in tokens if token])
    assert not any(tokens[n:])
    assert 0 not in tokens[:n]
    return tokens[:n]


def log_p(model: Seq2Seq, source: Tensor, length: int, row: list[int]) -> float:
    """Of a whole sequence, by the `forward` of training."""
    target = torch.tensor([[model.begin, *row[:-1]]]).t()
    of_each = model(source[:, None], [length], target)[:, 0].log_softmax(-1)
    return sum(of_each[t, token].item() for t, token in enumerate(row))


@kinds
def test_sizes(kind: str) -> None:
    model = make(kind)
    H, L, M = 6, KINDS[kind].get("num_layers", 1), 12 if model.encoder.bidirectional else 6
    assert [tuple(p.weight.shape) for p in (model.source_embedding, model.target_embedding)] == [(11, 5), (V, 5)]
    assert [tuple(linear.weight.shape) for linear in (*model.bridge_h, *model.bridge_c)] == [(H, M)] * 2 * L
    assert (model.decoder.memory_size, model.decoder.num_layers) == (M, L)
    assert model(sources(), LENGTHS, torch.ones(4, B, dtype=torch.int64)).shape == (4, B, V)
    assert not model.source_embedding.weight[0].any()


@kinds
def test_every_parameter_learns(kind: str) -> None:
    model = make(kind).train()
    logits = model(sources(), LENGTHS, torch.randint(1, V, (4, B)))
    nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(1, V, (4 * B,))).backward()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name
    for embedding in (model.source_embedding, model.target_embedding):
        assert not embedding.weight.grad[0].any()


@kinds
def test_logits_by_hand(kind: str) -> None:
    """From the documented equations, of one sentence without padding at a time."""
    model, source, target = (
        make(kind),
        sources(),
        torch.randint(1, V, (4, B), generator=torch.Generator().manual_seed(5)),
    )
    logits, L = model(source, LENGTHS, target), model.encoder.num_layers
    for b, n in enumerate(LENGTHS):
        if n == 0:
            continue
        memory, (h_n, c_n) = model.encoder(model.source_embedding(source[:n, b : b + 1]))
        first = []
        for bridge, last in ((model.bridge_h, h_n), (model.bridge_c, c_n)):
            D = len(last) // L
            of_layers = [torch.cat([last[D * k + d] for d in range(D)], -1) for k in range(L)]
            first.append(torch.stack([bridge[k](of_layers[k]).tanh() for k in range(L)]))
        output, _ = model.decoder(model.target_embedding(target[:, b : b + 1]), memory, tuple(first))
        torch.testing.assert_close(model.output(output)[:, 0], logits[:, b])


def test_an_empty_source_is_like_no_other() -> None:
    model, target = make(), torch.randint(1, V, (4, B))
    both = [model(sources(seed=seed), LENGTHS, target) for seed in (1, 2)]
    assert torch.equal(both[0][:, 2], both[1][:, 2])
    assert both[0].isfinite().all()
    found = model.generate(sources(), LENGTHS, 5, beam_size=3)
    assert not found.alignments[2].any()


@kinds
@pytest.mark.parametrize(("beam_size", "length_penalty"), [(1, 0.0), (3, 0.0), (4, 1.0)])
def test_scores_are_those_of_forward(kind: str, beam_size: int, length_penalty: float) -> None:
    model, source = make(kind), sources(12)
    lengths = [*LENGTHS, *LENGTHS, 7, 2]
    found = model.generate(source, lengths, 8, beam_size=beam_size, length_penalty=length_penalty)
    assert found.tokens.shape == (12, found.tokens.shape[1])
    assert found.alignments.shape == (12, found.tokens.shape[1], S)
    rows = [said(row) for row in found.tokens]
    assert len({tuple(row) for row in rows}) > 2
    assert max(map(len, rows)) == found.tokens.shape[1] <= 8
    for b, row in enumerate(rows):
        expected = log_p(model, source[:, b], lengths[b], row) / len(row) ** length_penalty
        assert found.scores[b].item() == pytest.approx(expected, rel=1e-9)
        assert row[-1] == 2 or len(row) == 8


@kinds
def test_one_beam_is_greedy(kind: str) -> None:
    model, source = make(kind), sources()
    found = model.generate(source, LENGTHS, 8)
    for b, n in enumerate(LENGTHS):
        row: list[int] = []
        while len(row) < 8 and 2 not in row:
            target = torch.tensor([[1, *row]]).t()
            logits = model(source[:, b : b + 1], [n], target)[-1, 0]
            row.append(2 + int(logits[2:].argmax()))
        assert said(found.tokens[b]) == row


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_full_width_finds_the_best(length_penalty: float) -> None:
    model, source = make(vocabulary=5), sources(2)
    every = [[*row, 2] for n in range(3) for row in product((3, 4), repeat=n)] + [
        [*row] for row in product((3, 4), repeat=3)
    ]
    found = model.generate(source, [7, 4], 3, beam_size=len(every), length_penalty=length_penalty)
    for b, n in enumerate((7, 4)):
        scores = {tuple(y): log_p(model, source[:, b], n, y) / len(y) ** length_penalty for y in every}
        best = max(scores, key=scores.__getitem__)
        assert tuple(said(found.tokens[b])) == best
        assert found.scores[b].item() == pytest.approx(scores[best], rel=1e-9)


@kinds
@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_sentence_is_as_if_alone(kind: str, beam_size: int) -> None:
    """Other sentences, another order, more padding, other padding."""
    model, source, lengths = make(kind), sources(20), torch.tensor(4 * LENGTHS)
    options = {"max_length": 9, "beam_size": beam_size, "length_penalty": 0.7}
    together = model.generate(source, lengths, **options)
    longer = torch.cat([source, sources(20, seed=9)])
    for b, n in enumerate(lengths.tolist()):
        longer[n:, b] = (longer[n:, b] + 1) % 11
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    shuffled = model.generate(longer[:, order], lengths[order], **options)
    back = order.argsort()
    assert torch.equal(shuffled.tokens[back], together.tokens)
    torch.testing.assert_close(shuffled.scores[back], together.scores)
    torch.testing.assert_close(shuffled.alignments[back][..., :S], together.alignments)
    assert not shuffled.alignments[..., S:].any()
    for b, n in enumerate(lengths.tolist()[: 2 * B]):
        alone = model.generate(source[: max(n, 1), b : b + 1], [n], **options)
        assert said(alone.tokens[0]) == said(together.tokens[b])
        torch.testing.assert_close(alone.scores[0], together.scores[b])


def test_alignments_are_weights() -> None:
    model = make()
    found = model.generate(sources(), LENGTHS, 8, beam_size=3)
    for b, n in enumerate(LENGTHS):
        U = len(said(found.tokens[b]))
        sums = found.alignments[b].sum(-1)
        torch.testing.assert_close(sums[:U], torch.full((U,), float(n > 0), dtype=torch.float64))
        assert not sums[U:].any()
        assert not found.alignments[b, :, n:].any()


def test_batch_first() -> None:
    model, source, target = make(), sources(), torch.randint(1, V, (4, B))
    other = make(batch_first=True)
    torch.testing.assert_close(other(source.t(), LENGTHS, target.t()), model(source, LENGTHS, target).transpose(0, 1))
    found = [m.generate(x, LENGTHS, 6, beam_size=2) for m, x in ((model, source), (other, source.t()))]
    assert torch.equal(found[0].tokens, found[1].tokens)


def test_no_lengths_and_int32() -> None:
    model, source, target = make(), sources(), torch.randint(1, V, (4, B))
    expected = model(source, [S] * B, target)
    torch.testing.assert_close(model(source.int(), None, target.int()), expected)
    assert torch.equal(model.generate(source, None, 5).tokens, model.generate(source, [S] * B, 5).tokens)


def test_no_sentence() -> None:
    model = make()
    assert model(sources(0), [], torch.ones(3, 0, dtype=torch.int64)).shape == (3, 0, V)
    found = model.generate(sources(0), [], 4, beam_size=2)
    assert [tuple(x.shape) for x in found] == [(0, 0), (0,), (0, 0, S)]


def test_generate_is_as_in_eval_and_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("layers")
    expected = model.generate(sources(), LENGTHS, 6)
    model.train()
    model.encoder.eval()  # somebody's own choice
    before = {name: part.training for name, part in model.named_modules()}
    found = model.generate(sources(), LENGTHS, 6)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.scores, expected.scores)
    assert not any(x.requires_grad for x in found)
    assert {name: part.training for name, part in model.named_modules()} == before
    assert set(before.values()) == {True, False}

    def broken(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model.output, "forward", broken)
    with pytest.raises(KeyboardInterrupt):
        model.generate(sources(), LENGTHS, 6)
    assert {name: part.training for name, part in model.named_modules()} == before
    assert torch.is_grad_enabled()


def test_it_learns_and_the_search_finds_it() -> None:
    """To say a sentence backwards."""
    torch.manual_seed(0)
    model = Seq2Seq(8, 8, embedding_size=16, hidden_size=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def batch(size: int) -> tuple[Tensor, Tensor, Tensor]:
        lengths = torch.randint(1, 6, (size,))
        source, target = torch.zeros(5, size, dtype=torch.int64), torch.zeros(7, size, dtype=torch.int64)
        for b, n in enumerate(lengths.tolist()):
            source[:n, b] = torch.randint(3, 8, (n,))
            target[: n + 2, b] = torch.tensor([1, *source[:n, b].flip(0), 2])
        return source, lengths, target

    for _ in range(250):
        source, lengths, target = batch(32)
        logits = model(source, lengths, target[:-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[1:].flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source, lengths, target = batch(100)
    for beam_size in (1, 4):
        found = model.generate(source, lengths, 8, beam_size=beam_size, length_penalty=1.0)
        right = [said(row) == said(truth) for row, truth in zip(found.tokens, target[1:].t(), strict=True)]
        assert sum(right) > 90


def test_pickled_and_loaded() -> None:
    model, other = make("layers"), Seq2Seq(11, V, **SMALL, **KINDS["layers"], dtype=torch.float64)
    other.load_state_dict(model.state_dict())
    for copied in (other, pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.generate(sources(), LENGTHS, 6).scores, model.generate(sources(), LENGTHS, 6).scores)


def test_docstring() -> None:
    module = importlib.import_module("fastlstm.modules.seq2seq")
    results = doctest.testmod(module, extraglobs={"fastlstm": fastlstm, "torch": torch})
    assert results.attempted > 5
    assert not results.failed
