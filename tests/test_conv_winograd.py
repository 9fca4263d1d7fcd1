"""The ConvLSTM where fewer multiplications do (csrc/products/winograd.h), and where pixels go in pairs."""

import pytest
import torch
from conv_oracle import oracle
from helpers import assert_same, assert_threads_change_no_bit, random
from torch import Tensor

import fastlstm

# channels of the input, hidden ones, the kernel, the image, and what else the module is given
CASES: dict[str, tuple[int, int, object, tuple[int, int], dict]] = {
    "three taps": (3, 32, 3, (8, 6), {}),
    "three taps, odd": (5, 33, 3, (7, 9), {"peephole": "hadamard", "num_layers": 2}),
    "three taps, valid": (2, 32, 3, (10, 9), {"padding": "valid", "coupled": True}),
    "three taps, padded": (2, 32, 3, (6, 9), {"padding": ((3, 0), (0, 2))}),
    "three taps, many channels": (70, 33, 3, (4, 4), {"peephole": "channel"}),
    "five taps": (3, 32, 5, (8, 6), {"peephole": "channel"}),
    "five taps, odd": (5, 34, 5, (9, 7), {"num_layers": 2, "bidirectional": True}),
    "pairs": (1, 8, 3, (5, 6), {"peephole": "channel"}),
    "pairs of channels": (3, 5, 5, (3, 8), {"peephole": "hadamard", "num_layers": 2}),
    "pairs, even kernel": (2, 7, (3, 4), (4, 6), {"coupled": True, "peephole": "channel"}),
    "pairs, other images": (2, 3, (2, 3), (6, 8), {"padding": ((0, 1), (0, 2)), "bias": False}),
    "pairs, strided lines": (2, 8, 3, (7, 6), {"stride": (2, 1)}),
}
each_case = pytest.mark.parametrize("case", CASES)


def module(case: str, dtype: torch.dtype = torch.float64) -> fastlstm.ConvLSTM2d:
    C, H, kernel, S, options = CASES[case]
    torch.manual_seed(1)
    return fastlstm.ConvLSTM2d(C, H, kernel, spatial_size=S, dtype=dtype, **options)


def given(case: str, T: int = 4, B: int = 3) -> Tensor:
    C, _, _, S, _ = CASES[case]
    return random(T, B, C, *S)


def results(ours: fastlstm.ConvLSTM2d, x: Tensor) -> list[Tensor]:
    """Output, final states, and the gradients of the input and of all parameters."""
    x = x.detach().requires_grad_()
    y, (h_n, c_n) = ours(x)
    torch.manual_seed(2)
    upstream = [torch.randn(t.shape, dtype=t.dtype) for t in (y, h_n, c_n)]
    return [y, h_n, c_n, *torch.autograd.grad([y, h_n, c_n], [x, *ours.parameters()], upstream)]


@pytest.mark.cpu
@each_case
def test_values_and_gradients(case):
    ours, x = module(case), given(case).requires_grad_()
    lengths, reset = [4, 2, 0], torch.tensor([[0, 1, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0]]).bool()
    sizes, D = [ours.hidden_channels] * ours.num_layers, 2 if ours.bidirectional else 1
    image = ours(x[:1])[0].shape[3:]
    hx = tuple([random(D, 3, H, *image).requires_grad_() for H in sizes] for _ in range(2))
    y, (h_n, c_n), cells = ours(
        x, tuple(torch.cat(s) for s in hx), lengths=lengths, reset=reset, return_cells=True, return_all_layers=True
    )
    found = [*y, *cells, *h_n.split(D), *c_n.split(D)]
    expected = [t for part in oracle(ours, x, hx, lengths, reset) for t in part]
    assert_same(found, expected)
    leaves, upstream = [x, *hx[0], *hx[1], *ours.parameters()], [random(*t.shape) for t in found]
    assert_same(*(torch.autograd.grad(r, leaves, upstream, materialize_grads=True) for r in (found, expected)))


@pytest.mark.cpu
@each_case
def test_threads_change_no_bit(case):
    ours, x = module(case, torch.float32), given(case, B=2).float()
    assert_threads_change_no_bit(lambda: results(ours, x))


@pytest.mark.parametrize("case", ["three taps, odd", "five taps", "pairs of channels"])
def test_layouts_change_no_bit(case):
    """Weights, inputs and states as PyTorch has them by default, and with channels last."""
    ours, x = module(case, torch.float32), given(case).float()
    expected = results(ours, x)
    for weights_too in (False, True):
        if weights_too:
            ours.weight_ih_l0.data = ours.weight_ih_l0.data.contiguous(memory_format=torch.channels_last)
        other = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
        assert all(torch.equal(a, b) for a, b in zip(results(ours, other), expected, strict=True))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("case", ["three taps, odd", "five taps", "pairs"])
def test_what_is_not_finite_stays_near(case, value):
    """A pixel that isn't finite touches a step's outputs as far as the kernel reaches and a bit more, and no other image."""
    ours, x = module(case, torch.float32), given(case, T=1).float()
    expected, _ = ours(x)
    x[0, 1, 0, 0, 0] = value
    y, _ = ours(x)
    assert not y[0, 1, :, 0, 0].isfinite().all() or value == float("inf")
    assert torch.equal(y[:, ::2], expected[:, ::2])
    if ours.num_layers == 1:
        reach = 4 if case == "pairs" else ours.kernel_size // 2 + 2
        assert torch.equal(y[..., reach:], expected[..., reach:])


@pytest.mark.parametrize("case", ["three taps", "five taps", "three taps, many channels"])
def test_as_exact_as_a_sum_over_taps(case):
    """In float32, against float64: no further off than twice what PyTorch's convolutions are."""
    C, H, kernel, _, options = CASES[case]
    ours, x = module(case, torch.float32), given(case).float()
    loop = fastlstm.ConvLSTM2d(C, H, kernel, backend="reference", **options)
    exact = fastlstm.ConvLSTM2d(C, H, kernel, backend="reference", dtype=torch.float64, **options)
    for other in (loop, exact):
        other.load_state_dict(ours.state_dict())
    for a, b, right in zip(results(ours, x), results(loop, x), results(exact, x.double()), strict=True):
        assert (a - right).norm() <= 2 * (b - right).norm() + torch.finfo(torch.float32).eps * right.norm()
