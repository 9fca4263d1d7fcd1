"""Decoders in bfloat16 by the CPU's instructions for it: cells, queries, outputs, and the gradients of all of them."""

import pytest
import torch
from helpers import assert_threads_change_no_bit
from test_paths import needs_extension, of_bfloat16
from torch import Tensor

import fastlstm
from fastlstm import backends, parity
from fastlstm.case import parse
from fastlstm.ops import attention_lstm

pytestmark = needs_extension
each_path = pytest.mark.parametrize("path", ["avx512+bf16", "avx512+amx"])

# Inputs of an odd size, sizes that fill no whole registers or panels, several layers and chunks, every score and feed
LINES = {
    "attentional": "T9 B33 I13 H34 S7 M22 A18 memory:0-7",
    "layers": "T50 B5 I32 H64 L3 S9 M32 query_layer:1 lengths:1-50 memory:3-9",
    "dot": "T7 B40 I31 H48 S33 M48 dot",
    "scaled": "T5 B3 I5 H18 L2 S6 M18 scaled_dot lengths:1-5",
    "general": "T30 B9 I64 H32 L2 S5 M96 general",
    "context": "T6 B17 I4 H32 S6 M50 feed:context memory:1-6",
    "hidden": "T5 B3 I7 H20 S6 M16 general feed:context output:hidden lengths:0-5",
    "linear": "T5 B3 I4 H8 S6 M8 output:linear",
    "before": "T8 B21 I9 H40 L2 S6 M12 feed:None attend:before query_layer:0 lengths:0-8",
    "before, hidden": "T5 B3 I4 H34 S6 M8 general feed:None attend:before output:hidden",
    "peepholes": "T9 B7 I5 H66 S4 M32 peephole coupled",
}
each_line = pytest.mark.parametrize("line", LINES)


def case_of(line: str) -> str:
    return f"attention_lstm {LINES[line]} bf16"


def results(line: str) -> dict[str, Tensor]:
    """Outputs, final states, alignments and all gradients, by name."""
    case = parse(case_of(line))
    torch.manual_seed(1)
    module = case.module(dtype=torch.bfloat16)
    x, memory = (torch.randn(n, case.B, k).bfloat16().requires_grad_() for n, k in ((case.T, case.I), (case.S, case.M)))
    of_each = {"lengths": list(case.lengths) or None, "memory_lengths": list(case.memory_lengths) or None}
    y, state, alignments = module(x, memory, need_weights=True, **of_each)
    outputs = [y, *(s for s in state if s is not None), alignments]
    given = dict(module.named_parameters()) | {"x": x, "memory": memory}
    torch.manual_seed(3)
    gradients = torch.autograd.grad(outputs, list(given.values()), [torch.randn(t.shape).bfloat16() for t in outputs])
    return {f"output {i}": t.detach() for i, t in enumerate(outputs)} | dict(zip(given, gradients, strict=True))


@each_path
@each_line
def test_parity(path, line):
    of_bfloat16(path)
    levels = [level for level in ("op", "step") if parity.skip(case_of(line), "bf16", "numba", level) is None]
    rows = [row for level in levels for row in parity.check(case_of(line), "bf16", "numba", level)]
    assert [row for row in rows if not row.ok] == []


@each_path
@each_line
def test_threads_change_no_bit(path, line):
    of_bfloat16(path)
    assert_threads_change_no_bit(lambda: results(line))


@each_path
def test_threads_keep_to_their_rows(path):
    """Where queries are h, all of it is rounded at the end, by each thread as fast as it gets on, through room for one step."""
    of_bfloat16(path)
    T, B, H = 60, 64, 128
    torch.manual_seed(1)
    module = fastlstm.AttentionLSTM(2, H, H, attention="dot", dtype=torch.bfloat16)
    x, memory = torch.randn(T, B, 2).bfloat16(), torch.randn(8, B, H).bfloat16().requires_grad_()

    def gradient() -> Tensor:
        output, _ = module(x, memory, lengths=[T - T * b // B for b in range(B)])
        return torch.autograd.grad(output.float().sum(), memory)[0]

    expected = gradient()
    try:
        torch.set_num_threads(3)
        assert all(torch.equal(gradient(), expected) for _ in range(20))
    finally:
        torch.set_num_threads(1)


@each_path
@each_line
def test_they_are_what_runs(path, line, monkeypatch):
    """Nothing is converted for the op; gradients are about those of float32's products, and no bits of large ones."""
    of_bfloat16(path)
    with monkeypatch.context() as patch:
        patch.setattr(attention_lstm, "by_reference", None)
        ours = results(line)
    backends.force_path("avx512")
    of_float32 = results(line)
    for name, found in ours.items():
        right = of_float32[name]
        assert (found.float() - right.float()).norm() <= 0.05 * right.float().norm() + 1e-3, name
        if found.numel() > 256 and name.startswith("weight_hh"):
            assert not torch.equal(found, right), name


@each_path
def test_the_op_says_what_it_does_not_take(path):
    """Odd sizes of h, which are converted for it."""
    of_bfloat16(path)
    sizes = (3, 2, 4), (1, 2, 7), (1, 2, 7), (2, 7), (3, 2, 4), (3, 2, 7), (28, 11), (1, 28, 7), (7, 7), (7,), (7, 11)
    x, h0, c0, fed0, memory, keys, w_ih, w_hh, w_query, w_score, w_out = (torch.zeros(n).bfloat16() for n in sizes)
    states, weights = (
        (x, None, h0, c0, fed0, memory, keys, None, None, None, None),
        (w_ih, None, w_hh, None, None, None),
    )
    beside, flags = (w_query, None, w_score, w_out, None), (False, False, 1, 0, True, 1.0, False, False)
    with pytest.raises(RuntimeError, match="even sizes"):
        torch.ops.fastlstm.attention_lstm_fwd(*states, *weights, *beside, *flags)


@pytest.mark.parametrize("score", ["additive", "general"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_nan_beside_a_memory_has_no_influence(score, batch_first):
    """In the tensor that it is a part of, where its rows fill no tiles."""
    torch.manual_seed(0)
    decoder = fastlstm.AttentionLSTM(
        4, 8, memory_size=33, attention=score, batch_first=batch_first, dtype=torch.bfloat16
    )
    x, wide = torch.randn(3, 3, 4).bfloat16(), torch.full((3, 3, 40), torch.nan, dtype=torch.bfloat16)
    memory = wide[..., :33].copy_(torch.randn(3, 3, 33))
    assert decoder(x, memory)[0].equal(decoder(x, memory.contiguous())[0])
    state = decoder.step(x[0], decoder.precompute(memory))[0]
    assert state.equal(decoder.step(x[0], decoder.precompute(memory.contiguous()))[0])


@each_path
def test_a_backward_on_a_lesser_path_says_what_it_needs(path):
    of_bfloat16(path)
    decoder = fastlstm.AttentionLSTM(4, 8, memory_size=8).bfloat16()
    output, _ = decoder(torch.randn(3, 2, 4).bfloat16(), torch.randn(5, 2, 8).bfloat16())
    backends.force_path("avx512")
    with pytest.raises(RuntimeError, match="a backward needs the path of its forward, which force_path changed since"):
        output.sum().backward()


@pytest.mark.parametrize("score", ["additive", "general"])
def test_nan_beyond_a_memory_has_no_influence(score):
    """Where nobody asks for gradients, and rows of the memory fill no tiles."""
    torch.manual_seed(0)
    S, B, M = 17, 9, 33
    ours = fastlstm.AttentionLSTM(5, 8, M, attention=score, dtype=torch.bfloat16).requires_grad_(False)
    lengths = torch.tensor([4, 9, 16, 3, 8, 1, 14, 7, 8])
    x, memory = torch.randn(6, B, 5).bfloat16(), torch.randn(S, B, M).bfloat16()
    beyond = (torch.arange(S)[:, None] >= lengths)[..., None]
    found = [ours(x, memory.masked_fill(beyond, fill), memory_lengths=lengths)[0] for fill in (0.0, torch.nan)]
    assert torch.equal(*found)
