"""`torch.compile` and `torch.export` take the whole module, once for all sizes, and the ops keep their promises to them."""

import pytest
import torch
import torch._functorch.config
import torch.compiler.config
from helpers import VARIANTS, B, H, I, T, as_hx, as_list, assert_same, random
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import GRUCell, LSTMCell
from fastlstm.backends import extension_status
from fastlstm.modules import build
from fastlstm.training.model import build_model

LENGTHS = torch.tensor([3, 6, 0, 4])


def module(**options) -> fastlstm.LSTM:
    return fastlstm.LSTM(I, H, num_layers=2, bidirectional=True, dtype=torch.float64, **options)


def quiet_compiler(test):
    """PyTorch's compiler makes an instance of each autograd.Function that it traces, and imports deprecated torch.jit."""
    test = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")(test)
    return pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")(test)


def test_no_version_is_given_what_was_compiled_for_another():
    """Programs that Inductor keeps on disk know how results of ops lie, and it finds them by names and this tag."""
    assert f"fastlstm {fastlstm.__version__}" in torch.compiler.config.cache_key_tag


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
@pytest.mark.parametrize("variant", VARIANTS)
def test_compile_a_whole_model_once(variant):
    model = build_model(variant, "fastlstm", vocabulary=7, embedding=I, hidden=H, layers=2, seed=0).double()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(torch.randint(7, (T, B)))
    with torch.compiler.set_stance("fail_on_recompile"):
        for steps, batch in ((6, 4), (9, 4), (5, 7), (17, 3)):
            characters = torch.randint(7, (steps, batch))
            results = []
            for run in (compiled, model):
                logits, state = run(characters)
                goal = logits.square().sum() + sum(s.square().sum() for s in state)
                results.append([logits, *state, *torch.autograd.grad(goal, [*model.parameters()])])
            assert_same(*results)


@quiet_compiler
def test_compile_with_states_and_lengths():
    ours = module(batch_first=True)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True)
    for steps, lengths in ((6, [3, 6, 0, 4]), (8, [8, 1, 2, 3])):
        x, hx = random(4, steps, I), (random(4, 4, H), random(4, 4, H))
        assert_same(compiled(x, hx, lengths=torch.tensor(lengths)), ours(x, hx, lengths=lengths))


@quiet_compiler
@pytest.mark.parametrize("variant", ["lstm", "gru"])
@pytest.mark.parametrize("given", [False, True])
def test_states_are_no_memory_that_a_compiled_backward_writes_to(variant, given):
    """It has zeros of their size of its own, to add to: those of the forward, if it does not see that they are still read."""
    ours, x = build(variant, I, H, dtype=torch.float64), random(T, B, I)

    def loss(x: Tensor, order: Tensor) -> Tensor:
        zeros = [x.new_zeros(1, B, H) for _ in range(VARIANTS[variant].states)] if given else None
        y, finals = ours(x, as_hx(zeros) if given else None)
        return y.sum() + sum(s.index_select(1, order).mean() for s in as_list(finals))

    order, weights = torch.tensor([0, 2, 3, 1]), [*ours.parameters()]
    compiled = torch.compile(loss, fullgraph=True)
    assert_same(torch.autograd.grad(compiled(x, order), weights), torch.autograd.grad(loss(x, order), weights))


def _tied(module: nn.Module) -> nn.Module:
    for name in [name for name in module._parameters if "_ih" in name]:
        setattr(module, name.replace("_ih", "_hh"), getattr(module, name))
    return module


@quiet_compiler
@pytest.mark.parametrize(
    "run",
    {
        "a cell's zeros": (lambda: LSTMCell(H, H), lambda cell, x: cell(x)),
        "h is c": (lambda: LSTMCell(H, H), lambda cell, x: cell(x, (x.cos(),) * 2)),
        "h is x": (lambda: GRUCell(H, H), lambda cell, x: cell(x, x)),
        "tied cell": (lambda: _tied(GRUCell(H, H)), lambda cell, x: cell(x)),
        "tied layers": (lambda: _tied(fastlstm.LSTM(H, H, 2)), lambda lstm, x: lstm(x)[0]),
        "tied convolutions": (
            lambda: _tied(fastlstm.ConvLSTM1d(1, 1, 3)),
            lambda lstm, x: lstm(x[None, :, None])[0],
        ),
        "a decoder's zeros": (
            lambda: fastlstm.AttentionLSTM(H, H, H, attention="dot", feed="context"),
            lambda decoder, x: decoder(x[None], x[None], (x.new_zeros(1, B, H),) * 2)[0],
        ),
    }.items(),
    ids=lambda run: run[0],
)
def test_a_tensor_given_twice_is_compiled(run):
    _, (make, call) = run
    module, x = make().double(), random(B, H)

    def loss(x: Tensor) -> Tensor:
        found = call(module, x)
        return sum(t.square().sum() for t in as_list(found))

    given = [t.requires_grad_() for t in (x, *module.parameters())]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(torch.autograd.grad(compiled(x), given), torch.autograd.grad(loss(x), given))


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
def test_compile_func_grad_and_what_it_is_a_gradient_of():
    """Under a transform the reference is compiled: what Dynamo makes of a Function has no second derivative."""
    ours, x = fastlstm.LSTM(I, H, dtype=torch.float64), random(3, 2, I)

    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: ours(x)[0].sin().sum())(x)

    for f in (slope, lambda x: torch.func.grad(lambda x: slope(x).square().sum())(x)):
        assert_same(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


@quiet_compiler
@torch._functorch.config.patch(
    donated_buffer=False
)  # else chance decides whether the first backward is refused already
def test_double_backward_of_a_compiled_module_is_refused():
    ours, x = torch.compile(fastlstm.GRU(I, H), backend="aot_eager"), torch.randn(3, 2, I, requires_grad=True)
    (dx,) = torch.autograd.grad(ours(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        dx.sum().backward()


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


# layout: shape of x, batch_sizes
LAYOUTS = {
    "dense": ((T, B, I), None),
    "packed": ((9, I), [4, 3, 2]),
    "padded": ((4, B, I), [4, 3, 2, 0]),
    "step": ((B, I), None),
}
# layout, projection, peepholes, coupled gates, resets, cells, reverse (which what is promised doesn't depend on)
LSTM_OPS = {
    "dense": ("dense", False, False, False, False, False, False),
    "dense, peepholes, coupled": ("dense", False, True, True, False, True, True),
    "packed": ("packed", False, False, False, False, False, True),
    "packed, coupled, resets": ("packed", False, False, True, True, False, False),
    "padded, projection": ("padded", True, False, False, False, False, False),
    "padded, everything": ("padded", True, True, True, True, True, True),
    "step, peepholes": ("step", False, True, False, True, True, False),
}
GRU_OPS = [(layout, resets, (k + resets) % 2 == 1) for k, layout in enumerate(LAYOUTS) for resets in (False, True)]


def inputs(layout: str, resets: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    shape, batch_sizes = LAYOUTS[layout]
    reset = torch.rand(shape[:-1]) < 0.3 if resets else None
    return random(*shape), None if batch_sizes is None else torch.tensor(batch_sizes), reset


@pytest.mark.skipif(extension_status() != "built", reason="the ops are those of the C++ extension")
@pytest.mark.parametrize(
    ("layout", "projected", "peepholes", "coupled", "resets", "cells", "reverse"), LSTM_OPS.values(), ids=LSTM_OPS
)
def test_opcheck_lstm(layout, projected, peepholes, coupled, resets, cells, reverse):
    R, G = 2 if projected else H, 3 if coupled else 4
    x, steps, reset = inputs(layout, resets)
    h0, c0, w_ih, w_hh = random(B, R), random(B, H), random(G * H, I), random(G * H, R)
    biases, w_hr = (random(G * H), random(G * H)), random(R, H) if projected else None
    w_peephole = random(G - 1, H) if peepholes else None
    args = (x, steps, reset, h0, c0, w_ih, w_hh, *biases, w_hr, w_peephole, coupled, reverse, cells, True)
    torch.library.opcheck(torch.ops.fastlstm.lstm_fwd.default, args)
    *results, saved = torch.ops.fastlstm.lstm_fwd(*args)
    gradients = [torch.randn_like(t) for t in results]
    if not cells:
        gradients[-1] = None
    args = (*gradients, x, steps, reset, h0, c0, w_ih, w_hh, w_hr, w_peephole, saved)
    for flags in ((True, True, True), (cells, not cells, cells)):  # of dx alone, or of weights: each in some layouts
        torch.library.opcheck(torch.ops.fastlstm.lstm_bwd.default, (*args, coupled, reverse, *flags))


@pytest.mark.skipif(extension_status() != "built", reason="the ops are those of the C++ extension")
@pytest.mark.parametrize(("layout", "resets", "reverse"), GRU_OPS)
def test_opcheck_gru(layout, resets, reverse):
    x, steps, reset = inputs(layout, resets)
    h0, w_ih, w_hh, b_ih, b_hh = random(B, H), random(3 * H, I), random(3 * H, H), random(3 * H), random(3 * H)
    args = (x, steps, reset, h0, w_ih, w_hh, b_ih, b_hh, reverse, True)
    torch.library.opcheck(torch.ops.fastlstm.gru_fwd.default, args)
    y, h_n, saved = torch.ops.fastlstm.gru_fwd(*args)
    args = (torch.randn_like(y), torch.randn_like(h_n), x, steps, reset, h0, w_ih, w_hh, saved, reverse)
    for flags in ((True, True, True), (reverse, not reverse, reverse)):
        torch.library.opcheck(torch.ops.fastlstm.gru_bwd.default, (*args, *flags))
