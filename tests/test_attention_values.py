"""The Attention LSTM's states, its options that are edited, and tensors without values."""

import pytest
import torch
from attention_cases import USES, each_case, given, module, some
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
