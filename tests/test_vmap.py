"""`torch.vmap`: what is mapped becomes rows of one batch, where weights are shared; gradients of each sample, and ensembles."""

from typing import Any

import pytest
import torch
from helpers import VARIANTS, B, H, I, T, as_list, assert_same, random
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fastlstm
from fastlstm import backends
from fastlstm.modules import build
from fastlstm.ops import attend, attention_lstm, conv_lstm, gru, lstm

N = 3
LENGTHS = torch.tensor([[3, 6, 0, 4], [6, 6, 6, 6], [1, 0, 2, 5]])
built = pytest.mark.skipif(backends.extension_status() != "built", reason="counts calls of the kernels")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ops that were called."""
    names: list[str] = []

    class Counted:
        def __init__(self, op: Any) -> None:
            self.op, self._schema = op, op._schema

        def __call__(self, *args: Any) -> Any:
            names.append(self._schema.name.removeprefix("fastlstm::"))
            return self.op(*args)

    for module in (lstm, gru, conv_lstm, attention_lstm, attend):
        for side in ("fwd", "bwd"):
            monkeypatch.setattr(module.OPS, side, Counted(getattr(module.OPS, side)))
    return names


def flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [t for r in results if r is not None for t in flat(r)]


def loss(weights: dict[str, Tensor], module: nn.Module, x: Tensor, options: dict[str, Any]) -> Tensor:
    return sum((t.sin() * (k + 1)).sum() for k, t in enumerate(flat(functional_call(module, weights, (x,), options))))


def each(module: nn.Module, x: Tensor, options: dict[str, Any], mapped: list[str]) -> list[tuple]:
    """The arguments of each element."""
    return [(x[n], options | {name: options[name][n] for name in mapped}) for n in range(len(x))]


def check(module: nn.Module, x: Tensor, options: dict[str, Any], mapped: list[str]) -> None:
    """Results, per-sample gradients of weights, and gradients of inputs, mapped and one by one."""
    dims = {name: 0 if name in mapped else None for name in options}
    weights = {name: w.detach() for name, w in module.named_parameters()}
    elements = each(module, x, options, mapped)
    found = list(vmap(lambda x, o: tuple(flat(module(x, **o))), (0, dims))(x, options))
    expected = zip(*[flat(module(x, **o)) for x, o in elements], strict=True)
    assert_same(found, [torch.stack(results) for results in expected])
    for argnums in (0, 2, (0, 2)):
        found = vmap(grad(loss, argnums), (None, None, 0, dims))(weights, module, x, options)
        alone = [grad(loss, argnums)(weights, module, x, o) for x, o in elements]
        for tree, trees in zip(_leaves(found), zip(*[_leaves(a) for a in alone], strict=True), strict=True):
            assert_same(tree, torch.stack(trees))


def _leaves(tree: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(tree)


OPTIONS: dict[str, tuple[dict, dict, list[str]]] = {
    "dense": ({}, {}, []),
    "no bias, two directions, layers": ({"bias": False, "bidirectional": True, "num_layers": 2}, {}, []),
    "shared lengths": ({"batch_first": True}, {"lengths": LENGTHS[0]}, []),
    "lengths": ({"bidirectional": True}, {"lengths": LENGTHS}, ["lengths"]),
    "resets": ({"bidirectional": True}, {"reset": (torch.arange(N * T * B) % 5 == 0).view(N, T, B)}, ["reset"]),
    "lengths, resets": (
        {"batch_first": True},
        {"lengths": LENGTHS, "reset": (torch.arange(B * T) % 4 == 0).view(B, T)},
        ["lengths"],
    ),
    "projection": ({"proj_size": 2}, {"lengths": LENGTHS}, ["lengths"]),
    "cells": ({}, {"return_cells": True}, []),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_sequences(variant: str, options: str) -> None:
    if variant == "gru" and options in ("projection", "cells"):
        pytest.skip("a GRU has none")
    made, called, mapped = OPTIONS[options]
    module = build(variant, I, H, dtype=torch.float64, **made)
    check(module, random(N, *((B, T) if module.batch_first else (T, B)), I), called, mapped)


@pytest.mark.parametrize("mapped", [[], ["reset"]])
@pytest.mark.parametrize("variant", VARIANTS)
def test_resets_of_one_sequence_each(variant: str, mapped: list[str]) -> None:
    module, reset = build(variant, I, H, dtype=torch.float64), (torch.arange(N * T) % 4 == 0).view(N, T, 1)
    check(module, random(N, T, 1, I), {"reset": reset if mapped else reset[0]}, mapped)


@pytest.mark.parametrize("variant", VARIANTS)
def test_unbatched_sequences_and_states(variant: str) -> None:
    module = build(variant, I, H, dtype=torch.float64)
    x, states = random(N, T, I), [random(N, 1, H) for _ in range(VARIANTS[variant].states)]
    hx = states[0] if len(states) == 1 else tuple(states)
    found = vmap(module, (0, 0))(x, hx)
    for n in range(N):
        one = module(x[n], states[0][n] if len(states) == 1 else tuple(s[n] for s in states))
        assert_same([t[n] for t in flat(found)], flat(one))


@pytest.mark.parametrize(
    "kind", [fastlstm.LSTMCell, fastlstm.GRUCell, fastlstm.PeepholeLSTMCell, fastlstm.CIFGLSTMCell]
)
def test_cells(kind: type[nn.Module]) -> None:
    check(kind(I, H, dtype=torch.float64), random(N, B, I), {}, [])


def test_packed_rows() -> None:
    """Of the same lengths for all."""
    from torch.nn.utils.rnn import PackedSequence

    module, sizes = fastlstm.LSTM(I, H, dtype=torch.float64), torch.tensor([4, 3, 3, 1])
    data = random(N, 11, I)

    def run(data: Tensor) -> Tensor:
        return module(PackedSequence(data, sizes))[0].data

    assert_same(vmap(run)(data), torch.stack([run(d) for d in data]))
    found = vmap(grad(lambda d: run(d).sin().sum()))(data)
    assert_same(found, torch.stack([grad(lambda d: run(d).sin().sum())(d) for d in data]))


@pytest.mark.parametrize("options", [{}, {"peephole": "channel", "coupled": True, "checkpoint": True}])
def test_conv_lstm(options: dict) -> None:
    module = fastlstm.ConvLSTM2d(2, 3, 3, dtype=torch.float64, **options)
    check(module, random(N, 4, 2, 2, 4, 3), {"lengths": torch.tensor([[4, 2], [0, 3], [4, 4]])}, ["lengths"])


@pytest.mark.parametrize("feed", ["attentional", None])
def test_attention_lstm(feed: str | None) -> None:
    module = fastlstm.AttentionLSTM(I, H, memory_size=6, feed=feed, dtype=torch.float64)
    options = {"memory": random(N, 5, B, 6), "memory_lengths": LENGTHS.clamp(max=5), "lengths": LENGTHS}
    check(module, random(N, T, B, I), options, list(options))


@pytest.mark.parametrize("variant", VARIANTS)
def test_nested(variant: str) -> None:
    """Two levels, of which the outer maps lengths too; and what only the outer maps."""
    module = build(variant, I, H, dtype=torch.float64)
    weights = {name: w.detach() for name, w in module.named_parameters()}
    x, lengths = random(N, 2, T, B, I), LENGTHS

    def of(x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return grad(loss)(weights, module, x, {"lengths": lengths})

    found = vmap(lambda x, lengths: vmap(lambda x: of(x, lengths))(x))(x, lengths)
    for n in range(N):
        for m in range(2):
            assert_same({name: g[n, m] for name, g in found.items()}, of(x[n, m], lengths[n]))
    jacobian = torch.func.jacrev(lambda x: module(x)[0][-1, 0, :2])
    assert_same(vmap(jacobian)(x[:, 0]), torch.stack([jacobian(one) for one in x[:, 0]]))


@pytest.mark.parametrize("variant", ["lstm", "gru"])
def test_a_penalty_on_gradients_of_each_sample(variant: str) -> None:
    """What is mapped can be differentiated again."""
    module = build(variant, I, H, dtype=torch.float64)
    weights = {name: w.detach() for name, w in module.named_parameters()}
    x = random(N, T, B, I)

    def penalty(weights: dict[str, Tensor], one_by_one: bool) -> Tensor:
        def norm(x: Tensor) -> Tensor:
            return sum(g.square().sum() for g in grad(loss)(weights, module, x, {}).values())

        return sum(norm(one) for one in x) if one_by_one else vmap(norm)(x).sum()

    assert_same(grad(penalty)(weights, False), grad(penalty)(weights, True))


@built
def test_one_call_of_each_op(calls: list[str]) -> None:
    for module, op in (
        (fastlstm.LSTM(I, H), "lstm"),
        (fastlstm.PeepholeLSTM(I, H), "lstm"),
        (fastlstm.GRU(I, H), "gru"),
        (fastlstm.ConvLSTM2d(I, H, 3), "conv_lstm"),
    ):
        calls.clear()
        x = torch.randn(N, T, B, I, *[4, 3] * (op == "conv_lstm"))
        weights = {name: w.detach() for name, w in module.named_parameters()}
        vmap(grad(lambda x, module=module, weights=weights: loss(weights, module, x, {})))(x)
        assert calls == [f"{op}_fwd", f"{op}_bwd"]
        if op != "conv_lstm":
            calls.clear()
            vmap(grad(loss), (None, None, 0, None))(weights, module, x, {})
            assert calls == [f"{op}_fwd", f"{op}_fwd", f"{op}_bwd"]
    calls.clear()
    decoder = fastlstm.AttentionLSTM(I, H, memory_size=6)
    vmap(lambda x, memory: decoder(x, memory)[0])(torch.randn(N, T, B, I), torch.randn(N, 5, B, 6))
    assert calls == ["attention_lstm_fwd"]


def test_a_mapped_length_out_of_range_is_noticed_at_once() -> None:
    module, x = fastlstm.LSTM(I, H), torch.randn(N, T, B, I)
    lengths = LENGTHS.clone()
    lengths[2, 1] = T + 1
    with pytest.raises(ValueError, match=f"lengths holds {T + 1}, expected values from 0 to {T}"):
        vmap(lambda x, n: module(x, lengths=n)[0])(x, lengths)
    decoder = fastlstm.AttentionLSTM(I, H, memory_size=6)
    with pytest.raises(ValueError, match="memory_lengths holds 6, expected values from 0 to 5"):
        vmap(lambda x, n: decoder(x, torch.randn(5, B, 6), memory_lengths=n)[0], randomness="same")(x, LENGTHS)


def test_nothing_to_map() -> None:
    module = fastlstm.LSTM(I, H)
    with pytest.raises(ValueError, match="vmap over a dimension of size 0, expected at least 1"):
        vmap(lambda x: module(x)[0])(torch.randn(0, T, B, I))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    for module in (fastlstm.LSTM(I, H, dtype=dtype), fastlstm.GRU(I, H, dtype=dtype)):
        x = torch.randn(N, T, B, I).to(dtype)
        weights = {name: w.detach() for name, w in module.named_parameters()}
        found = vmap(grad(loss), (None, None, 0, None))(weights, module, x, {})
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        for n in range(N):
            for name, g in grad(loss)(weights, module, x[n], {}).items():
                assert (found[name][n] - g).norm() <= tolerance * g.norm(), name
        assert as_list(found)


ENSEMBLES: dict[str, tuple[dict, dict, list[str]]] = {
    "dense": ({}, {}, []),
    "no bias, two directions, layers": ({"bias": False, "bidirectional": True, "num_layers": 2}, {}, []),
    "lengths, resets": (
        {"bidirectional": True, "batch_first": True},
        {"lengths": LENGTHS, "reset": (torch.arange(N * T * B) % 5 == 0).view(N, B, T)},
        ["lengths", "reset"],
    ),
    "projection, shared lengths": ({"proj_size": 2}, {"lengths": LENGTHS[0]}, []),
    "cells": ({}, {"return_cells": True}, []),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", ENSEMBLES)
def test_an_ensemble_has_the_bits_of_its_models(variant: str, options: str, threads: int) -> None:
    """Models are run by one op, one after another and, where they are more than threads, beside each other."""
    if variant == "gru" and options.startswith(("projection", "cells")):
        pytest.skip("a GRU has none")
    torch.set_num_threads(threads)
    made, called, mapped = ENSEMBLES[options]
    models = [build(variant, I, 20, **made) for _ in range(N)]
    weights = {name: w.detach() for name, w in torch.func.stack_module_state(models)[0].items()}
    dims = {name: 1 if name == "weight_hh_l0" else 0 for name in weights}
    apart = {name: w.movedim(0, 1).contiguous().movedim(1, 0) if dims[name] else w for name, w in weights.items()}
    turned = {name: w.movedim(0, dims[name]) for name, w in apart.items()}
    x, module = random(*((B, T) if models[0].batch_first else (T, B)), I).float(), models[0]
    of_options = {name: 0 if name in mapped else None for name in called}
    found = vmap(grad(loss, (0, 2)), (dims, None, None, of_options))(turned, module, x, called)
    for n in range(N):
        own = {name: w[n] for name, w in weights.items()}
        given = called | {name: called[name][n] for name in mapped}
        want = grad(loss, (0, 2))(own, module, x, given)
        for got, expected in zip(_leaves(found), _leaves(want), strict=True):
            assert torch.equal(got[n], expected)


@built
@pytest.mark.parametrize("variant", ["lstm", "gru"])
def test_an_ensemble_is_one_call_of_each_op(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    pair = (lstm if variant == "lstm" else gru).OPS
    for name in ("fwd", "bwd", "each_fwd", "each_bwd"):
        op = getattr(pair, name)
        monkeypatch.setattr(pair, name, lambda *args, op=op, name=name: (names.append(name), op(*args))[1])
    models = [build(variant, I, H) for _ in range(N)]
    weights = torch.func.stack_module_state(models)[0]
    x = torch.randn(T, B, I)
    with torch.no_grad():
        vmap(grad(loss), (0, None, None, None))(weights, models[0], x, {})
        assert names == ["each_fwd", "each_bwd"]
        # inputs are everybody's, and what came from above is not
        names.clear()
        torch.func.jacrev(lambda x: models[0](x)[0][-1, 0])(x)
        assert names == ["fwd", "each_bwd"]
    # where a graph is wanted, each has its own
    names.clear()
    y = vmap(lambda w: functional_call(models[0], w, (x,))[0])(weights)
    assert names == ["fwd"] * N
    y.sum().backward()
    assert all(w.grad is not None for w in weights.values())


@built
def test_elements_that_are_none_are_refused() -> None:
    """By the op itself; and what is wrong with a later element is told, whichever thread ran it."""
    x, states = torch.randn(4, 5, T, B, I), [torch.zeros(B, H), torch.zeros(B, H)]
    weights = [torch.randn(4 * H, I), torch.randn(4 * H, H), None, None, None, None]
    sizes = torch.tensor([[B] * T] * 3 + [[B, B + 1, B, B, B, B]])
    flags = [False] * 4

    def run(n: int, dims: list[int], x: Tensor = x[:, 0], sizes: Tensor | None = None) -> None:
        torch.ops.fastlstm.lstm_fwd_each(x, sizes, None, *states, *weights, *flags, n, dims)

    every = [-1] * 15
    for n, dims, words in (
        (0, every, "n must be at least 1"),
        (4, every[1:], "dims have a number for each argument"),
        (4, [4, *every[1:]], "a dimension that an argument lacks, or of another size"),
        (3, [0, *every[1:]], "a dimension that an argument lacks, or of another size"),
        (4, every, "x must be"),
    ):
        with pytest.raises(RuntimeError, match=words):
            run(n, dims)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with pytest.raises(RuntimeError, match="batch_sizes must not increase"):
            run(4, [0, 0, *every[2:]], sizes=sizes)
        run(4, [0, *every[1:]])
