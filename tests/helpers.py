"""What the tests of values share: each variant with its oracle, and how a module is run in the layouts that users have."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastlstm import backends
from fastlstm.modules import build

I, H, T, B = 3, 5, 6, 4
LENGTHS = [3, 6, 1, 4]


class Variant(NamedTuple):
    """What a variant is, said here once more."""

    gates: int
    states: int
    peepholes: int
    torch: type[nn.RNNBase] | None  # PyTorch's module, the oracle; where there is none, the reference is


VARIANTS = {
    "lstm": Variant(4, 2, 0, nn.LSTM),
    "gru": Variant(3, 1, 0, nn.GRU),
    "peephole_lstm": Variant(4, 2, 3, None),
    "cifg_lstm": Variant(3, 2, 0, None),
    "cifg_peephole_lstm": Variant(3, 2, 2, None),
}
IN_PYTORCH = [name for name, variant in VARIANTS.items() if variant.torch]
WITH_CELLS = [name for name, variant in VARIANTS.items() if variant.states == 2]

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "three layers, two directions, batch first": {"num_layers": 3, "bidirectional": True, "batch_first": True},
    "projection": {"proj_size": 2},
    "projection to 1, two layers, two directions": {"proj_size": 1, "num_layers": 2, "bidirectional": True},
    "projection, no bias, batch first": {"proj_size": 4, "bias": False, "batch_first": True},
}


def each_case(options=OPTIONS, variants=VARIANTS):
    """Every variant with every option that it has: a GRU has no projection."""
    cases = {
        f"{variant}, {name}": (variant, chosen)
        for variant in variants
        for name, chosen in options.items()
        if variant != "gru" or "proj_size" not in chosen
    }
    return pytest.mark.parametrize(("variant", "options"), cases.values(), ids=cases)


each_variant = pytest.mark.parametrize("variant", VARIANTS)
LAYOUTS = ["dense", "packed", "packed unsorted", "lengths", "unbatched"]
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def assert_same(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def assert_threads_change_no_bit(results: Callable[[], object]) -> None:
    """What it gives, with 1, 2 and 3 threads."""
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results())
    finally:
        torch.set_num_threads(1)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def module(variant: str, input_size: int = I, hidden_size: int = H, **options) -> nn.RNNBase:
    return build(variant, input_size, hidden_size, dtype=torch.float64, **options)


def pair(variant: str, input_size: int = I, hidden_size: int = H, **options) -> tuple[nn.RNNBase, nn.RNNBase]:
    """The oracle and ours, in float64, of the same weights."""
    if backends.extension_status() == "built":  # else the oracle would be compared with itself
        assert backends.choose(variant, torch.device("cpu"), torch.float64).backend == "numba"
    ours = module(variant, input_size, hidden_size, **options)
    if kind := VARIANTS[variant].torch:
        oracle: nn.RNNBase = kind(input_size, hidden_size, dtype=torch.float64, **options)
    else:
        oracle = module(variant, input_size, hidden_size, backend="reference", **options)
    ours.load_state_dict(oracle.state_dict())
    return oracle, ours


def random_states(module: nn.RNNBase, *batch: int) -> list[Tensor]:
    """Initial states in float64: `[h0, c0]`, or `[h0]` of a GRU."""
    K, H = module.num_layers * (2 if module.bidirectional else 1), module.hidden_size
    sizes = [H] if module.mode == "GRU" else [module.proj_size or H, H]
    return [random(K, *batch, size) for size in sizes]


def as_hx(states: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """States as a module takes them."""
    return tuple(states) if len(states) > 1 else states[0]


def as_list(finals: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """States as a module gives them, in a list."""
    return [finals] if isinstance(finals, Tensor) else list(finals)


def call(
    module: nn.RNNBase,
    layout: str,
    lengths: list[int],
    x: Tensor,
    hx: list[Tensor],
    reset: Tensor | None = None,
    return_cells: bool = False,
) -> list[Tensor]:
    """Output, final states and, if asked for, cells, on `x` (T, B, I) in a layout; where PyTorch has no `lengths`, it packs."""
    options = {"return_cells": True} if return_cells else {}
    x, *more = (t.transpose(0, 1) if module.batch_first else t for t in (x, *([] if reset is None else [reset])))
    if layout == "unbatched":
        first = (slice(None), 0) if not module.batch_first else (0,)
        x, more, hx = x[first], [t[first] for t in more], [s[:, 0] for s in hx]
    packs = layout.startswith("packed") or (layout == "lengths" and isinstance(module, (nn.LSTM, nn.GRU)))
    if packs:
        T, is_sorted = x.shape[1 if module.batch_first else 0], layout == "packed"
        n = torch.tensor(sorted(lengths, reverse=True) if is_sorted else lengths)
        x = pack_padded_sequence(x, n, module.batch_first, enforce_sorted=is_sorted)
    elif layout == "lengths":
        options["lengths"] = lengths
    if more:
        options["reset"] = more[0]
    y, finals, *cells = module(x, as_hx(hx), **options)
    steps = [y, *cells]
    if packs:
        for t in steps:
            assert t.batch_sizes is x.batch_sizes
            assert t.sorted_indices is x.sorted_indices
            assert t.unsorted_indices is x.unsorted_indices
        padded = [pad_packed_sequence(t, module.batch_first, total_length=T)[0] for t in steps]
        steps = padded if layout == "lengths" else [t.data for t in steps]
    return [steps[0], *as_list(finals), *steps[1:]]


def run(
    module: nn.RNNBase, layout: str, lengths: list[int], x: Tensor, hx: list[Tensor], *more: object, **options: object
) -> list[Tensor]:
    """What `call` returns, then the gradients of input, initial states and weights from random output gradients."""
    x, *hx = (t.clone().requires_grad_() for t in (x, *hx))
    outputs = call(module, layout, lengths, x, hx, *more, **options)
    torch.manual_seed(3)
    d_outputs = [random(*t.shape).to(t.dtype) for t in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x, *hx, *module.parameters()], d_outputs)]
