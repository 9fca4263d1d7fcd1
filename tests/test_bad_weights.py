"""Weights that don't fit each other, the input or the variant: the functions say which, and what was expected."""

import math
import re
from functools import partial

import pytest
import torch
from torch import nn

from fastlstm import functional
from fastlstm.backends import VARIANTS
from fastlstm.modules import build

I, H, T, B = 3, 5, 4, 2
NAN = math.nan

X = torch.ones(T, B, I)
W = [torch.ones(4 * H, I), torch.ones(4 * H, H)]
BIASES = [torch.ones(4 * H), torch.ones(4 * H)]
WEIGHTS = {
    "none": ([], {}, "weights has 0 entries, expected a multiple of 1: one per layer and direction"),
    "odd": ([W], {"bidirectional": True}, "weights has 1 entries, expected a multiple of 2"),
    "one tensor": ([W[:1]], {}, "weights[0] has 1 tensors, expected 2 to 5: w_ih, w_hh, b_ih, b_hh, w_hr"),
    "uneven": ([W, W[:1]], {}, "weights[1] has 1 tensors, expected 2: as many as weights[0]"),
    "w_ih rows": ([[W[0][1:], W[1]]], {}, "w_ih of weights[0] has shape (19, 3), expected (20, 3): input size 3"),
    "w_hh": ([[W[0], W[1].t()]], {}, "w_ih of weights[0] has shape (20, 3), expected (80, 3)"),
    "w_hh of the second": ([W, [W[1], W[0]]], {}, "w_hh of weights[1] has shape (20, 3), expected (20, 5)"),
    "w_ih above": ([W, W], {}, "w_ih of weights[1] has shape (20, 3), expected (20, 5): input size 5, hidden size 5"),
    "bias": ([[*W, BIASES[0], BIASES[0][:7]]], {}, "b_hh of weights[0] has shape (7,), expected (20,)"),
    "w_hr": ([[*W, torch.ones(2, H)]], {}, "w_hh of weights[0] has shape (20, 5), expected (20, 2)"),
    "dtype": ([[W[0], W[1].double()]], {}, "w_hh of weights[0] is torch.float64 on cpu, expected torch.float32 on cpu"),
    "device": ([[W[0], W[1].to("meta")]], {}, "w_hh of weights[0] is torch.float32 on meta, expected torch.float32"),
    "dropout": ([W], {"dropout": 1.5}, "dropout should be a number in range [0, 1]"),
    "dropout nan": ([W], {"dropout": NAN}, "dropout should be a number in range [0, 1]"),
}


@pytest.mark.parametrize(("weights", "options", "words"), WEIGHTS.values(), ids=WEIGHTS)
def test_bad_weights(weights, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        functional.lstm(X, weights, **options)


W3 = [torch.ones(3 * H, I), torch.ones(3 * H, H)]
P3, P2 = torch.ones(3, H), torch.ones(2, H)
CIFG_PEEPHOLES = partial(functional.cifg_lstm, peephole=True)
WEIGHTS_OF_THE_FAMILY = {
    "gru, one": (functional.gru, W3[:1], "weights[0] has 1 tensors, expected 2 to 4: w_ih, w_hh, b_ih, b_hh"),
    "gru, projection": (functional.gru, [*W3, P2], "weights[0] has 3 tensors, expected 2 to 4: w_ih, w_hh, b_ih, b_hh"),
    "gru, four gates": (functional.gru, W, "w_ih of weights[0] has shape (20, 3), expected (15, 3): input size 3"),
    "gru, w_hh": (functional.gru, [W3[0], W[1]], "w_hh of weights[0] has shape (20, 5), expected (15, 5)"),
    "gru, bias": (functional.gru, [*W3, *BIASES], "b_ih of weights[0] has shape (20,), expected (15,)"),
    "cifg, four gates": (functional.cifg_lstm, W, "w_ih of weights[0] has shape (20, 3), expected (15, 3)"),
    "cifg, peepholes unasked": (
        functional.cifg_lstm,
        [*W3, *BIASES, P2, P2],
        "weights[0] has 6 tensors, expected 2 to 5: w_ih, w_hh, b_ih, b_hh, w_hr",
    ),
    "cifg, no peepholes": (
        CIFG_PEEPHOLES,
        W3,
        "weights[0] has 2 tensors, expected 3 to 6: w_ih, w_hh, b_ih, b_hh, w_hr, w_peephole",
    ),
    "cifg, three peepholes": (CIFG_PEEPHOLES, [*W3, P3], "w_peephole of weights[0] has shape (3, 5), expected (2, 5)"),
    "peephole, none": (
        functional.peephole_lstm,
        W,
        "weights[0] has 2 tensors, expected 3 to 6: w_ih, w_hh, b_ih, b_hh, w_hr, w_peephole",
    ),
    "peephole, three gates": (
        functional.peephole_lstm,
        [*W3, P3],
        "w_ih of weights[0] has shape (15, 3), expected (20, 3)",
    ),
    "peephole, two": (
        functional.peephole_lstm,
        [*W, *BIASES, P2],
        "w_peephole of weights[0] has shape (2, 5), expected (3, 5)",
    ),
    "peephole, size": (
        functional.peephole_lstm,
        [*W, torch.ones(3, 4)],
        "w_peephole of weights[0] has shape (3, 4), expected (3, 5)",
    ),
    "peephole, dtype": (
        functional.peephole_lstm,
        [*W, P3.double()],
        "w_peephole of weights[0] is torch.float64 on cpu, expected torch.float32 on cpu",
    ),
}


@pytest.mark.parametrize(("run", "weights", "words"), WEIGHTS_OF_THE_FAMILY.values(), ids=WEIGHTS_OF_THE_FAMILY)
def test_bad_weights_of_the_family(run, weights, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        run(X, [weights])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_weight_of_the_wrong_shape_put_into_a_module(variant):
    module = build(variant, I, H, num_layers=2)
    rows = len(module.bias_hh_l1)
    module.bias_hh_l1 = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=re.escape(f"b_hh of weights[1] has shape (3,), expected ({rows},)")):
        module(X)
