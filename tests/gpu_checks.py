"""Checks that need a GPU; `on_gpu.py` runs them, and `test_on_gpu.py`.

A check is a function without arguments that raises where something is wrong, and Skip where there is nothing to check; it may
return what else is to be said.
"""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from gpu_attention_checks import ATTENTION_CHECKS
from gpu_checking import (
    FORMS,
    KINDS,
    B,
    I,
    Skip,
    T,
    as_exact,
    batch,
    close,
    form,
    infer,
    module,
    refused,
    same,
    train,
    twin,
)  # fmt: skip
from gpu_conv_checks import CONV_CHECKS
from gpu_loop_checks import LOOP_CHECKS
from torch import Tensor, nn

import fastlstm
from fastlstm import stack
from fastlstm.gpu import launch
from fastlstm.parity import difference
from fastlstm.parity.compare import exact_products

ON_GPU = Path(__file__).with_name("on_gpu.py")
LIMIT_S = 100  # of one check


def small_case() -> None:
    for kind in KINDS:
        ours, x = module(kind, 8, 32), batch(4, 3, 8)
        oracle = getattr(fastlstm, kind)(8, 32, dtype=torch.float64, backend="reference")
        oracle.load_state_dict(ours.state_dict())
        exact = train(oracle, x.detach().cpu().double().requires_grad_())
        for name in FORMS:
            with form(name):
                results = train(ours, x)
            errors = [difference(one.cpu(), other) for one, other in zip(results, exact, strict=True)]
            assert max(errors) < torch.finfo(x.dtype).eps ** 0.5, f"{kind}, {name}: errors of {errors}"


def forms_agree() -> None:
    lengths = [T - k for k in range(B)]
    reset = torch.rand(T, B, generator=torch.Generator().manual_seed(2)).cuda() < 0.2
    uses = [(kind, {}) for kind in (*KINDS, "PeepholeLSTM", "CIFGLSTM")]
    for kind, given in [*uses, *((kind, {"lengths": lengths, "reset": reset}) for kind in KINDS)]:
        results = []
        for name in FORMS:
            with form(name):
                results.append(train(module(kind), batch(), **given))
        close(*results)


def same_bits_20_times() -> None:
    for kind in (*KINDS, "PeepholeLSTM"):
        for name in FORMS:
            ours, x = module(kind), batch(T, 80, I)  # two batch tiles
            with form(name):
                first = train(ours, x)
                for _ in range(19):
                    same(train(ours, x), first)


def graph_replays(step: Callable[..., list[Tensor]], **options) -> None:
    """A captured step, on new inputs in the place of the old ones, gives what an eager one gives."""
    for kind in KINDS:
        for name in FORMS:
            ours, x = module(kind, **options), batch()
            with form(name):
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(3):
                        step(ours, x)
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    results = step(ours, x)
                for seed in (2, 3):
                    with torch.no_grad():
                        x.copy_(batch(seed=seed))
                    graph.replay()
                    close(results, step(ours, batch(seed=seed)))


def graph_of_a_forward() -> None:
    graph_replays(infer)


def graph_of_a_training_step() -> None:
    graph_replays(train)


def graph_of_both_directions() -> None:
    graph_replays(train, bidirectional=True)


def two_streams() -> None:
    pairs = [(module("LSTM"), batch(512, B, I)), (module("GRU"), batch(512, B, I, seed=2))]
    alone = [train(*pair) for pair in pairs]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for _ in range(50):
        results = []
        for stream, pair in zip(streams, pairs, strict=True):
            with torch.cuda.stream(stream):
                results.append(train(*pair))
        torch.cuda.synchronize()
        for result, expected in zip(results, alone, strict=True):
            same(result, expected)


def both_directions_in_flight() -> None:
    for kind in KINDS:
        ours, x = module(kind, bidirectional=True, num_layers=2), batch(512, B, I)
        with patch.object(stack, "side_by_side", lambda run, first, second: (run(*first), run(*second))):
            expected = train(ours, x)
        for _ in range(100):
            same(train(ours, x), expected)


def compiled_once() -> None:
    counters = torch._dynamo.utils.counters
    for kind in KINDS:
        torch._dynamo.reset()
        counters.clear()
        ours = module(kind)
        compiled = torch.compile(ours, fullgraph=True, dynamic=True)
        for steps, sequences in ((6, 4), (9, 4), (5, 7), (17, 3), (3, 70)):
            x = batch(steps, sequences, I)
            close(train(compiled, x), train(ours, x))
        graphs = counters["stats"]["unique_graphs"]
        assert graphs == 1, f"{kind} was compiled {graphs} times"


def autocast() -> None:
    for kind in KINDS:
        for dtype in (torch.bfloat16, torch.float16):
            ours, x = module(kind, dtype=torch.float32), batch(dtype=torch.float32)
            exact = train(twin(kind, ours, torch.float64), x.detach().double().requires_grad_())
            with torch.autocast("cuda", dtype):
                results, peers = train(ours, x), train(twin(kind, ours, torch.float32), x)
            dtypes, expected = [t.dtype for t in results], [t.dtype for t in peers]
            assert dtypes == expected, f"{kind} gives {dtypes}, nn.{kind} {expected}"
            as_exact(results, peers, exact, dtype)


def tf32() -> str:
    """Products in TF32, as they are by default: about as exact as cuDNN's. Triton leaves the rounding of factors to the tensor
    cores, which cut them off. (float16 has as many digits as TF32.)"""
    errors = {"ours": 0.0, "cuDNN's": 0.0}
    for kind in KINDS:
        for sequences in (B, 64):  # of 64, asynchronous instructions
            ours, x = module(kind, dtype=torch.float32), batch(T, sequences, I, dtype=torch.float32)
            exact, peers = (
                train(twin(kind, ours, dtype), x.detach().to(dtype).requires_grad_())
                for dtype in (torch.float64, torch.float32)
            )
            for name in FORMS:
                with form(name):
                    results = train(ours, x)
                as_exact(results, peers, exact, torch.float16)
                for who, found in zip(errors, (results, peers), strict=True):
                    errors[who] = max(errors[who], *map(difference, found, exact))
    return ", ".join(f"{who} errors are up to {error:.1e}" for who, error in errors.items())


def fp64() -> None:
    for kind in KINDS:
        ours, x = module(kind, dtype=torch.float64, backend="auto"), batch(dtype=torch.float64)
        close(train(ours, x), train(twin(kind, ours, torch.float64), x))
        with refused(RuntimeError, "there are no GPU kernels for torch.float64"):
            module(kind, dtype=torch.float64)(x)


def seventy_thousand_steps() -> None:
    def in_pieces(theirs: nn.RNNBase, x: Tensor) -> tuple:
        outputs, states = [], None
        for piece in x.split(7000):
            y, states = theirs(piece, states)
            outputs.append(y)
        return torch.cat(outputs), states

    for kind in KINDS:
        ours, x = module(kind, 16, 16, torch.float32), batch(70_000, 2, 16, dtype=torch.float32)
        with exact_products():
            exact, peers = (
                train(partial(in_pieces, theirs), x.detach().to(dtype).requires_grad_(), theirs)
                for dtype in (torch.float64, torch.float32)
                for theirs in [twin(kind, ours, dtype)]
            )
            for name in FORMS:
                with form(name):
                    as_exact(train(ours, x), peers, exact, x.dtype)


def offsets_beyond_32_bits() -> None:
    steps, cut, sequences, H = 8400, 8000, 128, 512
    assert cut * sequences * 4 * H < 2**31 < (steps - 150) * sequences * 4 * H
    ours, x = module("LSTM", 16, H), batch(steps, sequences, 16)
    y, *_ = infer(ours, x)
    head, *states = infer(ours, x[:cut])
    close([y[:cut]], [head])
    # the states were rounded on their way: let that be forgotten
    tail, *_ = infer(ours, x[cut:], hx=tuple(states))
    close([y[-100:]], [tail[-100:]])


def kernels_do_not_multiply() -> None:
    for kind in KINDS:
        ours = module(kind)
        train(ours, batch())
        train(ours, batch(1, 16, I))  # a step alone has kernels of its own
        before = launch.loaded.cache_info().currsize
        for steps, sequences in ((1, 16), (5, 3), (100, 9), (1000, 1)):
            train(ours, batch(steps, sequences, I))
        more = launch.loaded.cache_info().currsize - before
        assert not more, f"{kind}: {more} more kernels for other T and B"


def out_of_memory() -> None:
    small, x = module("LSTM"), batch()
    before = train(small, x)
    large = module("LSTM", 1, 1024)
    with refused(torch.OutOfMemoryError, "out of memory"):
        infer(large, torch.zeros(1 << 20, 64, 1, device="cuda", dtype=torch.bfloat16))  # half a terabyte
    same(train(small, x), before)


def from_another_thread() -> None:
    """A thread that has no GPU yet: no context is current there."""
    ours, x = module("LSTM"), batch()
    with ThreadPoolExecutor(1) as thread:
        results = thread.submit(train, ours, x).result()
    same(results, train(ours, x))


def several_gpus() -> None:
    if torch.cuda.device_count() < 2:
        raise Skip("there is one GPU")
    ours, x = module("LSTM"), batch()
    expected = train(ours, x)
    with torch.cuda.device(0):
        there = train(copy.deepcopy(ours).to("cuda:1"), x.detach().to("cuda:1").requires_grad_())
    close([t.to("cuda:0") for t in there], expected)


def sanitized(tool: str) -> None:
    """`small_case` under a tool of compute-sanitizer, in a process of its own."""
    beside = [Path(path) for path in sys.path] + [Path("/usr/local")]
    patterns = ("triton/backends/nvidia/bin", "nvidia/*/bin", "cuda*/bin", "cuda*/compute-sanitizer")
    found = (path for top in beside for p in patterns for path in top.glob(f"{p}/compute-sanitizer") if path.is_file())
    program = shutil.which("compute-sanitizer") or next(found, None)
    if program is None:
        raise Skip("compute-sanitizer is neither on PATH nor beside CUDA, triton or PyTorch")
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, ON_GPU, "--only", "small_case"]
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, env=env, timeout=LIMIT_S - 10, **streams)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout[-2000:]}"


def memcheck() -> None:
    sanitized("memcheck")


def racecheck() -> None:
    sanitized("racecheck")


CHECKS: dict[str, Callable[[], str | None]] = {
    check.__name__: check
    for check in (
        small_case, forms_agree, same_bits_20_times, graph_of_a_forward, graph_of_a_training_step,
        graph_of_both_directions, two_streams, both_directions_in_flight, compiled_once, autocast, tf32, fp64,
        seventy_thousand_steps, offsets_beyond_32_bits, kernels_do_not_multiply, out_of_memory, from_another_thread,
        several_gpus, memcheck, racecheck,
    )
} | LOOP_CHECKS | CONV_CHECKS | ATTENTION_CHECKS  # fmt: skip
