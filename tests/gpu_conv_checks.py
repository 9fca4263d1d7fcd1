"""The checks of ConvLSTMs among those that need a GPU."""

from collections.abc import Callable

import torch
from gpu_checking import as_exact, close, same, train
from torch import Tensor, nn

import fastlstm
from fastlstm.parity.compare import exact_products

DEVICE, BACKEND = "cuda", "triton"


def conv(S: tuple[int, ...], channels: int, dtype: torch.dtype = torch.bfloat16, **options) -> nn.Module:
    """A module over images of that size; the same weights at every call."""
    torch.manual_seed(0)
    kind = getattr(fastlstm, f"ConvLSTM{len(S)}d")
    options = {"kernel_size": 3, "spatial_size": S, "backend": BACKEND} | options
    return kind(channels, channels, dtype=dtype, device=DEVICE, **options)


def alike(ours: nn.Module, S: tuple[int, ...], dtype: torch.dtype, **options) -> nn.Module:
    """The reference of the same weights."""
    theirs = conv(S, ours.in_channels, dtype, backend="reference", **options)
    theirs.load_state_dict(ours.state_dict())
    return theirs


def images(T: int, B: int, channels: int, *S: int, dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(T, B, channels, *S, dtype=dtype, device=DEVICE, requires_grad=True)


def compare(S: tuple[int, ...], channels: int, dtype: torch.dtype, T: int, B: int, given: dict, **options) -> None:
    """Outputs and gradients as exact as those of PyTorch's ops, step by step."""
    ours, x = conv(S, channels, dtype, **options), images(T, B, channels, *S, dtype=dtype)
    with exact_products():
        exact, peers = (
            train(alike(ours, S, as_wide, **options), x.detach().to(as_wide).requires_grad_(), **given)
            for as_wide in (torch.float64, dtype)
        )
        as_exact(train(ours, x, **given), peers, exact, dtype)


def conv_small_case() -> None:
    """Odd sizes, in which rows can't be read wide."""
    given = {"lengths": [5, 4, 2], "reset": torch.rand(5, 3, device=DEVICE) < 0.3}
    kinds = {(7,): (4, torch.float32), (5, 6): ((2, 3), torch.bfloat16), (3, 4, 5): ((3, 2, 1), torch.float16)}
    for S, (kernel, dtype) in kinds.items():
        for options in ({"peephole": "channel"}, {"peephole": "hadamard", "coupled": True}):
            compare(S, 5, dtype, 5, 3, given, kernel_size=kernel, **options)


def conv_large_case() -> None:
    """Tiles of 128 rows; some products are cut into many blocks."""
    compare((64, 64), 64, torch.bfloat16, 3, 16, {})
    compare((33, 35), 128, torch.bfloat16, 3, 16, {}, kernel_size=5)


def conv_same_bits_20_times() -> None:
    """Ours, and what cuDNN adds up."""
    ours, x = conv((32, 32), 64, peephole="channel"), images(6, 16, 64, 32, 32)
    first = train(ours, x)
    for _ in range(19):
        same(train(ours, x), first)


def conv_graph_of_a_training_step() -> None:
    """A captured step, on new images in the place of the old ones, gives what an eager one gives."""
    ours, x = conv((16, 16), 32, bidirectional=True), images(4, 3, 32, 16, 16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train(ours, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = train(ours, x)
    for seed in (2, 3):
        with torch.no_grad():
            x.copy_(images(4, 3, 32, 16, 16, seed=seed))
        graph.replay()
        close(results, train(ours, images(4, 3, 32, 16, 16, seed=seed)))


CONV_CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        conv_small_case, conv_large_case, conv_same_bits_20_times, conv_graph_of_a_training_step,
    )
}  # fmt: skip
