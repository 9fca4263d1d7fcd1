"""`fastlstm.LSTM` gives the values and gradients of `nn.LSTM`, whatever the shape, the layout and the options."""

import doctest
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import functional
from fastlstm.modules import recurrent

I, H, T, B = 3, 5, 6, 4
LENGTHS = [3, 6, 1, 4]

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "two directions": {"bidirectional": True},
    "three layers, two directions, batch first": {"num_layers": 3, "bidirectional": True, "batch_first": True},
    "projection": {"proj_size": 2},
    "projection to 1, two layers, two directions": {"proj_size": 1, "num_layers": 2, "bidirectional": True},
    "projection, no bias, batch first": {"proj_size": 4, "bias": False, "batch_first": True},
}
LAYOUTS = ("dense", "packed", "packed unsorted", "lengths", "unbatched")

each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def pair(input_size: int = I, hidden_size: int = H, **options) -> tuple[nn.LSTM, fastlstm.LSTM]:
    """PyTorch's module and ours, of the same weights."""
    theirs = nn.LSTM(input_size, hidden_size, dtype=torch.float64, **options)
    ours = fastlstm.LSTM(input_size, hidden_size, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def random_states(module: nn.RNNBase, *batch: int) -> tuple[Tensor, Tensor]:
    K = module.num_layers * (2 if module.bidirectional else 1)
    return random(K, *batch, module.proj_size or module.hidden_size), random(K, *batch, module.hidden_size)


def call(module: nn.RNNBase, layout: str, lengths: list[int], x: Tensor, hx: list[Tensor]) -> list[Tensor]:
    """Output and final states on `x` (T, B, I) in one of LAYOUTS; where PyTorch has no `lengths`, it packs."""
    given = x.transpose(0, 1) if module.batch_first else x
    if layout == "unbatched":
        y, finals = module(x[:, 0], tuple(s[:, 0] for s in hx))
    elif layout == "dense":
        y, finals = module(given, tuple(hx))
    elif layout == "lengths" and isinstance(module, fastlstm.LSTM):
        y, finals = module(given, tuple(hx), lengths=lengths)
    else:
        is_sorted = layout == "packed"
        n = torch.tensor(sorted(lengths, reverse=True) if is_sorted else lengths)
        packed = pack_padded_sequence(given, n, module.batch_first, enforce_sorted=is_sorted)
        y, finals = module(packed, tuple(hx))
        assert y.batch_sizes is packed.batch_sizes
        assert y.sorted_indices is packed.sorted_indices
        assert y.unsorted_indices is packed.unsorted_indices
        padded, _ = pad_packed_sequence(y, module.batch_first, total_length=len(x))
        y = padded if layout == "lengths" else y.data
    return [y, *finals]


def run(module: nn.RNNBase, layout: str, lengths: list[int], x: Tensor, hx: tuple[Tensor, Tensor]) -> list[Tensor]:
    """What `call` returns, then the gradients of input, initial states and weights from random output gradients."""
    x, *hx = (t.clone().requires_grad_() for t in (x, *hx))
    outputs = call(module, layout, lengths, x, hx)
    torch.manual_seed(3)
    d_outputs = [random(*t.shape).to(t.dtype) for t in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x, *hx, *module.parameters()], d_outputs)]


def assert_same(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@each_option
@pytest.mark.parametrize("layout", LAYOUTS)
def test_lstm(options, layout):
    theirs, ours = pair(**options)
    x, hx = random(T, B, I), random_states(ours, B)
    assert_same(run(ours, layout, LENGTHS, x, hx), run(theirs, layout, LENGTHS, x, hx))


@settings(max_examples=25)
@given(st.data())
def test_lstm_of_any_shape(data):
    size = st.integers(1, 5)
    input_size, hidden_size, layers, batch, steps = (data.draw(size) for _ in range(5))
    proj_size = data.draw(st.integers(0, hidden_size - 1))
    lengths = data.draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
    flags = {name: data.draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    theirs, ours = pair(input_size, hidden_size, num_layers=layers, proj_size=proj_size, **flags)
    x, hx = random(steps, batch, input_size), random_states(ours, batch)
    layout = data.draw(st.sampled_from(LAYOUTS))
    assert_same(run(ours, layout, lengths, x, hx), run(theirs, layout, lengths, x, hx))


@each_option
def test_states_are_zero_by_default(options):
    theirs, ours = pair(**options)
    x = random(T, B, I)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    assert_same(ours(x), theirs(x))
    assert_same(ours(x, None), theirs(x))
    assert_same(ours(input=x[0], hx=None), theirs(x[0]))
    assert_same([ours(packed)[0].data, ours(packed)[1]], [theirs(packed)[0].data, theirs(packed)[1]])


STRIDES = {
    "expanded": lambda *shape: random(*shape[:-2], 1, shape[-1]).expand(shape),
    "expanded over features": lambda *shape: random(*shape[:-1], 1).expand(shape),
    "transposed": lambda *shape: random(*reversed(shape)).permute(*reversed(range(len(shape)))),
    "a slice": lambda *shape: random(*shape, 2)[..., 1],
    "every other": lambda *shape: random(*shape[:-1], 2 * shape[-1])[..., ::2],
    "offset": lambda *shape: random(*shape[:-1], shape[-1] + 1)[..., 1:],
}


@pytest.mark.parametrize("strided", STRIDES.values(), ids=STRIDES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_strides(strided, batch_first):
    theirs, ours = pair(num_layers=2, batch_first=batch_first)
    x, h0, c0 = (t.requires_grad_() for t in (strided(B, B, I), strided(2, B, H), strided(2, B, H)))
    for module in (theirs, ours):
        module.weight_hh_l0 = nn.Parameter(theirs.weight_hh_l0.detach().t().contiguous().t())
    outputs = [[y, *hx] for y, hx in (ours(x, (h0, c0)), theirs(x, (h0, c0)))]
    assert_same(*outputs)
    leaves = [x, h0, c0]
    assert_same(*[torch.autograd.grad([t.sum() for t in outs], leaves) for outs in outputs])


LENGTH_KINDS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "int64": torch.tensor,
    "int32": lambda n: torch.tensor(n, dtype=torch.int32),
    "uint8": lambda n: torch.tensor(n, dtype=torch.uint8),
    "strided": lambda n: torch.tensor([n, n]).t()[:, 0],
}


@pytest.mark.parametrize("kind", LENGTH_KINDS.values(), ids=LENGTH_KINDS)
def test_lengths_of_any_kind(kind):
    _, ours = pair()
    x = random(T, B, I)
    assert_same(ours(x, lengths=kind(LENGTHS)), ours(x, lengths=LENGTHS))


def test_lengths_under_another_default_device():
    _, ours = pair()
    x = random(T, B, I)
    with torch.device("meta"):
        results = ours(x, lengths=LENGTHS)
    assert_same(results, ours(x, lengths=LENGTHS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="lengths on another device needs one")
def test_lengths_on_another_device():
    _, ours = pair()
    x = random(T, B, I)
    assert_same(ours(x, lengths=torch.tensor(LENGTHS, device="cuda")), ours(x, lengths=LENGTHS))


@each_option
def test_lengths_may_be_zero(options):
    theirs, ours = pair(**options)
    x, hx = random(T, B, I), random_states(ours, B)
    lengths, some = [0, 4, 0, 6], [1, 3]
    y, h_n, c_n = call(ours, "lengths", lengths, x, hx)
    batch = 0 if ours.batch_first else 1
    expected = call(theirs, "lengths", [4, 6], x[:, some], [s[:, some] for s in hx])
    assert_same([y.index_select(batch, torch.tensor(some)), h_n[:, some], c_n[:, some]], expected)
    assert not y.index_select(batch, torch.tensor([0, 2])).any()
    assert_same([h_n[:, ::2], c_n[:, ::2]], [s[:, ::2] for s in hx])


def test_all_lengths_zero():
    _, ours = pair(num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    y, h_n, c_n, dx, dh0, dc0, *dw = run(ours, "lengths", [0] * B, x, hx)
    assert_same((h_n, c_n), hx)
    assert not any(t.any() for t in (y, dx, *dw))
    assert dh0.all()
    assert dc0.all()


def test_nothing_beyond_a_length_is_read():
    _, ours = pair(num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    lengths = [0, 6, 2, 3]
    poisoned = x.masked_fill(torch.arange(T)[:, None, None] >= torch.tensor(lengths)[:, None], torch.nan)
    assert_same(run(ours, "lengths", lengths, poisoned, hx), run(ours, "lengths", lengths, x, hx))


@each_option
def test_an_empty_batch(options):
    theirs, ours = pair(**options)
    x, hx = random(T, 0, I), random_states(ours, 0)
    assert_same(run(ours, "dense", [], x, hx), run(theirs, "dense", [], x, hx))
    assert_same(run(ours, "lengths", [], x, hx), run(theirs, "dense", [], x, hx))


def test_one_step_at_a_time_is_the_whole_sequence():
    _, ours = pair(num_layers=2)
    x, hx = random(T, B, I), random_states(ours, B)
    whole, finals = ours(x, hx)
    steps = []
    for x_t in x:
        y, hx = ours(x_t[None], hx)
        steps.append(y)
    assert_same((torch.cat(steps), hx), (whole, finals))


@each_option
def test_outputs_own_their_memory(options):
    _, ours = pair(**options)
    y, (h_n, c_n) = ours(random(T, B, I))
    y = y.transpose(0, 1) if ours.batch_first else y
    for t in (y, h_n, c_n):
        assert t.is_contiguous()
        assert t.untyped_storage().nbytes() == t.nbytes
    h_n.detach().zero_()
    assert y.any()


@each_option
def test_attributes(options):
    theirs, ours = pair(**options)
    assert isinstance(ours, nn.RNNBase)
    assert not isinstance(ours, nn.LSTM)
    sizes = ("input_size", "hidden_size", "num_layers", "proj_size")
    for name in (*sizes, "mode", "bidirectional", "batch_first", "bias", "dropout"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours._all_weights == theirs._all_weights
    assert_same(ours.all_weights, theirs.all_weights)
    assert_same(ours._flat_weights, theirs._flat_weights)
    assert ours.flatten_parameters() is None
    assert repr(ours) == repr(theirs)


def test_constructor_takes_what_pytorch_takes():
    ours = [p for p in inspect.signature(fastlstm.LSTM).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    theirs = list(inspect.signature(nn.RNNBase).parameters.values())[1:]
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
    module = fastlstm.LSTM(3, 5, 2, False, True, 0.25, True, 2, "meta", torch.bfloat16, backend="reference")
    assert repr(module) == repr(nn.LSTM(3, 5, 2, False, True, 0.25, True, 2)).replace(
        "bidirectional=True", "bidirectional=True, backend='reference'"
    )
    assert (module.weight_ih_l0.device.type, module.weight_ih_l0.dtype) == ("meta", torch.bfloat16)


@each_option
def test_the_same_seed_gives_the_same_weights(options):
    modules = []
    for kind in (nn.LSTM, fastlstm.LSTM):
        torch.manual_seed(7)
        modules.append(kind(I, H, **options))
    torch.testing.assert_close(modules[1].state_dict(), modules[0].state_dict(), rtol=0, atol=0)
    assert list(modules[1].state_dict()) == list(modules[0].state_dict())


@each_option
def test_state_dict_loads_both_ways(options):
    theirs, ours = pair(**options)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    x = random(T, B, I)
    assert_same(ours(x), theirs(x))


def test_frozen_parameters():
    theirs, ours = pair(num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    for module in (theirs, ours):
        for name, w in module.named_parameters():
            w.requires_grad_("l1" in name)
        module(x, hx)[0].sum().backward()
    assert ours.weight_ih_l0.grad is None
    assert_same([w.grad for w in ours.parameters()], [w.grad for w in theirs.parameters()])


def test_only_the_input_needs_a_gradient():
    theirs, ours = pair(proj_size=2)
    grads = []
    for module in (theirs.requires_grad_(False), ours.requires_grad_(False)):
        x = torch.ones(T, B, I, dtype=torch.float64, requires_grad=True)
        module(x)[0].sum().backward()
        grads.append(x.grad)
    assert_same(*grads)


@pytest.mark.parametrize("k", range(3))
def test_gradient_of_one_output_only(k):
    theirs, ours = pair(num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    grads = []
    for module in (theirs, ours):
        y, finals = module(x, hx)
        (y, *finals)[k].sum().backward()
        grads.append([torch.zeros_like(w) if w.grad is None else w.grad for w in module.parameters()])
    assert_same(*grads)


def test_no_grad_saves_nothing():
    _, ours = pair()
    saved = []
    x = random(T, B, I).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        with torch.no_grad():
            y, _ = ours(x)
        assert not saved
        ours(x)
        assert saved
    assert y.grad_fn is None
    with torch.inference_mode():
        assert_same(ours(x)[0].clone(), y)


def test_backward_in_evaluation_mode_and_twice():
    theirs, ours = pair(num_layers=2)
    theirs.eval(), ours.eval()
    x = random(T, B, I)
    (ours(x)[0] ** 2).sum().backward()
    (theirs(x)[0] ** 2).sum().backward()
    assert_same([w.grad for w in ours.parameters()], [w.grad for w in theirs.parameters()])
    loss = (ours(x)[0] ** 2).sum()
    first = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(ours.parameters()))
    torch.testing.assert_close(second, first, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    theirs, ours = pair(num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    rounded = [t.to(dtype) for t in (x, *hx)]
    theirs.to(dtype).double(), ours.to(dtype)
    y, finals = ours(rounded[0], tuple(rounded[1:]))
    expected, expected_finals = theirs(rounded[0].double(), tuple(t.double() for t in rounded[1:]))
    for got, want in zip((y, *finals), (expected, *expected_finals), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_autocast(layout):
    _, ours = pair(num_layers=2)
    ours.float()
    x, hx = torch.randn(T, B, I), tuple(s.float() for s in random_states(ours, B))
    wanted = run(ours, layout, LENGTHS, x, hx)
    with torch.autocast("cpu", torch.bfloat16):
        results = run(ours, layout, LENGTHS, x, hx)
    assert [t.dtype for t in results[:3]] == [torch.bfloat16] * 3
    assert all(t.dtype == torch.float32 for t in results[3:])
    for got, want in zip(results, wanted, strict=True):
        assert (got.float() - want).norm() <= 0.03 * want.norm()


def test_packed_of_a_hand_made_sequence():
    theirs, ours = pair()
    x = PackedSequence(random(6, I), torch.tensor([3, 2, 1]), torch.tensor([2, 0, 1]))
    hx = random_states(ours, 3)
    (y, finals), (expected, expected_finals) = ours(x, hx), theirs(x, hx)
    assert_same((y.data, finals), (expected.data, expected_finals))


@pytest.mark.parametrize("documented", [functional, recurrent])
def test_examples_in_docstrings_run(documented):
    results = doctest.testmod(documented)
    assert results.attempted
    assert not results.failed
