"""What of the GPU side needs no kernel to run: which backend is chosen, what is compiled, what ops return and plan."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastlstm import alarm, backends, parity, sequences
from fastlstm.cli.parity import compiling_ahead
from fastlstm.gpu import ahead, launch, plan
from fastlstm.gpu import gru as gpu_gru
from fastlstm.gpu import lstm as gpu_lstm
from fastlstm.gpu.rows import Rows, steps_of
from fastlstm.kernels import gpu_compile
from fastlstm.ops import conv_lstm as ops_conv_lstm
from fastlstm.ops import lstm as ops_lstm

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the launcher is in the C++ extension")


@pytest.mark.parametrize("variant", backends.VARIANTS)
def test_triton_runs_where_it_is_asked_for(variant: str) -> None:
    for dtype in backends.GPU_DTYPES:
        assert backends.explain(backends.VARIANTS[variant], "cuda", dtype, "triton").backend == "triton"


@pytest.mark.parametrize(
    ("device", "dtype", "backend", "message"),
    [
        ("cuda", torch.float64, "triton", "there are no GPU kernels for torch.float64"),
        ("cuda", torch.float32, "numba", "its kernels run on the CPU, and the tensors are on cuda"),
        ("cpu", torch.float32, "triton", "its kernels run on CUDA GPUs, and the tensors are on cpu"),
    ],
)
def test_a_backend_that_cannot_run_says_why(device: str, dtype: torch.dtype, backend: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        backends.explain(backends.VARIANTS["lstm"], device, dtype, backend)


def test_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    backends.explain.cache_clear()
    with pytest.raises(RuntimeError, match=r"the kernels need compute capability 8.0, and this GPU has 7.5"):
        backends.explain(backends.VARIANTS["lstm"], "cuda", torch.float32, "triton")
    backends.explain.cache_clear()


@pytest.mark.parametrize("layout", ["dense", "packed", "padded", "step"])
@pytest.mark.parametrize("save", [True, False])
def test_the_fakes_tell_what_the_ops_return(layout: str, save: bool) -> None:
    """Shapes, dtypes and strides of what torch.compile is told, beside what the ops give on tensors without data."""
    T, B, I, H = 3, 4, 5, 6
    batch_sizes = torch.tensor([4, 2, 1]) if layout in ("packed", "padded") else None
    shape = {"dense": (T, B), "packed": (7,), "padded": (T, B), "step": (B,)}[layout]

    def tensor(*sizes: int, device: str) -> torch.Tensor:
        return torch.empty(sizes, device=device, dtype=torch.bfloat16)

    def arguments(device: str) -> tuple:
        x, h, c = tensor(*shape, I, device=device), tensor(B, H, device=device), tensor(B, H, device=device)
        weights = [tensor(4 * H, n, device=device) for n in (I, H)]
        return x, batch_sizes, None, h, c, *weights, None, None, None, None, False, False, True, save

    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        told = torch.ops.fastlstm.lstm_fwd(*arguments("cuda"))
    with launch.recorded():
        given = gpu_lstm.lstm_fwd(*arguments("meta"))
    for fake, real in zip(told, given, strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_what_is_saved_may_have_symbolic_sizes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    env = ShapeEnv()
    x = FakeTensorMode(shape_env=env).from_tensor(torch.empty(7, 5, 3))
    for saved in (gpu_lstm.saved_like(x, 6, 24, True, True), gpu_gru.saved_like(x, 6, True)):
        assert isinstance(saved.shape[0], torch.SymInt)
    assert not env.guards, "a size was taken for a constant: every new T or B would compile anew"


def test_a_plan_knows_neither_time_nor_much_of_the_batch() -> None:
    def tiles(T: int, batches: range) -> set:
        found = set()
        for B in batches:
            x, h = torch.empty(T, B, 64, device="meta"), torch.empty(B, 256, device="meta")
            w_ih, w_hh = torch.empty(768, 64, device="meta"), torch.empty(768, 256, device="meta")
            with launch.recorded() as calls:
                gpu_gru.gru_fwd(x, None, None, h, w_ih, w_hh, None, None, False, True)
            found |= {call.spec for call in calls}
        return found

    assert tiles(3, range(1, 300, 7)) == tiles(70_000, range(1, 300, 7))
    assert len(tiles(1, range(1, 17))) == 1
    assert len(tiles(1, range(1, 300))) <= 6


def test_a_grid_that_does_not_fit_is_not_resident() -> None:
    gpu = plan.Gpu(processors=108, shared=163 * 1024)
    for B in (1, 16, 64, 256, 4096):
        for H in (1, 64, 768, 1024, 4096):
            tile = plan.tile(B, H, H, 4, torch.bfloat16, "tf32", gpu)
            programs = -(-H // tile.BH) * -(-B // tile.BM)
            assert plan.resident(B, H, tile, gpu) == (programs <= 108)
            assert not tile.keep or gpu.shared > (4 * tile.BH + tile.BM) * tile.BK * 2


@pytest.mark.parametrize("reverse", [False, True])
def test_rows_before_and_ends(reverse: bool) -> None:
    sizes = torch.tensor([3, 2, 2, 1])  # sequences of 4, 3 and 1 steps
    given = torch.arange(8.0)[:, None]
    rows = Rows(given, sizes, None, 3, reverse)
    before = rows.before(given, torch.tensor([[-1.0], [-2.0], [-3.0]]))[:, 0].tolist()
    assert before == ([3, 4, -3, 5, 6, 7, -2, -1] if reverse else [-1, -2, -3, 0, 1, 3, 4, 5])
    assert rows.take("first", given, given[:3])[:, 0].tolist() == ([7, 6, 2] if reverse else [0, 1, 2])
    assert rows.take("last", given, given[:3])[:, 0].tolist() == ([0, 1, 2] if reverse else [7, 6, 2])


def test_rows_of_the_same_sizes_are_counted_once() -> None:
    def offsets(batch_sizes: torch.Tensor) -> torch.Tensor:
        return steps_of(batch_sizes, 3, 6, False, torch.device("cpu")).offsets

    with torch.inference_mode():
        made_there = torch.tensor([3, 2, 1])
    for sizes in (torch.tensor([3, 2, 1]), made_there):
        before = offsets(sizes)
        assert offsets(sizes) is before
        with torch.inference_mode():
            sizes[1:] = torch.tensor([3, 0])
        assert offsets(sizes).tolist() == [0, 3, 6]


def test_triton_is_asked_for_where_it_is_needed() -> None:
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert any(line.startswith("triton") for line in extras["gpu"])
    assert any(line.startswith("triton") for line in extras["test"])


def test_float32_is_as_exact_as_cudnn_is_set_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "none" inherits from the settings above it, as in PyTorch."""
    cuda, rnn = torch.device("cuda"), torch.backends.cudnn.rnn
    before, above = rnn.fp32_precision, torch.backends.fp32_precision
    try:
        for setting in ("tf32", "ieee"):
            rnn.fp32_precision = setting
            assert launch.precision(torch.float32, cuda) == setting
            assert launch.precision(torch.bfloat16, cuda) == "tf32"
        rnn.fp32_precision = "none"
        for setting in ("tf32", "ieee"):
            torch.backends.fp32_precision = setting
            assert launch.precision(torch.float32, cuda) == setting
        assert launch.precision(torch.float32, cuda, "matmul") == "ieee"
    finally:
        torch.backends.fp32_precision, rnn.fp32_precision = above, before


OF_CUDNN = {"lstm_h16": ("rnn", ops_lstm.OPS), "conv_lstm_conv": ("conv", ops_conv_lstm.OPS)}


@pytest.mark.parametrize("case", OF_CUDNN)
def test_parity_is_exact(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is set: it compares with oracles, not with another one's rounding. Kernels are compiled for that before."""
    (name, ops), seen = OF_CUDNN[case], []
    cudnn, run = getattr(torch.backends.cudnn, name), ops.fwd
    before = cudnn.fp32_precision
    cudnn.fp32_precision = "tf32"
    try:
        monkeypatch.setattr(ops, "fwd", lambda *args: seen.append(cudnn.fp32_precision) or run(*args))
        parity.check(case, "fp32", "numba")
        monkeypatch.setattr(ahead, "compiling", lambda work, device: [one() for one in work])
        checked = len(seen)
        compiling_ahead([(parity.find(case, "fp32"), "triton", "op")], "cpu")
        assert cudnn.fp32_precision == "tf32"
    finally:
        cudnn.fp32_precision = before
    assert 0 < checked < len(seen)
    assert set(seen) == {"ieee"}


def test_processors_are_left_for_those_who_sum_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_gpu", lambda device: launch.H100)
    assert launch.gpu(torch.device("cuda")).processors == 132
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert launch.gpu(torch.device("cuda")).processors == 116


@pytest.mark.parametrize(("T", "B"), [(0, 2), (3, 0)])
@pytest.mark.parametrize("projected", [False, True])
def test_nothing_is_compiled_where_nothing_is_to_run(T: int, B: int, projected: bool, monkeypatch) -> None:
    monkeypatch.setattr(launch, "loaded", lambda *args: pytest.fail("a kernel was compiled"))
    monkeypatch.setattr(launch, "gpu", lambda device: launch.H100)
    monkeypatch.setattr(launch, "target", lambda index: None)
    H, R = 4, 2 if projected else 4
    x, h, c, w_ih, w_hh = (torch.zeros(*shape) for shape in ((T, B, 3), (B, R), (B, H), (4 * H, 3), (4 * H, R)))
    w_hr = torch.zeros(R, H) if projected else None
    y, h_n, *_, saved = gpu_lstm.lstm_fwd(
        x, None, None, h, c, w_ih, w_hh, None, None, w_hr, None, False, False, False, True
    )
    assert y.shape == (T, B, R)
    assert torch.equal(h_n, h)
    batch = x, None, None
    dx, *_ = gpu_lstm.lstm_bwd(
        y, h, c, None, *batch, h, c, w_ih, w_hh, w_hr, None, saved, False, False, True, True, True
    )  # fmt: skip
    assert dx.shape == x.shape
    if not projected:
        y, h_n, saved = gpu_gru.gru_fwd(*batch, h, w_ih[: 3 * H], w_hh[: 3 * H], None, None, False, True)
        assert torch.equal(h_n, h)
        dx, *_ = gpu_gru.gru_bwd(y, h, *batch, h, w_ih[: 3 * H], w_hh[: 3 * H], saved, False, True, True, True)
        assert dx.shape == x.shape


@pytest.fixture
def no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of launches, as in a new process."""
    for name, value in {
        "_word": None,
        "_reading": None,
        "_launches": {},
        "devices": set(),
        "steps_only": False,
    }.items():
        monkeypatch.setattr(alarm, name, value)


def test_a_gpu_reports_to_memory_that_is_pinned(no_launches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, zeros = [], torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *n, pin_memory, **more: asked.append(pin_memory) or zeros(*n, **more))
    alarm.arguments("a", (1, 2), torch.device("cuda"))
    assert asked == [True]


def test_check_gpu_waits_for_what_was_used_and_then_looks(no_launches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other GPUs are left alone: a wait there makes a context, in every process."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    waited = []

    def synchronize(device: torch.device) -> None:
        waited.append(device)
        alarm._reading[0] = 1  # it has something to say, when it is done

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    backends.check_gpu()
    assert not waited
    alarm.arguments("lstm_forward", (3, 4), torch.device("cpu"))
    alarm.devices.add(torch.device("cuda", 1))
    with pytest.raises(RuntimeError, match=r"lstm_forward gave up: its grid of 3 x 4 programs"):
        backends.check_gpu()
    assert waited == [torch.device("cuda", 1)]


@pytest.mark.parametrize(("name", "value"), [("global_scratch_size", 8), ("profile_scratch_size", 4), ("num_ctas", 2)])
def test_instrumented_kernels_are_refused(name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = {
        "name": "k",
        "shared": 0,
        "num_warps": 4,
        "global_scratch_size": 0,
        "profile_scratch_size": 0,
        "num_ctas": 1,
    }

    def compiled(facts: dict) -> SimpleNamespace:
        return SimpleNamespace(asm={"cubin": b"-"}, metadata=SimpleNamespace(**facts))

    spec, target = gpu_compile.Spec("lstm_forward", torch.float32, ()), gpu_compile.Target("cuda", 90, 32)
    monkeypatch.setattr(gpu_compile, "compiled", lambda *_: compiled(right))
    assert gpu_compile.image(spec, target) == (b"-", "k", 0, 128)
    monkeypatch.setattr(gpu_compile, "compiled", lambda *_: compiled(right | {name: value}))
    with pytest.raises(RuntimeError, match=f"lstm_forward was compiled with {name} = {value}, expected"):
        gpu_compile.image(spec, target)


def test_lengths_are_not_copied_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"while a CUDA graph is captured.* give a PackedSequence, the same one"):
        steps_of(torch.tensor([2, 1]), 2, 3, False, torch.device("cuda"))
    x = SimpleNamespace(is_cuda=True)
    with pytest.raises(RuntimeError, match=r"lengths= can't be captured in a CUDA graph.* give a PackedSequence"):
        sequences._check_capture(x, "lengths=", "give a PackedSequence")
