"""Runs cases whose ops get every tensor beside a page that may not be touched: who reads or writes beyond ends the process.

    python tests/guard_pages.py PATH [CASE ...]

What it said last is the case.
"""

import ctypes
import mmap
import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastlstm import backends, parity
from fastlstm.parity.problems import DTYPES, draw
from fastlstm.parity.runs import by_module, run

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)


def beside_page(t: Tensor, place: str) -> Tensor:
    """A copy with the same strides that ends where such a page begins ("end"), begins where one ends ("begin"), or begins an
    element behind that ("odd"), aligned for no more than one."""
    if t.numel() == 0:
        return t
    elements = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    size = elements * t.element_size()
    whole = -(-(size + t.element_size()) // PAGE) * PAGE
    memory = mmap.mmap(-1, whole + 2 * PAGE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (begin, begin + PAGE + whole):
        if LIBC.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + {"end": whole - size, "begin": 0, "odd": t.element_size()}[place]
    flat = torch.frombuffer(memory, dtype=t.dtype, count=elements, offset=offset)
    return flat.copy_(t.as_strided((elements,), (1,))).as_strided(t.shape, t.stride())


class BesidePages(TorchDispatchMode):
    """Ops of ours get copies beside such pages; `given` is how many."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place, self.given = place, 0

    def _copy(self, t: Tensor) -> Tensor:
        self.given += 1
        return beside_page(t, self.place)

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if op.namespace == "fastlstm" and not op._schema.is_mutable:  # what is written is the caller's
            args, kwargs = tree_map_only(Tensor, self._copy, (args, kwargs))
        return op(*args, **(kwargs or {}))


def check(line: str) -> None:
    """The same bits as without, forward and backward; `high` at the end of a line: float32 by parts."""
    backends.set_float32_precision("high" if line.endswith(" high") else "highest")
    case = parity.find(line.removesuffix(" high"))
    problem, dtype = draw(case, 0), DTYPES[case.dtype or "fp32"]
    expected = run(problem, dtype, by_module("numba"))
    for place in ("end", "begin", "odd"):
        with BesidePages(place) as mode:
            found = run(problem, dtype, by_module("numba"))
        assert mode.given > 0
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=0, equal_nan=True, msg=f"{line}: {key}")


if __name__ == "__main__":
    path, *lines = sys.argv[1:]
    backends.force_path(None if path == "best" else path)
    torch.set_num_threads(1)
    for line in lines:
        print(line, flush=True)
        check(line)
