"""The errors of a backend, and those that it is allowed.

Oracles: the reference in float64, PyTorch's module in float64 where it has one that does what the case asks, and, where
installed, ONNX Runtime (forward, float32); on a GPU cuDNN in float64 too. To all but the reference, a ConvLSTM whose kernel
is one pixel is an LSTM, and each pixel a sequence. They get exactly the numbers that the backend gets, already rounded to its
dtype.

The error of a quantity is the root mean square of its differences from the oracle, over that of the oracle: |a - b| / |b|.
The largest single difference would be the stricter measure, but it is mostly luck: between draws of one arithmetic it
varies by factors of 3 to 8, and a bound of 2 means nothing. One number that is plainly wrong among N still gives about
1/sqrt(N), a thousand times what float32 is allowed. The draws of a small case are pooled as if they were one tensor.

Allowed is twice the error that PyTorch in the same dtype on the same device makes against the same oracle, plus one rounding of
the dtype. PyTorch's error is the larger of two: of its own module, which runs another kernel on each kind of CPU (oneDNN's, if
there is one), and of its module as a chain of ops, which runs on all of them: either may be lucky on some CPU. Where it has no
module that does what the case asks, it is that of its ops in the order of the reference, as for the backend "reference",
which is those ops: held to a kernel, plain ops in float32 would be asked for its luck. Where a decoder's steps may be attended
all at once, that is another order of the sums, and the larger error of the two counts.
An oracle that isn't more exact than the backend errs as well, and its error is allowed on top. ONNX Runtime, itself
float32, is granted the same bound again. No float64 oracle can measure an error in float64: there PyTorch's error, and that
of the oracles (the larger of the two), are those of the same arithmetic in float32 times the ratio of the two roundings, to
which errors are proportional. (PyTorch's arithmetic in float64 is its chain of ops, so oneDNN is off for that.)
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.parity.attention import AttentionCase
from fastlstm.parity.problems import CASES, Problem, draw
from fastlstm.parity.runs import (
    IN_PYTORCH,
    Forward,
    by_module,
    by_onnx,
    by_ops,
    by_step,
    by_torch,
    by_torch_chain,
    run,
    stacked,
)

LEVELS = ("op", "module", "step")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
Results = dict[str, Tensor]


class Row(NamedTuple):
    """The error of one quantity of one case against one oracle."""

    case: str
    level: str
    backend: str
    dtype: str
    quantity: str
    oracle: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed  # False for NaN


def check(name: str, dtype: str, backend: str, level: str = "op", device: str = "cpu") -> list[Row]:
    """Run one case and compare every quantity with every oracle that has it."""
    forward = {"op": stacked, "module": by_module, "step": by_step}[level](backend)
    results = pooled([run(problem, DTYPES[dtype], forward, device) for problem in problems(name, dtype)])
    wrong = [key for key, tensor in results.items() if tensor.dtype != DTYPES[dtype]]
    if wrong:
        raise TypeError(f"{name}: {', '.join(wrong)} came back in another dtype than {dtype}, the input's")
    rows = []
    for oracle in oracles(name, dtype, device):
        for quantity, tolerance in allowed(name, dtype, oracle, device, backend == "reference").items():
            error = difference(results[quantity], expected(name, dtype, oracle, device)[quantity])
            rows.append(Row(name, level, backend, dtype, quantity, oracle, error, tolerance))
    return rows


def skip(name: str, dtype: str, backend: str, level: str, device: str = "cpu") -> str | None:
    """Why this combination does not exist, or None where it does."""
    if level == "module" and CASES[name].reverse:
        return "no module runs in reverse alone"
    if level == "step" and not (isinstance(CASES[name], AttentionCase) and CASES[name].layout == "dense"):
        return "only decoders are run by steps, for as many of all sequences"
    try:
        backends.choose(CASES[name].kind, torch.device(device), DTYPES[dtype], backend)
    except RuntimeError as error:
        return str(error)
    return None


def oracles(name: str, dtype: str, device: str = "cpu") -> list[str]:
    case = CASES[name].flat
    names = ["reference", "torch"] if in_pytorch(name) else ["reference"]
    if device != "cpu" and in_pytorch(name):
        names.append("cudnn")
    beyond_onnx = case is None or case.P or case.reset or case.cells or 0 in case.lengths
    if dtype == "fp32" and not beyond_onnx and onnx_installed():
        names.append("onnx")
    return names


def in_pytorch(name: str) -> bool:
    """Whether a module of PyTorch's does all that the case asks."""
    case = CASES[name].flat
    return case is not None and case.variant in IN_PYTORCH and not case.reset and not case.cells


@lru_cache(maxsize=8)
def problems(name: str, dtype: str) -> list[Problem]:
    return [draw(name, DTYPES[dtype], index) for index in range(CASES[name].draws)]


@lru_cache(maxsize=8)
def expected(name: str, dtype: str, oracle: str, device: str = "cpu") -> Results:
    """What an oracle says, in float64, "cudnn" on the device; from ONNX Runtime, in float32 and without gradients."""
    if oracle == "onnx":
        return pooled([by_onnx(problem.case, problem.given) for problem in problems(name, dtype)])
    forward: Forward = stacked() if oracle == "reference" else by_torch
    where = device if oracle == "cudnn" else "cpu"
    return pooled([run(problem, torch.float64, forward, where) for problem in problems(name, dtype)])


@lru_cache(maxsize=8)
def allowed(name: str, dtype: str, oracle: str, device: str = "cpu", of_reference: bool = False) -> dict[str, float]:
    """The allowed error of every quantity that the oracle has: see the head of this file."""
    eps = torch.finfo(DTYPES[dtype]).eps
    torch_has_it = in_pytorch(name)
    if dtype == "fp64":
        references = largest([errors(name, "fp32", way, "reference") for way in orders(name)])
        torchs = errors(name, "fp32", by_torch_chain, "reference") if torch_has_it else references
        ratio = eps / torch.finfo(torch.float32).eps
        return {key: ratio * (2 * torchs[key] + max(torchs[key], references[key])) + eps for key in torchs}
    if oracle == "onnx":
        torchs = torch_errors(name, dtype, "reference", device, of_reference)
        return {key: 2 * (2 * torchs[key] + eps) for key in expected(name, dtype, oracle)}
    return {key: 2 * error + eps for key, error in torch_errors(name, dtype, oracle, device, of_reference).items()}


def torch_errors(name: str, dtype: str, oracle: str, device: str, of_reference: bool) -> dict[str, float]:
    """PyTorch's own errors in a dtype."""
    ways = [by_torch, by_torch_chain] if in_pytorch(name) and not of_reference else orders(name)
    return largest([errors(name, dtype, forward, oracle, device) for forward in ways])


def orders(name: str) -> list[Forward]:
    """The reference, in each of the orders in which PyTorch's ops may take its sums."""
    case = CASES[name]
    return [stacked(), *([by_ops] if isinstance(case, AttentionCase) and case.value.at_once else [])]


def largest(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: max(error[key] for error in found) for key in found[0]}


def errors(name: str, dtype: str, forward: Forward, oracle: str, device: str = "cpu") -> dict[str, float]:
    with products_as_exact_as_ours():
        results = pooled([run(problem, DTYPES[dtype], forward, device) for problem in problems(name, dtype)])
    return {key: difference(results[key], tensor) for key, tensor in expected(name, dtype, oracle, device).items()}


@contextmanager
def products_as_exact_as_ours() -> Iterator[None]:
    """cuDNN's RNNs have a setting of TF32 of their own, on by default; ours is that of matrix products."""
    rnn: Any = torch.backends.cudnn.rnn  # what it has is younger than its types
    before = rnn.fp32_precision
    rnn.fp32_precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    try:
        yield
    finally:
        rnn.fp32_precision = before


def difference(result: Tensor, oracle: Tensor) -> float:
    """|result - oracle| / |oracle|; infinite where the shapes differ."""
    if result.shape != oracle.shape:
        return float("inf")
    scale = float(oracle.double().norm())
    return float((result.double() - oracle.double()).norm()) / (scale or 1.0)


def pooled(draws: list[Results]) -> Results:
    return {key: torch.stack([results[key] for results in draws]) for key in draws[0]}


def onnx_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
