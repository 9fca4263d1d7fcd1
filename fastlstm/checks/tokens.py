"""The arguments of models of tokens."""

import math
from typing import Any

import torch
from torch import Tensor

from fastlstm.checks.conv_options import is_int


def check_special(name: str, token: Any, **vocabularies: int) -> None:
    """A token that means something is in each of the vocabularies."""
    if not is_int(token):
        raise TypeError(f"{name} should be of type int, got: {type(token).__name__}")
    for vocabulary, size in vocabularies.items():
        if not 0 <= token < size:
            raise ValueError(f"{name} is {token}, expected 0 to {size - 1}: {vocabulary} has {size} tokens")


def check_tokens(name: str, tokens: Any, axes: str, size: int) -> None:
    """Two dimensions, not empty in time, of ids below `size`; on a GPU, PyTorch looks at these itself."""
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name} is of type {type(tokens).__name__}, expected a Tensor of token ids {axes}")
    if tokens.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tokens.layout}, expected torch.strided: it holds token ids {axes}")
    if tokens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} has dtype {tokens.dtype}, expected torch.int64: it holds token ids")
    if tokens.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(tokens.shape)}, expected {axes}")
    if tokens.shape[0 if axes.endswith("B)") else 1] == 0:
        raise ValueError(f"{name} has shape {tuple(tokens.shape)}, expected at least one token in {axes}")
    if torch.compiler.is_compiling() or tokens.device.type != "cpu" or not tokens.numel():
        return
    low, high = (int(x) for x in tokens.aminmax())
    if low < 0 or high >= size:
        raise ValueError(
            f"{name} holds {low if low < 0 else high}, expected 0 to {size - 1}: its vocabulary has {size} tokens"
        )


def check_sentences(source: Tensor, target: Tensor) -> None:
    """(S, B) and (T, B)."""
    if source.shape[1] != target.shape[1]:
        raise ValueError(f"target is of {target.shape[1]} sentences, expected {source.shape[1]}: those of source")


def check_length_penalty(value: Any, max_length: int) -> float:
    """As a float, which scores in float32 may be divided by, at any length."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"length_penalty should be a number, got: {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(
            f"length_penalty is {value}, expected 0 or more: scores are divided by the length to this power"
        )
    try:
        divisor = max_length ** float(value)
    except OverflowError:
        divisor = math.inf
    if divisor > torch.finfo(torch.float32).max:
        raise ValueError(
            f"length_penalty is {value} and max_length {max_length}, expected less: scores are divided by the length to "
            "this power, which is too large a number"
        )
    return float(value)
