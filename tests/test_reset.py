"""`reset=` cuts sequences: each piece is a run of its own, forward and backward, in every variant and layout."""

import re
from itertools import pairwise

import pytest
import torch
from helpers import B, H, I, assert_same, call, each_case, each_layout, each_variant, module, random, random_states, run
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fastlstm

T = 7
LENGTHS = [4, 7, 1, 5]

OPTIONS = {
    "plain": {},
    "batch first, no bias": {"batch_first": True, "bias": False},
    "two directions": {"bidirectional": True},
    "two layers, two directions, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projection, two layers, two directions": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
}


def some() -> Tensor:
    """A third of all steps, the first one of a sequence among them."""
    reset = torch.rand(T, B) < 0.3
    reset[0] = torch.tensor([True, False, True, False])
    return reset


def in_pieces(peer: nn.RNNBase, lengths: list[int], x: Tensor, hx: list[Tensor], reset: Tensor) -> list[Tensor]:
    """Output (T, B, *) and final states, sequence by sequence and piece by piece, by a module that is never told to reset.

    The given states begin the first piece, or in reverse the last one, which is where that direction begins; all other pieces
    begin with zeros. The last piece, or in reverse the first one, gives the final states.
    """
    K = peer.num_layers * (2 if peer.bidirectional else 1)
    is_reverse = (torch.arange(K) % 2 * peer.bidirectional).double()[:, None, None]
    ys, finals = [], []
    for b, length in enumerate(lengths):
        runs = []
        for start, end in pairwise([0, *(t for t in range(1, length) if reset[t, b]), length]):
            kept = is_reverse * (end == length) + (1 - is_reverse) * (start == 0 and not reset[0, b])
            states = [s[:, b : b + 1] * kept for s in hx]
            y, last = peer(x[start:end, b : b + 1], tuple(states) if len(states) == 2 else states[0])
            runs.append([y, *([last] if len(states) == 1 else last)])
        ys.append(torch.cat([*(y for y, *_ in runs), x.new_zeros(T - length, 1, y.shape[2])]))
        ends = zip(runs[0][1:], runs[-1][1:], strict=True)
        finals.append([is_reverse * first + (1 - is_reverse) * last for first, last in ends])
    return [torch.cat(ys, dim=1), *(torch.cat(s, dim=1) for s in zip(*finals, strict=True))]


@each_case(OPTIONS)
@each_layout
def test_reset_is_a_cut(layout, variant, options):
    ours = module(variant, **options)
    peer = module(variant, **(options | {"batch_first": False}), backend="reference")
    peer.load_state_dict(ours.state_dict())
    x, hx, reset = random(T, B, I), random_states(ours, B), some()
    lengths = {"dense": [T] * B, "unbatched": [T], "packed": sorted(LENGTHS, reverse=True)}.get(layout, LENGTHS)
    results = run(ours, layout, LENGTHS, x, hx, reset=reset)

    x, *hx = (t.requires_grad_() for t in (x, *hx))
    y, *finals = in_pieces(peer, lengths, x, hx, reset)
    if layout.startswith("packed"):
        y = pack_padded_sequence(y, torch.tensor(lengths), enforce_sorted=layout == "packed").data
    elif layout == "unbatched":
        y, finals = y[:, 0], [s[:, 0] for s in finals]
    elif ours.batch_first:
        y = y.transpose(0, 1)
    torch.manual_seed(3)
    gradients = torch.autograd.grad(
        [y, *finals], [x, *hx, *peer.parameters()], [random(*t.shape) for t in (y, *finals)]
    )
    assert_same(results, [y, *finals, *gradients])


@each_variant
@pytest.mark.parametrize("bidirectional", [False, True])
def test_reset_before_the_first_step(variant, bidirectional):
    """It takes the initial states away from the direction that begins there, and only from it."""
    ours = module(variant, num_layers=2, bidirectional=bidirectional)
    x, hx = random(T, B, I), random_states(ours, B)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[0] = True
    without = [s.clone() for s in hx]
    for s in without:
        s[:: 2 if bidirectional else 1] = 0
    results = call(ours, "dense", [], x, hx, reset=reset)
    torch.testing.assert_close(results, call(ours, "dense", [], x, without), rtol=0, atol=0)


@each_variant
def test_reset_everywhere_is_a_batch_of_single_steps(variant):
    ours = module(variant, num_layers=2, bidirectional=True)
    x = random(T, B, I)
    y, *_ = call(ours, "dense", [], x, random_states(ours, B), reset=torch.ones(T, B, dtype=torch.bool))
    # the initial states of the reverse direction still begin the last step
    assert_same(y[:-1], ours(x.reshape(1, T * B, I))[0].reshape(T, B, -1)[:-1])


@each_variant
@each_layout
def test_reset_nowhere_changes_no_bit(layout, variant):
    ours = module(variant, num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    never = torch.zeros(T, B, dtype=torch.bool)
    results = [run(ours, layout, LENGTHS, x, hx, reset=reset) for reset in (never, None)]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@each_variant
@pytest.mark.parametrize("lengths", [LENGTHS, [0, 7, 3, 0]], ids=str)
def test_resets_beyond_a_length_are_ignored(variant, lengths):
    ours = module(variant, num_layers=2, bidirectional=True)
    x, hx, reset = random(T, B, I), random_states(ours, B), some()
    beyond = torch.arange(T)[:, None] >= torch.tensor(lengths)
    results = [run(ours, "lengths", lengths, x, hx, reset=r) for r in (reset | beyond, reset & ~beyond)]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@each_variant
def test_step_by_step(variant):
    """As an agent runs it: one step at a time, with the resets of that step."""
    ours = module(variant, num_layers=2)
    x, hx, reset = random(T, B, I), random_states(ours, B), some()
    whole, *finals = call(ours, "dense", [], x, hx, reset=reset)
    steps = []
    for t in range(T):
        y, *hx = call(ours, "dense", [], x[t : t + 1], hx, reset=reset[t : t + 1])
        steps.append(y)
    assert_same([torch.cat(steps), *hx], [whole, *finals])


@each_variant
def test_gradients_do_not_cross_a_cut(variant):
    ours = module(variant)
    x = random(T, B, I).requires_grad_()
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[4, 1] = True
    (dx,) = torch.autograd.grad(ours(x, reset=reset)[0][6].sum(), x)
    assert not dx[:4, 1].any()
    assert dx[4:, 1].all()
    assert dx[:, 0].all()


@each_variant
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradcheck(variant, bidirectional):
    ours = module(variant, 2, 3, bidirectional=bidirectional)
    leaves = [t.requires_grad_() for t in (random(4, 2, 2), *random_states(ours, 2))]
    reset = torch.tensor([[True, False], [False, True], [True, True], [False, False]])

    def run(x, *hx):
        return tuple(call(ours, "lengths", [4, 3], x, list(hx), reset=reset))

    assert torch.autograd.gradcheck(run, leaves)


@each_variant
def test_dtypes_strides_and_transforms(variant):
    """The mask is read as it lies in memory; a transform passes it through."""
    ours, x, reset = module(variant), random(T, B, I), some()
    expected = ours(x, reset=reset)[0]
    assert torch.equal(ours(x, reset=reset.t().contiguous().t())[0], expected)
    assert torch.equal(ours(x, reset=reset[:, :1].expand(T, B))[0], ours(x, reset=reset[:, :1].repeat(1, B))[0])
    assert torch.equal(torch.vmap(lambda r: ours(x, reset=r)[0])(torch.stack([reset, ~reset]))[0], expected)
    ours.half()
    half, _ = ours(x.half(), reset=reset)
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=16 * torch.finfo(torch.half).eps)


@pytest.mark.parametrize("variant", ["cifg_peephole_lstm", "gru"])
@pytest.mark.parametrize("layout", ["lengths", "packed"])
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning", "ignore:`torch.jit:DeprecationWarning"
)
def test_compile(variant, layout):
    """The whole module, forward and backward."""
    ours = module(variant, num_layers=2, bidirectional=True)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([3, 6, 1, 4], [5, 2, 2]):
        x, reset = random(max(lengths), len(lengths), I), torch.rand(max(lengths), len(lengths)) < 0.3
        results = []
        for m in (compiled, ours):
            if layout == "lengths":
                y, finals = m(x, reset=reset, lengths=torch.tensor(lengths))
            else:
                packed, finals = m(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False), reset=reset)
                y = packed.data
            results.append([y, finals, torch.autograd.grad(y.square().sum(), list(ours.parameters()))])
        assert_same(*results)


X = torch.ones(4, 2, I)
PACKED = pack_sequence([torch.ones(4, I), torch.ones(2, I)])
NO = torch.zeros(4, 2, dtype=torch.bool)
BAD = {
    "a list": ({}, X, [[False] * 2] * 4, TypeError, "reset is of type list, expected a Tensor of bool"),
    "a bool": ({}, X, False, TypeError, "reset is of type bool, expected a Tensor of bool"),
    "floats": (
        {},
        X,
        NO.float(),
        TypeError,
        "reset has dtype torch.float32, expected torch.bool: it tells before which",
    ),
    "bytes": ({}, X, NO.byte(), TypeError, "reset has dtype torch.uint8, expected torch.bool"),
    "no values": (
        {},
        X,
        NO.to("meta"),
        ValueError,
        "reset is on the device meta, expected one that holds values, as cpu",
    ),
    "one step": (
        {},
        X,
        NO[:1],
        ValueError,
        "reset has shape (1, 2), expected (4, 2): the steps and the batch of input",
    ),
    "one sequence": ({}, X, NO[:, 0], ValueError, "reset has shape (4,), expected (4, 2)"),
    "3-D": ({}, X, NO[..., None], ValueError, "reset has shape (4, 2, 1), expected (4, 2)"),
    "time first": ({"batch_first": True}, X, NO.t(), ValueError, "reset has shape (2, 4), expected (4, 2)"),
    "packed": ({}, PACKED, NO[:2], ValueError, "reset has shape (2, 2), expected (4, 2)"),
    "packed, data": ({}, PACKED, NO.reshape(-1)[:6], ValueError, "reset has shape (6,), expected (4, 2)"),
    "packed, batch first": ({"batch_first": True}, PACKED, NO, ValueError, "reset has shape (4, 2), expected (2, 4)"),
    "unbatched": ({}, X[:, 0], NO[:, :1], ValueError, "reset has shape (4, 1), expected (4,)"),
}


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize(("options", "input", "reset", "error", "words"), BAD.values(), ids=BAD)
def test_bad_resets(kind, options, input, reset, error, words):
    with pytest.raises(error, match=re.escape(words)):
        getattr(fastlstm, kind)(I, H, **options)(input, reset=reset)
