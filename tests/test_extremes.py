"""Gates that are exactly 0, 1 and ±1, and states of 1e38: every variant, on the CPU and by the GPU's kernels.

Pre-activations are the inputs themselves, or their negatives; `test_saturation.py` has σ and tanh alone.
"""

from collections.abc import Callable

import pytest
import torch
from gpu_interpreter import Interpreter
from torch import Tensor, nn

import fastlstm
from fastlstm.backends import VARIANTS
from fastlstm.functional.attention_values import AttentionState
from fastlstm.modules import build

T, B, H = 3, 4, 5
CONVS = {
    "conv": {},
    "conv, peephole": {"peephole": "channel"},
    "conv, coupled": {"coupled": True},
}
MODULES: dict[str, Callable[..., nn.Module]] = {
    **{name: lambda name=name, **kw: build(name, 1, H, **kw) for name in VARIANTS},
    **{n: lambda o=o, **kw: fastlstm.ConvLSTM2d(1, H, kernel_size=1, **o, **kw) for n, o in CONVS.items()},
}


def made(name: str, **options) -> tuple[nn.Module, list[Tensor]]:
    """A module whose gates see the input with either sign, and its arguments: inputs that saturate all, and states of 1e38."""
    draw = torch.Generator().manual_seed(3)

    def signs(*shape: int) -> Tensor:
        return torch.randint(2, shape, generator=draw).float() * 2 - 1

    module = MODULES[name](**options)
    image = (2, 2) if "conv" in name else ()
    with torch.no_grad():
        for key, w in module.named_parameters():
            of_input = key.startswith(("weight_ih", "weight_peephole"))
            w.copy_(signs(*w.shape) if of_input else torch.zeros_like(w))
    sizes = torch.tensor([-3e37, -500.0, 500.0, 3e37])
    x = sizes[torch.randint(4, (T, B, 1, *image), generator=draw)]
    states = [torch.zeros(1, B, H, *image), signs(1, B, H, *image) * 1e38]
    return module, [x, *(states[1:] if name == "gru" else states)]


def results(module: nn.Module, x: Tensor, *states: Tensor) -> list[Tensor]:
    """The output, final states and all gradients."""
    arguments = [a.clone().requires_grad_() for a in (x, *states)]
    y, finals = module(arguments[0], arguments[1] if len(states) == 1 else tuple(arguments[1:]))
    out = [y, *([finals] if isinstance(finals, Tensor) else finals)]
    # a tenth: where several such gradients meet a state of 1e38, their product leaves the range in PyTorch's modules too
    goal = 0.1 * sum((t / t.detach().abs().clamp(min=1)).sum() for t in out)
    return [*out, *torch.autograd.grad(goal, [*arguments, *module.parameters()])]


def assert_ends(name: str) -> None:
    """Zeros are zeros: without `atol`, 1e-38 times 1e38 would show, and so would 1e-38 itself."""
    module, arguments = made(name)
    expected = results(made(name, backend="reference")[0], *arguments)
    assert all(t.isfinite().all() for t in expected)
    torch.testing.assert_close(results(module, *arguments), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MODULES)
def test_on_the_cpu(name: str) -> None:
    assert_ends(name)


@pytest.mark.parametrize("name", MODULES)
def test_by_the_kernels_of_the_gpu(name: str, interpreter: Interpreter) -> None:
    assert_ends(name)
    assert interpreter.launched


def decoded(backend: str, attention: str) -> list[Tensor]:
    """Of a decoder whose gates, keys and outputs see inputs and a memory of up to 3e37, with all gradients."""
    draw = torch.Generator().manual_seed(3)
    decoder = fastlstm.AttentionLSTM(1, H, memory_size=1, attention=attention, backend=backend)
    with torch.no_grad():
        for name, w in decoder.named_parameters():
            if name.startswith(("weight_ih", "weight_key", "weight_out")):
                w.copy_(torch.randint(2, w.shape, generator=draw).float() * 2 - 1)
            elif name == "weight_score":
                w.copy_(torch.rand(w.shape, generator=draw))
            elif name.startswith(("weight_hh", "weight_query", "bias")):
                w.zero_()
    sizes = torch.tensor([-3e37, -500.0, 500.0, 3e37])
    x, memory = (sizes[torch.randint(4, (n, B, 1), generator=draw)].requires_grad_() for n in (T, 7))
    c = torch.full((1, B, H), -1e38, requires_grad=True)
    state = AttentionState(torch.zeros(1, B, H), c, torch.zeros(B, H))
    y, (h_n, c_n, _) = decoder(x, memory, state)
    goal = 0.1 * sum((t / t.detach().abs().clamp(min=1)).sum() for t in (y, h_n, c_n))
    return [y, h_n, c_n, *torch.autograd.grad(goal, [x, memory, c, *decoder.parameters()])]


@pytest.mark.parametrize("attention", ["additive", "normalized_additive"])
def test_a_decoder(attention: str) -> None:
    expected = decoded("reference", attention)
    assert all(t.isfinite().all() for t in expected)
    torch.testing.assert_close(decoded("auto", attention), expected, rtol=1e-6, atol=0)


def test_a_decoder_by_the_kernels_of_the_gpu(interpreter: Interpreter) -> None:
    torch.testing.assert_close(decoded("auto", "additive"), decoded("reference", "additive"), rtol=1e-6, atol=0)
    assert interpreter.launched
