"""What gets installed: complete, under its own names, from one version, and working where no compiler is."""

import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

import fastlstm

ROOT = Path(__file__).parents[1]
FOLDERS = {"fastlstm": "fastlstm", "kernels": "fastlstm/kernels", "benchmarks": "fastlstm/benchmarks"}


def run(*command: str, cwd: Path, **env: str) -> tuple[int, str]:
    """The exit code of Python with these arguments, and what it said."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=os.environ | env, **streams)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The package as a wheel would hold it, built where no compiler works, and what the build said."""
    lib = tmp_path_factory.mktemp("lib")
    command = ("setup.py", "build", "--build-lib", str(lib), "--build-temp", str(tmp_path_factory.mktemp("temp")))
    code, said = run(*command, cwd=ROOT, CC="/no/compiler", CXX="/no/compiler")
    assert code == 0, said
    return lib, said


def test_every_file_is_installed(built: tuple[Path, str]) -> None:
    lib, _ = built
    expected = {
        Path(package, path.relative_to(ROOT / folder))
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {path.relative_to(lib) for path in lib.rglob("*.py")} == expected


def test_no_global_names_are_taken(built: tuple[Path, str]) -> None:
    lib, _ = built
    assert [path.name for path in lib.iterdir()] == ["fastlstm"]


@pytest.mark.parametrize("folder", ["kernels", "benchmarks"])
def test_folder_refuses_another_name(folder: str) -> None:
    code, said = run("-c", f"import {folder}", cwd=ROOT)
    assert code == 1
    assert f"ImportError: this folder is installed as fastlstm.{folder}" in said


def test_missing_compiler_is_said_and_not_fatal(built: tuple[Path, str]) -> None:
    _, said = built
    assert "fastlstm: the C++ extension could not be built" in said
    assert "install a C++" in said


@pytest.mark.parametrize("lacking", [["pybind11"], ["torch", "pybind11"]], ids=" ".join)
def test_what_a_build_lacks_is_said_in_one_piece(lacking: list[str]) -> None:
    program = f"""
import runpy, sys
sys.modules |= dict.fromkeys({lacking!r})
sys.argv = ["setup.py", "build"]
runpy.run_path("setup.py", run_name="__main__")
"""
    code, said = run("-c", program, cwd=ROOT)
    names = " ".join(lacking)
    assert code == 1
    assert said.strip().splitlines() == [
        f"fastlstm: building it needs torch and pybind11, and {sys.executable} has no {names}.",
        f"fastlstm: run: {sys.executable} -m pip install {names}",
        "fastlstm: then install fastlstm again.",
    ]


def test_lstm_works_without_the_extension(built: tuple[Path, str]) -> None:
    lib, _ = built
    program = """
import torch, fastlstm
from fastlstm.backends import extension_status
assert extension_status() != "built", fastlstm.__file__
lstm, oracle = fastlstm.LSTM(3, 5, 2), torch.nn.LSTM(3, 5, 2)
oracle.load_state_dict(lstm.state_dict())
x = torch.randn(4, 2, 3, requires_grad=True)
for mine, theirs in zip(lstm(x)[1], oracle(x)[1]):
    torch.testing.assert_close(mine, theirs)
torch.testing.assert_close(*(torch.autograd.grad(module(x)[0].sum(), x)[0] for module in (lstm, oracle)))
"""
    # -S: without the editable install, which would lend its extension
    path = os.pathsep.join([str(lib), sysconfig.get_path("purelib")])
    code, said = run("-S", "-P", "-c", program, cwd=lib, PYTHONPATH=path)
    assert code == 0, said


def test_version_has_one_source() -> None:
    assert metadata.version("fastlstm") == fastlstm.__version__
    literal = re.compile(rf"\b{re.escape(fastlstm.__version__)}\b")
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / "setup.py", ROOT / "pyproject.toml"]
    assert [path.name for path in files if literal.search(path.read_text())] == ["version.py"]
