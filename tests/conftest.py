"""Every test runs on one thread, from the same seed, and in fresh memory full of NaN: reading it before it is written shows.

A test that is about threads sets their number itself, one that measures memory switches the poison off.

Below: the drop-in modules beside PyTorch's, and how a recurrent module is run in each of the layouts that users have, for the
tests that compare values.
"""

import os

# before anything imports triton: kernels are interpreted, and compiled only in processes of their own
os.environ["TRITON_INTERPRET"] = "1"

import fake_cuda as fakes
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import backends

# the same examples at every run; a slow machine is no failure
settings.register_profile("fastlstm", derandomize=True, deadline=None)
settings.load_profile("fastlstm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--path", help="run the CPU kernels as a lesser CPU would: avx512, avx2 or portable")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--path"):
        try:
            backends.force_path(path)
        except (ValueError, RuntimeError) as error:
            raise pytest.UsageError(f"--path: {error}") from error


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


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if backends._C is not None:
        backends._C.poison(True)


OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "two directions": {"bidirectional": True},
    "three layers, two directions, batch first": {"num_layers": 3, "bidirectional": True, "batch_first": True},
    "projection": {"proj_size": 2},
    "projection to 1, two layers, two directions": {"proj_size": 1, "num_layers": 2, "bidirectional": True},
    "projection, no bias, batch first": {"proj_size": 4, "bias": False, "batch_first": True},
}
# a GRU has no projection
CASES = {
    f"{kind}, {name}": (kind, options)
    for kind in ("LSTM", "GRU")
    for name, options in OPTIONS.items()
    if kind == "LSTM" or "proj_size" not in options
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> tuple[str, dict]:
    return request.param


@pytest.fixture(params=["dense", "packed", "packed unsorted", "lengths", "unbatched"])
def layout(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def pair():
    return _pair


@pytest.fixture(scope="session")
def random_states():
    return _random_states


@pytest.fixture(scope="session")
def call():
    return _call


@pytest.fixture(scope="session")
def run():
    return _run


def _pair(kind: str, input_size: int = 3, hidden_size: int = 5, **options) -> tuple[nn.RNNBase, nn.RNNBase]:
    """PyTorch's module and ours, in float64, of the same weights."""
    theirs = getattr(nn, kind)(input_size, hidden_size, dtype=torch.float64, **options)
    ours = getattr(fastlstm, kind)(input_size, hidden_size, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _random_states(module: nn.RNNBase, *batch: int) -> list[Tensor]:
    """Initial states in float64: `[h0, c0]`, or `[h0]` of a GRU."""
    K, H = module.num_layers * (2 if module.bidirectional else 1), module.hidden_size
    sizes = [H] if module.mode == "GRU" else [module.proj_size or H, H]
    return [torch.randn(K, *batch, size, dtype=torch.float64) for size in sizes]


def _call(
    module: nn.RNNBase,
    layout: str,
    lengths: list[int],
    x: Tensor,
    hx: list[Tensor],
    reset: Tensor | None = None,
    return_cells: bool = False,
) -> list[Tensor]:
    """Output, final states and, if asked for, cells, on `x` (T, B, I) in a layout; where PyTorch has no `lengths`, it packs."""
    options = {"return_cells": True} if return_cells else {}
    x, *more = (t.transpose(0, 1) if module.batch_first else t for t in (x, *([] if reset is None else [reset])))
    if layout == "unbatched":
        first = (slice(None), 0) if not module.batch_first else (0,)
        x, more, hx = x[first], [t[first] for t in more], [s[:, 0] for s in hx]
    packs = layout.startswith("packed") or (layout == "lengths" and isinstance(module, (nn.LSTM, nn.GRU)))
    if packs:
        T, is_sorted = x.shape[1 if module.batch_first else 0], layout == "packed"
        n = torch.tensor(sorted(lengths, reverse=True) if is_sorted else lengths)
        x = pack_padded_sequence(x, n, module.batch_first, enforce_sorted=is_sorted)
    elif layout == "lengths":
        options["lengths"] = lengths
    if more:
        options["reset"] = more[0]
    y, finals, *cells = module(x, tuple(hx) if len(hx) == 2 else hx[0], **options)
    steps = [y, *cells]
    if packs:
        for t in steps:
            assert t.batch_sizes is x.batch_sizes
            assert t.sorted_indices is x.sorted_indices
            assert t.unsorted_indices is x.unsorted_indices
        padded = [pad_packed_sequence(t, module.batch_first, total_length=T)[0] for t in steps]
        steps = padded if layout == "lengths" else [t.data for t in steps]
    return [steps[0], *(finals if isinstance(finals, tuple) else [finals]), *steps[1:]]


def _run(
    module: nn.RNNBase, layout: str, lengths: list[int], x: Tensor, hx: list[Tensor], *more: object, **options: object
) -> list[Tensor]:
    """What `call` returns, then the gradients of input, initial states and weights from random output gradients."""
    x, *hx = (t.clone().requires_grad_() for t in (x, *hx))
    outputs = _call(module, layout, lengths, x, hx, *more, **options)
    torch.manual_seed(3)
    d_outputs = [torch.randn(t.shape, dtype=torch.float64).to(t.dtype) for t in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x, *hx, *module.parameters()], d_outputs)]
