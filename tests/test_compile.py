"""`torch.compile` and `torch.export` take the whole module, once for all sizes, and the ops keep their promises to them."""

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm

I, H, T, B = 3, 5, 6, 4
LENGTHS = torch.tensor([3, 6, 0, 4])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def module(**options) -> fastlstm.LSTM:
    return fastlstm.LSTM(I, H, num_layers=2, bidirectional=True, dtype=torch.float64, **options)


def assert_same(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def quiet_compiler(test):
    """PyTorch's compiler makes an instance of each autograd.Function that it traces, and imports deprecated torch.jit."""
    test = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")(test)
    return pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")(test)


@quiet_compiler
def test_compile_whole_and_once():
    ours = module()
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(random(T, B, I).requires_grad_())
    with torch.compiler.set_stance("fail_on_recompile"):
        for steps, batch in ((6, 4), (9, 4), (5, 7), (17, 3)):
            x = random(steps, batch, I).requires_grad_()
            results = []
            for lstm in (compiled, ours):
                y, finals = lstm(x)
                gradients = torch.autograd.grad(y.square().sum() + finals[1].sum(), [x, *ours.parameters()])
                results.append([y, *finals, *gradients])
            assert_same(*results)


@quiet_compiler
def test_compile_with_states_and_lengths():
    ours = module(batch_first=True)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True)
    for steps, lengths in ((6, [3, 6, 0, 4]), (8, [8, 1, 2, 3])):
        x, hx = random(4, steps, I), (random(4, 4, H), random(4, 4, H))
        assert_same(compiled(x, hx, lengths=torch.tensor(lengths)), ours(x, hx, lengths=lengths))


@quiet_compiler
def test_compile_packed():
    ours = module()
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([3, 6, 1, 4], [7, 2, 2]):
        x = random(max(lengths), len(lengths), I)
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        (y, finals), (expected, expected_finals) = compiled(packed), ours(packed)
        assert_same((y.data, finals), (expected.data, expected_finals))


@quiet_compiler
@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    ours = module(batch_first=True).eval()
    steps, batch = torch.export.Dim("T"), torch.export.Dim("B")
    dynamic = {"input": {0: batch, 1: steps}, "hx": None, "lengths": {0: batch}}
    options = {"hx": None, "lengths": LENGTHS}
    program = torch.export.export(ours, (random(B, T, I),), options, dynamic_shapes=dynamic, strict=strict)
    for lengths in ([1, 2, 9, 0, 0, 5], [1]):
        x, n = random(len(lengths), max(lengths), I), torch.tensor(lengths)
        assert_same(program.module()(x, hx=None, lengths=n), ours(x, lengths=n))


OPCHECKED = {
    "dense": ((T, B, I), None, False),
    "packed": ((9, I), [4, 3, 2], False),
    "padded": ((4, B, I), [4, 3, 2, 0], True),
}


@pytest.mark.parametrize(("shape", "batch_sizes", "projected"), OPCHECKED.values(), ids=OPCHECKED)
@pytest.mark.parametrize("reverse", [False, True])
def test_opcheck(shape, batch_sizes, projected, reverse):
    R = 2 if projected else H
    x, h0, c0, w_ih, w_hh = random(*shape), random(B, R), random(B, H), random(4 * H, I), random(4 * H, R)
    biases, w_hr = (random(4 * H), random(4 * H)), random(R, H) if projected else None
    steps = None if batch_sizes is None else torch.tensor(batch_sizes)
    args = (x, steps, h0, c0, w_ih, w_hh, *biases, w_hr, reverse, True)
    torch.library.opcheck(torch.ops.fastlstm.lstm_fwd.default, args)
    y, h_n, c_n, saved = torch.ops.fastlstm.lstm_fwd(*args)
    gradients = [torch.randn_like(t) for t in (y, h_n, c_n)]
    args = (*gradients, x, steps, h0, c0, w_ih, w_hh, w_hr, y, saved, reverse, True, True)
    torch.library.opcheck(torch.ops.fastlstm.lstm_bwd.default, args)
