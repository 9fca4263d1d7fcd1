"""The ops of an LSTM that attends, and of attention, for a GPU: held to the reference without one, see test_gpu_parity.py."""

from dataclasses import replace

import pytest
import torch
from gpu_attention_cases import (
    GRADIENTS,
    OF_BACKWARD,
    RESULTS,
    TENSORS,
    Case,
    attended,
    by_reference,
    decoded,
    floating,
    hold,
)
from gpu_interpreter import LITTLE, Interpreter
from gpu_watch import Watch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fastlstm import backends
from fastlstm.gpu import launch
from fastlstm.gpu import plan as gpu_plan
from fastlstm.gpu.attend import attend_bwd, attend_fwd
from fastlstm.gpu.attend import saved_like as attend_saved_like
from fastlstm.gpu.attention_lstm import attention_lstm_bwd, attention_lstm_fwd, saved_like

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")

CASES = {
    "attentional": Case(),
    "of two layers, the lower asks": Case(L=2, query_layer=0, dropped=True, memory_lengths=(7, 0, 3)),
    "lengths": Case(batch_sizes=(3, 2, 0), memory_lengths=(5, 7, 0), dropped=True),
    "linear, without biases": Case(tanh=False, bias=False, coupled=True),
    "context": Case(feed=2, dropped=True, peephole=True),
    "context, and no output": Case(feed=2, hidden=True, L=2, query_layer=1, coupled=True, peephole=True),
    "before": Case(feed=0, before=True, L=2, query_layer=0, dropped=True, memory_lengths=(1, 7, 0)),
    "before, dot, lengths": Case(feed=0, before=True, score="dot", M=17, batch_sizes=(3, 3, 1), tanh=False),
    "dot": Case(score="dot", M=17, L=2, query_layer=1, memory_lengths=(7, 2, 0)),
    "general": Case(score="general", feed=2, batch_sizes=(2, 1, 1), memory_lengths=(2, 7, 0)),
    "nothing is fed": Case(T=1, feed=0, S=1, B=1),
    "many slots": Case(T=1, B=2, S=130, A=33, memory_lengths=(130, 70)),
}


def ours(case: Case, given: dict, upstream: list[Tensor], *, wanted: bool = True) -> dict:
    """What the ops find, by name; gradients begin with a d."""
    results = attention_lstm_fwd(*(given[k] for k in TENSORS), *case.flags, True, True)
    found = attention_lstm_bwd(*upstream, *(given[k] for k in OF_BACKWARD), results[-1], *case.flags, wanted, wanted)
    names = [*RESULTS, *(f"d{name}" for name in GRADIENTS)]
    return dict(zip(names, [*results[:-1], *found], strict=True))


def check(case: Case, dtype: torch.dtype) -> None:
    given = floating(case.tensors(), dtype)
    shapes = [r.shape for r in decoded(case)(given)]
    upstream = [torch.randn(shape).to(dtype) for shape in shapes]
    exact, peers = (
        named(*by_reference(decoded(case), floating(given, wide), [d.to(wide) for d in upstream]))
        for wide in (torch.float64, dtype)
    )
    hold(ours(case, given, upstream), peers, exact, dtype)


def named(results: list[Tensor], gradients: dict) -> dict:
    return dict(zip(RESULTS, results, strict=True)) | {f"d{name}": gradients.get(name) for name in GRADIENTS}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_results_and_gradients(case: Case, interpreter: Interpreter) -> None:
    check(case, torch.float32)
    launches = [name for name, *_ in interpreter.launched]
    once = ["attend_keys"] if case.score == "additive" else []
    assert len(launches) == case.T * (2 * (case.L + 1) + (case.feed > 0 or case.before)) + len(once)


@pytest.mark.parametrize(("case", "dtype"), [("lengths", torch.bfloat16), ("before, dot, lengths", torch.float16)])
def test_half_precision(case: str, dtype: torch.dtype, interpreter: Interpreter) -> None:
    check(CASES[case], dtype)


def test_large_rows(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which a slot, or a row of a weight, passes at a time; and products in many blocks."""
    monkeypatch.setattr(gpu_plan, "slot_tile", lambda *widths: (1, 4))
    monkeypatch.setattr(launch, "gpu", lambda device: LITTLE)
    check(Case(T=1, B=2, S=3, memory_lengths=(3, 1)), torch.float32)


@pytest.mark.parametrize(("dtype", "lengths"), [(torch.float32, (7, 0, 2)), (torch.bfloat16, None)])
def test_all_steps_at_once(dtype: torch.dtype, lengths: tuple[int, ...] | None, interpreter: Interpreter) -> None:
    T, B, S, M, A = 4, 3, 7, 13, 21
    given = floating(
        {"query": torch.randn(T, B, A), "memory": torch.randn(S, B, M), "keys": torch.randn(S, B, A)}, dtype
    )
    given["memory_lengths"] = None if lengths is None else torch.tensor(lengths)
    given["w_score"] = torch.randn(A).to(dtype)
    upstream = [torch.randn(T, B, n).to(dtype) for n in (M, S)]
    exact, peers = (
        (dict(zip(("context", "alignments"), results, strict=True)) | gradients)
        for results, gradients in (
            by_reference(attended, floating(given, wide), [d.to(wide) for d in upstream])
            for wide in (torch.float64, dtype)
        )
    )
    context, alignments, saved = attend_fwd(*given.values(), True, True)
    found = attend_bwd(*upstream, *given.values(), saved, True, True)
    names = ("context", "alignments", "query", "memory", "keys", "w_score")
    hold(dict(zip(names, [context, alignments, *found], strict=True)), peers, exact, dtype)
    assert [name for name, *_ in interpreter.launched] == ["attend_forward", "attend_backward", "attend_keys"]


@pytest.mark.parametrize("case", [Case(T=2, B=2, L=2, feed=2), Case(T=2, B=2, feed=0, before=True, score="dot", M=17)])
def test_what_is_not_saved_or_asked_for(case: Case, interpreter: Interpreter) -> None:
    """The same results without what the backward needs; no gradients where none are given; and of those only what is wanted."""
    given = floating(case.tensors(), torch.float32)
    *results, saved = attention_lstm_fwd(*(given[k] for k in TENSORS), *case.flags, True, True)
    *others, nothing = attention_lstm_fwd(*(given[k] for k in TENSORS), *case.flags, False, False)
    assert not nothing.numel()
    assert not others.pop().numel()
    assert all(torch.equal(one, other) for one, other in zip(results, others, strict=False))
    kept, y = (given[k] for k in OF_BACKWARD), torch.ones_like(results[0])
    dx, dh0, *rest = attention_lstm_bwd(y, *[None] * 4, *kept, saved, *case.flags, False, False)
    kept = (given[k] for k in OF_BACKWARD)
    zeros = [torch.zeros_like(r) for r in results[1:]]
    also, dh0_also, *rest_also = attention_lstm_bwd(y, *zeros[:2], zeros[2] if case.feed else None, zeros[3], *kept, saved,
        *case.flags, True, True)  # fmt: skip
    assert not dx.numel()
    assert also.numel()
    assert torch.equal(dh0, dh0_also)
    assert all(torch.equal(one, other) for one, other in zip(rest[:4], rest_also[:4], strict=True))
    assert not any(d.numel() for d in rest[4:])


def test_nothing_beyond_a_length_is_read(interpreter: Interpreter) -> None:
    """Neither forward nor backward: no result changes where it is no number."""
    case = Case(batch_sizes=(3, 2, 1), memory_lengths=(5, 7, 0), feed=2, score="general")
    given = floating(case.tensors(), torch.float32)
    shapes = [r.shape for r in decoded(case)(given)]
    upstream = [torch.randn(shape) for shape in shapes]
    first = ours(case, given, upstream)
    for b, (length, steps) in enumerate(zip(case.memory_lengths, (3, 2, 1), strict=True)):
        for array in (given["memory"], given["keys"]):
            array[length:, b] = torch.nan
        upstream[4][:, b, length:] = torch.nan
        for array in (given["x"], upstream[0], upstream[4]):
            array[steps:, b] = torch.nan
    again = ours(case, given, upstream)
    assert all(torch.equal(one, other) for one, other in zip(first.values(), again.values(), strict=True))


@pytest.mark.parametrize("sizes", [{"T": 0}, {"B": 0}, {"S": 0}])
def test_empty_sizes(sizes: dict[str, int], interpreter: Interpreter) -> None:
    case = Case(**sizes, feed=2)
    given = floating(case.tensors(), torch.float32)
    upstream = [torch.ones(r.shape) for r in ours_forward(case, given)]
    found = ours(case, given, upstream)
    for name in GRADIENTS:
        assert (
            found[f"d{name}"].shape == given[name].shape if given[name] is not None else not found[f"d{name}"].numel()
        )
    assert all(t.isfinite().all() for t in found.values())


def ours_forward(case: Case, given: dict) -> tuple[Tensor, ...]:
    return attention_lstm_fwd(*(given[k] for k in TENSORS), *case.flags, True, False)[:-1]


@pytest.mark.parametrize("save", [True, False])
def test_the_fakes_tell_what_is_saved(save: bool) -> None:
    for case in (Case(L=2), Case(feed=0, before=True, score="dot", M=17, hidden=True)):
        given = case.tensors("meta", torch.bfloat16)
        with launch.recorded():
            *_, saved = attention_lstm_fwd(*(given[k] for k in TENSORS), *case.flags, False, save)
        told = saved_like(*(given[k] for k in ("x", "h0", "memory", "w_hh", "w_query", "w_out")), save)
        assert (told.shape, told.dtype) == (saved.shape, saved.dtype)
    query, memory, keys = (torch.empty(n, 3, 5, device="meta") for n in (4, 7, 7))
    with launch.recorded():
        *_, saved = attend_fwd(query, memory, keys, None, query[0, 0], True, save)
    told = attend_saved_like(query, memory, save)
    assert (told.shape, told.dtype) == (saved.shape, saved.dtype)


def test_what_is_saved_may_have_symbolic_sizes() -> None:
    env = ShapeEnv()
    mode, tensors = FakeTensorMode(shape_env=env), Case(T=5, B=7, S=11).tensors()
    given = {k: t if t is None else mode.from_tensor(t) for k, t in tensors.items()}
    with mode:
        told = saved_like(*(given[k] for k in ("x", "h0", "memory", "w_hh", "w_query", "w_out")), True)
    assert isinstance(told.shape[0], torch.SymInt)
    assert not env.guards, "a size was taken for a constant: every new T, B or S would compile anew"


def test_kernels_know_neither_time_nor_the_memory() -> None:
    specs = set()
    for T, S in ((1, 3), (1000, 400)):
        given = Case(T=T, S=S).tensors("meta", torch.bfloat16)
        with launch.recorded() as calls:
            attention_lstm_fwd(*(given[k] for k in TENSORS), *Case().flags, False, True)
        specs |= {call.spec for call in calls}
    assert len(specs) == 2


RACES = {
    "fed": Case(L=2, query_layer=1, peephole=True, dropped=True),
    "before": Case(feed=0, before=True, memory_lengths=(7, 0, *[2] * 15)),
}


@pytest.mark.parametrize("case", RACES.values(), ids=RACES)
def test_no_program_touches_what_another_one_writes(case, interpreter, fake_cuda, monkeypatch) -> None:
    watch = Watch(interpreter, fake_cuda, monkeypatch)
    monkeypatch.setattr(gpu_plan, "batch_tile", lambda B: 16)
    case = replace(case, T=2, B=17)
    given = floating(case.tensors(), torch.float32)
    ours(case, given, [torch.randn(r.shape) for r in decoded(case)(given)])
    assert len({programs for _, programs in watch.launches}) > 1
    assert all(programs >= 2 for _, programs in watch.launches)
    assert not watch.races
