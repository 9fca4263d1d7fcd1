"""Builds the C++ extension `fastlstm._C` and maps the top-level folders into the package.

The extension uses LibTorch's stable ABI only, so one build serves torch 2.11 and later. Without a working compiler the
package installs all the same, says so, and runs on PyTorch's own ops (`fastlstm info` tells).
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGES = {"fastlstm": "fastlstm", "fastlstm.kernels": "kernels", "fastlstm.benchmarks": "benchmarks"}
NEEDS = ("torch", "pybind11")
LACKING = """
fastlstm: building it needs {needed}, and {python} has no {missing}.
fastlstm: run: {python} -m pip install {missing}
fastlstm: then install fastlstm again.
"""
NO_EXTENSION = """
fastlstm: the C++ extension could not be built ({error}).
fastlstm: it is installed without it: results are the same, on PyTorch's own ops and at their speed.
fastlstm: for full speed install a C++20 compiler (for example g++ >= 11) and install fastlstm again.
"""


class BuildOptional(build_ext):
    """Builds what can be built, all processors at once; a missing compiler is reported, not fatal."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # a virtual environment's own, which holds nothing of ours: a compiler cache took each for other words
        self.include_dirs = [
            folder for folder in self.include_dirs if folder != os.path.join(sys.exec_prefix, "include")
        ]

    def build_extension(self, ext: Extension) -> None:
        of_several = self.compiler.compile

        def compile_at_once(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                found = list(pool.map(lambda source: of_several([source], **options), sources))
            return [file for files in found for file in files]

        self.compiler.compile = compile_at_once
        try:
            super().build_extension(ext)
        except Exception as error:
            print(NO_EXTENSION.format(error=error), file=sys.stderr)


def extension() -> Extension:
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        said = LACKING.format(needed=" and ".join(NEEDS), missing=" ".join(missing), python=sys.executable)
        raise SystemExit(said)
    import pybind11

    # torch is not imported: its headers and libraries serve any Python, and are the same to link against whatever else is there
    root = Path(find_spec("torch").origin).resolve().parent
    found = Extension(
        "fastlstm._C",
        sources=sorted(str(p) for p in Path("csrc").rglob("*.cpp")),
        depends=sorted(str(p) for p in Path("csrc").rglob("*.h")),
        # in this order: torch brings a pybind11 of its own, that of 2.11 refuses to be used beside the stable ABI
        include_dirs=["csrc", str(Path(pybind11.get_include()).resolve()), str(root / "include")],
        library_dirs=[str(root / "lib")],
        libraries=["torch_cpu", "c10"],
        define_macros=[("TORCH_TARGET_VERSION", "0x020b000000000000")],
        extra_compile_args=["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wall",
                            "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"],
        language="c++",
        optional=True,
    )  # fmt: skip
    # make sanitize: multiply-adds as without, and checks are calls, else a file of micro-kernels takes minutes to compile
    if sanitizer := os.environ.get("SANITIZE"):
        watched = [f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer", "-O1", "-fexpensive-optimizations", "-g1"]
        found.extra_compile_args += [*watched, "--param=asan-instrumentation-with-call-threshold=0"]
        found.extra_link_args += watched
    return found


def packages() -> list[str]:
    """Every folder with an `__init__.py`, under the name it is installed as."""
    found = []
    for name, folder in PACKAGES.items():
        for init in sorted(Path(folder).rglob("__init__.py")):
            found.append(".".join([name, *init.parent.relative_to(folder).parts]))
    return found


setup(packages=packages(), package_dir=PACKAGES, ext_modules=[extension()], cmdclass={"build_ext": BuildOptional})
