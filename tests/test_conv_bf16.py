"""The ConvLSTM in bfloat16, whose convolutions AMX takes as products of unfolded pixels (products/unfolded_forward.h)."""

import pytest
import torch
from helpers import assert_threads_change_no_bit
from test_conv_winograd import results
from test_paths import here, of_bfloat16

import fastlstm
from fastlstm import backends, parity

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the products are in the C++ extension")
needs_tiles = pytest.mark.skipif("avx512+amx" not in here(), reason="this CPU, or this run, has no avx512+amx")

# channels of the input, hidden ones, the kernel, the image, and what else the module is given
CASES: dict[str, tuple[int, int, object, tuple[int, ...], dict]] = {
    "three taps": (16, 64, 3, (8, 16), {}),
    "five taps, odd": (5, 33, 5, (9, 7), {"num_layers": 2, "bidirectional": True, "peephole": "channel"}),
    "few channels": (1, 8, 3, (6, 8), {"coupled": True, "peephole": "hadamard"}),
    "even kernel": (3, 7, (2, 4), (5, 6), {"bias": False}),
    "strided": (4, 20, 3, (9, 8), {"stride": (2, 1), "padding": ((1, 0), (2, 1))}),
    "other images": (3, 33, 3, (9, 8), {"padding": "valid", "coupled": True}),
    "dilated": (4, 20, 3, (9, 8), {"dilation": (1, 2), "padding": "same"}),
    "256 channels": (2, 256, 3, (3, 4), {}),
    "a line": (3, 17, 5, (37,), {"peephole": "channel"}),
    "a volume": (2, 18, (2, 3, 1), (3, 4, 5), {}),
}
each_case = pytest.mark.parametrize("case", CASES)


def module(case: str, **more) -> torch.nn.Module:
    C, H, kernel, S, options = CASES[case]
    torch.manual_seed(1)
    kind = (fastlstm.ConvLSTM1d, fastlstm.ConvLSTM2d, fastlstm.ConvLSTM3d)[len(S) - 1]
    return kind(C, H, kernel, spatial_size=S, dtype=torch.bfloat16, **options, **more)


def given(case: str, T: int = 3, B: int = 2) -> torch.Tensor:
    C, _, _, S, _ = CASES[case]
    return torch.randn(T, B, C, *S, generator=torch.Generator().manual_seed(3)).bfloat16()


@each_case
def test_as_exact_as_pytorch(case):
    """Against float64: no further off than twice what PyTorch's ops are, and one rounding."""
    ours, x = module(case), given(case)
    loop = module(case, backend="reference")
    loop.load_state_dict(ours.state_dict())
    exact = module(case, backend="reference").double()
    exact.load_state_dict(ours.state_dict())
    for a, b, right in zip(results(ours, x), results(loop, x), results(exact, x.double()), strict=True):
        assert (a - right).norm() <= 2 * (b - right).norm() + torch.finfo(torch.bfloat16).eps * right.norm()


@needs_tiles
@each_case
def test_a_step_that_rounds_nothing_has_the_bits_of_float32(case):
    """All sums of a step's products are exact: one wrong weight, tap or pixel would show."""
    ours, T = module(case), 1
    with torch.no_grad():
        for p in ours.parameters():
            p.copy_(torch.randint(-4, 5, p.shape) / 16)
        x, found = given(case, T).mul(2).round().clamp(-4, 4), []
        image = ours(x)[0].shape[3:]
        D = 2 if ours.bidirectional else 1
        h0, c0 = (torch.randint(-4, 5, (ours.num_layers * D, 2, ours.hidden_channels, *image)) / 4 for _ in "hc")
        for path in (None, "avx512"):
            backends.force_path(path)
            found.append(ours(x, (h0.bfloat16(), c0.bfloat16())))
    if ours.num_layers == 1:
        torch.testing.assert_close(*found, rtol=0, atol=0)
    else:  # the second layer's inputs are rounded
        torch.testing.assert_close(*found, rtol=0.01, atol=0.01)


@each_case
def test_threads_change_no_bit(case):
    ours, x = module(case), given(case)
    assert_threads_change_no_bit(lambda: results(ours, x))


@pytest.mark.parametrize("case", ["three taps", "five taps, odd", "strided"])
def test_layouts_change_no_bit(case):
    ours, x = module(case), given(case)
    expected = results(ours, x)
    for p in ours.parameters():
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    other = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    assert all(torch.equal(a, b) for a, b in zip(results(ours, other), expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_two_pixels_are_added_up_before_they_are_rounded(dtype):
    """Where few channels are, two neighbours are taken as one: here what each gives is 256 times what both do."""
    backends.force_path("portable")
    torch.manual_seed(1)
    ours = fastlstm.ConvLSTM2d(1, 8, 3, peephole="channel", dtype=dtype)
    exact = fastlstm.ConvLSTM2d(1, 8, 3, peephole="channel", backend="reference").double()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            p.mul_("bias" in name)
    exact.load_state_dict(ours.state_dict())
    upstream = torch.tensor([1.0, -255 / 256], dtype=dtype).repeat(4).expand(1, 1, 8, 6, 8)

    def gradients(module):
        x = torch.ones(1, 1, 1, 6, 8, dtype=module.bias_ih_l0.dtype)
        weights = module.weight_ih_l0, module.bias_ih_l0, module.weight_peephole_l0
        dw, *others = torch.autograd.grad(module(x)[0], weights, upstream.to(x.dtype))
        return dw[..., 1, 1], *others  # the tap that all pixels meet

    for a, b in zip(gradients(ours), gradients(exact), strict=True):
        assert (a - b).norm() <= torch.finfo(dtype).eps * b.norm()


@pytest.mark.parametrize("path", ["avx512+bf16", "avx512+amx"])
@pytest.mark.parametrize("line", ["T6 B2 I16 H64 L2 S16x16 k3", "T4 B2 I5 H33 S7x9 k5", "T9 B3 I1 H8 S6x8 k3"])
def test_parity(path, line):
    of_bfloat16(path)
    assert [row for row in parity.check(f"conv_lstm {line}", "bf16", "numba", "module") if not row.ok] == []
