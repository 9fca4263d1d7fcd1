"""What people put around a backward keeps gradients, of every family: anomaly mode, kept graphs, checkpoints and so on."""

from collections.abc import Callable

import pytest
import torch
from helpers import B, H, I, T, assert_same, random
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastlstm

MEMORY = torch.linspace(-1, 1, 5 * B * 6, dtype=torch.float64).view(5, B, 6)
MODULES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: fastlstm.LSTM(I, H, num_layers=2, bidirectional=True, dtype=torch.float64),
    "projection": lambda: fastlstm.LSTM(I, H, proj_size=2, dtype=torch.float64),
    "gru": lambda: fastlstm.GRU(I, H, dtype=torch.float64),
    "peephole": lambda: fastlstm.PeepholeLSTM(I, H, dtype=torch.float64),
    "cifg": lambda: fastlstm.CIFGLSTM(I, H, dtype=torch.float64),
    "conv": lambda: fastlstm.ConvLSTM2d(I, H, 3, dtype=torch.float64),
    "conv, checkpoint": lambda: fastlstm.ConvLSTM2d(I, H, 3, checkpoint=True, dtype=torch.float64),
    "attention": lambda: fastlstm.AttentionLSTM(I, H, memory_size=6, dtype=torch.float64),
    "attention, nothing fed": lambda: fastlstm.AttentionLSTM(I, H, memory_size=6, feed=None, dtype=torch.float64),
}


def output(module: nn.Module, x: Tensor) -> Tensor:
    more = (MEMORY,) if isinstance(module, fastlstm.AttentionLSTM) else ()
    return module(x, *more)[0].sin()


@pytest.fixture(params=MODULES)
def given(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    module = MODULES[request.param]()
    return module, random(T, B, I, *[4, 3] * isinstance(module, fastlstm.ConvLSTM2d)).requires_grad_()


def gradients(module: nn.Module, x: Tensor, y: Tensor | None = None, **options: bool) -> tuple[Tensor, ...]:
    y = output(module, x) if y is None else y
    return torch.autograd.grad(y.sum(), [x, *module.parameters()], **options)


def test_anomaly_mode(given: tuple[nn.Module, Tensor]) -> None:
    expected = gradients(*given)
    with torch.autograd.set_detect_anomaly(True):
        assert_same(gradients(*given), expected)


def test_a_graph_that_is_kept(given: tuple[nn.Module, Tensor]) -> None:
    y = output(*given)
    first = gradients(*given, y, retain_graph=True)
    for d in first:
        d.zero_()  # gradients are the caller's, too
    assert_same(gradients(*given, y, retain_graph=True), gradients(*given))
    assert_same(gradients(*given, y), gradients(*given))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(given: tuple[nn.Module, Tensor], reentrant: bool) -> None:
    module, x = given
    expected = gradients(module, x)
    y = checkpoint(output, module, x, use_reentrant=reentrant)
    leaves = [x, *module.parameters()]
    y.sum().backward()  # reentrant ones take no torch.autograd.grad
    assert_same([t.grad for t in leaves], list(expected))


def test_saved_tensors_hooks(given: tuple[nn.Module, Tensor]) -> None:
    module, x = given
    packed: list[Tensor] = []

    def pack(t: Tensor) -> int:
        packed.append(t.clone())
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda k: packed[k]):
        y = output(module, x)
    assert packed
    assert_same(gradients(module, x, y), gradients(module, x))


def test_batched_gradients(given: tuple[nn.Module, Tensor]) -> None:
    module, x = given
    y, leaves = output(module, x), [x, *module.parameters()]
    upstream = random(3, *y.shape)
    found = torch.autograd.grad(y, leaves, upstream, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(y, leaves, d, retain_graph=True) for d in upstream]
    assert_same(list(found), [torch.stack(ds) for ds in zip(*alone, strict=True)])
