"""How recurrent calls are seen, and timed: the functions that all of them reach are replaced while somebody watches.

PyTorch's modules look up `torch._VF.lstm` and its like when they run, and ours what their file imported. Modules are left as
they are, and so are all values. A backward is no call that could be timed: x and the first weight go in as aliases of
themselves, and the nodes of these are the last of the call that a backward reaches.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._dynamo import eval_frame

from fastlstm.modules import attention, base, cells, conv, conv_cells
from fastlstm.tracing import calls
from fastlstm.tracing.calls import SHORT, Shape

Describe = Callable[[Sequence[Any]], Shape]
# Where a function is looked up, and by which name; how its arguments are read; which of them hold x first, a memory, weights
PLACES: list[tuple[ModuleType, str, Describe, tuple[int, ...]]] = [
    *[
        (torch._VF, name, partial(calls.torchs_layers, name.partition("_")[0]), (0, 2, 3))
        for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    ],
    *[
        (torch._VF, name, partial(calls.torchs_cell, name.partition("_")[0]), (0, 2))
        for name in ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
    ],
    (base, "recurrent", calls.our_layers, (1, 2)),
    (cells, "step", calls.our_cell, (1, 3)),
    (conv, "convolutional", calls.our_maps, (0, 1)),
    (conv_cells, "convolutional_step", calls.our_map_cell, (0, 1)),
    (attention, "decode", calls.our_decoder, (0, 1, 2)),
    (attention, "decode_step", calls.our_decoder_step, (0, 2)),
]


class Kind(NamedTuple):
    """Calls that are told as one."""

    shape: Shape
    dtype: str
    device: str
    frozen_x: bool
    caller: type | None  # of a function of PyTorch's, the class of the module that called it; None of ours


SETTLE = 1000  # events of a GPU that wait to be read
ALL, ONE_IN = 100, 8  # so many calls of a kind are timed, then one in eight, which stands for eight


class Tally:
    """How often, and how long: of calls that no backward followed, and of those that one did."""

    def __init__(self, caller: Any) -> None:
        self.caller = caller  # the first of the modules
        self.total = 0
        self.calls = {"infer": 0, "train": 0}
        self.forward_s = {"infer": 0.0, "train": 0.0}
        self.backward_s = 0.0

    def weight(self) -> int:
        """How many calls the next one stands for; 0: it is not timed. They are spread evenly, and in step with no loop."""
        self.total += 1
        if self.total <= ALL:
            return 1
        return ONE_IN if self.total * 2654435761 % 2**32 < 2**32 // ONE_IN else 0


class Watch:
    """What was seen."""

    def __init__(self) -> None:
        self.tallies: dict[Kind, Tally] = {}
        self.undescribed = 0
        self.watching_s = 0.0  # what this took itself, beside the calls
        self.lock = threading.Lock()  # a backward on a GPU has a thread of its own
        self.events: list[tuple[Any, Any, Callable[[float], None]]] = []

    def run(
        self, original: Callable, describe: Describe, taps: tuple[int, ...], args: Sequence[Any], caller: Any
    ) -> Any:
        """What the function returns; its call is counted. A backward begins at an output, that of a cell at h."""
        entered = time.perf_counter()
        kind = _kind(describe, args, taps, caller)
        if kind is None:
            self.undescribed += 1
            return original(*args)
        with self.lock:
            tally = self.tallies.get(kind) or self.tallies.setdefault(kind, Tally(caller))
            weight = tally.weight()
        if not weight:
            self.watching_s += time.perf_counter() - entered
            return original(*args)
        call = Call(self, tally, weight, kind.device)
        if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            args = call.tapped(args, taps)
        began, begin = time.perf_counter(), clock(kind.device)
        results = original(*args)
        end, ended = clock(kind.device), time.perf_counter()
        self.took(begin, end, call.add_forward)
        for y in _tensors(results[0] if kind.shape.layout == "cell" and isinstance(results, tuple) else results):
            if y.grad_fn is not None:
                y.grad_fn.register_prehook(call.begin_backward)
        self.watching_s += (began - entered) + (time.perf_counter() - ended)
        return results

    def took(self, begin: Any, end: Any, add: Callable[[float], None]) -> None:
        with self.lock:
            if isinstance(begin, float):
                add(end - begin)
                return
            self.events.append((begin, end, add))
        if len(self.events) > SETTLE:
            self.settle()

    def settle(self) -> None:
        """Read the events that were recorded on a GPU."""
        with self.lock:
            for begin, end, add in self.events:
                end.synchronize()
                add(1e-3 * begin.elapsed_time(end))
            self.events.clear()


class Call:
    """One call: a forward, which counts as inference until a backward follows."""

    def __init__(self, watch: Watch, tally: Tally, weight: int, device: str) -> None:
        self.watch, self.tally, self.weight, self.device = watch, tally, weight, device
        self.mode, self.forward_s = "infer", 0.0
        self.since: Any = None  # the begin of a backward, then of what was not counted yet
        self.ended = True
        tally.calls["infer"] += weight

    def add_forward(self, seconds: float) -> None:
        self.forward_s = seconds
        self.tally.forward_s[self.mode] += self.weight * seconds

    def add_backward(self, seconds: float) -> None:
        self.tally.backward_s += self.weight * seconds

    def tapped(self, args: Sequence[Any], taps: tuple[int, ...]) -> Sequence[Any]:
        """The arguments, with an alias in the first that wants a gradient: what comes before the others in the graph."""
        for k in taps:
            if (new := self.ending(args[k])) is not args[k]:
                return [*args[:k], new, *args[k + 1 :]]
        return args

    def ending(self, value: Any) -> Any:
        """`value` with the first of its tensors that wants a gradient as an alias, whose node ends a backward."""
        if isinstance(value, Tensor):
            if not value.requires_grad:
                return value
            alias = value.view_as(value)
            assert alias.grad_fn is not None
            alias.grad_fn.register_prehook(self.end_backward)
            return alias
        for k, part in enumerate(value) if isinstance(value, (list, tuple)) else ():
            if (new := self.ending(part)) is not part:
                parts = [*value[:k], new, *value[k + 1 :]]
                return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
        return value

    def begin_backward(self, _: Any) -> None:
        if not self.ended:  # another output's node
            return
        self.since, self.ended = clock(self.device), False
        if self.mode == "infer":
            with self.watch.lock:
                self.mode = "train"
                for of_mode, one in (("infer", -self.weight), ("train", self.weight)):
                    self.tally.calls[of_mode] += one
                    self.tally.forward_s[of_mode] += one * self.forward_s

    def end_backward(self, _: Any) -> None:
        if self.since is not None:
            self.ended, now = True, clock(self.device)
            self.watch.took(self.since, now, self.add_backward)
            self.since = now


def clock(device: str) -> Any:
    """Now: seconds, or an event in the stream of a GPU, which goes on working when a call has returned."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _kind(describe: Describe, args: Sequence[Any], taps: tuple[int, ...], caller: Any) -> Kind | None:
    """None for what is no such call, and will be refused; and where there is nothing to do."""
    try:
        shape = describe(args)
        x = args[taps[0]]
        x = x if isinstance(x, Tensor) else next(_tensors([args[k] for k in taps]))
    except Exception:  # whatever it is, the function itself is to tell
        return None
    device, dtype = x.device.type, x.dtype
    if torch._C._is_any_autocast_enabled() and dtype == torch.float32 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if dtype not in SHORT or 0 in (shape.T, shape.B):
        return None
    return Kind(shape, SHORT[dtype], device, not x.requires_grad, None if caller is None else type(caller))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


class _Busy(threading.local):
    inside = False  # what one of ours runs is a part of it: PyTorch's own op, where "auto" chose that


_busy = _Busy()


def _watched(watch: Watch, original: Callable, describe: Describe, taps: tuple[int, ...]) -> Callable:
    by_torch = not isinstance(original, FunctionType)

    def call(*args: Any, **options: Any) -> Any:
        # A compiler that takes it into its graph takes the original alone
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() or options or _busy.inside:
            return original(*args, **options)
        caller = sys._getframe(1).f_locals.get("self", watch) if by_torch else None
        _busy.inside = True
        try:
            return watch.run(original, describe, taps, args, caller)
        finally:
            _busy.inside = False

    # and where a compiler has left PyTorch's module out, it is not to compile this, nor what is called here
    skip = eval_frame._FrameAction.SKIP
    eval_frame.set_code_exec_strategy(call.__code__, eval_frame._FrameExecStrategy(skip, skip))
    return call


_free = threading.Lock()


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """While it is active, `watch` sees the calls of all threads of this process."""
    if not _free.acquire(blocking=False):
        raise RuntimeError("a trace is active already, expected one at a time: it sees the calls of the whole process")
    originals = [(module, name, getattr(module, name)) for module, name, _, _ in PLACES]
    try:
        for module, name, describe, taps in PLACES:
            setattr(module, name, _watched(watch, getattr(module, name), describe, taps))
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)
        _free.release()
        watch.settle()
