"""Imports point one way only, down `ORDER`; below it stand torch, triton and numba."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    "convert", "loaders", "modules", "functional", "cells", "onnx", "torch_backend", "sequences", "checks", "stack", "ops",
    "gpu", "backends", "kernels", "_C",
)  # fmt: skip
FOLDERS = {"fastlstm": "fastlstm", "kernels": "fastlstm.kernels", "benchmarks": "fastlstm.benchmarks"}
# Kernel files by their name: what they may import beside the standard library
KERNEL_NEEDS = {"cpu": {"numba", "numpy"}, "gpu": {"triton", "torch"}, "reference": {"torch"}, "__init__": set()}
LINES = 400


def source_files() -> dict[str, Path]:
    """Every Python file that is installed, by the module name it is imported as."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts])] = path
    return found


FILES = source_files()


def imports(module: str, path: Path) -> set[str]:
    """The full names that a file imports, inside functions too; `from a import b` counts as `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; imports are absolute, so that a search finds them"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(name: str) -> str:
    """The part of the house that a full name belongs to: "ops" for "fastlstm.ops.lstm.lstm"."""
    return [*name.split("."), ""][1]


def test_the_walk_finds_the_house() -> None:
    assert {"fastlstm.backends", "fastlstm.ops.lstm", "fastlstm.kernels.lstm.reference"} <= FILES.keys()
    assert room("fastlstm.ops.lstm.lstm") == "ops"
    assert "torch.nn.functional.linear" in imports("", FILES["fastlstm.kernels.lstm.reference"])


@pytest.mark.parametrize("module", [m for m in FILES if room(m) in ORDER])
def test_imports_point_down(module: str) -> None:
    allowed = {room(module), *ORDER[ORDER.index(room(module)) + 1 :]}
    ours = {name for name in imports(module, FILES[module]) if name.startswith("fastlstm")}
    upward = {name for name in ours if room(name) not in allowed}
    assert not upward, f"{module} imports {upward}, which stand above it or beside the layers"


def tool(module: str) -> str:
    """What a kernel file is written in, by its name: "cpu" for `kernels.lstm.cpu` and `kernels.cpu_math`."""
    name = module.rsplit(".", 1)[1]
    return name.split("_")[0] or name


@pytest.mark.parametrize("module", [m for m in FILES if room(m) == "kernels"])
def test_a_kernel_file_needs_only_its_own_tool(module: str) -> None:
    assert tool(module) in KERNEL_NEEDS, f"{module}: kernel files are named {', '.join(KERNEL_NEEDS)}"
    names = imports(module, FILES[module])
    ours = {name for name in names if name.startswith("fastlstm")}
    others = {name.split(".")[0] for name in names - ours} - KERNEL_NEEDS[tool(module)] - sys.stdlib_module_names
    assert not others, f"{module} imports {others}"
    foreign = {name for name in ours if tool(name.rsplit(".", 1)[0]) != tool(module)}
    assert not foreign, f"{module} imports {foreign}: a {tool(module)} file builds on {tool(module)} files only"


@pytest.mark.parametrize("module", [m for m in FILES if room(m) not in ("kernels", "benchmarks")])
def test_only_kernels_know_triton_and_numba(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(module, FILES[module])} & {"triton", "numba"}


def test_import_is_light() -> None:
    code = "import sys, torch; had = set(sys.modules); import fastlstm; print(*(set(sys.modules) - had))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"numba", "triton", "matplotlib", "typer", "rich", "onnx", "onnxruntime", "safetensors"}
    assert not heavy & set(loaded)


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = {re.match(r"[\w-]+", line).group() for line in lines} | {"triton", "fastlstm"} | sys.stdlib_module_names
    used = {name.split(".")[0] for module, path in FILES.items() for name in imports(module, path)}
    assert used <= declared


TOPS = ("fastlstm", "kernels", "benchmarks", "csrc", "tests", "examples")
WRITTEN = [path for top in TOPS for path in (ROOT / top).rglob("*") if path.suffix in (".py", ".cpp", ".h")]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_small(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LINES, f"{path.name} has {lines} lines: is it one room or several?"
