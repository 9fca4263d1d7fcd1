"""All cases by name, and their numbers."""

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm.parity.attention import ATTENTION_CASES
from fastlstm.parity.cases import ROWWISE, Case
from fastlstm.parity.conv import CONV_CASES

CASES: dict[str, Case] = ROWWISE | CONV_CASES | ATTENTION_CASES


class Problem(NamedTuple):
    """One draw of a case, rounded to a dtype.

    `given` has x (T, B, I), h0 (L*D, B, P or H), c0 (L*D, B, H), of a ConvLSTM with the image behind them, of an Attention LSTM
    fed0 (B, F) and memory (S, B, M), the weights by our modules' names, and `reset` (T, B) of bool where the case resets;
    `upstream` the gradients that y, h_n, c_n, fed_n, cells and alignments receive.
    """

    case: Case
    given: dict[str, Tensor]
    upstream: dict[str, Tensor]


def draw(name: str, dtype: torch.dtype, index: int) -> Problem:
    """Draw number `index` of a case: the same numbers at every run."""
    case = CASES[name]
    random = torch.Generator().manual_seed(zlib.crc32(name.encode()) + index)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    given = {"x": case.gain * normal(*case.input)}
    if not case.zero_state:
        given |= {key: normal(*shape) for key, shape in case.states.items()}
    given |= {key: scale * normal(*shape) for key, (scale, shape) in case.others.items()}
    for key, weight in case.module(device="meta").named_parameters():
        uniform = 2 * torch.rand(weight.shape, generator=random, dtype=torch.float64) - 1
        given[key] = case.bound * uniform
    steps = {key: (case.T, case.B, *case.row(features)) for key, features in case.outputs.items()}
    upstream = {"y": normal(*steps.pop("y"))}
    upstream |= {key.replace("0", "_n"): normal(*shape) for key, shape in case.states.items()}
    upstream |= {key: normal(*shape) for key, shape in steps.items()}
    given, upstream = ({key: t.to(dtype) for key, t in tensors.items()} for tensors in (given, upstream))
    if case.reset:
        given["reset"] = torch.rand(case.T, case.B, generator=random) < case.reset
    return Problem(case, given, upstream)
