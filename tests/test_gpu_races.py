"""Programs of a launch run in any order and at once: none may touch what another one writes, where nobody waits for anybody.

Triton's interpreter runs them one after another, and is watched: see `Watch`.
"""

import pytest
import torch
from gpu_watch import Watch

import fastlstm
from fastlstm import backends
from fastlstm.gpu.rows import Rows

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")


@pytest.fixture
def watch(interpreter, fake_cuda, monkeypatch) -> Watch:
    return Watch(interpreter, fake_cuda, monkeypatch)


LAYERS = {
    "lstm": (lambda: fastlstm.PeepholeLSTM(3, 17), (70, 3)),
    "gru": (lambda: fastlstm.GRU(3, 17), (70, 3)),
    "conv_lstm": (lambda: fastlstm.ConvLSTM2d(1, 17, (2, 3), peephole="channel"), (5, 1, 4, 5)),
    "conv_lstm, a weight per pixel": (
        lambda: fastlstm.ConvLSTM1d(1, 17, 3, peephole="hadamard", coupled=True, spatial_size=35),
        (3, 1, 35),
    ),
}


@pytest.mark.parametrize(("make", "of_step"), LAYERS.values(), ids=LAYERS)
def test_no_program_touches_what_another_one_writes(make, of_step, watch: Watch) -> None:
    layer, T, B = make(), 2, of_step[0]
    x = torch.randn(T, *of_step, requires_grad=True)
    y, finals = layer(x, lengths=[2] * (B - 1) + [1], reset=torch.rand(T, B) < 0.3)
    (y.sum() + sum(state.sum() for state in (finals if isinstance(finals, tuple) else [finals]))).backward()
    assert len(watch.launches) == 2 * T
    assert all(programs == 4 for _, programs in watch.launches), "of rows and of units there are two tiles each"
    assert not watch.races


def test_a_race_is_seen(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a step that writes h over the one that its neighbours read."""
    h = torch.randn(1, 1, 100, 17)  # as kernels have it: they are given this memory
    monkeypatch.setattr(Rows, "new", lambda self, columns, like: h.view(1, 1, columns))
    with torch.no_grad():
        fastlstm.ConvLSTM1d(1, 17, 3)(torch.randn(1, 1, 1, 100), (h.movedim(-1, 2), torch.zeros(1, 1, 17, 100)))
    assert watch.races
