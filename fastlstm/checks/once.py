"""What follows from shapes and options is found once: a loop of a user's own asks at every step."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar, TypeVarTuple

import torch

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


def once(find: Callable[[*Arguments], Result]) -> Callable[[*Arguments], Result]:
    """`find`, which remembers what it found. Its arguments are numbers, words, and tuples of numbers; never tensors.

    Not so where a program is made: what then stands for a number is a symbol, or a tensor that a tracer follows.
    """
    remembered = lru_cache(maxsize=1024, typed=True)(find)  # True is not 1

    @wraps(find)
    def found(*arguments: *Arguments) -> Result:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return find(*arguments)
        try:
            return remembered(*arguments)
        except TypeError:  # a symbol has no hash
            return find(*arguments)

    return found
