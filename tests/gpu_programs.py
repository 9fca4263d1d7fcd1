"""All programs of a launch at once under Triton's interpreter, which runs them one after another: so that they can wait.

A thread per program, of which one runs at a time; at every atomic a scheduler that draws from a seed says which one goes on.
What a program has read and written is kept with vector clocks (of each program, how much of what it has done is known):
published at a release, joined at an acquire. An access to what another program did, and which isn't known, is a race.
"""

import inspect
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from triton._C.libtriton import ir
from triton.runtime import interpreter

builder = interpreter.interpreter_builder
ACQUIRING = ir.MEM_SEMANTIC.ACQUIRE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE
RELEASING = ir.MEM_SEMANTIC.RELEASE, ir.MEM_SEMANTIC.ACQUIRE_RELEASE


class Stopped(Exception):
    """Another program has failed."""


class Launch:
    """The programs of one launch: whose turn it is, what each has done, and what each knows."""

    def __init__(self, places: list[tuple[int, int, int]], draw: random.Random) -> None:
        n = len(places)
        self.places, self.draw = places, draw
        self.turn, self.live, self.failure = threading.Condition(), set(range(n)), None
        self.running = 0
        self.known = [[int(p == q) for q in range(n)] for p in range(n)]
        self.released: dict[int, list[int]] = defaultdict(lambda: [0] * n)  # by the address of an atomic
        self.written: dict[int, tuple[int, int]] = {}  # address: the program, and its clock
        self.read: dict[int, dict[int, int]] = defaultdict(dict)
        self.races: set[str] = set()
        self.this = threading.local()

    def run(self, program: Callable[[], None]) -> None:
        threads = [threading.Thread(target=self.run_one, args=(p, program)) for p in range(len(self.places))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def run_one(self, p: int, program: Callable[[], None]) -> None:
        self.this.program = p
        try:
            self.wait_for_turn()
            with np.errstate(over="ignore"):  # threads begin without the caller's
                program()
        except Stopped:
            pass
        except BaseException as error:
            self.failure = self.failure or error  # the others are stopped by it
        with self.turn:
            self.live.discard(p)
            self.pass_on()

    def pass_on(self) -> None:
        if self.live:
            self.running = self.draw.choice(sorted(self.live))
        self.turn.notify_all()

    def wait_for_turn(self) -> None:
        p = self.this.program
        with self.turn:
            self.turn.wait_for(lambda: self.running == p or self.failure is not None)
        if self.failure is not None:
            raise Stopped
        builder.set_grid_idx(*self.places[p])

    def atomic(self, address: int, sem: Any, act: Callable[[], Any]) -> Any:
        with self.turn:
            self.pass_on()
        self.wait_for_turn()
        p = self.this.program
        if sem in ACQUIRING:
            self.known[p] = list(map(max, self.known[p], self.released[address]))
        result = act()
        if sem in RELEASING:
            self.released[address] = list(map(max, self.known[p], self.released[address]))
            self.known[p][p] += 1
        return result

    def access(self, ptrs: Any, mask: Any, *, writes: bool) -> None:
        p = self.this.program
        known, now = self.known[p], self.known[p][p]
        for address in np.broadcast_to(ptrs.data, mask.data.shape)[mask.data].tolist():
            by, clock = self.written.get(address, (p, 0))
            if clock > known[by]:
                self.races.add(f"{p} {'writes' if writes else 'reads'} what {by} has written")
            if writes:
                if any(clock > known[by] for by, clock in self.read[address].items() if by != p):
                    self.races.add(f"{p} writes what others have read")
                self.written[address] = p, now
            else:
                self.read[address][p] = now


@contextmanager
def at_once(monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> Iterator[list[Launch]]:
    """Inside, launches run so; what they were."""
    launches: list[Launch] = []
    current = SimpleNamespace(launch=None)
    load, store, rmw = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def watched_load(ptrs: Any, mask: Any, *others: Any) -> Any:
        current.launch.access(ptrs, mask, writes=False)
        return load(ptrs, mask, *others)

    def watched_store(ptrs: Any, value: Any, mask: Any, *others: Any) -> Any:
        current.launch.access(ptrs, mask, writes=True)
        return store(ptrs, value, mask, *others)

    def watched_rmw(op: Any, ptr: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        address = int(ptr.data.reshape(-1)[0])
        return current.launch.atomic(address, sem, lambda: rmw(op, ptr, value, mask, sem, scope))

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        """As GridExecutor's own, but for the loop over the grid."""
        given, named = self._init_args_hst(args, kwargs)
        patched = interpreter._patch_lang(self.fn)
        try:
            bound = inspect.getcallargs(self.fn, *given, **named)
            bound = {k: v if k in self.constexprs else interpreter._implicit_cvt(v) for k, v in bound.items()}
            grid = (*self.grid, 1, 1)[:3]
            builder.set_grid_dim(*grid)
            launch = current.launch = Launch(list(np.ndindex(*grid)), random.Random(seed))
            launch.run(lambda: self.fn(**bound))
            launches.append(launch)
        finally:
            current.launch = None
            patched.restore()
        self._restore_args_dev(args, given, kwargs, named)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "create_masked_load", watched_load)
        patch.setattr(builder, "create_masked_store", watched_store)
        patch.setattr(builder, "create_atomic_rmw", watched_rmw)
        patch.setattr(interpreter.GridExecutor, "__call__", call)
        yield launches
