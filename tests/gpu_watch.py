"""What the programs of a launch read and write, as Triton's interpreter runs them one after another."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
from gpu_interpreter import Interpreter


class Watch:
    """The addresses that each program of a launch reads and writes; `races` are the launches where two programs meet."""

    def __init__(self, interpreter: Interpreter, fake_cuda, monkeypatch: pytest.MonkeyPatch) -> None:
        from triton.runtime.interpreter import interpreter_builder as builder

        self.launches: list[tuple[str, int]] = []
        self.races: list[str] = []
        self.read, self.written = defaultdict(set), defaultdict(set)
        load, store = builder.create_masked_load, builder.create_masked_store

        def watched_load(ptrs, mask, *others):
            self.read[builder.grid_idx].update(addresses(ptrs, mask))
            return load(ptrs, mask, *others)

        def watched_store(ptrs, value, mask, *others):
            self.written[builder.grid_idx].update(addresses(ptrs, mask))
            return store(ptrs, value, mask, *others)

        def launch(symbol, grid, *others) -> None:
            self.read.clear()
            self.written.clear()
            interpreter.launch(symbol, grid, *others)
            self.launches.append((symbol.split(":")[0], len(self.written)))
            for one, other in itertools.permutations(self.written, 2):
                if self.written[one] & (self.written[other] | self.read[other]):
                    self.races.append(f"{symbol}: {other} touches what {one} writes")

        monkeypatch.setattr(builder, "create_masked_load", watched_load)
        monkeypatch.setattr(builder, "create_masked_store", watched_store)
        fake_cuda.on_launch = launch


def addresses(ptrs, mask) -> list[int]:
    return np.broadcast_to(ptrs.data, mask.data.shape)[mask.data].tolist()
