"""The files that `fastlstm bench` and `fastlstm trace` write, as docs/results.md describes them: checked when they are read."""

import json
from pathlib import Path
from typing import Any

VERSION = 1  # of the schema; it grows where an older reader would misunderstand, not where a field is added
KINDS = {"bench": "fastlstm bench --json", "trace": "fastlstm trace"}
NUMBER = (int, float)
MACHINE: dict[str, Any] = {
    "name": str,
    "device": str,
    "chip": str,
    "vectors": str,
    "threads": int,
    "python": str,
    "torch": str,
}
# Fields that there must be; and of those that there may be, what they are
FIELDS: dict[str, dict[str, Any]] = {
    "bench": {"dtype": str, "pairs": int},
    "trace": {"ended": str, "seconds": NUMBER, "watching_s": NUMBER, "undescribed": int},
}
ROW: dict[str, dict[str, Any]] = {
    "bench": {"case": str, "against": str},
    "trace": {
        "case": str, "by": str, "device": str, "calls": int, "forward_s": NUMBER, "backward_s": NUMBER,
        "reason": (str, type(None)),
    },
}  # fmt: skip
# Of a row that was timed; another says why not, in "reason"
TIMED: dict[str, Any] = {"ratios": list, "ours_s": NUMBER, "theirs_s": NUMBER}


class ResultError(ValueError):
    """A file that is no result, or one that this version can't read."""


def new(kind: str, device: str = "cpu") -> dict[str, Any]:
    """The head of a file."""
    from fastlstm.benchmarks.machine import machine

    return {"schema": f"fastlstm {kind}", "version": VERSION, "machine": machine(device)}


def read(file: str | Path, kind: str = "bench") -> dict[str, Any]:
    """What the file holds. Raises OSError where there is none, and ResultError for what it is not, and where it is wrong."""
    try:
        result = json.loads(Path(file).read_text())
    except ValueError as error:
        raise ResultError(f"{file} is no JSON: {error}") from error
    said = result.get("schema") if isinstance(result, dict) else None
    if said != f"fastlstm {kind}":
        other = next((by for name, by in KINDS.items() if said == f"fastlstm {name}"), None)
        fact = f"was written by `{other}`" if other else f"has the schema {said!r}"
        raise ResultError(f"{file} {fact}, expected what `{KINDS[kind]}` writes")
    if result.get("version") != VERSION:
        raise ResultError(
            f"{file} has version {result.get('version')!r} of the schema, expected {VERSION}: another fastlstm wrote it"
        )
    _check(result, {"machine": dict, "rows": list} | FIELDS[kind], f"{file}")
    _check(result["machine"], MACHINE, f"{file}: machine")
    for k, row in enumerate(result["rows"]):
        where = f"{file}: rows[{k}]"
        _check(row, ROW[kind], where)
        if kind == "bench" and "reason" not in row:
            _check(row, TIMED, where)
            if not row["ratios"] or not all(isinstance(r, NUMBER) and r > 0 for r in row["ratios"]):
                raise ResultError(f"{where}: ratios is {row['ratios']}, expected numbers above 0, one for each pair")
    return result


def _check(value: Any, fields: dict[str, Any], where: str) -> None:
    if not isinstance(value, dict):
        raise ResultError(f"{where} is {value!r}, expected an object with {', '.join(fields)}")
    for name, types in fields.items():
        if name not in value:
            raise ResultError(f"{where} lacks {name!r}")
        if not isinstance(value[name], types) or isinstance(value[name], bool):
            some = types if isinstance(types, tuple) else (types,)
            names = " or ".join("null" if one is type(None) else one.__name__ for one in some)
            raise ResultError(f"{where}: {name} is {value[name]!r}, expected {names}")


def write(result: dict[str, Any] | list[dict], file: str | Path) -> None:
    """All of it or nothing: who is interrupted meanwhile finds the file as it was."""
    path, text = Path(file).resolve(), json.dumps(result, indent=1) + "\n"
    if path.exists() and not path.is_file():  # such as /dev/stdout
        path.write_text(text)
        return
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def check_writable(file: str | Path) -> None:
    """Raises OSError where it can't be written; leaves nothing behind."""
    path = Path(file)
    existed = path.exists()
    path.open("a").close()
    if not existed:
        path.unlink()
