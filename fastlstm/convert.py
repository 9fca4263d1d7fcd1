"""PyTorch's recurrent modules made ours, and back: those of a model that exists, or those that a library is about to build."""

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastlstm import pasted, subclasses
from fastlstm.backends import check_backend
from fastlstm.modules import GRU, LSTM, AttentionLSTM, GRUCell, LSTMCell
from fastlstm.modules.base import Recurrent
from fastlstm.modules.cells import Cell
from fastlstm.modules.conv import Convolutional
from fastlstm.modules.conv_adapter import PastedConvLSTM
from fastlstm.subclasses import full_name, own_class

__all__ = ["Conversion", "convert", "patch", "to_torch"]

# PyTorch's classes as they were at import: `patch` may change the names later
OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: LSTM, nn.GRU: GRU, nn.LSTMCell: LSTMCell, nn.GRUCell: GRUCell,
}  # fmt: skip
TORCHS = {ours: torchs for torchs, ours in OURS.items()}
KINDS = {cls.__name__ for cls in OURS}
NAMESPACES = (nn, nn.modules, nn.modules.rnn)
Reasons = dict[nn.Module, str | None]  # why a module is left as it is; None: it is not


class Conversion(NamedTuple):
    """What became of a model's recurrent modules, by their names in it; a model that is one itself has the name ""."""

    converted: list[str]
    skipped: dict[str, str]  # name: the reason why it was left as it was
    new_parameters: list[str]  # names of Parameters that weren't there: an optimizer needs to be made anew for them


def convert(
    model: nn.Module,
    *,
    ConvLSTM: type[nn.Module] | None = None,
    backend: str = "auto",
    strict: bool = False,
    keep_type: bool = False,
) -> Conversion:
    """Make every `nn.LSTM`, `nn.GRU`, `nn.LSTMCell` and `nn.GRUCell` of `model` ours, in place.

    Each stays the same object, only of another class: its Parameters, hooks, attributes, parametrizations and every reference
    to it are untouched, so an optimizer made before goes on, and there is nothing to assign; Parameters that modules share stay
    shared. What can't be converted is left as it was, and told under `skipped` with the reason: modules whose `forward` was
    replaced, `nn.RNN`, quantized and scripted ones. What is ours already is in neither list. Where something was skipped, or
    nothing was found, there is a UserWarning; `fastlstm.report(model)` says what is ours and what is not, at any time.

    A subclass is converted if it adds construction alone: `__init__`, `reset_parameters`, attributes, methods of other names.
    It becomes a class of the same name that derives from ours and from the subclass, whose methods and `super()` work on. It is
    copied and pickled as the subclass would be: what loads it needs to be able to import that. One with a `forward` of its own,
    or anything else that PyTorch's or our forward goes through, is left, and `skipped` names the methods. For what was a
    subclass, `isinstance(module, nn.LSTM)` stays True, so that `torch.compile` breaks its graph there, as at PyTorch's own.

    Only registered submodules are found: not one that is kept in a plain list or in a closure. `torch.compile` compiles anew,
    but what `torch.jit` or `torch.export` made of a model before keeps its code. A converted model that is pickled as a whole
    needs fastlstm to be loaded; a `state_dict` does not.

    Code that asks `isinstance(module, nn.LSTM)` of what was no subclass gets False afterwards, unless `keep_type` is True: then
    each becomes of a class that derives from both, and what is a `fastlstm.LSTM` already does as well. `torch.compile` breaks
    its graph at these, and refuses with `fullgraph=True`, unless `torch._dynamo.config.allow_rnn` is True.

    PyTorch has no ConvLSTM, and what people paste for one is not changed but replaced. `ConvLSTM` is its class: ndrplz's
    ConvLSTM_pytorch in the model, or `conv_lstm.ConvLSTM` of the package. A new module takes the place of each of its objects
    where modules hold it, and is called and returns as before: lists of outputs and states, batch first, of all layers or of
    the last. It has a `fastlstm.ConvLSTM2d` with Parameters of its own, `new_parameters`: an optimizer must be made for them,
    and a `state_dict` of before doesn't fit. Their one bias is `bias_ih_l{k}`; `bias_hh_l{k}` is zero, and frozen, so that
    training goes on as theirs. Its attributes go along, but `cell_list`, `_init_hidden` and other methods of the old module are
    gone, and what else refers to that, a plain list or another object's attribute, keeps the old one. Not replaced are a model
    that is one itself, what has hooks, parametrizations or Parameters that others share, a `forward` of other arguments, and
    what returns other values than ours on trials, from given states and in training too: `skipped` tells.

    ConvLSTM: a class, or None for none of this.
    backend: "auto", or the name of the one that must run, for all of them; as in `fastlstm.LSTM`.
    strict: raise a ValueError where there would be a warning.
    keep_type: whether what was an `nn.LSTM` stays one to `isinstance`; `nn.GRU` and the cells alike.
    Raises TypeError if `model` is no module or `ConvLSTM` no class of one, and ValueError for an unknown backend, and for a
    `ConvLSTM` that is PyTorch's or ours; nothing is converted then, nor where `strict` raises.

    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 3), torch.nn.LSTM(3, 5), torch.nn.Linear(5, 2))
    >>> convert(model)
    Conversion(converted=['1'], skipped={}, new_parameters=[])
    >>> model[1]
    fastlstm.LSTM(3, 5)
    """
    check_backend(backend)
    if ConvLSTM is not None:
        pasted.check_class(ConvLSTM)
    modules = registered(model)
    replaced = {m: pasted.why_not(model, m, ConvLSTM) for m in modules if ConvLSTM and isinstance(m, ConvLSTM)}
    reasons = {m: why_not_ours(m) for m in modules if is_recurrent(m) and not is_ours(m) and m not in replaced}
    retyped = [m for m in modules if keep_type and own_class(m) in TORCHS]
    _tell(_nothing_found(model, reasons | replaced, ConvLSTM) or _left(model, "convert", reasons | replaced), strict)
    for module in [m for m, why in reasons.items() if why is None]:
        _change_class(module, _ours(own_class(module), keep_type))
        module.backend = backend  # type: ignore[assignment]
        if isinstance(module, Cell):
            module.weight_peephole = None
    for module in retyped:
        _change_class(module, _ours(TORCHS[own_class(module)], keep_type))
    made = _replace(model, [m for m, why in replaced.items() if why is None], backend)
    return _conversion(model, reasons | replaced | dict.fromkeys([*retyped, *made]), made)


def to_torch(model: nn.Module, *, strict: bool = False) -> Conversion:
    """The way back: every `fastlstm.LSTM`, `GRU`, `LSTMCell` and `GRUCell` of `model` becomes PyTorch's, in place.

    For what takes PyTorch's modules only, such as `torch.jit.script`. As with `convert`, objects and Parameters stay the same;
    subclasses that it took become what they were. Subclasses of ours, and variants that PyTorch lacks, are left and told under
    `skipped` and by a UserWarning; with `strict`, by a ValueError before anything is changed. Keyword arguments that only ours
    have (`lengths`, `reset`, `return_cells`) raise TypeError afterwards. Raises TypeError if `model` is no module.

    >>> model = torch.nn.ModuleDict({"a": LSTM(3, 5), "b": torch.nn.Linear(5, 2)})
    >>> to_torch(model)
    Conversion(converted=['a'], skipped={}, new_parameters=[])
    >>> type(model["a"])
    <class 'torch.nn.modules.rnn.LSTM'>
    """
    reasons = {m: _why_not_torchs(m) for m in registered(model) if is_ours(m)}
    _tell(_left(model, "to_torch", reasons), strict)
    for module in [m for m, why in reasons.items() if why is None]:
        _change_class(module, _torchs(own_class(module)))
        for name in ("backend", "weight_peephole", "_forget_bias"):
            vars(module).pop(name, None)
    return _conversion(model, reasons)


_patching = threading.Lock()
_patches = 0
_originals: dict[tuple[Any, str], Any] = {}


@contextmanager
def patch() -> Iterator[None]:
    """While it is active, `torch.nn.LSTM`, `GRU`, `LSTMCell` and `GRUCell` are ours: for libraries that build them inside.

    It works where code looks up `nn.LSTM` or `torch.nn.modules.rnn.LSTM` (or another of the four) when it builds: a name that
    was imported before by `from torch.nn import LSTM` is still PyTorch's. A library's class that derives from `nn.LSTM` derives
    from ours if it is imported inside. The names are those of the whole process, so other threads see them too; uses may nest
    and overlap, and the last to end restores the names, on exceptions as well. Keep it around construction only: inside,
    `isinstance(module, nn.LSTM)` asks for ours, and PyTorch's modules can't be pickled or unpickled: their names are taken.

    >>> with patch():
    ...     lstm = torch.nn.LSTM(3, 5)
    >>> isinstance(lstm, LSTM), torch.nn.LSTM is LSTM
    (True, False)
    """
    global _patches
    with _patching:
        if _patches == 0:
            for space in NAMESPACES:
                for ours in OURS.values():
                    _originals[space, ours.__name__] = getattr(space, ours.__name__)
                    setattr(space, ours.__name__, ours)
        _patches += 1
    try:
        yield
    finally:
        with _patching:
            _patches -= 1
            if _patches == 0:
                for (space, name), original in _originals.items():
                    setattr(space, name, original)
                _originals.clear()


def registered(model: nn.Module) -> list[nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is of type {type(model).__name__}, expected an nn.Module, whose submodules are looked at"
        )
    return [*model.modules()]


def _nothing_found(model: nn.Module, reasons: Reasons, ConvLSTM: type[nn.Module] | None) -> str | None:
    """One sentence where there is nothing to convert, and nothing that is ours already."""
    if not reasons and not any(map(is_ours, model.modules())):
        hint = "" if ConvLSTM else "; a ConvLSTM that was pasted into the model is named by ConvLSTM="
        return (
            f"convert found no recurrent module in {type(model).__name__}: it sees registered submodules, not those in a "
            f"plain list or dict, nor what is built later, which is for fastlstm.patch{hint}"
        )
    if ConvLSTM and not any(isinstance(m, (ConvLSTM, PastedConvLSTM)) for m in model.modules()):
        return f"convert found no {full_name(ConvLSTM)} in {type(model).__name__}"
    return None


def _left(model: nn.Module, by: str, reasons: Reasons) -> str | None:
    """Which modules are left as they are, and why."""
    converted, skipped, _ = _conversion(model, reasons)
    if not skipped:
        return None
    each = "".join(f"\n  {name or 'the model itself'}: {why}" for name, why in skipped.items())
    return f"{by} leaves {len(skipped)} of {len(converted) + len(skipped)} recurrent modules as they are:{each}"


def _tell(what: str | None, strict: bool) -> None:
    if what and strict:
        raise ValueError(f"{what}\nNothing was changed, since strict is True")
    if what:
        warnings.warn(what, UserWarning, stacklevel=3)


def _replace(model: nn.Module, found: Iterable[nn.Module], backend: str) -> list[nn.Module]:
    """A new module for each of those found, in the place of the old one."""
    new = {module: pasted.replacement(module, backend) for module in found}
    for parent in [*model.modules()]:
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return [*new.values()]


def _conversion(model: nn.Module, reasons: Reasons, made: Iterable[nn.Module] = ()) -> Conversion:
    """`reasons` by name: None for what was converted. A module in two places has two names."""
    new = {id(parameter) for module in made for parameter in module.parameters()}
    named = [(name, reasons[m]) for name, m in model.named_modules(remove_duplicate=False) if m in reasons]
    return Conversion(
        [name for name, why in named if why is None],
        {name: why for name, why in named if why is not None},
        [name for name, parameter in model.named_parameters() if id(parameter) in new],
    )


def is_ours(module: nn.Module) -> bool:
    return isinstance(module, (Recurrent, Cell, Convolutional, AttentionLSTM))


def is_recurrent(module: nn.Module) -> bool:
    """Whether `module` is a recurrent one of PyTorch's or ours, of any kind; not one that only has such a name or parts."""
    cls = type(module)
    of_torch = cls.__module__.startswith("torch.") and KINDS & {cls.__name__, getattr(module, "original_name", "")}
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or bool(of_torch)


def why_not_ours(module: nn.Module) -> str | None:
    cls = own_class(module)
    if isinstance(module, torch.jit.ScriptModule):
        return f"{module.original_name} was compiled by torch.jit: convert before that"
    torchs = _base(cls, OURS)
    if torchs is None:
        return f"{full_name(cls)} has no counterpart in fastlstm"
    ours = OURS[torchs]
    if "forward" in vars(module):
        return "its forward was replaced on the instance: that would go on to run PyTorch's"
    attributes = vars(module).keys() | module._parameters.keys() | module._buffers.keys() | module._modules.keys()
    if taken := sorted(name for name in attributes & subclasses.names_of(ours) if not hasattr(torchs, name)):
        return f"it has an attribute {taken[0]!r} of its own, a name that fastlstm needs"
    return subclasses.why_not(cls, torchs, ours)


def _why_not_torchs(module: nn.Module) -> str | None:
    cls = own_class(module)
    if cls in TORCHS or subclasses.before(cls):
        return "its forward was replaced on the instance" if "forward" in vars(module) else None
    if _base(cls, TORCHS) and not cls.__module__.startswith("fastlstm."):
        return f"{full_name(cls)} is a subclass of fastlstm's module: its code may rely on what it inherits"
    return f"{full_name(cls)} has no counterpart in torch.nn with the same Parameters"


def _base(cls: type[nn.Module], table: dict[type[nn.Module], type[nn.Module]]) -> type[nn.Module] | None:
    """The class of `table` that `cls` is or derives from."""
    return next((base for base in table if issubclass(cls, base)), None)


def _ours(cls: type[nn.Module], keep_type: bool) -> type[nn.Module]:
    torchs = _base(cls, OURS)
    assert torchs is not None
    return OURS[torchs] if cls is torchs and not keep_type else subclasses.derive(cls, OURS[torchs])


def _torchs(cls: type[nn.Module]) -> type[nn.Module]:
    return subclasses.before(cls) or TORCHS[cls]


def _change_class(module: nn.Module, to: type[nn.Module]) -> None:
    cls = type(module)
    if not parametrize.is_parametrized(module):
        module.__class__ = to
        return
    # parametrized weights are properties of that class: a new one, since copies of the module share the old one
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, (to,), own)
