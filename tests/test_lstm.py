"""Every variant has the values and gradients of its oracle, PyTorch's module or the reference: any shape, layout and dtype."""

import numpy as np
import pytest
import torch
from helpers import (
    IN_PYTORCH,
    LAYOUTS,
    LENGTHS,
    VARIANTS,
    B,
    H,
    I,
    T,
    as_hx,
    as_list,
    assert_same,
    call,
    each_case,
    each_layout,
    each_variant,
    module,
    pair,
    random,
    random_states,
    run,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm

BOTH = {"num_layers": 2, "bidirectional": True}


@each_case()
@each_layout
def test_lstm(variant, options, layout):
    oracle, ours = pair(variant, **options)
    x, hx = random(T, B, I), random_states(ours, B)
    assert_same(run(ours, layout, LENGTHS, x, hx), run(oracle, layout, LENGTHS, x, hx))


@settings(max_examples=80)
@given(st.data())
def test_lstm_of_any_shape(data):
    variant, size = data.draw(st.sampled_from(list(VARIANTS))), st.integers(1, 5)
    input_size, hidden_size, layers, batch, steps = (data.draw(size) for _ in range(5))
    lengths = data.draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
    options = {name: data.draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    if variant != "gru":
        options["proj_size"] = data.draw(st.integers(0, hidden_size - 1))
    oracle, ours = pair(variant, input_size, hidden_size, num_layers=layers, **options)
    x, hx = random(steps, batch, input_size), random_states(ours, batch)
    layout = data.draw(st.sampled_from(LAYOUTS))
    assert_same(run(ours, layout, lengths, x, hx), run(oracle, layout, lengths, x, hx))


@each_case()
def test_states_are_zero_by_default(variant, options):
    oracle, ours = pair(variant, **options)
    x = random(T, B, I)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    assert_same(ours(x), oracle(x))
    assert_same(ours(x, None), oracle(x))
    assert_same(ours(input=x[0], hx=None), oracle(x[0]))
    assert_same([ours(packed)[0].data, ours(packed)[1]], [oracle(packed)[0].data, oracle(packed)[1]])


STRIDES = {
    "expanded": lambda *shape: random(*shape[:-2], 1, shape[-1]).expand(shape),
    "expanded over features": lambda *shape: random(*shape[:-1], 1).expand(shape),
    "transposed": lambda *shape: random(*reversed(shape)).permute(*reversed(range(len(shape)))),
    "a slice": lambda *shape: random(*shape, 2)[..., 1],
    "every other": lambda *shape: random(*shape[:-1], 2 * shape[-1])[..., ::2],
    "offset": lambda *shape: random(*shape[:-1], shape[-1] + 1)[..., 1:],
}


@each_variant
@pytest.mark.parametrize("strided", STRIDES.values(), ids=STRIDES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_strides(variant, strided, batch_first):
    oracle, ours = pair(variant, num_layers=2, batch_first=batch_first)
    leaves = [t.requires_grad_() for t in (strided(B, B, I), *(strided(2, B, H) for _ in random_states(ours)))]
    for name in ("weight_hh_l0", "weight_peephole_l0")[: 2 if VARIANTS[variant].peepholes else 1]:
        setattr(ours, name, nn.Parameter(getattr(oracle, name).detach().t().contiguous().t()))
    outputs = [call(m, "dense", [], leaves[0], leaves[1:]) for m in (ours, oracle)]
    assert_same(*outputs)
    assert_same(*[torch.autograd.grad([t.square().sum() for t in outs], leaves) for outs in outputs])


LENGTH_KINDS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "int64": torch.tensor,
    "int32": lambda n: torch.tensor(n, dtype=torch.int32),
    "uint8": lambda n: torch.tensor(n, dtype=torch.uint8),
    "strided": lambda n: torch.tensor([n, n]).t()[:, 0],
}


@each_variant
@pytest.mark.parametrize("given_as", LENGTH_KINDS.values(), ids=LENGTH_KINDS)
def test_lengths_of_any_kind(variant, given_as):
    ours, x = module(variant), random(T, B, I)
    assert_same(ours(x, lengths=given_as(LENGTHS)), ours(x, lengths=LENGTHS))


@each_variant
def test_lengths_under_another_default_device(variant):
    ours, x = module(variant), random(T, B, I)
    with torch.device("meta"):
        results = ours(x, lengths=LENGTHS)
    assert_same(results, ours(x, lengths=LENGTHS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="lengths on another device needs one")
@each_variant
def test_lengths_on_another_device(variant):
    ours, x = module(variant), random(T, B, I)
    assert_same(ours(x, lengths=torch.tensor(LENGTHS, device="cuda")), ours(x, lengths=LENGTHS))


@each_case()
def test_lengths_may_be_zero(variant, options):
    """As a batch of those that are not; whose are, keep their states, and nothing beyond a length is read."""
    oracle, ours = pair(variant, **options)
    x, hx = random(T, B, I), random_states(ours, B)
    lengths, some = [0, 4, 0, 6], [1, 3]
    poisoned = x.masked_fill(torch.arange(T)[:, None, None] >= torch.tensor(lengths)[:, None], torch.nan)
    y, *rest = run(ours, "lengths", lengths, poisoned, hx)
    S, y = len(hx), y.transpose(0, 1) if ours.batch_first else y
    finals, dx, d_initial = rest[:S], rest[S], rest[S + 1 : 2 * S + 1]
    picked, *others = call(oracle, "lengths", [4, 6], x[:, some], [s[:, some] for s in hx])
    picked = picked.transpose(0, 1) if ours.batch_first else picked
    assert_same([y[:, some], *(s[:, some] for s in finals)], [picked, *others])
    assert not y[:, ::2].any()
    assert not dx[:, ::2].any()
    assert_same([s[:, ::2] for s in finals], [s[:, ::2] for s in hx])
    assert all(d[:, ::2].all() for d in d_initial)


@each_variant
def test_all_lengths_zero(variant):
    ours = module(variant, **BOTH)
    x, hx = random(T, B, I), random_states(ours, B)
    y, *rest = run(ours, "lengths", [0] * B, x, hx)
    S = len(hx)
    finals, dx, d_initial, dw = rest[:S], rest[S], rest[S + 1 : 2 * S + 1], rest[2 * S + 1 :]
    assert_same(finals, hx)
    assert not any(t.any() for t in (y, dx, *dw))
    assert all(t.all() for t in d_initial)


@each_variant
def test_nothing_beyond_a_length_is_read(variant):
    ours = module(variant, **BOTH)
    x, hx = random(T, B, I), random_states(ours, B)
    lengths = [0, 6, 2, 3]
    poisoned = x.masked_fill(torch.arange(T)[:, None, None] >= torch.tensor(lengths)[:, None], torch.nan)
    assert_same(run(ours, "lengths", lengths, poisoned, hx), run(ours, "lengths", lengths, x, hx))


@each_case()
def test_an_empty_batch(variant, options):
    oracle, ours = pair(variant, **options)
    x, hx = random(T, 0, I), random_states(ours, 0)
    assert_same(run(ours, "dense", [], x, hx), run(oracle, "dense", [], x, hx))
    assert_same(run(ours, "lengths", [], x, hx), run(oracle, "dense", [], x, hx))


@each_variant
def test_packed_of_a_hand_made_sequence(variant):
    oracle, ours = pair(variant)
    x = PackedSequence(random(6, I), torch.tensor([3, 2, 1]), torch.tensor([2, 0, 1]))
    hx = as_hx(random_states(ours, 3))
    (y, finals), (expected, expected_finals) = ours(x, hx), oracle(x, hx)
    assert_same((y.data, finals), (expected.data, expected_finals))


@each_case()
def test_outputs_own_their_memory(variant, options):
    ours = module(variant, **options)
    y, finals = ours(random(T, B, I))
    finals = as_list(finals)
    y = y.transpose(0, 1) if ours.batch_first else y
    for t in (y, *finals):
        assert t.is_contiguous()
        assert t.untyped_storage().nbytes() == t.nbytes
    finals[0].detach().zero_()
    assert y.any()


@each_variant
def test_dropout_is_the_references(variant):
    """The same numbers are dropped, forward and backward: both draw them between layers."""
    ours, reference = (module(variant, num_layers=3, dropout=0.5, backend=name) for name in ("numba", "reference"))
    reference.load_state_dict(ours.state_dict())
    x, results = torch.ones(T, B, I, dtype=torch.float64), []
    for m in (ours, reference):
        torch.manual_seed(4)
        y, finals = m(x)
        results.append([y, finals, *torch.autograd.grad(y.square().sum(), list(m.parameters()))])
        assert not torch.equal(m.eval()(x)[0], y)
    assert_same(*results)


@pytest.mark.cpu
@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(variant, dtype):
    oracle, ours = pair(variant, **BOTH)
    x, *hx = (t.to(dtype) for t in (random(T, B, I), *random_states(ours, B)))
    oracle.to(dtype).double(), ours.to(dtype)
    expected = call(oracle, "dense", [], x.double(), [s.double() for s in hx])
    for got, want in zip(call(ours, "dense", [], x, hx), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.cpu
@each_variant
@each_layout
def test_autocast(variant, layout):
    ours = module(variant, num_layers=2).float()
    x, hx = torch.randn(T, B, I), [s.float() for s in random_states(ours, B)]
    wanted = run(ours, layout, LENGTHS, x, hx)
    with torch.autocast("cpu", torch.bfloat16):
        results = run(ours, layout, LENGTHS, x, hx)
    outputs = 1 + len(hx)
    wide = variant == "gru" or (variant == "lstm" and layout.startswith("packed"))
    dtype = torch.float32 if wide else torch.bfloat16
    assert [t.dtype for t in results[:outputs]] == [dtype] * outputs
    assert all(t.dtype == torch.float32 for t in results[outputs:])
    for got, want in zip(results, wanted, strict=True):
        assert (got.float() - want).norm() <= 0.03 * want.norm()


@pytest.mark.cpu
@each_variant
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
def test_dtypes_under_autocast(variant, x_dtype, state_dtype):
    """The LSTMs give autocast's dtype, a GRU that of its state. So do PyTorch's, the LSTM where oneDNN has bfloat16."""
    oracle, ours = pair(variant)
    x, states = random(T, B, I).to(x_dtype), [s.to(state_dtype) for s in random_states(ours, B)]
    expected = state_dtype or x_dtype if variant == "gru" else torch.bfloat16
    asked = variant == "gru" or (variant in IN_PYTORCH and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    for m in (oracle, ours) if asked else (ours,):
        with torch.autocast("cpu", torch.bfloat16):
            y, finals = m.float()(x, as_hx(states) if state_dtype else None)
        assert [t.dtype for t in (y, *as_list(finals))] == [expected] * (1 + len(states))


@pytest.mark.cpu
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("projected", [0, 3])
def test_dtypes_of_a_packed_and_a_projected_lstm_under_autocast(state_dtype, packs, projected):
    """What oneDNN doesn't run: PyTorch's ops, where c is as wide as that before. It runs packed sequences of equal lengths."""
    theirs, ours = (kind(I, H, num_layers=2, proj_size=projected) for kind in (nn.LSTM, fastlstm.LSTM))
    x = random(T, B, I).float()
    states = [torch.zeros(2, B, R, dtype=state_dtype) for R in (projected or H, H)] if state_dtype else None
    dtypes = []
    for m in (theirs, ours) if packs or projected else (ours,):
        given = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False) if packs else x
        with torch.autocast("cpu", torch.bfloat16):
            y, finals = m(given, states)
        dtypes.append([t.dtype for t in (y.data if packs else y, *finals)])
    assert dtypes[0] == dtypes[-1]
    assert (dtypes[-1][2] == torch.float32) == ((packs or projected > 0) and state_dtype != torch.bfloat16)
