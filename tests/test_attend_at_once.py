"""Where nothing is fed: reads of the memory by many queries of a sequence at once, and the output of all steps."""

from functools import partial

import pytest
import torch
from torch import Tensor

from fastlstm.backends import extension_status
from fastlstm.kernels.attention_lstm.reference import attend_reference
from fastlstm.ops import attentional
from fastlstm.ops.attend import attend

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(extension_status() != "built", reason="without the extension there are no ops"),
]
# T, B, S, A, M, lengths: whole panels or not, more steps than a block has, more slots than a product sums up
SIZES = {
    "panels": (5, 3, 50, 32, 48, [50, 0, 7]),
    "no panels": (5, 3, 9, 33, 17, [9, 0, 1]),
    "many steps": (201, 2, 66, 16, 16, [65, 66]),
    "many slots": (3, 2, 600, 16, 80, [600, 257]),
    "one slot": (4, 3, 1, 64, 64, None),
    "one step": (1, 3, 20, 64, 16, [3, 20, 2]),
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def run(of, tensors, lengths, weights, dcontext, dweights):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    context, alignments = of(*leaves, lengths, weights)
    loss = (context * dcontext).sum() + ((alignments * dweights).sum() if weights else 0)
    return [context.detach(), alignments.detach(), *torch.autograd.grad(loss, [t for t in leaves if t is not None])]


def by_kernels(query, memory, keys, lengths, weights):
    return attend(query, memory, keys, lengths, None, return_alignments=weights, backend="numba")


def by_reference(query, memory, keys, lengths, weights):
    return attend_reference(query, memory, keys, lengths, None, weights)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("own_keys", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_products_are_the_reference_s(size: str, own_keys: bool, weights: bool) -> None:
    T, B, S, A, M, lengths = SIZES[size]
    A = A if own_keys else M
    memory, keys = draw(S, B, M), draw(S, B, A) if own_keys else None
    query, dcontext, dweights = draw(T, B, A), draw(T, B, M), draw(T, B, S)
    lengths = None if lengths is None else torch.tensor(lengths)
    expected = run(by_reference, (query, memory, keys), lengths, weights, dcontext, dweights)
    for b, length in enumerate([] if lengths is None else lengths.tolist()):  # is not read
        memory[length:, b] = torch.nan
        if keys is not None:
            keys[length:, b] = torch.nan
    found = run(by_kernels, (query, memory, keys), lengths, weights, dcontext, dweights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", ["panels", "many steps"])
def test_threads_change_no_bit(size: str) -> None:
    T, B, S, _, M, lengths = SIZES[size]
    query, memory, dcontext, dweights = (draw(n, B, k).float() for n, k in ((T, M), (S, M), (T, M), (T, S)))
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(by_kernels, (query, memory, None), torch.tensor(lengths), True, dcontext, dweights))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_one_memory_for_all_steps_and_sequences() -> None:
    """Of no distance between slots, or between sequences."""
    query = draw(6, 3, 32)
    for memory in (draw(1, 3, 32).expand(5, 3, 32), draw(5, 1, 32).expand(5, 3, 32)):
        expected = by_reference(query, memory, None, None, False)[0]
        torch.testing.assert_close(by_kernels(query, memory, None, None, False)[0], expected, rtol=1e-10, atol=1e-11)


def test_scores_of_any_size_are_exact() -> None:
    memory = torch.eye(16, dtype=torch.float64).unsqueeze(1)
    query = 1e150 * draw(4, 1, 16)
    context, weights = by_kernels(query, memory, None, None, True)
    assert torch.equal(context[:, 0].argmax(1), query[:, 0].argmax(1))
    assert torch.equal(weights.sum(2), torch.ones(4, 1, dtype=torch.float64))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tanh", [False, True])
def test_outputs_apart_are_those_side_by_side(tanh: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for large in (1, 1 << 30):
        monkeypatch.setattr(attentional, "LARGE", large)
        context, h, w, b = (t.requires_grad_() for t in (draw(3, 2, 5), draw(3, 2, 4), draw(4, 9), draw(4)))
        given = [context, h, w, *([b] if bias else [])]

        run = partial(attentional.attentional, context, h, w, b if bias else None, tanh=tanh)
        y = run()
        value = y.detach().clone()
        with torch.no_grad():
            inferred = run()
        first = torch.autograd.grad(y.mul_(2), given, draw(3, 2, 4))  # a caller may edit it
        graph = torch.autograd.grad(run(), given, draw(3, 2, 4), create_graph=True)
        loss = sum((d * d).sum() for d in graph)
        second = torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)
        found[large] = [value, inferred, *first, *second]
    for one, other in zip(found[1], found[1 << 30], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
