"""The values and gradients of the Attention LSTM: those of an oracle that loops over slots, steps and dropout included."""

import itertools

import pytest
import torch
from attention_cases import (
    MEMORY_LENGTHS,
    USES,
    WAYS,
    A,
    B,
    H,
    S,
    T,
    each_backend,
    each_score,
    each_use,
    each_way,
    flat,
    given,
    gradients,
    module,
)
from attention_oracle import oracle
from helpers import assert_same, random
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastlstm

OPTIONS = {
    "two layers": {"num_layers": 2},
    "three layers, no bias": {"num_layers": 3, "bias": False},
    "the first layer's query": {"num_layers": 3, "query_layer": 0},
    "the second layer's query": {"num_layers": 3, "query_layer": -2},
    "peepholes": {"peephole": True},
    "coupled, two layers": {"coupled": True, "num_layers": 2},
    "coupled, peepholes": {"coupled": True, "peephole": True},
}
SIZES = {
    "one step": {"T": 1},
    "one slot": {"S": 1},
    "one sequence": {"B": 1},
    "one of each": {"T": 1, "S": 1, "B": 1, "I": 1, "H": 1, "M": 1, "A": 1},
    "an odd A": {"A": 17, "H": 6},
    "more than a panel": {"H": 17, "M": 33, "A": 19, "S": 9},
}


def compare(ours: nn.Module, use: dict, **sizes: int) -> None:
    """Results and every gradient with the oracle's, with the weights and without."""
    x, memory, state = given(ours, **sizes)
    leaves = [x, memory, *[s for s in state if s is not None]]
    for leaf in leaves:
        leaf.requires_grad_()
    leaves += ours.parameters()
    expected = flat(oracle(ours, x, memory, state, **use))
    before = memory.detach().clone()
    for need_weights in (True, False) if ours.feed is None else (True,):
        found = flat(ours(x, memory, state, need_weights=need_weights, **use))
        right = expected[: len(found)]
        assert_same(found, right)
        assert_same(gradients(found, leaves), torch.autograd.grad(
            right, leaves, upstream(right), materialize_grads=True, retain_graph=True
        ))  # fmt: skip
    assert torch.equal(memory, before)


def upstream(results: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(3)
    return [random(*t.shape) for t in results]


@each_backend
@each_use
@each_way
@each_score
def test_values_and_gradients(score, way, use, backend):
    compare(module(score, way, backend=backend), USES[use])


@each_backend
@each_way
@pytest.mark.parametrize("options", OPTIONS)
def test_layers_and_cells(options, way, backend):
    for score, use in (("normalized_additive", "both"), ("general", "plain")):
        compare(module(score, way, backend=backend, **OPTIONS[options]), USES[use])


@each_backend
@each_score
@pytest.mark.parametrize("sizes", SIZES)
def test_odd_sizes(sizes, score, backend):
    more = dict(SIZES[sizes])
    run = {name: more.pop(name) for name in ("T", "B", "S") if name in more}
    for way in (("attentional", "after", "tanh"), (None, "after", "tanh"), (None, "before", "hidden")):
        compare(module(score, way, backend=backend, **more), {}, **run)


@each_backend
@each_way
@each_score
def test_steps_are_the_whole(score, way, backend):
    ours = module(score, way, num_layers=2, backend=backend)
    x, memory, state = given(ours)
    y, end, alignments = ours(x, memory, state, memory_lengths=MEMORY_LENGTHS, need_weights=True)
    precomputed, found = ours.precompute(memory, MEMORY_LENGTHS), []
    for x_t in x:
        out, state, weights = ours.step(x_t, precomputed, state, need_weights=True)
        found.append((out, weights))
    assert_same([torch.stack(of_steps) for of_steps in zip(*found, strict=True)], [y, alignments])
    assert_same(state, end)


@each_backend
@each_score
def test_gradients_reach_memory_and_keys_through_steps(score, backend):
    ours = module(score, backend=backend)
    x, memory, _ = given(ours)
    memory.requires_grad_()
    leaves = [memory, *ours.parameters()]
    y = ours(x, memory, memory_lengths=MEMORY_LENGTHS)[0]
    precomputed, state, found = ours.precompute(memory, MEMORY_LENGTHS), None, []
    for x_t in x:
        out, state = ours.step(x_t, precomputed, state)
        found.append(out)
    assert_same(gradients([torch.stack(found)], leaves), gradients([y], leaves))


def mask_of(dropped: Tensor) -> Tensor:
    """The one with which this came of values that are not zero, for p = 1/2."""
    return 2.0 * (dropped != 0)


@each_backend
@pytest.mark.parametrize("use", ["plain", "both"])
@each_way
def test_what_is_fed_is_the_dropped_output(way, use, backend):
    ours = module("additive", way, output_dropout=0.5, backend=backend)
    x, memory, state = given(ours)
    y, end, alignments = ours(x, memory, state, need_weights=True, **USES[use])
    kept = mask_of(y)
    assert 0 < (kept > 0).sum() < kept.numel()
    if ours.feed == "context":
        return
    assert_same((y, tuple(end), alignments), oracle(ours, x, memory, state, **USES[use], masks={"output": kept}))
    if ours.feed:
        assert_same(end.fed, torch.stack([y[n - 1, b] if n else state[2][b] for b, n in enumerate(
            USES[use].get("lengths", [T] * B)
        )]))  # fmt: skip
    ours.eval()
    assert_same(ours(x, memory, state)[0], oracle(ours, x, memory, state)[0])


@each_backend
def test_a_fed_context_has_a_mask_of_its_own(backend):
    ours = module("general", ("context", "after", "hidden"), M=8, H=8, output_dropout=0.5, backend=backend)
    x, memory, state = given(ours, T=1, B=8)
    y, end = ours(x, memory, state)
    kept = {"output": mask_of(y), "fed": mask_of(end.fed)[None]}
    assert kept["output"].ne(kept["fed"]).any()
    expected, right, _ = oracle(ours, x, memory, state, masks=kept)
    assert_same((y, tuple(end)), (expected, right))


@each_backend
@each_way
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_dropout_acts_between_layers(way, p, backend):
    """The layer above sees zeros, the query of the lower layer does not."""
    ours = module("additive", way, num_layers=3, query_layer=0, dropout=p, backend=backend)
    x, memory, state = given(ours)
    found = ours(x, memory, state, need_weights=True)
    if p == 1:
        masks = {"layers": torch.zeros(2, T, B, H, dtype=torch.float64)}
        assert_same(flat(found), flat(oracle(ours, x, memory, state, masks=masks)))
    torch.manual_seed(5)
    first = ours(x, memory, state)[0]
    torch.manual_seed(5)
    assert_same(ours(x, memory, state)[0], first)
    assert p == 1 or (ours(x, memory, state)[0] != first).any()


def test_dropout_of_a_step():
    ours = module("additive", num_layers=2, dropout=0.5, output_dropout=0.5)
    x, memory, state = given(ours, B=64)
    precomputed = ours.precompute(memory)
    y, end = ours.step(x[0], precomputed, state)
    assert 0.3 < (y == 0).double().mean() < 0.7
    assert torch.equal(end.fed, y)
    ours.eval()
    y, end = ours.step(x[0], precomputed, state)
    assert_same(y, oracle(ours, x[:1], memory, state)[0][0])


def test_index_select_takes_rows_of_the_batch():
    ours = module("general", num_layers=2)
    x, memory, state = given(ours)
    precomputed = ours.precompute(memory, MEMORY_LENGTHS)
    _, state = ours.step(x[0], precomputed, state)
    rows = torch.tensor([2, 0, 0, 1, 2])
    y, end, weights = ours.step(x[1], precomputed, state, need_weights=True)
    found = ours.step(x[1, rows], precomputed.index_select(rows), state.index_select(rows), need_weights=True)
    assert_same(found, (y[rows], end.index_select(rows), weights[rows]))


@pytest.mark.parametrize("score", ["dot", "additive"])
def test_index_select_without_what_is_not_there(score):
    ours = module(score, (None, "after", "tanh"))
    x, memory, _ = given(ours)
    precomputed = ours.precompute(memory)
    rows = torch.tensor([1, 1])
    _, state = ours.step(x[0], precomputed)
    chosen, picked = precomputed.index_select(rows), state.index_select(rows)
    assert chosen.memory_lengths is None
    assert (chosen.keys is None) == (score == "dot")
    assert picked.fed is None
    assert_same(ours.step(x[1, rows], chosen, picked)[0], ours.step(x[1], precomputed, state)[0][rows])


def test_chunks_of_steps_are_the_whole(monkeypatch):
    """Additive scores of all steps at once are taken some steps at a time."""
    ours = module("additive", (None, "after", "tanh"))
    expected = []
    for elements in (1 << 20, 2 * S * B * A):
        monkeypatch.setattr("fastlstm.ops.attend.ELEMENTS", elements)
        compare(ours, USES["both"])
        x, memory, state = given(ours)
        expected.append(ours(x, memory, state, need_weights=True))
    assert_same(*expected)


class Largest(TorchDispatchMode):
    """How many elements the largest tensor has that an op makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        self.elements = max([self.elements, *[t.numel() for t in tree_leaves(made) if isinstance(t, Tensor)]])
        return made


@pytest.mark.parametrize("need_weights", [False, True])
def test_queries_by_keys_are_never_there_at_once(need_weights, monkeypatch):
    """(T, S, B, A) is not, neither in the forward nor in the backward."""
    T, S = 20, 100
    monkeypatch.setattr("fastlstm.ops.attend.ELEMENTS", 2 * S * B * A)
    ours = module("additive", (None, "after", "tanh"))
    x, memory, state = given(ours, T=T, S=S)
    with Largest() as largest:
        ours(x, memory, state, need_weights=need_weights)[0].sum().backward()
    assert largest.elements < T * S * B * A / 4


@each_score
def test_parameters_of_modules_and_functions(score):
    ours = module(score, num_layers=2, coupled=True)
    x, memory, state = given(ours)
    options = {"attention": score, "coupled": True}
    weights = ours.all_weights, ours.attention_weights
    found = fastlstm.functional.attention_lstm(x, memory, *weights, state, memory_lengths=MEMORY_LENGTHS, **options)
    assert_same(found, ours(x, memory, state, memory_lengths=MEMORY_LENGTHS))
    precomputed = fastlstm.functional.attention_lstm_memory(memory, *weights, MEMORY_LENGTHS, **options)
    stepped = fastlstm.functional.attention_lstm_cell(x[0], precomputed, *weights, state, **options)
    assert_same(stepped, ours.step(x[0], ours.precompute(memory, MEMORY_LENGTHS), state))


ALL_WAYS = itertools.product(("attentional", "context", None), ("after", "before"), ("tanh", "linear", "hidden"))


@pytest.mark.parametrize("way", sorted(set(ALL_WAYS) - set(WAYS), key=str), ids=str)
def test_other_ways_mean_nothing(way):
    with pytest.raises(ValueError, match=r"expected .* where"):
        module("additive", way)
