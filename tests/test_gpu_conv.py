"""What of the ConvLSTM's ops for a GPU needs no kernel to run: what they return, plan and launch."""

import pytest
import torch
from gpu_interpreter import Interpreter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fastlstm
from fastlstm import backends
from fastlstm.gpu import conv_lstm as gpu_conv_lstm
from fastlstm.gpu import launch, plan
from fastlstm.gpu import lstm as gpu_lstm
from fastlstm.gpu import rows as gpu_rows
from fastlstm.gpu.convolution import in_fixed_order
from fastlstm.gpu.rows import count_steps
from fastlstm.kernels.conv_lstm import unmoved
from fastlstm.ops import conv_layer

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")


@pytest.mark.parametrize("variant", backends.CONVOLUTIONAL)
def test_triton_runs_where_it_is_asked_for(variant: str) -> None:
    for dtype in backends.GPU_DTYPES:
        assert backends.explain(variant, "cuda", dtype, "triton").backend == "triton"
    # until it was tried, which takes a GPU
    assert backends.so_far(variant, torch.device("cuda"), torch.float32).backend == "reference"


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("C", [0, 2])
def test_the_fakes_tell_what_the_ops_return(C: int, save: bool) -> None:
    """Shapes, dtypes and strides of what torch.compile is told, beside what the ops give on tensors without data."""
    T, B, H, S, image = 3, 4, 5, (6, 7), (3, 7)
    geometry = ((2, 1), (1, 1, 1, 1), (1, 1)) if C else ((1, 1), (1, 1, 1, 1), (1, 1))

    def arguments(device: str) -> tuple[tuple, tuple]:
        def tensor(*sizes: int) -> torch.Tensor:
            return torch.empty(sizes, device=device, dtype=torch.bfloat16)

        x, state, b = tensor(T, B, *(S if C else image), C), tensor(B, *image, H), tensor(4 * H)
        weights = tensor(4 * H, 3, 3, C), tensor(4 * H, 3, 3, H)
        batch = x, None, torch.empty(T, B, dtype=torch.bool, device=device), state, state, *weights
        return (*batch, b, b, tensor(3, *image, H)), batch

    flags = (*geometry, False, False, True)
    with launch.recorded():
        given, batch = arguments("meta")
        real = gpu_conv_lstm.conv_lstm_fwd(*given, *flags, save, save)
        if save:
            back = gpu_conv_lstm.conv_lstm_bwd(*real[:4], *batch, given[-1], real[4], *flags, True, True)
    with FakeTensorMode():
        given, batch = arguments("cuda")
        told = torch.ops.fastlstm.conv_lstm_fwd(*given, *flags, save, save)
        assert facts(told) == facts(real)
        if save:
            said = torch.ops.fastlstm.conv_lstm_bwd(*told[:4], *batch, given[-1], told[4], *flags, True, True)
            assert facts(said) == facts(back)


def facts(results: tuple[torch.Tensor, ...]) -> list[tuple]:
    return [(t.shape, t.dtype, t.stride()) for t in results]


def test_what_is_saved_may_have_symbolic_sizes() -> None:
    env = ShapeEnv()
    y = FakeTensorMode(shape_env=env).from_tensor(torch.empty(7, 5, 9, 11, 3))
    assert isinstance(gpu_conv_lstm.saved_like(y, 24, True).shape[0], torch.SymInt)
    assert not env.guards, "a size was taken for a constant: every new T or B would compile anew"


def launched(T: int, B: int, S: tuple[int, ...], H: int = 64, dtype: torch.dtype = torch.bfloat16) -> list[launch.Call]:
    """What the forward of a kernel of three pixels would launch on an H100."""
    geometry = unmoved((3,) * len(S))
    with launch.recorded() as calls:
        x, state, w, b = (
            torch.empty(shape, dtype=dtype, device="meta")
            for shape in ((T, B, *S, H), (B, *S, H), (4 * H, *[3] * len(S), H), (4 * H,))
        )
        gpu_conv_lstm.conv_lstm_fwd(
            x, None, None, state, state, w, w, b, b, None, *geometry, False, True, False, False, True
        )
    return calls


def test_kernels_know_neither_time_nor_the_image() -> None:
    specs = {
        call.spec
        for T, B, S in ((1, 16, (64, 64)), (70_000, 8, (100, 120)), (5, 64, (200, 33)))
        for call in launched(T, B, S)
    }
    assert len(specs) == 1
    classes = {call.spec for B in range(1, 64) for call in launched(2, B, (17, 19))}
    assert len(classes) <= 5


def test_programs_along_pixels_may_be_millions() -> None:
    """A grid has at most 65,535 along its second axis."""
    (call,) = launched(1, 16, (1024, 1024))
    along_pixels, along_units = call.grid
    assert along_pixels == 16 * 1024 * 1024 // 128
    assert along_units == 2


def test_sequences_may_be_millions() -> None:
    """As pixels are to a kernel of one pixel, which is an LSTM over them."""
    B, H = 16 * 1024 * 1024, 4
    x, h, w = (torch.empty(*shape, H, device="meta") for shape in ((1, B), (B,), (4 * H,)))
    with launch.recorded() as calls:
        *_, saved = gpu_lstm.lstm_fwd(x, None, None, h, h, w, w, None, None, None, None, False, False, False, True)
        gpu_lstm.lstm_bwd(
            x, h, h, None, x, None, None, h, h, w, w, None, None, saved, False, False, True, True, True
        )  # fmt: skip
    assert [call.grid for call in calls] == [(B // 64, 1), (B // 64, 1)]


def test_lengths_of_pixels_are_copied_once(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all layers, directions and passes: each copy waits for the GPU."""
    counted = []
    monkeypatch.setattr(gpu_rows, "count_steps", lambda *args: counted.append(args) or count_steps(*args))
    layer = fastlstm.ConvLSTM1d(2, 3, 1, num_layers=2, bidirectional=True)
    x = torch.randn(3, 2, 2, 4, requires_grad=True)
    y, _ = layer(x, lengths=[3, 2])
    y.sum().backward()
    assert interpreter.launched
    assert [args[0].tolist() for args in counted] == [[8, 8, 4]]


def test_lengths_of_pixels_that_were_edited_are_counted_again() -> None:
    sizes = torch.tensor([3, 2])
    before = conv_layer.sizes_of_pixels(sizes, 4)
    assert conv_layer.sizes_of_pixels(sizes, 4) is before
    assert conv_layer.sizes_of_pixels(sizes, 5).tolist() == [15, 10]
    sizes[1] = 1
    assert conv_layer.sizes_of_pixels(sizes, 4).tolist() == [12, 4]


def test_one_dimension_and_two_are_three() -> None:
    for S in ((7,), (5, 7), (3, 5, 7)):
        (call,) = launched(1, 2, S)
        given, constants = call.given, dict(call.spec.constants)
        assert (given["depth"], given["height"], given["width"]) == (1,) * (3 - len(S)) + S
        assert (constants["KZ"], constants["KY"], constants["KX"]) == (1,) * (3 - len(S)) + (3,) * len(S)


def test_large_tiles_fit_into_shared_memory() -> None:
    for shared in (99 * 1024, 163 * 1024, 227 * 1024):
        gpu = plan.Gpu(processors=108, shared=shared)
        for rows, H in ((64, 16), (4096, 64), (65536, 128), (10**6, 1024)):
            for K, slots in ((H, 4), (4 * H, 1)):
                for dtype in backends.GPU_DTYPES:
                    tile = plan.pixel_tile(rows, H, K, slots, dtype, "tf32", gpu)
                    loaded = tile.stages * (tile.BM + slots * tile.BH) * tile.BK * dtype.itemsize
                    assert loaded + plan.SLACK_BYTES <= shared


@pytest.mark.parametrize("setting", ["tf32", "ieee"])
def test_products_are_as_exact_as_convolutions(setting: str) -> None:
    """Which PyTorch sets apart from its matrix products."""
    cuda, conv = torch.device("cuda"), torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, setting
    try:
        assert launch.precision(torch.float32, cuda, "conv") == setting
        assert launch.precision(torch.bfloat16, cuda, "conv") == "tf32"
    finally:
        conv.fp32_precision = before


def test_cudnn_is_asked_for_the_same_bits_each_time() -> None:
    assert not torch.backends.cudnn.deterministic
    with in_fixed_order():
        assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.deterministic
