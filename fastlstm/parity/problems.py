"""The numbers of a case."""

import zlib
from dataclasses import replace
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm.case import Case
from fastlstm.parity.cases import CASES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


class Problem(NamedTuple):
    """One draw of a case, rounded to its dtype.

    `given` has x (T, B, I), h0 (L*D, B, P or H), c0 (L*D, B, H), of a ConvLSTM with the image behind them, of an Attention LSTM
    fed0 (B, F) and memory (S, B, M), the weights by our modules' names (a cell's as those of a layer), and `reset` (T, B) of
    bool where the case resets; `upstream` the gradients that y, h_n, c_n, fed_n, cells and alignments receive.
    """

    case: Case
    given: dict[str, Tensor]
    upstream: dict[str, Tensor]


def _line(case: Case) -> str:
    return str(replace(case, dtype=None, mode=None))


@cache
def _named() -> dict[str, str]:
    """What gives a case of ours its numbers, by its line: they stay as they are where a word of the grammar changes."""
    return {_line(case): name.removeprefix("lstm_") for name, case in reversed(CASES.items())}


@lru_cache(maxsize=8)
def _of_all_draws(case: Case) -> tuple[int, dict[str, torch.Size]]:
    """What a case's numbers begin with, and the shapes of its weights."""
    line = _line(case)
    layers = replace(case, layout="dense") if case.layout == "cell" else case
    shapes = {key: weight.shape for key, weight in layers.module(device="meta").named_parameters()}
    return zlib.crc32(_named().get(line, line).encode()), shapes


def draw(case: Case, index: int) -> Problem:
    """Draw number `index` of a case: the same numbers at every run, in any dtype and mode."""
    seed, shapes = _of_all_draws(case)
    random = torch.Generator().manual_seed(seed + index)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    given = {"x": case.gain * normal(*case.input)}
    if not case.zero_state:
        given |= {key: normal(*shape) for key, shape in case.states.items()}
    given |= {key: scale * normal(*shape) for key, (scale, shape) in case.others.items()}
    for key, shape in shapes.items():
        uniform = 2 * torch.rand(shape, generator=random, dtype=torch.float64) - 1
        given[key] = case.bound * uniform
    steps = {key: (case.T, case.B, *case.row(features)) for key, features in case.outputs.items()}
    upstream = {"y": normal(*steps.pop("y"))}
    upstream |= {key.replace("0", "_n"): normal(*shape) for key, shape in case.states.items()}
    upstream |= {key: normal(*shape) for key, shape in steps.items()}
    dtype = DTYPES[case.dtype or "fp32"]
    given, upstream = ({key: t.to(dtype) for key, t in tensors.items()} for tensors in (given, upstream))
    if case.resets:
        given["reset"] = torch.rand(case.T, case.B, generator=random) < case.resets
    return Problem(case, given, upstream)
