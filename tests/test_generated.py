"""Cases that nobody thought of: any variant, size, layout, direction, resets and threads, the kernels against the reference."""

import pytest
import torch
from helpers import VARIANTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastlstm import backends
from fastlstm.case import Case, parse
from fastlstm.ops.gru import gru
from fastlstm.ops.lstm import lstm

pytestmark = pytest.mark.skipif(backends.extension_status() != "built", reason="the kernels need the C++ extension")

LAYOUTS = ("dense", "packed", "padded", "step")


class Drawn(dict):
    """A case; what fails says the line that `fastlstm parity --case` takes, whose numbers are drawn anew."""

    def __repr__(self) -> str:
        return f"{super().__repr__()}, as a case: {line(self)!r}"


def line(case: dict) -> str:
    T, B, layout = case["T"], case["B"], {"padded": "lengths", "step": "dense"}.get(case["layout"], case["layout"])
    some = {name: case[name] for name in ("variant", "B", "I", "H", "P", "bias", "reverse")}
    some |= {
        "return_cells": case["cells"] and case["variant"] != "gru",
        "resets": 0.3 * case["reset"],
        "layout": layout,
    }
    if layout in ("packed", "lengths"):
        _, sizes = batch(case, torch.Generator().manual_seed(case["seed"]))
        some["lengths"] = tuple([int((sizes > b).sum()) for b in range(B)])
    return str(Case(T=1 if case["layout"] == "step" else T, **some))


@st.composite
def cases(draw: st.DrawFn) -> Drawn:
    case = Drawn(
        {
            "variant": draw(st.sampled_from(list(VARIANTS))),
            "layout": draw(st.sampled_from(LAYOUTS)),
            "T": draw(st.integers(1, 9)),
            "B": draw(st.integers(1, 14)),
            "I": draw(st.sampled_from([1, 2, 3, 16, 20, 65])),
            "H": draw(st.sampled_from([1, 2, 3, 5, 16, 17, 33, 48, 65])),
            "bias": draw(st.booleans()),
            "reset": draw(st.booleans()),
            "reverse": draw(st.booleans()),
            "cells": draw(st.booleans()),
            "threads": draw(st.integers(1, 3)),
            "seed": draw(st.integers(0, 2**31)),
        }
    )
    case["P"] = draw(st.integers(0, case["H"] - 1)) if case["variant"] != "gru" else 0
    return case


def batch(case: dict, random: torch.Generator) -> tuple[tuple[int, ...], Tensor | None]:
    """The leading dimensions of x, and batch_sizes; lengths of padded sequences may be zero."""
    T, B = case["T"], case["B"]
    if case["layout"] in ("dense", "step"):
        return ((T, B) if case["layout"] == "dense" else (B,)), None
    least = 1 if case["layout"] == "packed" else 0
    lengths = torch.randint(least, T + 1, (B,), generator=random).sort(descending=True)[0]
    sizes = (torch.arange(T)[:, None] < lengths).sum(1)
    if case["layout"] == "padded":
        return (T, B), sizes
    return (int(sizes.sum()),), sizes[sizes > 0]


def tensors(case: dict, dtype: torch.dtype) -> tuple[list[Tensor | None], Tensor | None, Tensor | None]:
    """x, the states and all weights, None for absent ones; batch_sizes; reset."""
    random = torch.Generator().manual_seed(case["seed"])

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    variant, B, H, P = case["variant"], case["B"], case["H"], case["P"]
    leading, sizes = batch(case, random)
    rows, outputs = VARIANTS[variant].gates * H, P or H
    states = [normal(B, outputs)] if variant == "gru" else [normal(B, outputs), normal(B, H)]
    biases = [normal(rows), normal(rows)] if case["bias"] else [None, None]
    given = [normal(*leading, case["I"]), *states, normal(rows, case["I"]) / 2, normal(rows, outputs) / 2, *biases]
    if variant != "gru":
        given += [
            normal(P, H) if P else None,
            normal(VARIANTS[variant].peepholes, H) if VARIANTS[variant].peepholes else None,
        ]
    reset = torch.rand(leading, generator=random) < 0.3 if case["reset"] else None
    return given, sizes, reset


def run(
    case: dict, dtype: torch.dtype, backend: str, values: torch.dtype | None = None, moved: int | None = None
) -> list[Tensor]:
    """Outputs, and the gradients of all that was given: in `values`' digits, and `moved` by up to one of their roundings."""
    given, sizes, reset = tensors(case, values or dtype)
    if moved is not None:
        random, most = torch.Generator().manual_seed(moved), torch.finfo(values).eps / 2
        given = [
            t if t is None else t * (1 + most * (2 * torch.rand(t.shape, generator=random, dtype=torch.float64) - 1))
            for t in given
        ]
    x, *others = [None if t is None else t.to(dtype).requires_grad_() for t in given]
    if case["variant"] == "gru":
        outputs = gru(x, sizes, reset, *others, reverse=case["reverse"], backend=backend)
    else:
        flags = {"coupled": case["variant"].startswith("cifg"), "return_cells": case["cells"]}
        outputs = lstm(x, sizes, reset, *others, **flags, reverse=case["reverse"], backend=backend)
        outputs = outputs if case["cells"] else outputs[:3]
    random = torch.Generator().manual_seed(1)
    upstream = [torch.randn(t.shape, generator=random, dtype=torch.float64).to(dtype) for t in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [t for t in (x, *others) if t is not None], upstream)]


@settings(max_examples=150)
@given(cases())
def test_the_kernels_agree_with_the_reference(case: dict) -> None:
    torch.set_num_threads(case["threads"])
    ours, expected = run(case, torch.float64, "numba"), run(case, torch.float64, "reference")
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(cases())
def test_in_half_precision_they_err_as_much_as_roundings_of_what_is_given(case: dict) -> None:
    """A step's roundings may grow from step to step, but no more than those of the inputs and the weights would.

    Where these leave nothing of a gradient, there is nothing to compare: some cells of many units are chaotic.
    """
    torch.set_num_threads(case["threads"])
    half, exactly = torch.bfloat16, torch.float64
    ours, expected = run(case, half, "numba"), run(case, exactly, "reference", half)
    moved = [run(case, exactly, "reference", half, seed) for seed in range(4)]
    for got, want, *others in zip(ours, expected, *moved, strict=True):
        given = max((other - want).norm() for other in others)
        assert (
            given > want.norm() / 2
            or (got.double() - want).norm() <= 4 * given + torch.finfo(half).eps * want.norm() + 1e-5
        )


@settings(max_examples=40)
@given(cases())
def test_the_same_bits_for_any_number_of_threads(case: dict) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(case, torch.float32, "numba"))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@settings(max_examples=60)
@given(cases())
def test_what_fails_says_its_case(case: Drawn) -> None:
    said = parse(repr(case).rpartition("as a case: ")[2].strip("'"))
    assert (said.variant, said.H, said.P, said.reverse) == (case["variant"], case["H"], case["P"], case["reverse"])
    (*_, I), sizes = (
        tensors(case, torch.float64)[0][0].shape,
        batch(case, torch.Generator().manual_seed(case["seed"]))[1],
    )
    assert (said.I, said.rows) == (
        I,
        tensors(case, torch.float64)[0][0][..., 0].numel() if sizes is None else int(sizes.sum()),
    )
