"""What must be the same, whatever the Attention LSTM computes: permuted, padded, empty, cut in two."""

import pytest
import torch
from attention_cases import (
    LENGTHS,
    MEMORY_LENGTHS,
    USES,
    WAYS,
    B,
    H,
    I,
    M,
    S,
    T,
    each_backend,
    each_case,
    each_score,
    each_way,
    flat,
    given,
    gradients,
    module,
    some,
)
from attention_oracle import oracle
from helpers import assert_same, random
from torch import nn

from fastlstm.kernels.attention_lstm.reference import attend_reference


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


@each_backend
@each_case
def test_no_nan_on_the_way_back_from_an_empty_memory(case, backend):
    """Neither where it would be masked: who looks for NaN sees every gradient in between."""
    ours = some(case, backend=backend)
    x, memory, state = given(ours)
    memory.requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        for need_weights in (False, True):
            flat(ours(x, memory, state, memory_lengths=[0, 5, 0], need_weights=need_weights))[0].sum().backward()
    assert memory.grad.isfinite().all()
    assert not memory.grad[:, [0, 2]].any()


@pytest.mark.parametrize("additive", [True, False], ids=["additive", "products"])
def test_the_reference_reads_nothing_beyond_a_length(additive):
    """It is the oracle of ops that are handed memories as they are."""
    query, w_score = random(T, B, H), random(H) if additive else None
    beyond = torch.arange(S)[:, None] >= torch.tensor(MEMORY_LENGTHS)
    found = []
    for fill in (0.0, torch.nan):
        torch.manual_seed(1)
        leaves = [random(S, B, width).masked_fill(beyond[..., None], fill).requires_grad_() for width in (M, H)]
        results = attend_reference(query, *leaves, torch.tensor(MEMORY_LENGTHS), w_score, True)
        found.append([*results, *gradients(list(results), leaves)])
    for clean, dirty in zip(*found, strict=True):
        assert torch.equal(clean, dirty)
