"""The Python side of fake_cuda.c, a double of libcuda: what was called, what shall fail, and what a launch does."""

import ctypes
import shutil
import subprocess
import traceback
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_uint, c_uint64, c_void_p
from pathlib import Path

# name, grid (x, y, z), threads, shared bytes, stream, address of the array of pointers to the parameters, cooperative
OnLaunch = Callable[[str, tuple[int, int, int], int, int, int, int, bool], None]
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
LAUNCH_FAILED = 719


def compile_library(folder: Path) -> Path:
    """Build the double of libcuda with COMPILER."""
    library = folder / "libfake_cuda.so"
    source = Path(__file__).with_name("fake_cuda.c")
    subprocess.run([COMPILER, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def parameters(address: int, count: int) -> list[int]:
    """The first `count` parameters of a launch, as unsigned numbers of 64 bits."""
    return [pointer.contents.value for pointer in (POINTER(c_uint64) * count).from_address(address)]


class _Call(ctypes.Structure):
    _fields_ = (("function", c_char_p), ("text", ctypes.c_char * 64), ("count", c_int), ("arguments", c_int64 * 8))


class FakeCuda:
    """The double at `library`, the file that `fastlstm._C.open_driver` is given.

    Settings, see `set`: devices, device (the current one), context (0: none is current), multiprocessors, programs (that
    one of them holds), max_shared (bytes of a program), cooperative. `on_launch`, if there is one, is called at every
    launch; if it raises, the exception is printed, kept as `error`, and the launch fails.
    """

    _callback = ctypes.CFUNCTYPE(c_int, c_char_p, *[c_uint] * 5, c_void_p, c_void_p, c_int)

    def __init__(self, library: Path) -> None:
        self.library = str(library)
        self._c = ctypes.CDLL(self.library)
        self._c.fake_call_count.restype = c_int64
        self._c.fake_calls.restype = POINTER(_Call)
        self._launch = self._callback(self._launched)
        self.reset()

    def reset(self) -> None:
        """As at the start, except that handles and kernels stay valid."""
        self._c.fake_reset()
        self.error: BaseException | None = None
        self._on_launch: OnLaunch | None = None

    @property
    def calls(self) -> list[tuple]:
        """(function, integer arguments...); the kernel's name, or how the image begins, follows the function if it has one.

        Handles, pointers and the parameters of launches are left out; see `on_launch` for those.
        """
        calls = self._c.fake_calls()[: self._c.fake_call_count()]
        return [
            (c.function.decode(), *([c.text.decode("latin-1")] if c.text else []), *c.arguments[: c.count])
            for c in calls
        ]

    @property
    def called(self) -> list[str]:
        """The names of the functions that were called."""
        return [name for name, *_ in self.calls]

    def fail(self, function: str, code: int, after: int = 0) -> None:
        """Let calls of `function` fail with `code`, once `after` of them have succeeded."""
        self._c.fake_fail(function.encode(), code, after)

    def set(self, name: str, value: int) -> None:
        if not self._c.fake_set(name.encode(), value):
            raise KeyError(name)

    def close_gate(self) -> None:
        """Let launches wait inside the driver, for at most 5 seconds."""
        self._c.fake_gate(1)

    def open_gate(self) -> None:
        self._c.fake_gate(0)

    @property
    def waiting(self) -> bool:
        """A launch has come to the gate."""
        return bool(self._c.fake_waiting())

    @property
    def on_launch(self) -> OnLaunch | None:
        return self._on_launch

    @on_launch.setter
    def on_launch(self, function: OnLaunch | None) -> None:
        self._on_launch = function
        self._c.fake_on_launch(self._launch if function else None)

    def _launched(self, name, x, y, z, threads, shared, stream, params, cooperative) -> int:
        try:
            self._on_launch(name.decode(), (x, y, z), threads, shared, stream or 0, params, bool(cooperative))
        except BaseException as error:
            traceback.print_exc()
            self.error = error
            return LAUNCH_FAILED
        return 0
