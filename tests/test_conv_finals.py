"""The final states of several layers of a ConvLSTM: written in place, with the values and layouts that stacking gives."""

import pytest
import torch
from helpers import assert_same, random
from test_conv_layouts import in_format
from test_conv_lstm import CASES, LENGTHS, B, C, T, as_lists, gradients, module

import fastlstm
from fastlstm import backends
from fastlstm.functional import conv_driver

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the ops are in the C++ extension")

SEVERAL = {
    "two layers": ("2d", {"num_layers": 2}),
    "two directions": ("2d", {"bidirectional": True}),
    "both": ("two layers, two directions", {}),
    "layers of different sizes": ("layers of different sizes", {}),
    "pairs of pixels": ("2d", {"num_layers": 2, "dtype": torch.float32}),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("use", [{}, {"lengths": LENGTHS}, {"return_sequence": False}], ids=str)
@pytest.mark.parametrize("name", SEVERAL)
def test_they_are_what_stacking_gives(name, use, channels_last, monkeypatch):
    case, options = SEVERAL[name]
    ours = module(case, **options)
    x = random(T, B, C, *CASES[case][0]).to(next(ours.parameters()).dtype)
    x = (in_format(x) if channels_last else x).requires_grad_()
    in_place = run(ours, x, use)
    monkeypatch.setattr(conv_driver, "_places", lambda *_: None)
    stacked = run(ours, x, use)
    assert_same(in_place, stacked)
    assert [t.stride() for t in in_place[0]] == [t.stride() for t in stacked[0]]


def run(ours, x, use):
    """Results, and gradients that all of them have a part in; the results without gradients are the same."""
    y, finals = ours(x, **use)
    with torch.no_grad():
        assert_same(ours(x, **use), (y, finals))
    results = [y, *(t for s in as_lists(ours, finals) for t in s)]
    return [t.detach() for t in results], gradients(ours, [t.double() for t in results], [x])


@pytest.mark.parametrize("given", [False, True])
def test_nothing_is_copied(given):
    ours, x = fastlstm.ConvLSTM2d(C, 32, 3, num_layers=2), random(T, B, C, 6, 5).float()  # weights are read as they lie
    with torch.no_grad():
        _, hx = ours(x)
        with torch.profiler.profile() as profile:
            ours(x, hx if given else None)
    ran = {event.key for event in profile.key_averages()}
    assert "fastlstm::conv_lstm_fwd_into" in ran
    assert not ran & {"aten::stack", "aten::cat", "aten::copy_"}
