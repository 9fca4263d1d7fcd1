"""The module of the Attention LSTM: parameters, copies, layouts and dtypes."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from attention_cases import (
    AT_ONCE,
    MEMORY_LENGTHS,
    USES,
    A,
    B,
    H,
    I,
    M,
    T,
    each_case,
    each_score,
    each_use,
    each_way,
    flat,
    given,
    gradients,
    module,
    some,
)
from helpers import assert_same
from torch import Tensor, nn
from torch.func import functional_call

import fastlstm
from fastlstm.functional import AttentionState, Precomputed


def test_signature():
    parameters = inspect.signature(fastlstm.AttentionLSTM).replace(return_annotation=inspect.Signature.empty).parameters
    bare = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters.values()])
    assert str(bare) == (
        "(input_size, hidden_size, memory_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, device=None, "
        "dtype=None, *, attention='additive', attention_size=None, feed='attentional', attend='after', query_layer=-1, "
        "output='tanh', output_dropout=0.0, peephole=False, coupled=False, forget_bias=0.0, backend='auto')"
    )
    for name, said in {
        "forward": "(self, input, memory, hx=None, *, memory_lengths=None, lengths=None, need_weights=False)",
        "precompute": "(self, memory, memory_lengths=None)",
        "step": "(self, input, precomputed, state=None, *, need_weights=False)",
    }.items():
        parameters = inspect.signature(getattr(fastlstm.AttentionLSTM, name)).parameters.values()
        assert str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])) == said


def test_parameters_have_these_names_shapes_and_this_order():
    ours = module("normalized_additive", num_layers=2, peephole=True)
    expected = {}
    for k, columns in enumerate((I + H, H)):
        expected |= {
            f"weight_ih_l{k}": (4 * H, columns), f"weight_hh_l{k}": (4 * H, H), f"bias_ih_l{k}": (4 * H,),
            f"bias_hh_l{k}": (4 * H,), f"weight_peephole_l{k}": (3, H),
        }  # fmt: skip
    expected |= {
        "weight_query": (A, H), "weight_key": (A, M), "weight_score": (A,), "gain_score": (), "bias_score": (A,),
        "weight_out": (H, M + H), "bias_out": (H,),
    }  # fmt: skip
    assert [(name, w.shape) for name, w in ours.state_dict().items()] == list(expected.items())
    bare = module("general", ("context", "after", "hidden"), bias=False, coupled=True)
    assert {name: w.shape for name, w in bare.state_dict().items()} == {
        "weight_ih_l0": (3 * H, I + M), "weight_hh_l0": (3 * H, H), "weight_key": (H, M)
    }  # fmt: skip
    assert bare.weight_query is bare.gain_score is bare.weight_out is bare.bias_out is None
    assert set(module("dot", bias=False).state_dict()) == {"weight_ih_l0", "weight_hh_l0", "weight_out"}
    assert module("additive", (None, "before", "tanh")).weight_ih_l0.shape == (4 * H, I + M)
    assert module("additive", AT_ONCE).weight_ih_l0.shape == (4 * H, I)
    assert fastlstm.AttentionLSTM(2, 30, 5).attention_size == 30


def test_initial_weights_are_uniform_within_their_bounds():
    ours = fastlstm.AttentionLSTM(9, 50, 70, attention="normalized_additive", attention_size=60)
    for name, p in ours.named_parameters():
        columns = {"weight_query": 50, "weight_key": 70, "weight_score": 60, "weight_out": 120, "bias_out": 120}
        if name in ("gain_score", "bias_score"):
            assert torch.equal(p, torch.full_like(p, math.sqrt(1 / 60) if name == "gain_score" else 0))
            continue
        bound = 1 / math.sqrt(columns.get(name, 50))
        assert 0.8 * bound < p.abs().max() <= bound
    before = {name: p.clone() for name, p in ours.named_parameters()}
    ours.reset_parameters()
    same = [name for name, p in ours.named_parameters() if torch.equal(p, before[name])]
    assert same == ["gain_score", "bias_score"]


def test_repr_says_what_is_not_usual():
    assert repr(fastlstm.AttentionLSTM(3, 5, 7)) == "fastlstm.AttentionLSTM(3, 5, 7)"
    ours = fastlstm.AttentionLSTM(
        3, 5, 7, 2, False, True, 0.5, attention="normalized_additive", attention_size=9, feed=None, attend="before",
        query_layer=0, output="linear", output_dropout=0.25, peephole=True, coupled=True, backend="reference",
    )  # fmt: skip
    assert repr(ours) == (
        "fastlstm.AttentionLSTM(3, 5, 7, num_layers=2, bias=False, batch_first=True, dropout=0.5, "
        "attention='normalized_additive', feed=None, attend='before', query_layer=0, output='linear', output_dropout=0.25, "
        "peephole=True, coupled=True, attention_size=9, backend='reference')"
    )


def through_pickle(ours: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(ours))


def through_file(ours: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    fresh = copy.deepcopy(ours)
    fresh.reset_parameters()
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return fresh


def through_meta(ours: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(ours).to("meta")
    x, memory, state = (t if t is None else t.to("meta") for t in (*given(ours)[:2], None))
    assert fresh(x, memory, state, memory_lengths=MEMORY_LENGTHS)[0].shape == (T, B, H)
    fresh.to_empty(device="cpu")
    fresh.load_state_dict(ours.state_dict())
    return fresh


@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, through_pickle, through_file, through_meta])
@each_case
def test_copies_compute_the_same(case, through):
    ours = some(case)
    copied = through(ours)
    assert repr(copied) == repr(ours)
    assert_same(copied(*given(ours)), ours(*given(ours)))


def test_weights_are_read_at_every_call():
    ours, other = some("fed"), some("fed")
    other.reset_parameters()
    arguments = given(ours)
    assert_same(functional_call(ours, dict(other.named_parameters()), arguments), other(*arguments))
    w = other.weight_key.detach()
    del ours.weight_key
    ours.weight_key = w
    other.load_state_dict({**ours.state_dict(), "weight_key": w})
    assert_same(ours(*arguments), other(*arguments))


def test_state_and_precomputed_are_values():
    ours = some("fed")
    x, memory, _ = given(ours)
    precomputed = ours.precompute(memory, MEMORY_LENGTHS)
    assert isinstance(precomputed, Precomputed)
    assert precomputed.memory_lengths.dtype == torch.int64
    assert_same(precomputed.keys[:, 0, :], torch.nn.functional.linear(precomputed.memory[:, 0], ours.weight_key))
    assert ours.precompute(memory).memory is memory
    _, state = ours.step(x[0], precomputed)
    assert isinstance(state, AttentionState)
    assert state._fields == ("h", "c", "fed")
    assert_same(pickle.loads(pickle.dumps(state)), state)


def first(t: Tensor, dim: int) -> Tensor:
    return t.select(dim, 0)


@each_score
@each_way
def test_unbatched(score, way):
    ours = module(score, way, num_layers=2)
    x, memory, state = given(ours)
    h, c, fed = state
    y, end, alignments = ours(x, memory, state, need_weights=True, memory_lengths=MEMORY_LENGTHS)
    alone = first(h, 1), first(c, 1), None if fed is None else fed[0]
    expected = (
        y[:, 0],
        AttentionState(end.h[:, 0], end.c[:, 0], None if fed is None else end.fed[0]),
        alignments[:, 0],
    )
    for length in (torch.tensor(3), torch.tensor([3]), [3], 3):
        assert_same(ours(x[:, 0], memory[:, 0], alone, need_weights=True, memory_lengths=length), expected)
    precomputed, found, step_state = ours.precompute(memory[:, 0], 3), [], alone
    for x_t in x[:, 0]:
        out, step_state, weights = ours.step(x_t, precomputed, step_state, need_weights=True)
        found.append((out, weights))
    outs, weights = (torch.stack(t) for t in zip(*found, strict=True))
    assert_same((outs, step_state, weights), expected)


@each_use
@each_case
def test_batch_first_moves_all_but_the_state(case, use):
    ours = some(case)
    x, memory, state = given(ours)
    y, end, alignments = ours(x, memory, state, need_weights=True, **USES[use])
    ours.batch_first = True
    found = ours(x.transpose(0, 1), memory.transpose(0, 1), state, need_weights=True, **USES[use])
    assert_same(found, (y.transpose(0, 1), end, alignments.transpose(0, 1)))
    precomputed = ours.precompute(memory.transpose(0, 1), MEMORY_LENGTHS)
    ours.batch_first = False
    assert_same(precomputed, ours.precompute(memory, MEMORY_LENGTHS))


@each_case
def test_any_strides(case):
    ours = some(case)
    x, memory, state = given(ours)
    expected = ours(x, memory, state, memory_lengths=MEMORY_LENGTHS)
    moved = [t.permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in (x, memory, *state[:2])]
    fed = None if state[2] is None else state[2].t().contiguous().t()
    assert_same(ours(*moved[:2], (*moved[2:], fed), memory_lengths=torch.tensor(MEMORY_LENGTHS).int()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@each_case
def test_lesser_dtypes(case, dtype):
    """As near as rounding what is stored lets them be; sums are of float32."""
    ours = some(case).to(dtype)
    wide = copy.deepcopy(ours).double()
    arguments = [t.to(dtype) for t in given(ours)[:2]]
    results = flat(ours(*arguments, need_weights=True, memory_lengths=MEMORY_LENGTHS))
    expected = flat(wide(*[t.double() for t in arguments], need_weights=True, memory_lengths=MEMORY_LENGTHS))
    for found, right in zip(results, expected, strict=True):
        assert found.dtype == dtype
        assert (found.double() - right).norm() <= 8 * torch.finfo(dtype).eps * right.norm()
    y = ours(*arguments, memory_lengths=MEMORY_LENGTHS)[0]
    assert (y.double() - expected[0]).norm() <= 8 * torch.finfo(dtype).eps * expected[0].norm()
    y.sum().backward()
    assert all(p.grad.dtype == dtype for p in ours.parameters())


@each_case
def test_autocast_is_the_module_in_its_dtype(case):
    ours = some(case).float()
    x, memory, state = given(ours)
    x, memory, state = x.float(), memory.float(), [None if s is None else s.float() for s in state]
    low = copy.deepcopy(ours).bfloat16()
    cast = [t.bfloat16() for t in (x, memory)]
    expected = low(*cast, [None if s is None else s.bfloat16() for s in state], need_weights=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x, memory, state, need_weights=True)
        precomputed = ours.precompute(memory)
        out, _ = ours.step(x[0], precomputed, state)
    assert_same(found, expected)
    assert_same(
        out, low.step(cast[0][0], low.precompute(cast[1]), [None if s is None else s.bfloat16() for s in state])[0]
    )
    found[0].sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    wide = some(case)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(wide(*given(wide)), wide.eval()(*given(wide)))
        assert wide(*given(wide))[0].dtype == torch.float64


@each_case
def test_no_gradient_where_none_is_asked_for(case):
    ours = some(case)
    x, memory, state = given(ours)
    with torch.no_grad():
        assert not ours(x, memory, state)[0].requires_grad
    for p in ours.parameters():
        p.requires_grad_(False)
    assert not ours(x, memory, state)[0].requires_grad
    memory.requires_grad_()
    ours(x, memory, state)[0].sum().backward()
    assert memory.grad.any()


@each_case
def test_results_may_be_edited_before_the_backward(case):
    """Those of the recurrence; of what PyTorch's ops keep, they say that it was edited."""
    ours = some(case)
    x, memory, state = given(ours)
    leaves = [x.requires_grad_(), memory.requires_grad_(), *ours.parameters()]
    expected = gradients(flat(ours(x, memory, state, need_weights=True)), leaves)
    results = flat(ours(x, memory, state, need_weights=True))
    goal = [t * 1 for t in results]
    with torch.no_grad():
        for t in results[1:-1] if case.startswith("at once") else results:
            t.zero_()
    assert_same(gradients(goal, leaves), expected)
