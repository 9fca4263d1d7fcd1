"""The values and gradients of the Attention LSTM: an oracle that loops over slots, and what must be the same."""

import itertools

import pytest
import torch
from attention_oracle import oracle
from helpers import assert_same, random
from torch import Tensor, nn

import fastlstm
from fastlstm.kernels.attention_lstm import SCORES

T, B, S, I, H, M, A = 4, 3, 5, 2, 3, 4, 7
LENGTHS, MEMORY_LENGTHS = [2, 4, 0], [3, 0, 5]
USES = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "memory lengths": {"memory_lengths": MEMORY_LENGTHS},
    "both": {"lengths": LENGTHS, "memory_lengths": MEMORY_LENGTHS},
}
# what is fed, when it is attended, what comes out: all that mean something
WAYS = [
    ("attentional", "after", "tanh"),
    ("attentional", "after", "linear"),
    ("context", "after", "tanh"),
    ("context", "after", "linear"),
    ("context", "after", "hidden"),
    (None, "after", "tanh"),
    (None, "after", "linear"),
    (None, "before", "tanh"),
    (None, "before", "linear"),
    (None, "before", "hidden"),
]
each_score = pytest.mark.parametrize("score", SCORES)
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: ", ".join(map(str, way)))
each_use = pytest.mark.parametrize("use", USES)
BACKENDS = ["auto", "reference"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)

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


def module(score: str, way: tuple = WAYS[0], I: int = I, H: int = H, M: int = M, A: int = A, **options) -> nn.Module:
    feed, attend, output = way
    torch.manual_seed(1)
    if score in ("dot", "scaled_dot"):
        M = H
    if "additive" in score:
        options["attention_size"] = A
    return fastlstm.AttentionLSTM(
        I, H, M, attention=score, feed=feed, attend=attend, output=output, dtype=torch.float64, **options
    )


def given(ours: nn.Module, T: int = T, B: int = B, S: int = S) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Input, memory, and a state."""
    torch.manual_seed(2)
    L, H, M = ours.num_layers, ours.hidden_size, ours.memory_size
    fed = {None: None, "attentional": random(B, H), "context": random(B, M)}[ours.feed]
    return random(T, B, ours.input_size), random(S, B, M), [random(L, B, H), random(L, B, H), fed]


def flat(results) -> list[Tensor]:
    y, state, *alignments = results
    return [y, *[s for s in state if s is not None], *alignments]


def gradients(results: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    return torch.autograd.grad(results, leaves, [random(*t.shape) for t in results], materialize_grads=True)


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


@each_backend
@each_way
def test_seven_steps_are_three_and_four(way, backend):
    ours = module("additive", way, num_layers=2, backend=backend)
    x, memory, state = given(ours, T=7)
    y, end = ours(x, memory, state)
    first, between = ours(x[:3], memory, state)
    second, found = ours(x[3:], memory, between)
    assert_same(torch.cat([first, second]), y)
    assert_same(found, end)


@each_way
def test_a_pair_of_states_has_nothing_fed(way):
    ours = module("general", way)
    x, memory, (h, c, fed) = given(ours)
    zeros = None if fed is None else torch.zeros_like(fed)
    assert_same(ours(x, memory, (h, c)), ours(x, memory, (h, c, zeros)))
    assert_same(ours(x, memory), ours(x, memory, (0 * h, 0 * c, zeros)))


@each_backend
@each_way
@each_score
def test_permuted_slots_permute_the_alignments_alone(score, way, backend):
    ours = module(score, way, backend=backend)
    x, memory, state = given(ours)
    order = torch.tensor([3, 0, 4, 2, 1])
    y, end, alignments = ours(x, memory, state, need_weights=True)
    found, found_end, permuted = ours(x, memory[order], state, need_weights=True)
    assert_same((found, found_end, permuted), (y, end, alignments[..., order]))


@each_backend
@each_way
@each_score
def test_a_single_slot_is_a_constant_context(score, way, backend):
    """Whatever the score: that slot has all of the weight."""
    ours = module(score, way, backend=backend)
    x, memory, state = given(ours, S=1)
    y, end, alignments = ours(x, memory, state, need_weights=True)
    assert torch.equal(alignments, torch.ones(T, B, 1, dtype=torch.float64))
    if ours.feed == "attentional":
        return
    context = memory.expand(T, -1, -1)
    first = context if ours.attend == "before" else torch.cat([state[2][None], context[1:]]) if ours.feed else None
    lstm = nn.LSTM(I + (0 if first is None else first.shape[-1]), H, dtype=torch.float64)
    lstm.load_state_dict({name: w for name, w in ours.state_dict().items() if name.endswith("_l0")})
    h, finals = lstm(x if first is None else torch.cat([x, first], -1), (state[0], state[1]))
    assert_same(tuple(end[:2]), finals)
    if ours.output != "hidden":
        h = torch.nn.functional.linear(torch.cat([context, h], -1), ours.weight_out, ours.bias_out)
        h = h.tanh() if ours.output == "tanh" else h
    assert_same(y, h)


@each_backend
@each_way
@each_score
def test_nan_beyond_a_length_has_no_influence(score, way, backend):
    ours = module(score, way, num_layers=2, backend=backend)
    x, memory, state = given(ours)
    beyond = torch.arange(T)[:, None] >= torch.tensor(LENGTHS), torch.arange(S)[:, None] >= torch.tensor(MEMORY_LENGTHS)
    for need_weights in (False, True):
        found = []
        for fill in (0.0, torch.nan):
            filled = [t.masked_fill(over[..., None], fill) for t, over in zip((x, memory), beyond, strict=True)]
            leaves = [t.requires_grad_() for t in (*filled, *[s.clone() for s in state if s is not None])]
            results = flat(ours(*leaves[:2], leaves[2:], need_weights=need_weights, **USES["both"]))
            found.append([*results, *gradients(results, [*leaves, *ours.parameters()])])
        for clean, dirty in zip(*found, strict=True):
            assert torch.equal(clean, dirty)
        for d, over in zip(found[1][len(results) :], beyond, strict=False):
            assert not d[over].any()


@each_backend
@each_way
@each_score
def test_an_empty_memory_gives_a_zero_context(score, way, backend):
    ours = module(score, way, backend=backend)
    x, memory, state = given(ours)
    y, end, alignments = ours(x, memory, state, memory_lengths=[0] * B, need_weights=True)
    assert not alignments.any()
    elsewhere = ours(x, torch.zeros_like(memory), state)
    assert_same((y, end), elsewhere)
    assert_same(ours(x, memory, state, memory_lengths=[0] * B), elsewhere)


@each_backend
@each_score
def test_no_result_depends_on_who_else_is_in_the_batch(score, backend):
    for way in (WAYS[0], (None, "after", "tanh")):
        ours = module(score, way, backend=backend)
        x, memory, state = given(ours)
        y, _, alignments = ours(x, memory, state, need_weights=True, **USES["both"])
        for b, (n, slots) in enumerate(zip(LENGTHS, MEMORY_LENGTHS, strict=True)):
            if n == 0 or slots == 0:
                continue
            h, c, fed = state
            alone = ours(
                x[:n, b], memory[:slots, b], (h[:, b], c[:, b], None if fed is None else fed[b]), need_weights=True
            )
            assert_same((alone[0], alone[2]), (y[:n, b], alignments[:n, b, :slots]))


@each_backend
@pytest.mark.parametrize("score", ["dot", "general", "additive"])
@pytest.mark.parametrize("way", [WAYS[2], (None, "after", "tanh")], ids=["fed", "at once"])
def test_large_scores_are_exact(score, way, backend):
    """One slot then has all of the weight, and nothing overflows."""
    ours = module(score, way, backend=backend)
    with torch.no_grad():
        for p in (ours.weight_key, ours.weight_score):
            if p is not None:
                p.mul_(1e4)
    x, memory, state = given(ours)
    memory = (1e3 * memory).requires_grad_()
    found = ours(x, memory, state, need_weights=True)
    assert_same(found[2].sum(-1), torch.ones(T, B, dtype=torch.float64))
    assert_same(flat(found), flat(oracle(ours, x, memory, state)))
    y, _ = ours(x, memory, state)
    assert_same(y, found[0])
    assert torch.autograd.grad(y.sum(), memory)[0].isfinite().all()


@each_way
@each_score
def test_a_step_of_training_moves_every_parameter(score, way):
    ours = module(score, way, num_layers=2, peephole=True)
    before = {name: p.clone() for name, p in ours.named_parameters()}
    optimizer = torch.optim.SGD(ours.parameters(), lr=1.0)
    x, memory, _ = given(ours)
    ours(x, memory)[0].square().sum().backward()
    optimizer.step()
    still = [name for name, p in ours.named_parameters() if not (p != before[name]).any()]
    assert not still


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


@pytest.mark.parametrize("score", SCORES)
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
