"""Of the checks that need a GPU those of the loops whose programs wait for each other, in the cases that strain them."""

import os
import socket
import statistics
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from gpu_checking import KINDS, Skip, close, form, infer, module, refused, same, train
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastlstm import alarm, backends, stack


def numbers(*shape: int, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda", requires_grad=True)


def odd_sizes() -> None:
    """Rows that no wide load can read, and a last tile that is nearly empty."""
    for kind in KINDS:
        for H in (37, 769):
            results = []
            for name in ("resident", "steps"):
                with form(name):
                    results.append(train(module(kind, 33, H), numbers(20, 19, 33)))
            close(*results)


def many_steps_of_many_programs() -> None:
    """As many programs as the GPU has processors, nearly; 4096 steps."""
    for kind in KINDS:
        ours, x = module(kind, 64, 1024), numbers(4096, 16, 64)
        with form("resident"):
            first = train(ours, x)
            for _ in range(3):
                same(train(ours, x), first)
        backends.check_gpu()
        assert all(t.isfinite().all() for t in first)


def waits_end() -> None:
    """A launch that looks once and gives up: NaN, an error at the next call, and the calls after it run."""
    ours, x = module("LSTM"), numbers(64, 16, 64)
    right = infer(ours, x)
    before = alarm.steps_only
    try:
        with form("resident"), patch.object(alarm, "PATIENCE", 1):
            y, *_ = infer(ours, x)
        if y.isfinite().all():
            raise Skip("every program found the others there at its first look")
        assert y[-1].isnan().any()
        with refused(RuntimeError, "lstm_forward gave up"):
            backends.check_gpu()
        close(infer(ours, x), right)
    finally:
        alarm.steps_only = before


def graph_with_lengths_and_resets() -> None:
    for kind in KINDS:
        ours, x = module(kind, 64, 128), numbers(24, 16, 64)
        lengths = torch.tensor([24 - k for k in range(16)])
        packed = pack_padded_sequence(x.detach(), lengths)
        reset = torch.rand(24, 16, device="cuda") < 0.2
        uses: list[Callable[[], list[Tensor]]] = [
            lambda ours=ours, packed=packed: list_of(ours(packed)),
            lambda ours=ours, x=x, reset=reset: list_of(ours(x, reset=reset)),
        ]
        for use in uses:
            with torch.no_grad():
                expected = [t.clone() for t in use()]
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    results = use()
                graph.replay()
                close(results, expected)
        for given, words in (({"lengths": lengths}, "lengths= can't be captured"),):
            with torch.no_grad(), refused(RuntimeError, words), torch.cuda.graph(torch.cuda.CUDAGraph()):
                ours(x, **given)


def replays_beside_calls() -> None:
    """Of a graph, on another stream than calls: programs of each count apart."""
    ours, x = module("LSTM", 64, 128), numbers(256, 16, 64)
    with torch.no_grad(), form("resident"):
        expected = [t.clone() for t in list_of(ours(x))]
        graph, beside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.graph(graph):
            results = list_of(ours(x))
        for _ in range(20):
            with torch.cuda.stream(beside):
                graph.replay()
            same(list_of(ours(x)), expected)
        torch.cuda.synchronize()
        same(results, expected)
    backends.check_gpu()


def list_of(results: tuple) -> list[Tensor]:
    y, finals = results
    y = y.data if isinstance(y, PackedSequence) else y
    return [y, *(finals if isinstance(finals, tuple) else [finals])]


def two_directions_beside_one() -> str:
    """Not a check: what the second direction costs while the first is in flight."""
    said = []
    for H in (256, 768):
        x = numbers(512, 16, H)
        one, two = (module("LSTM", H, H, bidirectional=both) for both in (False, True))
        in_turn = patch.object(stack, "side_by_side", lambda run, first, second: (run(*first), run(*second)))
        alone, together = milliseconds(partial(train, one, x)), milliseconds(partial(train, two, x))
        with in_turn:
            after = milliseconds(partial(train, two, x))
        said.append(f"H {H}: one direction {alone:.2f} ms, two at once {together:.2f}, one after the other {after:.2f}")
    return "; ".join(said)


def milliseconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[2:])


def ddp_beside_a_full_grid() -> None:
    """Gradients are summed over two GPUs while loops that take nearly all processors run."""
    if torch.cuda.device_count() < 2:
        raise Skip("there is one GPU")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(trained_in_parallel, (port,), nprocs=2)


def trained_in_parallel(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", rank=rank, world_size=2)
    ours = torch.nn.parallel.DistributedDataParallel(module("LSTM", 1024, 1024, num_layers=4), device_ids=[rank])
    x = numbers(256, 16, 1024, seed=rank)
    for _ in range(20):
        ours.zero_grad()
        y, _ = ours(x)
        y.float().square().mean().backward()
    backends.check_gpu()
    assert all(p.grad.isfinite().all() for p in ours.parameters())
    torch.distributed.destroy_process_group()


LOOP_CHECKS: dict[str, Callable[[], str | None]] = {
    check.__name__: check
    for check in (
        odd_sizes, waits_end, graph_with_lengths_and_resets, replays_beside_calls, two_directions_beside_one,
        ddp_beside_a_full_grid, many_steps_of_many_programs,
    )
}  # fmt: skip
