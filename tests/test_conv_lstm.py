"""The values and gradients of the ConvLSTM: an oracle that loops over taps, `nn.LSTM`, and what must be the same."""

import pytest
import torch
from conv_oracle import oracle
from helpers import assert_same, random
from torch import Tensor, nn

import fastlstm
from fastlstm import backends
from fastlstm.ops import conv_layer

T, B, C, H = 5, 3, 2, 3
LENGTHS = [3, 5, 0]
KINDS = {1: fastlstm.ConvLSTM1d, 2: fastlstm.ConvLSTM2d, 3: fastlstm.ConvLSTM3d}

# the image; the kernel; what else the module is given
CASES: dict[str, tuple[tuple[int, ...], object, dict]] = {
    "1d": ((7,), 3, {}),
    "2d": ((4, 5), 3, {}),
    "3d": ((3, 4, 2), (3, 2, 1), {}),
    "even kernel": ((5, 3), (2, 4), {}),
    "a kernel larger than the image": ((2, 3), (5, 7), {}),
    "one pixel": ((1, 1), 3, {}),
    "one pixel wide": ((5, 1), 3, {"peephole": "hadamard"}),
    "stride": ((7, 8), (3, 5), {"stride": (2, 3)}),
    "stride of an even kernel": ((8, 5), 2, {"stride": 2}),
    "dilation": ((6, 7), 3, {"dilation": (2, 1), "stride": (1, 2)}),
    "valid": ((6, 5), (3, 2), {"padding": "valid"}),
    "valid, 3d, stride, dilation": (
        (6, 5, 5),
        (2, 3, 1),
        {"padding": "valid", "dilation": (2, 1, 1), "stride": (1, 2, 2)},
    ),
    "padding of a number": ((4, 3), 3, {"padding": 2}),
    "padding of a number per dimension": ((4, 3), 3, {"padding": (0, 2), "stride": 2}),
    "padding of pairs": ((4, 5), (2, 3), {"padding": ((0, 1), (3, 0)), "stride": 2}),
    "no bias": ((3, 4), 3, {"bias": False}),
    "channel": ((3, 4), 3, {"peephole": "channel"}),
    "hadamard": ((5, 4), 3, {"peephole": "hadamard", "stride": 2}),
    "hadamard, 1d": ((5,), 3, {"peephole": "hadamard", "bias": False}),
    "coupled": ((3, 4), 3, {"coupled": True}),
    "coupled, channel": ((3, 4), 2, {"coupled": True, "peephole": "channel"}),
    "coupled, hadamard": ((3, 2), 3, {"coupled": True, "peephole": "hadamard"}),
    "two layers, two directions": ((3, 4), 3, {"num_layers": 2, "bidirectional": True, "peephole": "channel"}),
    "layers of different sizes": (
        (4, 5),
        [3, (1, 2), 1],
        {"hidden_channels": [4, 1, 2], "num_layers": 3, "bidirectional": True, "stride": 2, "peephole": "hadamard"},
    ),
    "a kernel of one": ((3, 4), 1, {"stride": (1, 2), "peephole": "channel"}),
    "a kernel of one, padded": ((3, 4), 1, {"padding": 1}),
    "more channels than a panel": ((3, 4), 3, {"hidden_channels": 17, "peephole": "hadamard"}),
    "more channels than a block": ((2, 3), 3, {"hidden_channels": 65}),
}
USES = {
    "plain": (None, False),
    "lengths": (LENGTHS, False),
    "resets": (None, True),
    "lengths and resets": (LENGTHS, True),
}
each_case = pytest.mark.parametrize("case", CASES)
each_use = pytest.mark.parametrize("use", USES)
each_backend = pytest.mark.parametrize("backend", ["auto", "reference"])


def module(case: str, **more) -> nn.Module:
    S, kernel, options = CASES[case]
    own = {"hidden_channels": H, "kernel_size": kernel, "spatial_size": S, "dtype": torch.float64}
    torch.manual_seed(1)
    return KINDS[len(S)](C, **own | options | more)


def states(ours: nn.Module, image: tuple[int, ...], batch: int = B) -> tuple[list[Tensor], list[Tensor]]:
    """Two lists of states (D, B, H, *S'), one for each layer."""
    sizes = ours.hidden_channels if isinstance(ours.hidden_channels, list) else [ours.hidden_channels] * ours.num_layers
    D = 2 if ours.bidirectional else 1
    return tuple([random(D, batch, size, *image) for size in sizes] for _ in range(2))


def as_hx(ours: nn.Module, hx: tuple[list[Tensor], list[Tensor]]):
    """States as a module takes them."""
    return hx if isinstance(ours.hidden_channels, list) else tuple(torch.cat(s) for s in hx)


def as_lists(ours: nn.Module, finals) -> list[list[Tensor]]:
    D = 2 if ours.bidirectional else 1
    return [list(s) if isinstance(s, list) else list(s.split(D)) for s in finals]


def gradients(ours: nn.Module, results: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(2)
    upstream = [random(*t.shape) for t in results]
    return torch.autograd.grad(results, [*leaves, *ours.parameters()], upstream, materialize_grads=True)


def resets() -> Tensor:
    return torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0]]).bool()


def compare(ours: nn.Module, S: tuple[int, ...], use: str, given: bool = True) -> None:
    """Outputs, cells, states and every gradient with the oracle's; without `given`, states are zeros, and none handed over."""
    lengths, cuts = USES[use]
    reset = resets() if cuts else None
    image = ours(torch.zeros(1, 1, C, *S, dtype=torch.float64))[0].shape[3:]
    x, hx = random(T, B, C, *S).requires_grad_(), states(ours, image)
    if not given:
        hx = tuple([torch.zeros_like(s) for s in letter] for letter in hx)
    leaves = [x, *([s.requires_grad_() for letter in hx for s in letter] if given else [])]
    y, finals, cells = ours(
        x, as_hx(ours, hx) if given else None, lengths=lengths, reset=reset, return_cells=True, return_all_layers=True
    )
    h_n, c_n = as_lists(ours, finals)
    found, expected = [y, cells, h_n, c_n], oracle(ours, x, hx, lengths, reset)
    assert_same(found, list(expected))
    flat = [[t for part in results for t in part] for results in (found, expected)]
    assert_same(gradients(ours, flat[0], leaves), gradients(ours, flat[1], leaves))


@pytest.mark.cpu
@each_backend
@each_case
def test_values_and_gradients(case, backend):
    compare(module(case, backend=backend), CASES[case][0], "plain")


@each_backend
def test_the_recurrent_kernel_may_be_another(backend):
    ours = module("stride", backend=backend, peephole="channel")
    ours.weight_hh_l0 = nn.Parameter(random(4 * H, H, 2, 1))
    compare(ours, CASES["stride"][0], "lengths and resets")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@each_backend
@pytest.mark.parametrize("kernel", [2, 3, (4, 1)])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
def test_same_is_pytorchs_same(kernel, dilation, backend):
    ours = KINDS[2](C, H, kernel, dilation=dilation, coupled=True, bias=False, dtype=torch.float64, backend=backend)
    x = random(1, B, C, 5, 4)
    i, g, o = torch.nn.functional.conv2d(x[0], ours.weight_ih_l0, padding="same", dilation=dilation).chunk(3, 1)
    assert_same(ours(x)[0][0], o.sigmoid() * (i.sigmoid() * g.tanh()).tanh())


@each_backend
@each_use
@pytest.mark.parametrize("given", [True, False], ids=["states", "no states"])
@pytest.mark.parametrize("checkpoint", [False, True], ids=["", "checkpoint"])
def test_lengths_and_resets_freeze_and_cut_whole_maps(use, given, checkpoint, backend):
    case = "layers of different sizes"
    compare(module(case, backend=backend, checkpoint=checkpoint), CASES[case][0], use, given)


@each_case
def test_the_kernels_run_them(case):
    """Else `test_values_and_gradients` would have looked at the reference twice."""
    if backends.extension_status() != "built":
        pytest.skip("needs the C++ extension")
    ours = module(case)
    assert backends.choose(ours.variant, torch.device("cpu"), torch.float64).backend == "numba"


@pytest.mark.parametrize("peephole", [None, "channel"])
@pytest.mark.parametrize("image", [(1, 1), (3, 2)], ids=["one pixel", "pixels"])
def test_a_kernel_of_one_is_an_lstm_of_each_pixel(peephole, image):
    ours = KINDS[2](C, H, 1, 2, bidirectional=True, peephole=peephole, dtype=torch.float64)
    kind = nn.LSTM if peephole is None else fastlstm.PeepholeLSTM
    theirs = kind(C, H, 2, bidirectional=True, dtype=torch.float64)
    theirs.load_state_dict({name: w.flatten(1) if w.dim() > 1 else w for name, w in ours.state_dict().items()})
    x, pixels = random(T, B, C, *image).requires_grad_(), B * image[0] * image[1]
    y, (h_n, c_n) = ours(x)
    flat = [t.movedim(2, -1).reshape(len(t), pixels, -1) for t in (x, y, h_n, c_n)]
    expected, finals = theirs(flat[0])
    assert_same(flat[1:], [expected, *finals])
    found, right = (
        torch.autograd.grad(t.square().sum(), [x, *m.parameters()]) for t, m in ((y, ours), (expected, theirs))
    )
    assert_same([d.flatten() for d in found], [d.flatten() for d in right])


@pytest.mark.parametrize("options", [{}, {"peephole": "channel"}, {"stride": 2, "padding": "valid"}], ids=str)
def test_a_kernel_of_one_runs_on_the_op_of_the_lstm(options, monkeypatch):
    """Else it would have another's speed."""
    if backends.extension_status() != "built":
        pytest.skip("needs the C++ extension")
    monkeypatch.setattr(conv_layer, "conv_lstm", lambda *_, **__: pytest.fail("convolved"))
    ours = KINDS[2](C, H, 1, dtype=torch.float64, **options)
    ours(random(T, B, C, 4, 5))[0].sum().backward()


@each_backend
def test_a_kernel_of_three_over_one_pixel_is_an_lstm_of_its_middle(backend):
    ours = KINDS[2](C, H, 3, dtype=torch.float64, backend=backend)
    theirs = nn.LSTM(C, H, dtype=torch.float64)
    theirs.load_state_dict({name: w[:, :, 1, 1] if w.dim() > 1 else w for name, w in ours.state_dict().items()})
    x = random(T, B, C)
    assert_same(ours(x[..., None, None])[0].flatten(2), theirs(x)[0])


@each_backend
def test_the_output_gate_sees_the_new_cell(backend):
    ours = KINDS[1](C, 1, 3, peephole="channel", bias=False, dtype=torch.float64, backend=backend)
    with torch.no_grad():
        ours.weight_ih_l0[3:] = 0  # of o: only its peephole is left
        ours.weight_hh_l0[3:] = 0
        ours.weight_peephole_l0[:2] = 0
    y, (_, c_n) = ours(random(1, B, C, 4), (random(1, B, 1, 4), random(1, B, 1, 4)))
    assert_same(y, torch.sigmoid(ours.weight_peephole_l0[2] * c_n) * torch.tanh(c_n))


@each_backend
@pytest.mark.parametrize("case", ["2d", "stride", "hadamard", "layers of different sizes"])
def test_seven_steps_are_three_and_four(case, backend):
    ours = module(case, backend=backend, bidirectional=False)
    x = random(7, B, C, *CASES[case][0])
    y, finals = ours(x)
    y_3, between = ours(x[:3])
    y_4, end = ours(x[3:], between)
    assert_same(torch.cat([y_3, y_4]), y)
    assert_same(end, finals)


@each_case
def test_a_step_of_training_moves_every_parameter(case):
    ours = module(case)
    before = {name: p.clone() for name, p in ours.named_parameters()}
    optimizer = torch.optim.SGD(ours.parameters(), lr=1.0)
    ours(random(T, B, C, *CASES[case][0]))[0].square().sum().backward()
    optimizer.step()
    still = [name for name, p in ours.named_parameters() if not (p != before[name]).any()]
    assert not still


@each_backend
@pytest.mark.parametrize("case", ["1d", "2d", "no bias", "hadamard", "a kernel of one", "layers of different sizes"])
def test_a_forecast_is_as_if_zeros_were_fed(case, backend):
    """Zeros of the input's channels, over the image of the states."""
    ours = module(case, backend=backend, bidirectional=False, stride=1)
    hx = as_hx(ours, states(ours, CASES[case][0]))
    expected = ours(torch.zeros(4, B, C, *CASES[case][0], dtype=torch.float64), hx, return_cells=True)
    assert_same(ours(None, hx, steps=4, return_cells=True), expected)


@pytest.mark.parametrize("case", ["stride", "valid", "padding of pairs"])
def test_a_forecast_goes_on_where_the_input_was_strided(case):
    ours = module(case)
    y, hx = ours(random(T, B, C, *CASES[case][0]))
    forecast, (h_n, _) = ours(None, hx, steps=2)
    assert forecast.shape == (2, *y.shape[1:])
    assert_same(h_n[0], forecast[-1])


def test_a_forecast_batch_first_and_unbatched():
    ours = module("2d")
    hx = as_hx(ours, states(ours, (4, 5)))
    expected, (h_n, c_n) = ours(None, hx, steps=3)
    first, finals = ours(None, [s[:, 0] for s in hx], steps=3)
    assert_same(first, expected[:, 0])
    assert_same(finals, (h_n[:, 0], c_n[:, 0]))
    ours.batch_first = True
    assert_same(ours(None, hx, steps=3)[0], expected.transpose(0, 1))
    reset = torch.tensor([[False, True, False]] * B)
    assert_same(ours(None, hx, steps=3, reset=reset)[0][:, 1:], ours(None, [0 * s for s in hx], steps=2)[0])


def test_a_stride_far_beyond_the_image():
    lstm = fastlstm.ConvLSTM1d(3, 5, 3, stride=10**9, dtype=torch.float64)
    x = random(2, 2, 3, 8).requires_grad_()
    lstm(x)[0].sum().backward()
    assert x.grad[..., :2].any()
    assert not x.grad[..., 2:].any()
