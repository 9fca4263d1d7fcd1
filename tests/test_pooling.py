"""AttentionPooling against its equations, one sequence and one head at a time."""

import copy
import doctest
import importlib
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastlstm
from fastlstm import AttentionPooling

S, B, M = 7, 5, 6
LENGTHS = [7, 3, 0, 1, 6]


def make(attention_size: int | None = None, heads: int = 1, **options) -> AttentionPooling:
    torch.manual_seed(0)
    return AttentionPooling(M, attention_size, heads, dtype=torch.float64, **options)


def memory() -> Tensor:
    return torch.randn(S, B, M, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pooled_by_hand(module: AttentionPooling, memory: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    rows, columns = [], torch.zeros(B, module.heads, S, dtype=torch.float64)
    for b, n in enumerate(lengths):
        parts = []
        for k in range(module.heads):
            scores = [module.weight_score[k] @ (module.weight_key @ m + module.bias_key).tanh() for m in memory[:n, b]]
            total = sum(e.exp() for e in scores)
            parts.append(sum((e.exp() / total * m for e, m in zip(scores, memory[:n, b], strict=True)), torch.zeros(M)))
            for s, e in enumerate(scores):
                columns[b, k, s] = (e.exp() / total).detach()
        rows.append(torch.cat(parts))
    return torch.stack(rows), columns


@pytest.mark.parametrize(("attention_size", "heads"), [(None, 1), (3, 1), (9, 4)])
def test_values_and_gradients(attention_size: int | None, heads: int) -> None:
    module, x = make(attention_size, heads), memory().requires_grad_()
    pooled, weights = module(x, LENGTHS)
    expected, expected_weights = pooled_by_hand(module, x, LENGTHS)
    assert pooled.shape == (B, heads * M)
    assert weights.shape == (B, heads, S)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(weights, expected_weights)
    d = torch.randn(B, heads * M, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    of = [x, *module.parameters()]
    for found, wanted in zip(torch.autograd.grad(pooled, of, d), torch.autograd.grad(expected, of, d), strict=True):
        torch.testing.assert_close(found, wanted)


def test_sizes_and_first_weights() -> None:
    sizes = {name: tuple(p.shape) for name, p in make(9, 4).named_parameters()}
    assert sizes == {"weight_key": (9, M), "bias_key": (9,), "weight_score": (4, 9)}
    assert repr(make(batch_first=True)) == "fastlstm.AttentionPooling(6, 6, heads=1, batch_first=True)"
    module = AttentionPooling(100, 400, 3)
    for weight, sums in ((module.weight_key, 100), (module.bias_key, 100), (module.weight_score, 400)):
        assert 0.9 < weight.abs().max() * sums**0.5 <= 1


def test_no_lengths() -> None:
    module, x = make(4, 2), memory()
    for found, expected in zip(module(x), module(x, torch.full((B,), S)), strict=True):
        assert torch.equal(found, expected)
    torch.testing.assert_close(module(x)[1].sum(-1), torch.ones(B, 2, dtype=torch.float64))


@pytest.mark.parametrize("what", [float("nan"), float("inf"), 1e30])
def test_what_lies_beyond_a_length_has_no_influence(what: float) -> None:
    module = make(4, 2)
    expected, found = ([], [])
    for results, fill in ((expected, 0.0), (found, what)):
        x = memory()
        for b, n in enumerate(LENGTHS):
            x[n:, b] = fill
        before = x.clone()
        x.requires_grad_()
        pooled, weights = module(x, LENGTHS)
        pooled.square().sum().backward()
        results += [pooled, weights, x.grad, *(p.grad.clone() for p in module.parameters())]
        torch.testing.assert_close(x.detach(), before, rtol=0, atol=0, equal_nan=True)
        module.zero_grad()
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    for b, n in enumerate(LENGTHS):
        assert (found[1][b, :, n:] == 0).all()
        assert (found[2][n:, b] == 0).all()
    assert (found[0][2] == 0).all()


def test_batch_first_and_lists() -> None:
    found = make(4, 2, batch_first=True)(memory().transpose(0, 1), torch.tensor(LENGTHS, dtype=torch.int32))
    torch.testing.assert_close(found, make(4, 2)(memory(), LENGTHS))


def test_no_steps_or_sequences() -> None:
    module = make(4, 2)
    pooled, weights = module(memory()[:0], [0] * B)
    assert torch.equal(pooled, torch.zeros(B, 2 * M, dtype=torch.float64))
    assert weights.shape == (B, 2, 0)
    assert [tuple(x.shape) for x in module(memory()[:, :0], [])] == [(0, 2 * M), (0, 2, S)]


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_derivatives() -> None:
    module = make(3, 2)

    def pooled(x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(module, named, (x, LENGTHS))[0]

    inputs = [memory().requires_grad_(), *module.parameters()]
    assert torch.autograd.gradcheck(pooled, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(pooled, inputs)


def test_half_has_a_softmax_in_float32() -> None:
    module, x = make(4, 2), memory()
    expected = module(x, LENGTHS)
    half = copy.deepcopy(module).to(torch.bfloat16)
    for found, wanted in zip(half(x.bfloat16(), LENGTHS), expected, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), wanted, rtol=0.05, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module.float()(x.float(), LENGTHS)[1].double(), expected[1], rtol=0.05, atol=0.02)


def test_meta() -> None:
    module = make(4, 2).to("meta")
    pooled, weights = module(memory().to("meta"), LENGTHS)
    assert pooled.shape == (B, 2 * M)
    assert weights.shape == (B, 2, S)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(memory().to("meta"))[0].is_meta


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float64])
def test_what_autocast_does_not_cast(dtype: torch.dtype) -> None:
    module = make().float()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=f"dtype {dtype}, expected torch.float32"),
    ):
        module(memory().to(dtype))


def test_pickled_and_loaded() -> None:
    module = make(4, 2)
    other = AttentionPooling(M, 4, 2, dtype=torch.float64)
    other.load_state_dict(module.state_dict())
    for copied in (other, pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(memory(), LENGTHS)[0], module(memory(), LENGTHS)[0])


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: AttentionPooling(0), ValueError, "memory_size is 0, expected at least 1"),
        (lambda: AttentionPooling(3, 2.0), TypeError, "attention_size should be of type int, got: float"),
        (lambda: AttentionPooling(3, heads=-1), ValueError, "heads is -1, expected at least 1"),
        (lambda: AttentionPooling(3, batch_first=1), TypeError, "batch_first should be of type bool, got: int"),
        (lambda: AttentionPooling(3, dtype=torch.int64), ValueError, "dtype is torch.int64, expected a floating-point"),
        (lambda: AttentionPooling(3, dtype=torch.int8), ValueError, "torch.int8, expected a .* one: weights are fractions"),
        (lambda: make()(memory().to_sparse()), RuntimeError, "memory has layout torch.sparse_coo, expected torch.strided"),
        (lambda: make()([memory()]), TypeError, r"memory is of type list, expected a Tensor \(S, B, M\)"),
        (lambda: make()(memory()[0]), ValueError, r"memory has shape \(5, 6\), expected \(S, B, M\) with M = 6"),
        (lambda: make(batch_first=True)(memory()[..., 1:]), ValueError, r"\(7, 5, 5\), expected \(B, S, M\) with M = 6"),
        (lambda: make()(memory().float()), ValueError, "memory has dtype torch.float32, expected torch.float64"),
        (lambda: make()(memory().to("meta")), RuntimeError, "memory is on meta, expected cpu: that of the weights"),
        (lambda: make()(memory(), [1, 2]), ValueError, r"lengths has shape \(2,\), expected \(5,\)"),
        (lambda: make()(memory(), [8, 0, 0, 0, 0]), ValueError, "lengths holds 8, expected values from 0 to 7"),
        (lambda: make()(memory(), torch.ones(B)), TypeError, "lengths has dtype torch.float32, expected integers"),
    ],
)  # fmt: skip
def test_errors(build: Callable, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()


def test_docstring() -> None:
    module = importlib.import_module("fastlstm.modules.pooling")
    results = doctest.testmod(module, extraglobs={"fastlstm": fastlstm})
    assert results.attempted > 3
    assert not results.failed
