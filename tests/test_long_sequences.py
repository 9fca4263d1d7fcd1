"""docs/performance.md: a long sequence in chunks that are computed again gives what the whole gives."""

import re
from pathlib import Path

import pytest
import torch
from helpers import assert_same, each_variant, module, random
from test_programs import results
from torch import nn

PAGE = (Path(__file__).parents[1] / "docs" / "performance.md").read_text()
CODE = re.search(
    r"^import torch\nfrom torch.utils.checkpoint.*?return torch.cat\(outputs\), state\n", PAGE, re.S | re.M
)


class InChunks(nn.Module):
    def __init__(self, rnn: nn.Module, steps: int) -> None:
        super().__init__()
        names: dict = {}
        exec(CODE[0], names)
        self.rnn, self.steps, self.run = rnn, steps, names["in_chunks"]

    def forward(self, x):
        return self.run(self.rnn, x, steps=self.steps)


@each_variant
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_chunks_give_what_the_whole_gives(variant: str, steps: int) -> None:
    ours, x = module(variant, num_layers=2), random(13, 3, 3)
    calls = []
    ours.register_forward_pre_hook(lambda *_: calls.append(None))  # the second time ends before the hooks after it
    assert_same(results(InChunks(ours, steps), x), expected := results(ours, x))
    assert len(calls) == 2 * -(-13 // steps) + 1  # each chunk twice, and the whole
    assert all(torch.isfinite(t).all() for t in expected)


def test_lengths_and_resets_go_chunk_by_chunk() -> None:
    ours, x = module("lstm"), random(10, 4, 3)
    lengths, reset = torch.tensor([10, 3, 4, 0]), torch.rand(10, 4) < 0.3
    outputs, state = [], None
    for k in range(0, 10, 4):
        part = x[k : k + 4]
        left = (lengths - k).clamp(0, len(part))
        y, state = ours(part, state, lengths=left, reset=reset[k : k + 4])
        outputs.append(y)
    assert_same((torch.cat(outputs), state), ours(x, lengths=lengths, reset=reset))
