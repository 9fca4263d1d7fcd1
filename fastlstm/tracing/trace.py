"""`fastlstm.trace`: the recurrent calls of a program, as a file that `fastlstm bench --from` reads."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from fastlstm.case import CaseError
from fastlstm.convert import why_not_ours
from fastlstm.subclasses import full_name
from fastlstm.tracing.watch import Kind, Tally, Watch, watching

__all__ = ["Trace", "trace"]


class Trace:
    """What was seen: `result` is what the file holds, once the trace has ended, and `str` a table of it."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}

    def __str__(self) -> str:
        from fastlstm.benchmarks.traced import table_of_trace

        return table_of_trace(self.result)


@contextmanager
def trace(file: str | Path | None = "trace.json", *, program: str | None = None) -> Iterator[Trace]:
    """Watch the recurrent calls inside, and write to `file` which they were, how often they ran, and how long they took.

    They are the calls of `nn.LSTM`, `nn.GRU`, `nn.RNN`, their cells, and modules of fastlstm, whoever makes them, in all
    threads of this process. Sizes and layouts are told, never data, and lengths only by how many steps there are, roughly.
    Results are the same. Not seen is what `torch.compile`, `torch.export` or `torch.jit` took into a graph: cells and modules
    of ours may be there; `nn.LSTM`, `nn.GRU` and `nn.RNN` are left out by `torch.compile`, and seen.

    The file is written on exceptions as well, which pass through. `fastlstm bench --from FILE` measures what ours would bring.
    `fastlstm trace SCRIPT` does the same for a whole program.

    file: of JSON, or None for none.
    program: what to call it in the file.
    Raises RuntimeError inside of another trace, and OSError where the file can't be written, before anything runs.

    >>> import torch
    >>> with trace(None) as seen:
    ...     y, _ = torch.nn.LSTM(3, 5)(torch.randn(7, 2, 3))
    >>> [(row["case"], row["calls"]) for row in seen.result["rows"]]
    [('lstm T7 B2 I3 H5 fp32 infer', 1)]
    """
    from fastlstm.benchmarks import results

    if file is not None:
        results.check_writable(file)
    seen, watch, ended = Trace(), Watch(), "normally"
    begin = time.perf_counter()
    try:
        with watching(watch):
            yield seen
    except SystemExit as error:
        ended = "SystemExit" if error.code else ended
        raise
    except BaseException as error:
        ended = type(error).__name__
        raise
    finally:
        seconds = time.perf_counter() - begin
        rows: list[dict[str, Any]] = []
        for kind, tally in watch.tallies.items():
            try:
                rows += list(_rows(kind, tally))
            except CaseError:  # of no inputs, or of weights that were refused
                watch.undescribed += tally.total
        seen.result = results.new("trace") | {
            "program": program,
            "ended": ended,
            "seconds": seconds,
            "watching_s": watch.watching_s,
            "undescribed": watch.undescribed,
            "rows": _merged(rows),
        }
        if file is not None:
            results.write(seen.result, file)


def _rows(kind: Kind, tally: Tally) -> Iterator[dict[str, Any]]:
    """One of the calls that a backward followed, one of the others."""
    caller = tally.caller
    ours = kind.caller is None
    if ours:
        reason = None
    elif isinstance(caller, nn.Module):
        reason = why_not_ours(caller)
    else:
        reason = "no module calls it: convert finds modules only"
    exact = tally.total / sum(tally.calls.values())  # the calls that were timed stand for nearly as many
    train = round(exact * tally.calls["train"])
    for mode, calls in (("train", train), ("infer", tally.total - train)):
        if calls:
            # whether states were given to a module of PyTorch's is seen by their gradients alone
            shape = kind.shape if ours or mode == "train" else kind.shape._replace(zero_state=False)
            frozen = ("x",) if kind.frozen_x and mode == "train" else ()
            yield {
                "case": shape.case(kind.dtype, mode, frozen),
                "by": "fastlstm" if ours else full_name(type(caller)) if isinstance(caller, nn.Module) else "torch",
                "device": kind.device,
                "calls": calls,
                "forward_s": exact * tally.forward_s[mode],
                "backward_s": exact * tally.backward_s if mode == "train" else 0.0,
                "reason": reason,
            }


def _merged(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row where several say the same."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        kept = merged.setdefault(tuple([row[key] for key in ("case", "by", "device", "reason")]), row)
        if kept is not row:
            for key in ("calls", "forward_s", "backward_s"):
                kept[key] += row[key]
    return list(merged.values())
