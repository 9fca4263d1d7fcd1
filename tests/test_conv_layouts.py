"""What a ConvLSTM takes and gives: layouts, memory formats, layers, last steps, dropout, dtypes, autocast."""

import pytest
import torch
from helpers import assert_same, random
from test_conv_lstm import CASES, KINDS, LENGTHS, B, C, H, T, as_hx, as_lists, module, resets, states
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastlstm import backends

FORMATS = {1: None, 2: torch.channels_last, 3: torch.channels_last_3d}
STACKED = "layers of different sizes"


def in_format(x: Tensor) -> Tensor:
    """`x` (A, B, C, *S), of the same values, with channels last in memory."""
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", ["1d", "2d", "3d", "stride", "a kernel of one", "two layers, two directions"])
def test_channels_last_in_is_channels_last_out(case, batch_first):
    ours = module(case, batch_first=batch_first)
    x = random(T, B, C, *CASES[case][0])
    y, (h_n, c_n) = ours(x)
    last, finals = ours(in_format(x))
    assert_same((last, finals), (y, (h_n, c_n)))
    assert all(t.is_contiguous() for t in (y, h_n, c_n))
    memory_format = FORMATS[len(CASES[case][0])]
    for t in (last, *finals):
        t = t.flatten(0, 1)
        assert t.is_contiguous(memory_format=memory_format) if memory_format else t.is_contiguous()


@pytest.mark.parametrize("return_sequence", [True, False])
def test_channels_last_are_all_results(return_sequence):
    ours = module(STACKED)
    x = random(T, B, C, *CASES[STACKED][0])
    options = {"lengths": LENGTHS, "return_cells": True, "return_all_layers": True, "return_sequence": return_sequence}
    expected, found = ours(x, **options), ours(in_format(x), **options)
    assert_same(found, expected)
    for results, at in ((expected, -3), (found, -1)):
        y, (h_n, c_n), cells = results
        assert all(t.movedim(-3, at).is_contiguous() for t in (*y, *h_n, *c_n, *cells))


@pytest.mark.parametrize("S", [(9,), (5, 6), (7, 9), (2, 3, 4), (7, 17)], ids=str)
@pytest.mark.parametrize("hidden", [3, 8, 17, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_op_writes_and_reads_both_layouts(S, hidden, dtype):
    """Results with channels before the image, without a copy; and their gradients, those of the steps of a batch first too."""
    n, lengths = len(S), torch.tensor([3, 3, 2, 0])
    torch.manual_seed(0)
    x, h0, c0 = (torch.randn(shape).to(dtype) for shape in ((4, 3, *S, 2), (3, *S, hidden), (3, *S, hidden)))
    weights = [torch.randn(4 * hidden, *[3] * n, channels).to(dtype) / 9 for channels in (2, hidden)]
    shared = ([1] * n, [1] * (2 * n), [1] * n, False, False, False)
    tensors = (x, lengths, None, h0, c0, *weights)
    fwd, bwd = torch.ops.fastlstm.conv_lstm_fwd, torch.ops.fastlstm.conv_lstm_bwd
    *last, saved = fwd(*tensors, None, None, None, *shared, True, True)
    *moved, of_moved = fwd(*tensors, None, None, None, *shared, True, True, moved=True)
    assert_same((moved, of_moved), (last, saved))
    assert all(t.is_contiguous() and m.movedim(-1, -n - 1).is_contiguous() for t, m in zip(last, moved, strict=True))

    gradients = [torch.randn_like(t) for t in last]  # in the order of y, h_n, c_n, cells
    of_last = bwd(*gradients, *tensors, None, saved, *shared, True, True)
    channels_first = [d.movedim(-1, -n - 1).contiguous().movedim(-n - 1, -1) for d in gradients]
    batch_first = [
        d.movedim(-1, -n - 1).transpose(0, 1).contiguous().transpose(0, 1).movedim(-n - 1, -1) for d in gradients
    ]
    for d in (channels_first, [batch_first[0], *channels_first[1:3], batch_first[3]]):
        assert_same(bwd(*d, *tensors, None, saved, *shared, True, True), of_last)


@pytest.mark.parametrize("S", [(9,), (5, 6), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("hidden", [3, 8, 17, 32])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_weights_lie_as_weights_do(S, hidden, kernel, dtype):
    """As PyTorch has weights, channels before taps, so that autograd adds to them, or keeps them, without a copy."""
    n = len(S)
    torch.manual_seed(0)
    x, h0, c0 = (torch.randn(shape).to(dtype) for shape in ((4, 3, *S, 2), (3, *S, hidden), (3, *S, hidden)))
    last = [torch.randn(4 * hidden, *[kernel] * n, channels).to(dtype) / 9 for channels in (2, hidden)]
    moved = [w.movedim(-1, 1).contiguous().movedim(1, -1) for w in last]
    shared = ([1] * n, [kernel // 2] * (2 * n), [1] * n, False, False, False)
    *results, saved = torch.ops.fastlstm.conv_lstm_fwd(
        x, None, None, h0, c0, *last, None, None, None, *shared, False, True
    )
    upstream = *[torch.randn_like(t) for t in results[:3]], None

    def arguments(weights):
        return *upstream, x, None, None, h0, c0, *weights, None, saved, *shared, True, True

    bwd = torch.ops.fastlstm.conv_lstm_bwd
    of_last, of_moved = bwd(*arguments(last)), bwd(*arguments(moved))
    assert all(torch.equal(a, b) for a, b in zip(of_last, of_moved, strict=True))
    for a, b in zip(of_last[3:5], of_moved[3:5], strict=True):
        assert a.is_contiguous()
        assert b.movedim(-1, 1).is_contiguous()
    for weights in (last, moved, [last[0], moved[1]]):
        torch.library.opcheck(bwd, arguments(weights), test_utils="test_faketensor")


@pytest.mark.parametrize("checkpoint", [False, True], ids=["", "checkpoint"])
@pytest.mark.parametrize("case", ["1d", "2d", "3d", STACKED])
def test_gradients_of_parameters_are_kept_without_a_copy(case, checkpoint):
    ours = module(case, checkpoint=checkpoint)
    y, _ = ours(random(T, B, C, *CASES[case][0]))
    for d in torch.autograd.grad(y.sum(), [w for name, w in ours.named_parameters() if "peephole" not in name]):
        assert d.is_contiguous()


def test_what_lies_both_ways_is_contiguous():
    """Such are all images of one channel."""
    ours = KINDS[2](1, H, 3)
    x = torch.randn(T, B, 1, 4, 5)
    assert x.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    y, finals = ours(x)
    assert all(t.is_contiguous() for t in (y, *finals))


@pytest.mark.parametrize("given", [True, False], ids=["states", "no states"])
@pytest.mark.parametrize("use", ["plain", "lengths", "resets"])
def test_batch_first(given, use):
    ours = module(STACKED)
    x = random(T, B, C, *CASES[STACKED][0])
    hx = as_hx(ours, states(ours, (2, 3))) if given else None
    reset = resets() if use == "resets" else None
    options = {"lengths": LENGTHS if use == "lengths" else None, "return_cells": True}
    y, finals, cells = ours(x, hx, reset=reset, **options)
    ours.batch_first = True
    moved = ours(x.transpose(0, 1), hx, reset=None if reset is None else reset.T, **options)
    assert_same(moved, (y.transpose(0, 1), finals, cells.transpose(0, 1)))


@pytest.mark.parametrize("case", ["2d", STACKED])
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(case, batch_first):
    ours = module(case, batch_first=batch_first)
    x = random(T, C, *CASES[case][0])
    batched = x.unsqueeze(0 if batch_first else 1)
    image = (2, 3) if case == STACKED else CASES[case][0]
    hx = states(ours, image, batch=1)
    (y, finals, cells), reset = ours(batched, as_hx(ours, hx), return_cells=True), resets()[:, 1]
    alone = tuple([s[:, 0] for s in letter] for letter in hx)
    given = alone if case == STACKED else tuple(s[0] for s in alone)
    found, ends, its_cells = ours(x, given, return_cells=True)
    side = 0 if batch_first else 1
    assert_same([found, its_cells], [t.squeeze(side) for t in (y, cells)])
    assert_same(as_lists(ours, ends), [[s.squeeze(1) for s in letter] for letter in as_lists(ours, finals)])
    assert_same(ours(x, reset=reset)[0], ours(batched, reset=reset.unsqueeze(side))[0].squeeze(side))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("case", ["2d", "two layers, two directions", STACKED])
def test_the_last_step_alone(case, lengths):
    """Each sequence's own; of the reverse direction, that after step 0."""
    ours = module(case)
    D = 2 if ours.bidirectional else 1
    x = random(T, B, C, *CASES[case][0])
    options = {"lengths": lengths, "return_cells": True}
    hx = as_hx(ours, states(ours, ours(x)[0].shape[3:]))
    y, finals, cells = ours(x, hx, **options, return_all_layers=True)
    lasts, same, last_cells = ours(x, hx, **options, return_all_layers=True, return_sequence=False)
    assert_same(same, finals)
    for k, (last, last_cell) in enumerate(zip(lasts, last_cells, strict=True)):
        for t, steps, final in ((last, y, as_lists(ours, finals)[0]), (last_cell, cells, as_lists(ours, finals)[1])):
            assert_same(t, torch.cat(list(final[k]), 1))
            width = t.shape[1] // D
            for b, n in enumerate(lengths or [T] * B):
                if n:
                    assert_same(t[b, :width], steps[k][n - 1, b, :width])
                    assert_same(t[b, width:], steps[k][0, b, width:])
    alone, _ = ours(x, hx, lengths=lengths, return_sequence=False)
    assert_same(alone, lasts[-1])
    goals = alone, torch.cat(list(as_lists(ours, finals)[0][-1]), 1)
    assert_same(*(torch.autograd.grad(t.sin().sum(), list(ours.parameters())) for t in goals))
    assert_same(ours(x[:, 0], return_sequence=False)[0], ours(x[:, :1], return_sequence=False)[0][0])


class Steps(TorchDispatchMode):
    """What the kernels make of all steps: the numbers of elements of y."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        results = op(*args, **(kwargs or {}))
        if op is torch.ops.fastlstm.conv_lstm_fwd.default:
            self.made.append(results[0].numel())
        return results


@pytest.mark.skipif(backends.extension_status() != "built", reason="the ops are in the C++ extension")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_for_the_last_step_alone_no_others_are_made(lengths, grad):
    ours, every = module("two layers, two directions"), T * B * H * 3 * 4
    with torch.set_grad_enabled(grad), Steps() as steps:
        ours(random(T, B, C, 3, 4), lengths=lengths, return_sequence=False)
    assert steps.made == [every, every, 0, 0]


@pytest.mark.parametrize("hidden", [3, 32])
@pytest.mark.parametrize("moved", [False, True])
def test_an_op_that_makes_no_y_makes_the_rest(moved, hidden):
    x, h0, c0 = random(4, 3, 7, 6, 2), random(3, 7, 6, hidden), random(3, 7, 6, hidden)
    weights = [random(4 * hidden, 3, 3, channels) for channels in (2, hidden)]
    tensors = (x, torch.tensor([3, 3, 2, 0]), None, h0, c0, *weights)
    shared = ([1, 1], [1] * 4, [1, 1], False, False, False, True, True, moved)
    fwd = torch.ops.fastlstm.conv_lstm_fwd
    _, *right = fwd(*tensors, None, None, None, *shared)
    y, *rest = fwd(*tensors, None, None, None, *shared, return_y=False)
    assert y.numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(rest, right, strict=True))


def test_all_layers_are_what_each_would_give():
    ours = module("two layers, two directions")
    x = random(T, B, C, 3, 4)
    every, _, cells = ours(x, return_all_layers=True, return_cells=True)
    y, _, last = ours(x, return_cells=True)
    assert_same([every[-1], cells[-1]], [y, last])
    first = KINDS[2](C, H, 3, bidirectional=True, peephole="channel", dtype=torch.float64)
    first.load_state_dict({name: w for name, w in ours.state_dict().items() if "l0" in name})
    assert_same([every[0], cells[0]], list(first(x, return_cells=True)[::2]))


def test_dropout_zeroes_elements_between_layers():
    ours = module("two layers, two directions", dropout=0.5, bidirectional=False)
    x = random(T, B, C, 3, 4)
    torch.manual_seed(5)
    (first, second), _ = ours(x, return_all_layers=True)
    torch.manual_seed(5)
    dropped = torch.nn.functional.dropout(first.movedim(2, -1).contiguous(), 0.5).movedim(-1, 2)
    above = KINDS[2](H, H, 3, peephole="channel", dtype=torch.float64)
    above.load_state_dict({name.replace("l1", "l0"): w for name, w in ours.state_dict().items() if "l1" in name})
    assert_same(second, above(dropped)[0])
    ours.eval()
    assert_same(ours(x)[0], ours(x)[0])


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("checkpoint", [False, True], ids=["", "checkpoint"])
@pytest.mark.parametrize("case", ["2d", STACKED])
def test_other_dtypes_are_as_near_as_the_reference(case, dtype, checkpoint):
    """Twice its error and a rounding, as for every variant: CONTRIBUTING.md."""
    x, results = torch.randn(T, B, C, *CASES[case][0]).to(dtype), []
    exact = module(case).to(dtype).double()
    for ours, x_of in (
        (exact, x.double()),
        (module(case, backend="reference").to(dtype), x),
        (module(case, checkpoint=checkpoint).to(dtype), x),
    ):
        y, finals = ours(x_of, lengths=LENGTHS)
        found = [y, *[s for letter in as_lists(ours, finals) for s in letter]]
        upstream = [torch.linspace(-1, 1, t.numel(), dtype=dtype).view(t.shape).to(t.dtype) for t in found]
        results.append([*found, *torch.autograd.grad(found, list(ours.parameters()), upstream)])
        assert {t.dtype for t in results[-1]} == {x_of.dtype}
    for right, reference, ours in zip(*results, strict=True):
        allowed = 2 * (reference.double() - right).norm() + torch.finfo(dtype).eps * right.norm()
        assert (ours.double() - right).norm() <= allowed


def test_autocast_runs_in_its_dtype():
    ours = KINDS[2](C, H, 3, 2, peephole="channel")
    x, hx = torch.randn(T, B, C, 4, 5), tuple(torch.randn(2, B, H, 4, 5) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        y, finals = ours(x, hx)
    expected, ends = ours.bfloat16()(x.bfloat16(), [s.bfloat16() for s in hx])
    assert y.dtype == torch.bfloat16
    assert_same((y, finals), (expected, ends))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.double()(x.double())[0].dtype == torch.float64
