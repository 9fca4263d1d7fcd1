"""The errors of a backend, and those that it is allowed.

Oracles: the reference in float64, PyTorch's module in float64 where it has one that does what the case asks, and, where
installed, ONNX Runtime (forward, float32); on a GPU cuDNN in float64 too. To all but the reference, a ConvLSTM whose kernel
is one pixel is an LSTM, and each pixel a sequence. They get exactly the numbers that the backend gets, already rounded to its
dtype.

The error of a quantity is the root mean square of its differences from the oracle, over that of the oracle: |a - b| / |b|.
The largest single difference would be the stricter measure, but it is mostly luck: between draws of one arithmetic it
varies by factors of 3 to 8, and a bound of 2 means nothing. One number that is plainly wrong among N still gives about
1/sqrt(N), a thousand times what float32 is allowed. The draws of a small case are pooled as if they were one tensor. (Alone, a
gradient that is subnormal in float16 is off by a large share of itself though it is the nearest number that there is.)

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
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.case import AttentionCase, Case, parse
from fastlstm.parity.cases import CASES
from fastlstm.parity.problems import DTYPES, Problem, draw
from fastlstm.parity.runs import (
    IN_PYTORCH,
    Forward,
    by_module,
    by_onnx,
    by_ops,
    by_reference,
    by_step,
    by_torch,
    by_torch_chain,
    run,
    stacked,
)

LEVELS = ("op", "module", "step")
Results = dict[str, Tensor]


class Row(NamedTuple):
    """The error of one quantity of one case against one oracle."""

    case: str  # its line, with variant and dtype
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


@lru_cache(maxsize=64)
def find(case: Case | str, dtype: str | None = None) -> Case:
    """A case by its name or its line, in a dtype; in float32 where nobody says another."""
    if isinstance(case, str):
        case = CASES[case] if case in CASES else parse(case)
    return replace(case, dtype=dtype or case.dtype or "fp32")


def check(case: Case | str, dtype: str | None, backend: str, level: str = "op", device: str = "cpu") -> list[Row]:
    """Run one case with a backend and compare every quantity with every oracle that has it."""
    forward = {"op": stacked, "module": by_module, "step": by_step}[level](backend)
    return compare(find(case, dtype), forward, level, backend, device)


def compare(case: Case, forward: Forward, level: str, who: str, device: str = "cpu") -> list[Row]:
    """The same for whatever runs a case; `who` is called "backend" in the rows."""
    kind = DTYPES[case.dtype or "fp32"]
    with exact_products():
        results = pooled([run(problem, kind, forward, device) for problem in problems(case)])
    line, dtype = str(case), case.dtype or "fp32"
    wrong = [key for key, tensor in results.items() if tensor.dtype != kind]
    rows = [Row(line, level, who, dtype, key, "dtype of the input", float("inf"), 0.0) for key in wrong]
    for oracle in oracles(case, device):
        for quantity, tolerance in allowed(case, oracle, device, who == "reference").items():
            error = difference(results[quantity], expected(case, oracle, device)[quantity])
            rows.append(Row(line, level, who, dtype, quantity, oracle, error, tolerance))
    return rows


def skip(case: Case | str, dtype: str | None, backend: str, level: str, device: str = "cpu") -> str | None:
    """Why this combination does not exist, or None where it does."""
    case = find(case, dtype)
    if level == "module" and case.reverse:
        return "no module runs in reverse alone"
    if level == "step" and not (isinstance(case, AttentionCase) and not case.lengths):
        return "only decoders are run by steps, for as many of all sequences"
    if level != "step" and case.layout == "step":
        return "the case is run by steps"
    try:
        backends.choose(case.kind, torch.device(device), DTYPES[case.dtype or "fp32"], backend)
    except RuntimeError as error:
        return str(error)
    return None


def oracles(case: Case, device: str = "cpu") -> list[str]:
    flat = case.flat
    names = ["reference", "torch"] if in_pytorch(case) else ["reference"]
    if device != "cpu" and in_pytorch(case):
        names.append("cudnn")
    beyond_onnx = flat is None or flat.P or flat.resets or flat.return_cells or 0 in flat.lengths
    if case.dtype == "fp32" and not beyond_onnx and onnx_installed():
        names.append("onnx")
    return names


def in_pytorch(case: Case) -> bool:
    """Whether a module of PyTorch's does all that the case asks."""
    flat = case.flat
    return flat is not None and flat.variant in IN_PYTORCH and not flat.resets and not flat.return_cells


@lru_cache(maxsize=8)
def problems(case: Case) -> list[Problem]:
    return [draw(case, index) for index in range(case.draws)]


@lru_cache(maxsize=8)
def expected(case: Case, oracle: str, device: str = "cpu") -> Results:
    """What an oracle says, in float64, "cudnn" on the device; from ONNX Runtime, in float32 and without gradients."""
    if oracle == "onnx":
        return pooled([by_onnx(problem.case, problem.given) for problem in problems(case)])
    forward: Forward = by_reference if oracle == "reference" else by_torch
    where = device if oracle == "cudnn" else "cpu"
    return pooled([run(problem, torch.float64, forward, where) for problem in problems(case)])


@lru_cache(maxsize=8)
def allowed(case: Case, oracle: str, device: str = "cpu", of_reference: bool = False) -> dict[str, float]:
    """The allowed error of every quantity that the oracle has: see the head of this file."""
    eps = torch.finfo(DTYPES[case.dtype or "fp32"]).eps
    if case.dtype == "fp64":
        single = replace(case, dtype="fp32")
        references = largest([errors(single, way, "reference") for way in orders(case)])
        torchs = errors(single, by_torch_chain, "reference") if in_pytorch(case) else references
        ratio = eps / torch.finfo(torch.float32).eps
        return {key: ratio * (2 * torchs[key] + max(torchs[key], references[key])) + eps for key in torchs}
    if oracle == "onnx":
        torchs = torch_errors(case, "reference", device, of_reference)
        return {key: 2 * (2 * torchs[key] + eps) for key in expected(case, oracle)}
    return {key: 2 * error + eps for key, error in torch_errors(case, oracle, device, of_reference).items()}


def torch_errors(case: Case, oracle: str, device: str, of_reference: bool) -> dict[str, float]:
    """PyTorch's own errors in a dtype."""
    ways = [by_torch, by_torch_chain] if in_pytorch(case) and not of_reference else orders(case)
    return largest([errors(case, forward, oracle, device) for forward in ways])


def orders(case: Case) -> list[Forward]:
    """The reference, in each of the orders in which PyTorch's ops may take its sums."""
    return [by_reference, *([by_ops] if isinstance(case, AttentionCase) and case.value.at_once else [])]


def largest(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: max(error[key] for error in found) for key in found[0]}


def errors(case: Case, forward: Forward, oracle: str, device: str = "cpu") -> dict[str, float]:
    results = answered(case, forward, device)
    return {key: difference(results[key], tensor) for key, tensor in expected(case, oracle, device).items()}


@lru_cache(maxsize=16)
def answered(case: Case, forward: Forward, device: str) -> Results:
    """What PyTorch gives in the case's dtype: each oracle asks, and that of float32 is asked for again by float64."""
    with exact_products():
        return pooled([run(problem, DTYPES[case.dtype or "fp32"], forward, device) for problem in problems(case)])


@contextmanager
def exact_products() -> Iterator[None]:
    """RNNs and convolutions on a GPU, ours and cuDNN's, have settings of TF32 of their own, on by default: its error would hide
    others; and cuDNN takes it for some sizes only, so that ours alone would err by it."""
    cudnn: Any = torch.backends.cudnn  # what it has is younger than its types
    before = cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision
    cudnn.rnn.fp32_precision = cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision = before


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
