"""The micro-kernels of Arm CPUs, cross-compiled and run under an emulator: their values, and nothing about their speed."""

import ast
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
DRIVER = Path(__file__).with_name("arm_products.cpp")
FUNCTIONS = ("gemm", "gemm_unpacked_t", "gemm_unpacked", "copy", "add", "transpose", "dots")  # in the driver's order
CROSS = shutil.which("aarch64-linux-gnu-g++")
NATIVE = shutil.which("g++")  # Clang's code sums `gemm_unpacked_t` in another order
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
ON_ARM = platform.machine() == "aarch64"  # where Debian's native compiler bears the cross compiler's name too

pytestmark = [
    pytest.mark.skipif(CROSS is None, reason="no aarch64-linux-gnu-g++ (Debian's package g++-aarch64-linux-gnu)"),
    pytest.mark.skipif(EMULATOR is None and not ON_ARM, reason="no qemu-aarch64-static (package qemu-user-static)"),
]


class Call(NamedTuple):
    """A call of a micro-kernel, and what it must leave in its last array; numbers are float64 that float32 holds exactly."""

    function: str
    sizes: list[int]
    arrays: list[Tensor]
    expected: Tensor
    # of each element: how many numbers are added up, and the sum of their magnitudes; both 0 where none are
    terms: int
    magnitude: Tensor


def numbers(*shape: int, row: int = 0, transposed: bool = False) -> Tensor:
    """Random numbers, laid out in rows of `row` elements where that is more than the last size."""
    if transposed:
        return numbers(*shape[:-2], shape[-1], shape[-2], row=row).mT
    return torch.randn(*shape[:-1], max(row, shape[-1])).double()[..., : shape[-1]]


def memory(view: Tensor | None) -> Tensor:
    """All numbers of the memory that a view is of, the gaps between its rows too."""
    if view is None:
        return torch.empty(0, dtype=torch.float64)
    return view.new_empty(0).set_(view.untyped_storage())


def call(
    function: str, sizes: list[int], arrays: list[Tensor | None], result: Tensor, magnitude: Tensor, terms: int
) -> Call:
    """A call that leaves `result` in the view that its last array is, and the gaps between the rows as they were."""
    c = arrays[-1]
    left, magnitudes = memory(c).clone(), torch.zeros_like(memory(c))
    left.as_strided(c.shape, c.stride()).copy_(result)
    magnitudes.as_strided(c.shape, c.stride()).copy_(magnitude)
    return Call(function, sizes, [memory(array) for array in arrays], left, terms, magnitudes)


def gemm(a: Tensor, b: Tensor, c: Tensor, init=None, a2=None, accumulate: bool = False, block: int = 256) -> Call:
    """`a` (batch, M, K), `a2` (M, K2), `b` (batch * K + K2, N), `init` (M, N) or (1, N), `c` (M, N)."""
    S, M, K = a.shape
    K2 = 0 if a2 is None else a2.shape[1]
    left, right = torch.cat([*a, *([] if a2 is None else [a2])], 1), b
    added = [c] * accumulate + [init] * (init is not None)
    sizes = [M, b.shape[1], K, S, a.stride(1), a.stride(2), a.stride(0), a2.stride(0) if K2 else 0, K2]
    sizes += [b.stride(0), 0 if init is None or len(init) == 1 else init.stride(0), c.stride(0), accumulate, block]
    arrays = [a, a2, b, init, c]
    return call("gemm", sizes, arrays, *product(left, right, added), terms=len(b) + len(added))


def product(a: Tensor, b: Tensor, added: list[Tensor]) -> tuple[Tensor, Tensor]:
    """`a b` plus what is added, and the same of the magnitudes."""
    return a @ b + sum(added), a.abs() @ b.abs() + sum(t.abs() for t in added)


def gemm_unpacked_t(a: Tensor, w: Tensor, init: Tensor, c: Tensor) -> Call:
    sizes = [*c.shape, a.shape[1], a.stride(0), w.stride(0), init.stride(0), c.stride(0)]
    return call("gemm_unpacked_t", sizes, [a, w, init, c], *product(a, w.T, [init]), terms=len(w.T) + 1)


def gemm_unpacked(a: Tensor, w: Tensor, c: Tensor, accumulate: bool) -> Call:
    sizes = [*c.shape, len(w), *a.stride(), w.stride(0), c.stride(0), accumulate]
    return call("gemm_unpacked", sizes, [a, w, c], *product(a, w, [c] * accumulate), terms=len(w) + 1)


def move(function: str, source: Tensor, to: Tensor) -> Call:
    result = {"copy": source, "add": source + to if function == "add" else None, "transpose": source.mT}[function]
    magnitude = result.abs() if function == "add" else torch.zeros_like(result)
    sizes = [*source.shape, source.stride(0), to.stride(0)]
    return call(function, sizes, [source, to], result, magnitude, terms=1)


def dots(a: Tensor, b: Tensor, total: Tensor) -> Call:
    sizes = [len(a), a.stride(0), b.stride(0)]
    result, magnitude = (a * b).sum(0) + total, (a * b).abs().sum(0) + total.abs()
    return call("dots", sizes, [a, b, total], result, magnitude, terms=len(a) + 1)


def calls() -> list[Call]:
    """Every function, at odd and even sizes, in rows that lie side by side and in rows that do not."""
    some = [
        gemm(numbers(1, 1, 1), numbers(1, 16), numbers(1, 16)),
        gemm(numbers(1, 16, 40), numbers(40, 64), numbers(16, 64), init=numbers(1, 64)),
        gemm(numbers(3, 7, 5, row=9), numbers(15, 32, row=48), numbers(7, 32, row=40), init=numbers(7, 32), block=4),
        gemm(numbers(1, 11, 300), numbers(300, 48), numbers(11, 48), accumulate=True),
        gemm(numbers(1, 9, 70, transposed=True), numbers(70, 16), numbers(9, 16, row=32), accumulate=True, block=32),
        gemm(numbers(1, 13, 33), numbers(50, 64), numbers(13, 64), numbers(1, 64), a2=numbers(13, 17, row=20), block=8),
        gemm(numbers(2, 6, 8), numbers(19, 16), numbers(6, 16), a2=numbers(6, 3)),
    ]
    # as few rows as a tile has, and one more and less
    some += [gemm(numbers(1, M, 6), numbers(6, 16), numbers(M, 16)) for M in range(2, 14)]
    for M, N, K in (1, 1, 1), (2, 3, 7), (3, 8, 16), (1, 13, 37):
        some.append(gemm_unpacked_t(numbers(M, K, row=K + 1), numbers(N, K), numbers(M, N), numbers(M, N, row=N + 3)))
        some.append(gemm_unpacked(numbers(M, K), numbers(K, N, row=N + 2), numbers(M, N), accumulate=False))
        some.append(
            gemm_unpacked(numbers(M, K, transposed=True), numbers(K, N), numbers(M, N, row=N + 1), accumulate=True)
        )
        some.append(move("transpose", numbers(N, K, row=K + 1), numbers(K, N, row=N + 2)))
        some += [move(name, numbers(M, 16 * N), numbers(M, 16 * N, row=16 * N + 5)) for name in ("copy", "add")]
        some.append(dots(numbers(K, 16, row=20), numbers(K, 16), numbers(16)))
    return some


def flags() -> list[str]:
    """How setup.py compiles."""
    keywords = (n for n in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(n, ast.keyword))
    return [f"-I{ROOT / 'csrc'}", *next(ast.literal_eval(k.value) for k in keywords if k.arg == "extra_compile_args")]


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[str, list[str]]:
    """The commands that run calls: as users' builds would, and without contraction there and on this machine."""
    if NATIVE is None:
        pytest.skip("no g++ for this machine, to compare with")
    folder = tmp_path_factory.mktemp("arm")
    every, portable = sorted(map(str, ROOT.glob("csrc/gemm/*.cpp"))), [str(ROOT / "csrc/gemm/gemm_portable.cpp")]
    plain = [*flags(), "-ffp-contract=off", "-O0"]  # bits then are the same at any -O, and none takes a third as long
    builds = {
        "arm": [CROSS, "-static", *flags(), *every],
        "arm, not contracted": [CROSS, "-static", *plain, *every],
        "here, not contracted": [NATIVE, *plain, *portable],
    }
    outputs = {name: str(folder / name.replace(", ", "-").replace(" ", "-")) for name in builds}
    running = [subprocess.Popen([*builds[name], str(DRIVER), "-o", outputs[name]]) for name in builds]
    assert [build.wait() for build in running] == [0] * len(builds)
    under = {name: [] if ON_ARM or name.startswith("here") else [EMULATOR] for name in builds}
    return {name: [*under[name], outputs[name]] for name in builds}


def run(command: list[str], some: list[Call], dtype: torch.dtype) -> list[Tensor]:
    """What is left in the last arrays."""
    sent = bytearray()
    for c in some:
        lengths = [len(array) for array in c.arrays]
        head = [FUNCTIONS.index(c.function), len(c.sizes), len(lengths), *c.sizes, *lengths]
        for part in torch.tensor(head, dtype=torch.int64), *c.arrays:
            sent += part.numpy().tobytes()
    done = subprocess.run([*command, str(dtype).removeprefix("torch.")], input=sent, stdout=subprocess.PIPE, check=True)
    return list(torch.frombuffer(bytearray(done.stdout), dtype=dtype).split([len(c.expected) for c in some]))


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@dtypes
def test_products_are_those_of_float64(programs, dtype) -> None:
    """Within what roundings can do: each term takes part in at most `terms` sums, and is a product rounded before.

    That holds in any order of the sum. What is compared with is a sum in float64, whose roundings are allowed for as well.
    """
    some = calls()
    unit = (torch.finfo(dtype).eps + torch.finfo(torch.float64).eps) / 2
    for c, left in zip(some, run(programs["arm"], some, dtype), strict=True):
        worst = (c.terms + 1) * unit
        allowed = worst / (1 - worst) * c.magnitude
        assert ((left.double() - c.expected).abs() <= allowed).all(), (c.function, c.sizes)


@dtypes
def test_products_are_the_same_bits_on_either_cpu(programs, dtype) -> None:
    """Where no product is fused with its sum, the order of the sum is all that counts: neither tile nor CPU change it."""
    some = calls()
    there, here = (run(programs[f"{where}, not contracted"], some, dtype) for where in ("arm", "here"))
    for c, left, right in zip(some, there, here, strict=True):
        assert left.numpy().tobytes() == right.numpy().tobytes(), (c.function, c.sizes)


@dtypes
def test_products_do_not_depend_on_the_tile(programs, dtype) -> None:
    """The same bits as by a row and a panel of columns at a time, which have a tile of one row."""
    a, b = numbers(1, 13, 300), numbers(300, 64)
    parts = [
        gemm(a[:, m : m + 1].clone(), b[:, n : n + 16].clone(), numbers(1, 16))
        for m in range(13)
        for n in range(0, 64, 16)
    ]
    whole, *pieces = run(programs["arm"], [gemm(a, b, numbers(13, 64)), *parts], dtype)
    assert torch.equal(whole.view(13, 64), torch.cat(pieces).view(13, 64))
