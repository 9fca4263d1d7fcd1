"""The checks of decoders with attention among those that need a GPU."""

from collections.abc import Callable
from functools import partial

import torch
from gpu_checking import as_exact, close, same, train
from torch import Tensor, nn

import fastlstm

DEVICE, BACKEND = "cuda", "triton"


def decoder(I: int, H: int, M: int, dtype: torch.dtype, backend: str | None = None, **options) -> nn.Module:
    """The same weights at every call."""
    torch.manual_seed(0)
    return fastlstm.AttentionLSTM(I, H, M, dtype=dtype, device=DEVICE, backend=backend or BACKEND, **options)


def problem(T: int, B: int, S: int, I: int, M: int, dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, Tensor]:
    """The input, and the memory."""
    torch.manual_seed(seed)
    sizes = (T, B, I), (S, B, M)
    x, memory = (torch.randn(size, dtype=torch.float32, device=DEVICE).to(dtype) for size in sizes)
    return x.requires_grad_(), memory


def run(module: nn.Module, memory: Tensor, x: Tensor, **given) -> tuple:
    """As a recurrent module returns it: the output, and the states."""
    y, state = module(x, memory, **given)
    return y, tuple(state[:2])


def attention_small_case() -> None:
    """Odd sizes, lengths of both; scores of each kind, what is fed of each kind, two layers."""
    kinds = (
        ({"attention": "additive"}, torch.float32), ({"attention": "dot", "feed": "context"}, torch.bfloat16),
        ({"attention": "general", "feed": None, "num_layers": 2}, torch.float16),
        ({"attention": "additive", "attend": "before", "peephole": True, "coupled": True}, torch.bfloat16),
    )  # fmt: skip
    given = {"lengths": [5, 4, 2], "memory_lengths": [7, 3, 6]}
    for options, dtype in kinds:
        M = 37 if options["attention"] == "dot" else 29
        x, memory = problem(5, 3, 7, 9, M, dtype)
        found = []
        for backend, wide in ((BACKEND, dtype), ("reference", dtype), ("reference", torch.float64)):
            ours = decoder(9, 37, M, wide, backend, **options)
            ours.load_state_dict(decoder(9, 37, M, dtype, **options).state_dict())
            found.append(
                train(partial(run, ours, memory.to(wide)), x.detach().to(wide).requires_grad_(), ours, **given)
            )
        as_exact(*found, dtype)


def attention_same_bits_20_times() -> None:
    ours, (x, memory) = decoder(64, 512, 512, torch.bfloat16), problem(20, 16, 50, 64, 512, torch.bfloat16)
    first = train(partial(run, ours, memory), x, ours)
    for _ in range(19):
        same(train(partial(run, ours, memory), x, ours), first)


def attention_graph_of_a_training_step() -> None:
    """A captured step, on new numbers in the place of the old ones, gives what an eager one gives."""
    ours, (x, memory) = decoder(16, 64, 32, torch.bfloat16), problem(6, 5, 9, 16, 32, torch.bfloat16)
    step = partial(train, partial(run, ours, memory), x, ours)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for seed in (2, 3):
        other, slots = problem(6, 5, 9, 16, 32, torch.bfloat16, seed)
        with torch.no_grad():
            x.copy_(other)
            memory.copy_(slots)
        graph.replay()
        close(results, train(partial(run, ours, slots), other, ours))


ATTENTION_CHECKS: dict[str, Callable[[], str | None]] = {
    check.__name__: check
    for check in (attention_small_case, attention_same_bits_20_times, attention_graph_of_a_training_step)
}
