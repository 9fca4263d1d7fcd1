"""Cases as commands take them: by name, or as the line of text that says everything."""

import difflib
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import typer

from fastlstm.case import Case, CaseError, parse

Named = tuple[str | None, Case]


def named(text: str) -> Named:
    """A case by its name, of the benchmarks or of parity, or as a line of text."""
    from fastlstm.benchmarks.cases import CASES as measured
    from fastlstm.parity import CASES as compared

    for names in (measured, compared):
        if text in names:
            return text, names[text]
    try:
        return None, parse(text)
    except CaseError as error:
        if " " in text:  # a line, which knows what is wrong with it
            raise typer.BadParameter(f"--case: {error}") from error
        near = difflib.get_close_matches(text, [*measured, *compared], n=2)
        raise typer.BadParameter(
            f"--case is {text!r}, expected a name that `fastlstm bench --list` or `fastlstm parity` shows"
            f"{' (' + ' or '.join(near) + '?)' if near else ''}, or a line such as 'lstm T100 B32 I128 H256 bi bf16 train' "
            "(docs/cases.md)"
        ) from error


def complete(given: Iterable[Named], **chosen: list[str]) -> list[Named]:
    """Each case once for every choice of what it doesn't say itself: of `variant`, `dtype` and `mode`.

    Those that don't exist are left out; where none is left, it is an error that says why.
    """
    found, reasons = [], []
    for name, case in given:
        fields = {field: [v for v in values if getattr(case, field) in (None, v)] for field, values in chosen.items()}
        empty = [f"it says {getattr(case, field)}" for field, values in fields.items() if not values]
        for values in product(*fields.values()):
            said: dict[str, Any] = dict(zip(fields, values, strict=True))
            try:
                found.append((name, replace(case, **said)))
            except CaseError as error:
                empty.append(str(error))
        reasons += [f"{name or case}: {reason}" for reason in dict.fromkeys(empty)]
    if not found:
        some = ", ".join(one for values in chosen.values() for one in values)
        raise typer.BadParameter(f"--case has nothing for {some}: {'; '.join(reasons)}")
    return found
