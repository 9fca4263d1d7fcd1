"""The Attention LSTM's states, its options that are edited, and tensors without values."""

import pytest
import torch
from attention_cases import (
    AT_ONCE,
    MEMORY_LENGTHS,
    USES,
    WAYS,
    B,
    S,
    T,
    each_backend,
    each_case,
    each_score,
    each_way,
    flat,
    given,
    module,
    some,
)
from helpers import assert_same


def test_an_unbatched_state_has_no_rows():
    ours = some("fed")
    x, memory, _ = given(ours)
    _, state = ours(x[:, 0], memory[:, 0])
    with pytest.raises(ValueError, match=r"h has shape \(1, 3\), expected \(L, B, H\): an unbatched state has no rows"):
        state.index_select(torch.tensor([0]))


@each_case
def test_meta_with_both_lengths(case):
    ours = some(case).to("meta")
    x, memory, _ = given(ours)
    output, _, alignments = ours(x.to("meta"), memory.to("meta"), need_weights=True, **USES["both"])
    assert output.shape == (4, 3, 3)
    assert alignments.shape == (4, 3, 5)


def test_edited_options_count():
    ours, edited = some("fed"), module("additive", ("attentional", "after", "linear"))
    x, memory, _ = given(ours)
    edited.load_state_dict(ours.state_dict())
    edited.output = "tanh"
    assert_same(edited(x, memory)[0], ours(x, memory)[0])
    edited.feed = None
    assert "feed=None" in repr(edited)
    with pytest.raises(RuntimeError, match=r"input_size. Expected 5, got 2"):
        edited(x, memory)
    edited.attention = "dot"
    with pytest.raises(ValueError, match="w_query is given, expected None where attention is 'dot'"):
        edited(x, memory)


@pytest.mark.cpu
@each_backend
@each_way
@each_score
def test_nobody_writes_into_a_memory_and_nothing_is_attended_beyond(score, way, backend):
    """What a caller hands over stays, NaN too; columns of alignments beyond a length are 0, not nearly so."""
    ours = module(score, way, backend=backend)
    x, memory, state = given(ours)
    beyond = torch.arange(S)[:, None] >= torch.tensor(MEMORY_LENGTHS)
    memory = memory.masked_fill(beyond[..., None], torch.nan)
    before = memory.clone()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y, _, alignments = ours(x, memory, state, memory_lengths=MEMORY_LENGTHS, need_weights=True)
            precomputed = ours.precompute(memory, MEMORY_LENGTHS)
            of_step, _, weights = ours.step(x[0], precomputed, state, need_weights=True)
        if grad:
            (y.sum() + of_step.sum()).backward()
        assert torch.equal(memory.nan_to_num(7.0), before.nan_to_num(7.0))
        assert torch.equal(alignments[:, beyond.t()], alignments.new_zeros(T, int(beyond.sum())))
        assert not weights[beyond.t()].any()
        assert not precomputed.memory[beyond].any()


@pytest.mark.cpu
@pytest.mark.parametrize("way", [WAYS[0], WAYS[4], WAYS[7]], ids=["attentional", "context", "before"])
@pytest.mark.parametrize("score", ["dot", "scaled_dot", "general"])
def test_steps_have_the_bits_of_the_whole_where_sums_have_one_order(score, way):
    """Products of many rows have; those of a few rows, in a step, and additive scores, by prepared keys, have another."""
    ours = module(score, way, I=20, H=48, M=48, num_layers=2).float()
    x, memory = torch.randn(6, 40, 20), torch.randn(9, 40, 48)
    with torch.no_grad():
        y, end = ours(x, memory)
        precomputed, state, found = ours.precompute(memory), None, []
        for x_t in x:
            out, state = ours.step(x_t, precomputed, state)
            found.append(out)
    assert all(
        torch.equal(one, other) for one, other in zip(flat((torch.stack(found), state)), flat((y, end)), strict=True)
    )


@pytest.mark.parametrize("way", [WAYS[0], AT_ONCE], ids=["fed", "at once"])
def test_scores_beyond_what_half_precision_holds(way):
    """The softmax, and what it is taken of, are in float32: here the largest of scores near 10^5 has all the weight."""
    ours = module("dot", way, H=16).half()
    x, memory = torch.randn(T, B, 2).half(), (3e4 * torch.randn(S, B, 16).clamp(-2, 2)).half()
    with torch.no_grad():
        for w in (ours.weight_ih_l0, ours.weight_hh_l0):
            w.mul_(10)
        y, _, alignments = ours(x, memory, need_weights=True)
        alone = ours(x, memory)[0]
    assert alignments.float().amax(-1).eq(1).any()
    torch.testing.assert_close(alignments.float().sum(-1), torch.ones(T, B), rtol=2e-3, atol=0)
    assert torch.isfinite(y).all()
    assert torch.isfinite(alone).all()
