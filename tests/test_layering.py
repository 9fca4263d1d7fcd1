"""Imports point one way only, down `ORDER`; below it stand torch, triton and numba."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = (
    "report", "adapters", "convert", "pasted", "subclasses", "loaders", "stream", "modules", "generation", "functional", "onnx",
    "torch_backend", "call", "sequences", "checks", "stack", "ops", "gpu", "backends", "alarm", "kernels", "_C",
)  # fmt: skip
FOLDERS = {"fastlstm": "fastlstm", "kernels": "fastlstm.kernels", "benchmarks": "fastlstm.benchmarks"}
# Kernel files by their name: what they may import beside the standard library
KERNEL_NEEDS = {
    "cpu": {"numba", "numpy"}, "gpu": {"triton", "torch"}, "reference": {"torch"}, "variant": set(), "__init__": set(),
}  # fmt: skip
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


def test_imports_point_down() -> None:
    upward = [
        f"{module} imports {name}, which stands above it or beside the layers"
        for module in FILES
        if room(module) in ORDER
        for name in imports(module, FILES[module])
        if name.startswith("fastlstm") and room(name) not in (room(module), *ORDER[ORDER.index(room(module)) + 1 :])
    ]
    assert not upward


def tool(module: str) -> str:
    """What a kernel file is written in, by its name: "cpu" for `kernels.lstm.cpu` and `kernels.cpu_math`."""
    name = module.rsplit(".", 1)[1]
    return name.split("_")[0] or name


def is_its_own(module: str, name: str) -> bool:
    """A kernel file may import its tool, and of ours what is written in the same tool, and what a variant is."""
    if name == "fastlstm._C.PANEL":  # what calls them says how many units a panel has
        return tool(module) == "cpu"
    if name.startswith("fastlstm"):
        return tool(name.rsplit(".", 1)[0]) in (tool(module), "variant")
    return name.split(".")[0] in KERNEL_NEEDS[tool(module)] | sys.stdlib_module_names


def test_a_kernel_file_needs_only_its_own_tool() -> None:
    kernels = [module for module in FILES if room(module) == "kernels"]
    assert {tool(module) for module in kernels} == KERNEL_NEEDS.keys()
    foreign = [(m, name) for m in kernels for name in imports(m, FILES[m]) if not is_its_own(m, name)]
    assert not foreign


def test_only_kernels_know_triton_and_numba() -> None:
    others = [module for module in FILES if room(module) not in ("kernels", "benchmarks")]
    knowing = [(m, n) for m in others for n in imports(m, FILES[m]) if n.split(".")[0] in ("triton", "numba")]
    assert not knowing


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
    peers = {"joeynmt", "torchrl", "tensordict"}  # what they declare would change half of an environment
    assert used <= declared | peers


TOPS = ("fastlstm", "kernels", "benchmarks", "csrc", "tests", "examples")
WRITTEN = [path for top in TOPS for path in (ROOT / top).rglob("*") if path.suffix in (".py", ".cpp", ".h")]


def test_files_are_small() -> None:
    """One that is not: is it one room or several?"""
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in WRITTEN}
    assert not {name: count for name, count in lines.items() if count > LINES}
