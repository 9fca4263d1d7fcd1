"""Every test runs on one thread, from the same seed, and in fresh memory full of NaN: reading it before it is written shows.
What it switches for the whole process is switched back.

Where a test sets more threads, there are so many workers, however few the CPUs: plans are the same on every machine.

A test that is about threads sets their number itself, one that measures memory switches the poison off.
"""

import os

# before anything imports triton: kernels are interpreted, and compiled only in processes of their own
os.environ["TRITON_INTERPRET"] = "1"
# PyTorch's compiler takes it that g++ knows this CPU's instructions: it would compile a file for each kind,
# to see. (An old g++ on a newer CPU may not: then Inductor's tests say which option it lacks)
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
# and that this process compiles: others would import PyTorch first
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import gc
import sys
from collections.abc import Iterator

import fake_cuda as fakes
import pytest
import torch
from hypothesis import settings

from fastlstm import backends

# Where no such device is, PyTorch keeps each of its seeds for when it comes, and the stack that asked for it: a millisecond
for device in (torch.cuda, torch.xpu, torch.mtia):
    if not device.is_available():
        device.manual_seed_all = lambda seed: None

# the same examples at every run; a slow machine is no failure
settings.register_profile("fastlstm", derandomize=True, deadline=None)
settings.load_profile("fastlstm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--path", help="run the CPU kernels as a lesser CPU would: avx512+bf16, avx512, avx2 or portable")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--path"):
        try:
            backends.force_path(path)
        except (ValueError, RuntimeError) as error:
            raise pytest.UsageError(f"--path: {error}") from error


# What takes long and would come late: the last file of a run has one process, and the others wait
DEAREST = ("parity", "deploying", "distributed", "train", "onnx", "gpu_compile", "programs", "paths", "planted_bugs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These files begin first: `make test` has pytest-xdist keep this order, where its own is by the number of tests."""
    rank = {f"test_{name}.py": k for k, name in enumerate(DEAREST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """What is there by now is there to stay: to look for garbage in all modules and tests took a second each time."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # nanobind's users count what is left at the end


def pytest_report_header() -> str:
    return f"matrix products: {backends.gemm_path()}; ATen: {torch.backends.cpu.get_cpu_capability()}"


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory):
    if fakes.COMPILER is None:
        pytest.skip("the double of libcuda needs a C compiler: none of cc, gcc, clang was found")
    return fakes.FakeCuda(fakes.compile_library(tmp_path_factory.mktemp("fake_cuda")))


@pytest.fixture
def fake_cuda(fake_library):
    """A double of libcuda, which the launcher uses during the test."""
    fake_library.reset()
    backends._C.open_driver(fake_library.library)
    yield fake_library
    backends._C.close_driver()
    fake_library.reset()


@pytest.fixture
def interpreter(fake_cuda, monkeypatch):
    """What runs the ops, as those of a GPU."""
    from gpu_interpreter import interpreted

    with interpreted(fake_cuda, monkeypatch) as interpreter:
        yield interpreter


@pytest.fixture(autouse=True, scope="module")
def _nothing_compiled() -> None:
    """What files before compiled of the same code counts for its limit, beyond which PyTorch compiles it no more."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(autouse=True)
def _same_start(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if backends._C is not None:
        backends._C.poison(True)
        backends._C.crowd(True)
    hook = sys.excepthook
    yield
    sys.excepthook = hook  # torch.distributed's puts a rank before what it says
    torch.set_autocast_cache_enabled(True)  # PyTorch's old exporter of ONNX leaves it off where it fails
    backends.set_float32_precision("highest")
    backends.force_form(None)
    if backends.forced_path() != (path := request.config.getoption("--path")):
        backends.force_path(path)
