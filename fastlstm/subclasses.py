"""Subclasses of PyTorch's modules that only add construction, with our forward in front: for `convert`.

The class that is made derives from ours and from the user's, in this order. Our forward runs; the user's methods are there, and
their `super()` works, since our classes hand on what they don't do themselves: `reset_parameters`, `extra_repr`, `_get_name`.
"""

import types
from abc import ABC
from typing import Any, Generic

from torch import nn
from torch.nn.utils import parametrize

# What PyTorch's forward is made of, and what decides which attributes and calls it sees
HELPERS = {
    "forward", "check_forward_args", "check_input", "check_hidden_size", "get_expected_hidden_size", "get_expected_cell_size",
    "permute_hidden", "flatten_parameters", "all_weights", "_all_weights", "_flat_weights", "_weights_have_changed",
    "_init_flat_weights", "_update_flat_weights", "__call__", "_call_impl", "_wrapped_call_impl", "_slow_forward",
    "__getattr__", "__getattribute__", "__setattr__", "__delattr__", "__new__", "__init_subclass__", "__slots__",
    "__reduce__", "__reduce_ex__",
}  # fmt: skip
# What ours hand on to the next class
HANDED_ON = {"reset_parameters", "extra_repr", "_get_name"}


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of `module` as it was written: `parametrize` puts one of its own in front, for this module alone."""
    cls = type(module)
    return cls.__bases__[0] if parametrize.is_parametrized(module) else cls


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def names_of(ours: type[nn.Module]) -> set[str]:
    """What a class of ours has that PyTorch's base class lacks, or does in another way."""
    is_cell = issubclass(ours, nn.RNNCellBase)
    torchs = (nn.RNNCellBase if is_cell else nn.RNNBase).__mro__
    own = {name for cls in ours.__mro__ if cls not in torchs for name in vars(cls) if not name.startswith("__")}
    return own - HANDED_ON | ({"weight_peephole"} if is_cell else set())


def why_not(cls: type[nn.Module], torchs: type[nn.Module], ours: type[nn.Module]) -> str | None:
    """Why `cls`, which derives from `torchs`, can't have the forward of `ours`; None if it can."""
    kept, harmless = HELPERS | names_of(ours), (*torchs.__mro__, ABC, Generic)
    for parent in cls.__mro__:
        if parent not in harmless and (found := sorted(kept & vars(parent).keys())):
            own = ", ".join(found)
            return f"{full_name(cls)} is a subclass of nn.{torchs.__name__} that has {own} of its own: ours would not run it"
    try:
        # an object of another base first, one with empty __slots__, can't change to a class of ours
        object.__setattr__(object.__new__(cls), "__class__", derive(cls, ours))
    except TypeError as error:
        return (
            f"{full_name(cls)} is a subclass of nn.{torchs.__name__} whose objects can't become ours in place: {error}"
        )
    return None


def derive(cls: type[nn.Module], ours: type[nn.Module]) -> type[nn.Module]:
    """The class that `cls` becomes: the same one for all its modules."""
    for known in cls.__subclasses__():
        if "_before_convert" in vars(known):
            return known
    own = {
        "_before_convert": cls,
        "__init__": cls.__init__,
        "__reduce_ex__": _reduce,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    if issubclass(ours, nn.RNNCellBase):
        own["weight_peephole"] = None  # of one that `__init__` makes, which is PyTorch's
    return types.new_class(cls.__name__, (ours, cls), {}, lambda namespace: namespace.update(own))


def before(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The class that `derive` made `cls` from."""
    return vars(cls).get("_before_convert")


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    """How copies and pickles are made: the class that was derived has no name to be found by, the user's has."""
    made = next(cls for cls in type(self).__mro__ if "_before_convert" in vars(cls))
    return _blank, (vars(made)["_before_convert"], made.__bases__[0]), self.__getstate__()


def _blank(cls: type[nn.Module], ours: type[nn.Module]) -> nn.Module:
    made: Any = derive(cls, ours)
    return made.__new__(made)
