"""`fastlstm trace`."""

import importlib.util
import runpy
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from fastlstm.cli.checks import check_writable
from fastlstm.cli.measuring import INTERRUPTED
from fastlstm.tracing import Trace
from fastlstm.tracing import trace as watched


def trace(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="A Python file; with -m, a module.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="Its own arguments.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is the name of a module, as in `python -m`.")] = False,
    json_file: Annotated[Path, typer.Option("--json", help="Write what was seen to this file.")] = Path("trace.json"),
) -> None:
    """Run a program of yours, and see which recurrent calls it makes, how often, and how long they take.

    They are those of nn.LSTM, nn.GRU, nn.RNN, their cells and modules of fastlstm, in libraries too. What was seen is written
    whatever becomes of the program, and shown on stderr at its end; `fastlstm bench --from` measures what ours would bring.
    Options come before SCRIPT: what follows it is the program's. Sizes and layouts are told, never data.
    """
    check_writable("--json", json_file)
    if not module and not Path(script).is_file():
        raise typer.BadParameter(f"SCRIPT is {script}, expected a Python file that exists; a module is run by -m")
    sys.argv = [script, *(arguments or [])]
    sys.path.insert(0, "" if module else str(Path(script).resolve().parent))
    if module:
        try:
            found = importlib.util.find_spec(script)
        except ImportError as error:
            raise typer.BadParameter(f"SCRIPT is {script}, expected a module that can be imported: {error}") from error
        if found is None:
            raise typer.BadParameter(f"SCRIPT is {script}, expected a module that can be imported: there is none")
    try:
        with watched(json_file, program=Path(script).name) as seen:
            if module:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(script, run_name="__main__")
    except SystemExit:
        _show(seen, json_file)
        raise
    except BaseException as error:
        traceback.print_exception(error.with_traceback(_of_program(error.__traceback__)))
        _show(seen, json_file)
        raise typer.Exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1) from None
    _show(seen, json_file)


def _of_program(frames: TracebackType | None) -> TracebackType | None:
    """Without our frames and those of runpy, which stand before the program's own."""
    ours = (__file__, runpy.__file__, "<frozen runpy>")
    first = frames
    while first is not None and first.tb_frame.f_code.co_filename in ours:
        first = first.tb_next
    return first or frames


def _show(seen: Trace, file: Path) -> None:
    sys.stdout.flush()
    print(seen, f"\nwritten to {file}; what ours would bring: fastlstm bench --from {file}", sep="", file=sys.stderr)
