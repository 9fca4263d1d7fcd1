"""The options of a ConvLSTM, as users write them."""

from collections.abc import Sequence
from typing import Any

import torch

from fastlstm.checks.once import once
from fastlstm.kernels.conv_lstm import Geometry, same


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def per_dimension(name: str, value: Any, n: int, least: int = 1) -> tuple[int, ...]:
    """`value`, an int or `n` of them, as `n`."""
    if is_int(value):
        sizes = (value,) * n
    elif isinstance(value, (tuple, list)) and len(value) == n and all(is_int(size) for size in value):
        sizes = tuple(value)
    else:
        raise ValueError(f"{name} is {value!r}, expected an int or a tuple of {n}: one for each dimension of the image")
    if min(sizes) < least:
        raise ValueError(f"{name} is {value!r}, expected at least {least} in each dimension of the image")
    return sizes


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")


def positive(name: str, value: Any) -> int:
    if not is_int(value):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
    return value


def check_dtype(dtype: torch.dtype | None, why: str = "gates are of σ, from 0 to 1") -> None:
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}, expected a floating-point one: {why}")


def check_geometry(stride: Any, padding: Any, dilation: Any, kernel: Sequence[int]) -> Geometry:
    """The input convolution of the first layer, from what users write."""
    simple = not (isinstance(stride, tuple) or isinstance(dilation, tuple) or isinstance(padding, tuple))
    return (_geometry_of_words if simple else _geometry)(stride, padding, dilation, tuple(kernel))


def _geometry(stride: Any, padding: Any, dilation: Any, kernel: tuple[int, ...]) -> Geometry:
    n = len(kernel)
    strides, dilations = per_dimension("stride", stride, n), per_dimension("dilation", dilation, n)
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding is {padding!r}, expected 'same', 'valid' or numbers")
        return Geometry(strides, same(kernel, dilations) if padding == "same" else (0,) * (2 * n), dilations)
    sides = (padding,) * n if is_int(padding) else padding
    if isinstance(sides, (tuple, list)) and len(sides) == n:
        pairs = [(side, side) if is_int(side) else side for side in sides]
        flat = [p for pair in pairs if isinstance(pair, (tuple, list)) and len(pair) == 2 for p in pair]
        if len(flat) == 2 * n and all(is_int(p) and p >= 0 for p in flat):
            return Geometry(strides, tuple(flat), dilations)
    raise ValueError(
        f"padding is {padding!r}, expected 'same', 'valid', an int, or a tuple of {n} ints or pairs (before, after), none "
        "negative: one for each dimension of the image"
    )


# In a tuple, True is 1 to what remembers
_geometry_of_words = once(_geometry)
