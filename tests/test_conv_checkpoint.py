"""The op pairs of the ConvLSTM, and `checkpoint=True`: the same values for less memory."""

import itertools

import pytest
import torch
from helpers import assert_same, random
from test_conv_lstm import KINDS, C, H, module
from torch import Tensor, nn

from fastlstm import backends
from fastlstm.ops.conv_checkpoint import segments

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the ops are in the C++ extension")


@pytest.mark.parametrize("reverse", [False, True])
def test_segments_are_run_one_after_the_other(reverse):
    for T in (1, 2, 3, 9, 50, 100):
        parts = segments(T, reverse)
        order = [t for a, b, _ in parts for t in (reversed(range(a, b)) if reverse else range(a, b))]
        assert order == list(reversed(range(T)) if reverse else range(T))
        for (a, b, _), (*_, before) in itertools.pairwise(parts):
            assert before == (a if reverse else b - 1)
        assert len(parts) <= 2 * T**0.5


@pytest.mark.parametrize("T", [1, 2, 16, 50])
@pytest.mark.parametrize("given", [True, False], ids=["states", "no states"])
@pytest.mark.parametrize("cuts", [True, False], ids=["lengths and resets", "dense"])
def test_gradients_are_those_of_all_steps_at_once(T, given, cuts):
    results, shape = [], (4, 3, 5)
    for checkpoint in (False, True):
        torch.manual_seed(1)
        ours = KINDS[1](
            C, shape[1], 3, bidirectional=True, peephole="channel", checkpoint=checkpoint, dtype=torch.float64
        )
        x = random(T, shape[0], C, shape[2]).requires_grad_()
        hx = [random(2, *shape).requires_grad_() for _ in range(2)] if given else []
        use = {"lengths": [T, 1, T // 2, 3 * T // 4], "reset": torch.rand(T, shape[0]) < 0.2} if cuts else {}
        y, finals, cells = ours(x, hx or None, return_cells=True, **use)
        goal = sum(t.sin().sum() for t in (y, cells, *finals))
        results.append([y, *finals, cells, *torch.autograd.grad(goal, [x, *hx, *ours.parameters()])])
    assert_same(*results)


def test_a_forecast_can_be_trained():
    for checkpoint in (False, True):
        ours = module("2d", checkpoint=checkpoint)
        hx = [random(1, 2, H, 4, 5).requires_grad_() for _ in range(2)]
        found, expected = (
            torch.autograd.grad(ours(x, hx, **steps)[0].sin().sum(), [*hx, *ours.parameters()])
            for x, steps in ((None, {"steps": 5}), (0 * random(5, 2, C, 4, 5), {}))
        )
        assert_same(found, expected)


@pytest.mark.parametrize("checkpoint", [False, True], ids=["", "checkpoint"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("use", [{}, {"lengths": []}, {"reset": torch.zeros(5, 0, dtype=torch.bool)}], ids=str)
def test_a_batch_of_none(checkpoint, kernel, use):
    ours = KINDS[2](C, H, kernel, 2, bidirectional=True, checkpoint=checkpoint)
    y, (h_n, _) = ours(torch.zeros(5, 0, C, 4, 5), **use)
    assert (y.shape, h_n.shape) == ((5, 0, 2 * H, 4, 5), (4, 0, H, 4, 5))
    (y.sum() + h_n.sum()).backward()
    assert not any(p.grad.any() for p in ours.parameters())


def kept(ours: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward."""
    sizes = {}

    def pack(t: Tensor) -> Tensor:
        sizes[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ours(x, return_sequence=False)
    return sum(sizes.values())


def test_a_checkpoint_keeps_less():
    x = random(64, 2, C, 8, 8)
    plain, checkpoint = (kept(module("2d", hidden_channels=16, checkpoint=flag), x) for flag in (False, True))
    assert checkpoint < plain / 5


@pytest.mark.parametrize("checkpoint", [False, True], ids=["", "checkpoint"])
def test_the_ops_keep_their_promises(checkpoint):
    ops, (C, H, S) = torch.ops.fastlstm, (2, 3, (4, 3))
    stem = "conv_lstm_checkpoint" if checkpoint else "conv_lstm"
    fwd, bwd = getattr(ops, f"{stem}_fwd").default, getattr(ops, f"{stem}_bwd").default
    states, weights = [random(2, *S, H), random(2, *S, H)], [random(4 * H, 3, 2, C), random(4 * H, 3, 2, H)]
    tensors = [random(5, 2, *S, C), torch.tensor([2, 2, 2, 1, 1]), torch.rand(5, 2) < 0.3, *states, *weights]
    biases, peephole = [random(4 * H), random(4 * H)], random(3, *S, H)
    for fresh, reverse in ((False, False), (True, True)):
        flags = [1, 1], [1, 1, 0, 1], [1, 1], False, fresh, reverse
        arguments = (*tensors, *biases, peephole, *flags)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(fwd, (*arguments, True, True), test_utils=tests)
        torch.library.opcheck(fwd, (*arguments, False, False), test_utils=tests)
        if not checkpoint:
            torch.library.opcheck(fwd, (*arguments, True, True, True, False), test_utils=tests)
        y, h_n, c_n, cells, saved = fwd(*arguments, True, True)
        upstream = [random(*t.shape) for t in (y, h_n, c_n, cells)]
        middle = (*biases, peephole, saved) if checkpoint else (peephole, saved)
        for need in (True, False):
            torch.library.opcheck(bwd, (*upstream, *tensors, *middle, *flags, need, need), test_utils=tests)
