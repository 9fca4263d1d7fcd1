"""The ops of the Attention LSTM: what they promise to PyTorch, how work is shared, and what they refuse."""

import pytest
import torch
from attention_cases import each_case, flat, given, gradients, some
from helpers import assert_same
from test_compile import quiet_compiler
from torch import Tensor

import fastlstm
from fastlstm.backends import extension_status
from fastlstm.ops import attend, attention_lstm

needs_extension = pytest.mark.skipif(extension_status() != "built", reason="without the extension there are no ops")
FAKES = ("test_schema", "test_faketensor")
T, B, I, H, M, A, S = 4, 3, 5, 6, 7, 9, 8


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / 2


def forward(**others: object) -> dict[str, object]:
    """The arguments of `attention_lstm_fwd`: two layers, additive scores, and all that may be given."""
    arguments: dict[str, object] = {
        "x": draw(T, B, I), "batch_sizes": torch.tensor([3, 3, 1, 0]), "h0": draw(2, B, H), "c0": draw(2, B, H),
        "fed0": draw(B, H), "memory": draw(S, B, M), "keys": draw(S, B, A), "memory_lengths": torch.tensor([8, 0, 3]),
        "dropped_layers": draw(1, T, B, H), "dropped_output": draw(T, B, H), "dropped_fed": None,
        "w_ih": draw(4 * H, I + H), "w_ih_above": draw(1, 4 * H, H), "w_hh": draw(2, 4 * H, H), "b_ih": draw(2, 4 * H),
        "b_hh": draw(2, 4 * H), "w_peephole": draw(2, 3, H), "w_query": draw(A, H), "b_query": draw(A), "w_score": draw(A),
        "w_out": draw(H, M + H), "b_out": draw(H), "coupled": False, "before": False, "feed": 1, "query_layer": 1,
        "tanh": True, "scale": 1.0, "return_alignments": True, "save": True,
    }  # fmt: skip
    return arguments | others


def run(arguments: dict[str, object]) -> tuple[Tensor, ...]:
    return attention_lstm.OPS.fwd(*arguments.values())


@needs_extension
@pytest.mark.parametrize("save", [False, True])
def test_fakes_of_the_forward(save):
    torch.library.opcheck(attention_lstm.OPS.fwd, tuple(forward(save=save).values()), test_utils=FAKES)
    query, memory, keys = draw(T, B, A), draw(S, B, M), draw(S, B, A)
    torch.library.opcheck(attend.OPS.fwd, (query, memory, keys, None, draw(A), save, save), test_utils=FAKES)


@needs_extension
@pytest.mark.parametrize("need_dw", [False, True])
@pytest.mark.parametrize("need_dx", [False, True])
def test_fakes_of_the_backward(need_dx, need_dw):
    arguments = forward()
    y, h_n, _, fed_n, alignments, saved = run(arguments)
    known = arguments | {"dy": draw(*y.shape), "dh_n": draw(*h_n.shape), "dc_n": None, "dfed_n": draw(*fed_n.shape)}
    known |= {"dalignments": draw(*alignments.shape), "saved": saved, "need_dx": need_dx, "need_dw": need_dw}
    names = attention_lstm.OPS.bwd_inputs
    torch.library.opcheck(attention_lstm.OPS.bwd, tuple(known[name] for name in names), test_utils=FAKES)
    tensors = draw(T, B, A), draw(S, B, M), draw(S, B, A), None, draw(A)
    context, _, saved = attend.OPS.fwd(*tensors, False, True)
    arguments_of_attend = (draw(*context.shape), None, *tensors, saved, need_dx, need_dw)
    torch.library.opcheck(attend.OPS.bwd, arguments_of_attend, test_utils=FAKES)


@needs_extension
@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"memory_lengths": torch.tensor([8, 9, 3])}, "memory_lengths must lie between 0 and the number of slots"),
        ({"memory_lengths": torch.tensor([8, 0])}, r"memory_lengths must be int64 \(B,\)"),
        ({"batch_sizes": torch.tensor([1, 3, 1, 0])}, "batch_sizes must not increase"),
        ({"keys": draw(S, B, M)}, r"keys has shape \(8, 3, 7\), expected \(8, 3, 9\)"),
        ({"keys": None}, "additive scores need w_query and keys"),
        ({"w_ih": draw(4 * H, I)}, r"w_ih has shape \(24, 5\), expected \(24, 11\)"),
        ({"w_ih_above": None}, "more than one layer needs w_ih_above"),
        ({"query_layer": 2}, "query_layer must be one of the layers"),
        ({"feed": 3}, "feed must be 0"),
        ({"before": True}, "feed must be 0"),
        ({"fed0": None}, "fed0 is there where something is fed"),
        ({"w_out": None, "b_out": None}, "it needs w_out"),
        ({"w_query": None, "w_score": None}, "b_query and b_out are biases|keys has shape"),
        ({"dropped_fed": draw(T, B, M)}, "dropped_fed is of a context that is fed"),
        ({"x": draw(T, B, I).half()}, "dtype must be float32, float64 or bfloat16"),
        ({"h0": draw(2, B, 0)}, "must be 1 or more"),
    ],
)
def test_foreign_arguments(others, words):
    with pytest.raises(RuntimeError, match=words):
        run(forward(**others))


@each_case
def test_the_same_bits_for_any_number_of_threads(case):
    ours = some(case, H=40, M=40)
    x, memory, state = given(ours, T=7, B=11)
    leaves = [x.requires_grad_(), memory.requires_grad_(), *ours.parameters()]
    found = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results = ours(x, memory, state, need_weights=True)
            found.append((flat(results), gradients(flat(results), leaves)))
    finally:
        torch.set_num_threads(1)
    for results in found[1:]:
        for one, two in zip(found[0], results, strict=True):
            assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("layers", [1, 2])
def test_no_two_results_share_memory(layers):
    ours = fastlstm.AttentionLSTM(I, H, M, layers)
    memory = draw(S, B, M)
    for output, state in (ours.step(draw(B, I), ours.precompute(memory)), ours(draw(1, B, I), memory)):
        addresses = {t.untyped_storage().data_ptr() for t in (output, *state)}
        assert len(addresses) == 4


@quiet_compiler
@pytest.mark.parametrize("layers", [1, 2])
def test_compile_with_a_tensor_that_is_given_twice(layers):
    ours = fastlstm.AttentionLSTM(M, H, M, layers, dtype=torch.float64)
    x, h = draw(T, B, M).double(), draw(layers, B, H).double()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_same(compiled(x, x, (h, h)), ours(x, x, (h, h)))
