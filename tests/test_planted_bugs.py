"""A wrong sign in any variant's gradients, or in any Numba kernel, is a miss: what parity would do if we were wrong."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import VARIANTS, WITH_CELLS, module
from numba.core import caching
from typer.testing import CliRunner

from fastlstm import backends, parity
from fastlstm.cli import app
from fastlstm.kernels.gru import cpu as gru_cpu
from fastlstm.kernels.lstm import cpu as lstm_cpu
from fastlstm.kernels.pairs import cpu as pairs_cpu
from fastlstm.ops import conv_layer as ops_conv
from fastlstm.ops import gru as ops_gru
from fastlstm.ops import lstm as ops_lstm

# where b_ih stands among an op's arguments
B_IH = {"lstm": 7, "gru": 6}


def missed(variant: str, backend: str) -> set[str]:
    """The quantities in which the case of 16 units errs more than it may."""
    return {row.quantity for row in parity.check(f"{variant}_h16", "fp32", backend) if not row.ok}


class FlippedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def flip(variant: str, gate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of one gate's bias gets the other sign."""
    module, name = (ops_gru, "gru") if variant == "gru" else (ops_lstm, "lstm")
    right = getattr(module, name)

    def wrong(*args, **flags):
        rows = list(args[B_IH[name]].chunk(VARIANTS[variant].gates))
        rows[gate] = FlippedGradient.apply(rows[gate])
        return right(*args[: B_IH[name]], torch.cat(rows), *args[B_IH[name] + 1 :], **flags)

    monkeypatch.setattr(module, name, wrong)


@pytest.mark.parametrize(("variant", "gate"), [(v, gate) for v in VARIANTS for gate in range(VARIANTS[v].gates)])
def test_a_wrong_sign_in_one_gate_is_a_miss(variant: str, gate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(variant, gate, monkeypatch)
    assert missed(variant, "reference") == {"dbias_ih_l0"}


def test_a_miss_ends_the_command_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    flip("lstm", 0, monkeypatch)
    result = CliRunner().invoke(app, ["parity", "--case", "h17", "--backend", "reference"])
    assert result.exit_code == 1
    assert "MISS" in result.output


# variant, pass: a line of its kernel, and what is wrong in it
KERNELS = {
    ("lstm", "fwd"): ("c = f * c_prev + i * g", "c = f * c_prev - i * g"),
    ("lstm", "bwd"): ("= dc * i * (one - g * g)", "= -dc * i * (one - g * g)"),
    ("peephole_lstm", "fwd"): ("a_f += tile[row, P + 1, u] * c_prev", "a_f -= tile[row, P + 1, u] * c_prev"),
    ("peephole_lstm", "bwd"): ("dc += da_o * tile[row, P + G, u]", "dc -= da_o * tile[row, P + G, u]"),
    ("cifg_lstm", "fwd"): ("f = one - i", "f = one + i"),
    ("cifg_lstm", "bwd"): ("dc_prev = dc * (one - i)", "dc_prev = dc * (one + i)"),
    ("cifg_peephole_lstm", "fwd"): ("a_o += tile[row, P + G, u] * c", "a_o -= tile[row, P + G, u] * c"),
    ("cifg_peephole_lstm", "bwd"): ("dc_prev += da_i * tile[row, P, u]", "dc_prev -= da_i * tile[row, P, u]"),
    ("gru", "fwd"): ("h = (one - z) * n", "h = (one + z) * n"),
    ("gru", "bwd"): ("tile[row, 7, u] = dh * z", "tile[row, 7, u] = -dh * z"),
}
# the same for all: the h that gradients of W_hh are taken with
KERNELS |= {(v, "hidden"): ("h[j] = o[j] * tanh(h[j])", "h[j] = -o[j] * tanh(h[j])") for v in WITH_CELLS}
# Those of second derivatives
OF_PAIRS = {
    ("lstm_pairs", "fwd"): ("+ i_t * g + i * g_t", "+ i_t * g - i * g_t"),
    ("lstm_pairs", "bwd"): ("- two * dg_t * g * g_t", "+ two * dg_t * g * g_t"),
    ("lstm_pairs", "hidden"): ("= o[row, 1, u] * tanh_c + o", "= o[row, 1, u] * tanh_c - o"),
    ("peephole_lstm_pairs", "fwd"): ("a_f_t += tile", "a_f_t -= tile"),
    ("peephole_lstm_pairs", "bwd"): ("dc_prev += da_f * tile", "dc_prev -= da_f * tile"),
    ("cifg_lstm_pairs", "fwd"): ("f_t = -i_t", "f_t = i_t"),
    ("cifg_lstm_pairs", "bwd"): ("dc_t * (g_t - c_prev_t)", "dc_t * (g_t + c_prev_t)"),
    ("cifg_peephole_lstm_pairs", "fwd"): ("a_o_t += tile", "a_o_t -= tile"),
    ("cifg_peephole_lstm_pairs", "bwd"): ("dc += da_o * tile", "dc -= da_o * tile"),
    ("gru_pairs", "fwd"): ("+ z_t * (h_prev - n)", "- z_t * (h_prev - n)"),
    ("gru_pairs", "bwd"): ("dr_t * (one - two * r) * r_t", "dr_t * (one + two * r) * r_t"),
}
needs_extension = pytest.mark.skipif(
    backends.extension_status() != "built", reason="the numba backend needs the C++ extension"
)


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that puts a wrong line into the kernel of a variant and pass, in this process."""
    right = backends._compile_gate_kernel
    kept = []

    def compiled(wanted: str, line: str, wrong: str) -> Callable[[str, str, str, str], int]:
        cpu = pairs_cpu if "_pairs_" in wanted else gru_cpu if wanted.startswith("gru") else lstm_cpu
        source = Path(cpu.__file__).read_text()
        assert source.count(line) == 1
        file = tmp_path / "wrong.py"
        file.write_text(source.replace(line, wrong))
        spec = importlib.util.spec_from_file_location("wrong", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        def compile_kernel(variant: str, of_pass: str, dtype: str, path: str) -> int:
            if f"{variant}_{of_pass}_{dtype}" != wanted:
                return right(variant, of_pass, dtype, path)
            with monkeypatch.context() as patch:
                patch.setattr(caching.CacheImpl, "_locator_classes", [])  # keeps nothing on disk
                kept.append(module.compile_kernel(backends._registered[variant], of_pass, dtype))
            return kept[-1].address

        return compile_kernel

    yield lambda *planted: backends._C.set_kernel_compiler(compiled(*planted))
    backends._C.set_kernel_compiler(right)


@needs_extension
@pytest.mark.parametrize(("variant", "direction"), KERNELS, ids=map("-".join, KERNELS))
def test_a_wrong_sign_in_a_kernel_is_a_miss(variant: str, direction: str, plant) -> None:
    line, wrong = KERNELS[variant, direction]
    plant(f"{variant}_{direction}_f32", line, wrong)
    found = missed(variant, "numba")
    assert found
    assert direction == "fwd" or not found & {"y", "h_n", "c_n"}


def second_derivatives(variant: str, graph: bool) -> torch.Tensor:
    """By kernels, or with a graph by PyTorch's ops."""
    torch.manual_seed(0)
    ours, x = module(variant, 3, 16).float(), torch.randn(5, 4, 3).requires_grad_()
    (dx,) = torch.autograd.grad(ours(x)[0].square().sum(), x, create_graph=True)
    found = torch.autograd.grad(dx.sin().sum(), list(ours.parameters()), create_graph=graph)
    return torch.cat([d.detach().flatten() for d in found])


@needs_extension
@pytest.mark.parametrize(("variant", "direction"), OF_PAIRS, ids=map("-".join, OF_PAIRS))
def test_a_wrong_sign_in_a_second_derivative_is_noticed(variant: str, direction: str, plant) -> None:
    plant(f"{variant}_{direction}_f32", *OF_PAIRS[variant, direction])
    got, want = (second_derivatives(variant.removesuffix("_pairs"), graph) for graph in (False, True))
    assert (got - want).norm() > 1e-3 * want.norm()


def test_every_kernel_has_a_planted_bug() -> None:
    both = {(variant, direction) for variant in backends.VARIANTS for direction in ("fwd", "bwd")}
    assert set(KERNELS) == both | {(variant, "hidden") for variant in WITH_CELLS}
    assert set(OF_PAIRS) == {(f"{variant}_pairs", direction) for variant, direction in both} | {
        ("lstm_pairs", "hidden")
    }


@needs_extension
def test_the_planted_file_is_read(plant) -> None:
    """And as it stands, is no miss."""
    plant("lstm_bwd_f32", "tanh_c = tanh(tile[row, C, u])", "tanh_c = tanh(tile[row, C, u])  # as it was")
    assert not missed("lstm", "numba")


@needs_extension
def test_memory_that_is_not_written_is_nan(plant) -> None:
    """What conftest poisons: the kernel forgets its output, and nobody reads what happened to lie there."""
    plant("lstm_fwd_f32", "tile[row, M, u] = o * tanh(c)", "pass")
    x, h0, w_ih, w_hh = (torch.randn(shape) for shape in ((5, 4, 3), (4, 16), (64, 3), (64, 16)))
    y, *_ = torch.ops.fastlstm.lstm_fwd.default(x, *[None] * 2, h0, h0, w_ih, w_hh, *[None] * 4, *[False] * 4)
    assert y.isnan().all()


def missed_by_conv(case: str, backend: str) -> set[str]:
    return {row.quantity for row in parity.check(f"peephole_conv_lstm_{case}", "fp32", backend) if not row.ok}


@needs_extension
def test_an_output_gate_of_maps_that_sees_the_old_cell_is_a_miss(plant) -> None:
    assert not missed_by_conv("conv", "numba")
    plant("peephole_lstm_fwd_f32", "a_o += tile[row, P + G, u] * c", "a_o += tile[row, P + G, u] * c_prev")
    assert {"y", "h_n", "dweight_peephole_l0"} <= missed_by_conv("conv", "numba")


class FlippedTaps(torch.autograd.Function):
    """As a backward that forgets to turn the kernel round: on the way back, taps are mirrored."""

    @staticmethod
    def forward(ctx, w):
        return w.clone()

    @staticmethod
    def backward(ctx, dw):
        return dw.flip(1)


# an argument of the op, what is wrong with it, and what errs then
TAPS, STATE, KERNEL = 6, 3, 5
ALL = {"y", "h_n", "c_n"}
MAPS = {
    "a tap is shifted": (TAPS, lambda w: w.roll(1, dims=1), ALL),
    "rows are columns": (TAPS, lambda w: w.transpose(1, 2), ALL),
    "the input's taps are mirrored": (KERNEL, lambda w: w.flip(2), ALL),
    "the gradient's taps are mirrored": (TAPS, FlippedTaps.apply, {"dweight_hh_l0"}),
    "the state gets no gradient": (STATE, lambda h0: h0.detach(), {"dh0"}),
}


@pytest.mark.parametrize(("place", "wrong", "errs"), MAPS.values(), ids=MAPS)
def test_a_wrong_tap_is_a_miss(place: int, wrong: Callable, errs: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops_conv.conv_lstm

    def broken(*args, **flags):
        return right(*args[:place], wrong(args[place]), *args[place + 1 :], **flags)

    monkeypatch.setattr(ops_conv, "conv_lstm", broken)
    found = missed_by_conv("conv", "reference")
    assert errs <= found
    assert errs in (ALL, found)
