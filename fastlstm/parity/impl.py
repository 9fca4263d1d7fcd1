"""Somebody's implementation, held to the oracles as a backend of ours is: `fastlstm parity --impl`, and `assert_parity`."""

import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fastlstm.case import Case
from fastlstm.parity.cases import CASES
from fastlstm.parity.compare import Row, compare, find
from fastlstm.parity.conv import Given
from fastlstm.parity.runs import Call, as_called, bound

SHOWN = 12  # of what a message lists


class Refused(Exception):
    """A case that an implementation doesn't take; its own error is the cause."""


@dataclass
class Comparison:
    """What came of holding an implementation to the oracles; cases are lines, with variant and dtype."""

    impl: str
    rows: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # by case: the implementation's error
    failed: dict[str, str] = field(
        default_factory=dict
    )  # the same, where the outputs were there, and then something raised

    @property
    def missed(self) -> list[Row]:
        return [row for row in self.rows if not row.ok]

    @property
    def ok(self) -> bool:
        return bool(self.rows) and not self.missed and not self.failed

    def hold(self, impl: object, case: Case, device: str = "cpu") -> None:
        """Add a case, whose dtype is said."""
        try:
            self.rows += compare(case, lambda case, given: taken(impl, case, given), "impl", self.impl, device)
        except Refused as error:
            self.refused[str(case)] = str(error)
        except Exception as error:
            self.failed[str(case)] = told(error)

    def __str__(self) -> str:
        """What is wrong: by quantity, in whichever layer, the most frequent first, each with a case that shows it."""
        missed, cases = self.missed, {row.case for row in self.rows}
        lines = [
            f"{self.impl}: {len(missed)} of {len(self.rows)} errors in {len(cases)} cases are larger than allowed"
            f"; {len(self.failed)} cases failed, {len(self.refused)} were refused"
        ]
        if not self.rows:
            lines.append("Nothing was compared.")
        counts = Counter(stem(row) for row in missed)
        for quantity, count in counts.most_common(SHOWN):
            row = min((row for row in missed if stem(row) == quantity), key=lambda row: len(row.case))
            figures = f"{row.error:.1e}, allowed {row.allowed:.1e} by {row.oracle}"
            lines.append(f"  {quantity}: {count} errors, such as {figures} in '{row.case}'")
        if len(counts) > SHOWN:
            lines.append(f"  and {len(counts) - SHOWN} more quantities")
        right = sorted(set(map(stem, self.rows)) - counts.keys())
        if missed and right:
            lines.append(f"  right everywhere: {', '.join(right[:SHOWN])}{', ...' if len(right) > SHOWN else ''}")
        for word, some in (("failed", self.failed), ("refused", self.refused)):
            reasons = Counter(some.values())
            for reason, count in reasons.most_common(SHOWN):
                case = next(case for case, other in some.items() if other == reason)
                lines.append(f"  {word}: {count} cases, such as '{case}': {reason}")
        return "\n".join(lines)


def assert_parity(
    impl: object,
    variant: str = "lstm",
    *,
    cases: Iterable[str] | None = None,
    dtype: str = "fp32",
    device: str = "cpu",
    strict: bool = False,
) -> Comparison:
    """Hold an implementation to the equations: outputs, final states and all gradients, in every case that it takes part in.

    impl: a module's class with the constructor and the parameter names of `nn.LSTM` (of `nn.GRU`, or of ours of the variant),
    which is given what differs from the defaults only; or anything else that, called with a module of ours that holds the
    case's weights, gives a callable of that module's signature; or "package.module:name" of one.
    cases: names or lines (docs/cases.md); all named ones of the variant. strict: what is refused is wrong as well.

    Returns the comparison: `rows`, and `refused`, the cases that raised, with their errors. Raises AssertionError, which says
    which quantities are wrong and where, and where nothing was compared; ValueError for an unknown variant or case.

    >>> assert_parity(torch.nn.LSTM, "lstm", cases=["lstm T3 B2 I4 H8 L2 bi"]).refused
    {}
    """
    name, impl = (impl, load(impl)) if isinstance(impl, str) else (called(impl), impl)
    found = Comparison(name)
    for case in of_variant(variant, cases):
        found.hold(impl, replace(case, dtype=case.dtype or dtype), device)
    if not found.ok or (strict and found.refused):
        raise AssertionError(str(found))
    return found


def of_variant(variant: str, cases: Iterable[str] | None = None) -> list[Case]:
    """Those that a module of the variant could run."""
    if cases is not None:
        return [replace(case, variant=case.variant or variant) for case in map(find_any, cases)]
    found = [case for case in CASES.values() if case.variant == variant and not case.reverse]
    if not found:
        known = dict.fromkeys(case.variant for case in CASES.values())
        raise ValueError(f"variant is {variant!r}, expected one of {', '.join(map(repr, known))}")
    return found


def find_any(text: str) -> Case:
    from fastlstm.benchmarks.cases import CASES as measured

    return measured[text] if text in measured else find(text)


def load(text: str) -> Any:
    """What "package.module:name" stands for; modules are found from the current folder as well."""
    module, _, name = text.partition(":")
    if not (module and name):
        raise ValueError(f"impl is {text!r}, expected package.module:name")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"impl is {text!r}, expected package.module:name: {error}") from error
    if not callable(found):
        raise ValueError(f"impl is {text!r}, expected a class or a function, which this is not: {type(found).__name__}")
    return found


def stem(row: Row) -> str:
    """A quantity, whichever layer and direction it is of."""
    return re.sub(r"_l\d+(_reverse)?$", "", row.quantity)


def called(impl: object) -> str:
    return f"{getattr(impl, '__module__', '')}:{getattr(impl, '__qualname__', type(impl).__qualname__)}"


def is_module(impl: object) -> bool:
    """Whether it is a class of modules, to be built, and not something to be called with ours."""
    return inspect.isclass(impl) and issubclass(impl, nn.Module)


def taken(impl: object, case: Case, given: Given) -> Given:
    """The outputs by an implementation; Refused where it raises."""
    try:
        return as_called(case, given, made(impl, case, given))
    except Exception as error:
        raise Refused(told(error)) from error


def made(impl: Any, case: Case, given: Given) -> Call:
    """A call of an implementation that has the case's weights."""
    like = given["x"]
    if is_module(impl):
        args, options = case.arguments
        module = impl(*args, **options).to(like.device, like.dtype)
        names = {key for key, _ in module.named_parameters()}
        ours = {key for key, _ in case.module(device="meta").named_parameters()}
        if names != ours:
            few, many = sorted(ours - names), sorted(names - ours)
            raise TypeError(f"its parameters lack {few}, and {many} are none of ours: expected the names of our module")
        return bound(module, given)
    module = case.module(backend="reference", device="meta", dtype=like.dtype)
    for key, _ in list(module.named_parameters()):
        setattr(module, key, given[key if key in given else f"{key}_l0"])
    return impl(module)


def told(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
