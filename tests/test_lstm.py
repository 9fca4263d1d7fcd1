"""`fastlstm.LSTM` and `GRU` give the values and gradients of `nn.LSTM` and `GRU`, whatever the shape, layout and options."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

I, H, T, B = 3, 5, 6, 4
LENGTHS = [3, 6, 1, 4]

each_kind = pytest.mark.parametrize("kind", ["LSTM", "GRU"])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def assert_same(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_lstm(run, pair, random_states, case, layout):
    kind, options = case
    theirs, ours = pair(kind, **options)
    x, hx = random(T, B, I), random_states(ours, B)
    assert_same(run(ours, layout, LENGTHS, x, hx), run(theirs, layout, LENGTHS, x, hx))


@settings(max_examples=40)
@given(st.data())
def test_lstm_of_any_shape(run, pair, random_states, data):
    kind, size = data.draw(st.sampled_from(["LSTM", "GRU"])), st.integers(1, 5)
    input_size, hidden_size, layers, batch, steps = (data.draw(size) for _ in range(5))
    lengths = data.draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
    options = {name: data.draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    if kind == "LSTM":
        options["proj_size"] = data.draw(st.integers(0, hidden_size - 1))
    theirs, ours = pair(kind, input_size, hidden_size, num_layers=layers, **options)
    x, hx = random(steps, batch, input_size), random_states(ours, batch)
    layout = data.draw(st.sampled_from(["dense", "packed", "packed unsorted", "lengths", "unbatched"]))
    assert_same(run(ours, layout, lengths, x, hx), run(theirs, layout, lengths, x, hx))


def test_states_are_zero_by_default(pair, case):
    kind, options = case
    theirs, ours = pair(kind, **options)
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


@each_kind
@pytest.mark.parametrize("strided", STRIDES.values(), ids=STRIDES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_strides(call, pair, kind, strided, batch_first):
    theirs, ours = pair(kind, num_layers=2, batch_first=batch_first)
    x, *hx = (t.requires_grad_() for t in (strided(B, B, I), strided(2, B, H), strided(2, B, H)))
    if kind == "GRU":
        hx.pop()
    for module in (theirs, ours):
        module.weight_hh_l0 = nn.Parameter(theirs.weight_hh_l0.detach().t().contiguous().t())
    outputs = [call(module, "dense", [], x, hx) for module in (ours, theirs)]
    assert_same(*outputs)
    assert_same(*[torch.autograd.grad([t.sum() for t in outs], [x, *hx]) for outs in outputs])


LENGTH_KINDS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "int64": torch.tensor,
    "int32": lambda n: torch.tensor(n, dtype=torch.int32),
    "uint8": lambda n: torch.tensor(n, dtype=torch.uint8),
    "strided": lambda n: torch.tensor([n, n]).t()[:, 0],
}


@each_kind
@pytest.mark.parametrize("given_as", LENGTH_KINDS.values(), ids=LENGTH_KINDS)
def test_lengths_of_any_kind(pair, kind, given_as):
    _, ours = pair(kind)
    x = random(T, B, I)
    assert_same(ours(x, lengths=given_as(LENGTHS)), ours(x, lengths=LENGTHS))


@each_kind
def test_lengths_under_another_default_device(pair, kind):
    _, ours = pair(kind)
    x = random(T, B, I)
    with torch.device("meta"):
        results = ours(x, lengths=LENGTHS)
    assert_same(results, ours(x, lengths=LENGTHS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="lengths on another device needs one")
@each_kind
def test_lengths_on_another_device(pair, kind):
    _, ours = pair(kind)
    x = random(T, B, I)
    assert_same(ours(x, lengths=torch.tensor(LENGTHS, device="cuda")), ours(x, lengths=LENGTHS))


def test_lengths_may_be_zero(call, pair, random_states, case):
    kind, options = case
    theirs, ours = pair(kind, **options)
    x, hx = random(T, B, I), random_states(ours, B)
    lengths, some = [0, 4, 0, 6], [1, 3]
    y, *finals = call(ours, "lengths", lengths, x, hx)
    batch = 0 if ours.batch_first else 1
    expected = call(theirs, "lengths", [4, 6], x[:, some], [s[:, some] for s in hx])
    assert_same([y.index_select(batch, torch.tensor(some)), *(s[:, some] for s in finals)], expected)
    assert not y.index_select(batch, torch.tensor([0, 2])).any()
    assert_same([s[:, ::2] for s in finals], [s[:, ::2] for s in hx])


@each_kind
def test_all_lengths_zero(run, pair, random_states, kind):
    _, ours = pair(kind, num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    y, *rest = run(ours, "lengths", [0] * B, x, hx)
    S = len(hx)
    finals, dx, d_initial, dw = rest[:S], rest[S], rest[S + 1 : 2 * S + 1], rest[2 * S + 1 :]
    assert_same(finals, hx)
    assert not any(t.any() for t in (y, dx, *dw))
    assert all(t.all() for t in d_initial)


@each_kind
def test_nothing_beyond_a_length_is_read(run, pair, random_states, kind):
    _, ours = pair(kind, num_layers=2, bidirectional=True)
    x, hx = random(T, B, I), random_states(ours, B)
    lengths = [0, 6, 2, 3]
    poisoned = x.masked_fill(torch.arange(T)[:, None, None] >= torch.tensor(lengths)[:, None], torch.nan)
    assert_same(run(ours, "lengths", lengths, poisoned, hx), run(ours, "lengths", lengths, x, hx))


def test_an_empty_batch(run, pair, random_states, case):
    kind, options = case
    theirs, ours = pair(kind, **options)
    x, hx = random(T, 0, I), random_states(ours, 0)
    assert_same(run(ours, "dense", [], x, hx), run(theirs, "dense", [], x, hx))
    assert_same(run(ours, "lengths", [], x, hx), run(theirs, "dense", [], x, hx))


@each_kind
def test_one_step_at_a_time_is_the_whole_sequence(call, pair, random_states, kind):
    _, ours = pair(kind, num_layers=2)
    x, hx = random(T, B, I), random_states(ours, B)
    whole, *finals = call(ours, "dense", [], x, hx)
    steps = []
    for x_t in x:
        y, *hx = call(ours, "dense", [], x_t[None], hx)
        steps.append(y)
    assert_same((torch.cat(steps), hx), (whole, finals))


def test_outputs_own_their_memory(pair, case):
    kind, options = case
    _, ours = pair(kind, **options)
    y, finals = ours(random(T, B, I))
    finals = [finals] if kind == "GRU" else finals
    y = y.transpose(0, 1) if ours.batch_first else y
    for t in (y, *finals):
        assert t.is_contiguous()
        assert t.untyped_storage().nbytes() == t.nbytes
    finals[0].detach().zero_()
    assert y.any()


@pytest.mark.cpu
@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(call, pair, random_states, kind, dtype):
    theirs, ours = pair(kind, num_layers=2, bidirectional=True)
    x, *hx = (t.to(dtype) for t in (random(T, B, I), *random_states(ours, B)))
    theirs.to(dtype).double(), ours.to(dtype)
    expected = call(theirs, "dense", [], x.double(), [s.double() for s in hx])
    for got, want in zip(call(ours, "dense", [], x, hx), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.cpu
@each_kind
def test_autocast(run, pair, random_states, kind, layout):
    _, ours = pair(kind, num_layers=2)
    ours.float()
    x, hx = torch.randn(T, B, I), [s.float() for s in random_states(ours, B)]
    wanted = run(ours, layout, LENGTHS, x, hx)
    with torch.autocast("cpu", torch.bfloat16):
        results = run(ours, layout, LENGTHS, x, hx)
    outputs = 1 + len(hx)
    dtype = torch.bfloat16 if kind == "LSTM" else torch.float32
    assert [t.dtype for t in results[:outputs]] == [dtype] * outputs
    assert all(t.dtype == torch.float32 for t in results[outputs:])
    for got, want in zip(results, wanted, strict=True):
        assert (got.float() - want).norm() <= 0.03 * want.norm()


@pytest.mark.cpu
@each_kind
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
def test_dtypes_under_autocast(pair, kind, x_dtype, state_dtype):
    """The LSTM gives autocast's dtype, a GRU that of its state. So do PyTorch's, the LSTM where oneDNN has bfloat16."""
    x, state = random(T, B, I).to(x_dtype), None if state_dtype is None else random(1, B, H).to(state_dtype)
    expected = torch.bfloat16 if kind == "LSTM" else state_dtype or x_dtype
    theirs, ours = pair(kind)
    runs = kind == "GRU" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for module in (theirs, ours) if runs else (ours,):
        with torch.autocast("cpu", torch.bfloat16):
            y, finals = module.float()(x, state if state is None or kind == "GRU" else (state, state))
        finals = [finals] if kind == "GRU" else finals
        assert [t.dtype for t in (y, *finals)] == [expected] * (1 + len(finals))


@each_kind
def test_packed_of_a_hand_made_sequence(pair, random_states, kind):
    theirs, ours = pair(kind)
    x = PackedSequence(random(6, I), torch.tensor([3, 2, 1]), torch.tensor([2, 0, 1]))
    hx = random_states(ours, 3)
    hx = hx[0] if kind == "GRU" else tuple(hx)
    (y, finals), (expected, expected_finals) = ours(x, hx), theirs(x, hx)
    assert_same((y.data, finals), (expected.data, expected_finals))
