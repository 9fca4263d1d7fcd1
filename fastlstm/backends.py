"""Which backend runs what, and why. `"auto"` chooses; a backend that is named runs or raises with the remedy."""

from typing import NamedTuple

import torch

NAMES = ("auto", "numba", "triton", "reference")


class Choice(NamedTuple):
    """`backend` is "numba", "triton", "reference", or "torch": PyTorch's own op, which only "auto" falls back to."""

    backend: str
    reason: str


def choose(variant: str, device: torch.device, dtype: torch.dtype, requested: str = "auto") -> Choice:
    """The backend that runs `variant` ("lstm") on `device` and `dtype`, and one sentence that says why.

    Raises ValueError for an unknown name and RuntimeError where the requested backend can't run, with the remedy.
    """
    if requested not in NAMES:
        raise ValueError(f"backend is {requested!r}, expected one of {', '.join(map(repr, NAMES))}")
    return Choice("reference", "placeholder")
