"""What the tests of the Attention LSTM share: sizes, what is fed and when, modules, and what they are run on."""

import pytest
import torch
from helpers import random
from torch import Tensor, nn

import fastlstm
from fastlstm.kernels.attention_lstm import SCORES

T, B, S, I, H, M, A = 4, 3, 5, 2, 3, 4, 7
LENGTHS, MEMORY_LENGTHS = [2, 4, 0], [3, 0, 5]
USES = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "memory lengths": {"memory_lengths": MEMORY_LENGTHS},
    "both": {"lengths": LENGTHS, "memory_lengths": MEMORY_LENGTHS},
}
# what is fed, when it is attended, what comes out: all that mean something
WAYS = [
    ("attentional", "after", "tanh"),
    ("attentional", "after", "linear"),
    ("context", "after", "tanh"),
    ("context", "after", "linear"),
    ("context", "after", "hidden"),
    (None, "after", "tanh"),
    (None, "after", "linear"),
    (None, "before", "tanh"),
    (None, "before", "linear"),
    (None, "before", "hidden"),
]
AT_ONCE = (None, "after", "tanh")
SOME = {
    "fed": ("additive", WAYS[0], {}),
    "fed, two layers": ("normalized_additive", ("context", "after", "hidden"), {"num_layers": 2, "coupled": True}),
    "before": ("general", (None, "before", "linear"), {"peephole": True, "bias": False}),
    "at once, additive": ("additive", AT_ONCE, {"num_layers": 2, "query_layer": 0}),
    "at once, products": ("scaled_dot", AT_ONCE, {}),
}
each_score = pytest.mark.parametrize("score", SCORES)
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: ", ".join(map(str, way)))
each_use = pytest.mark.parametrize("use", USES)
BACKENDS = ["auto", "reference"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_case = pytest.mark.parametrize("case", SOME)


def module(score: str, way: tuple = WAYS[0], I: int = I, H: int = H, M: int = M, A: int = A, **options) -> nn.Module:
    feed, attend, output = way
    torch.manual_seed(1)
    if score in ("dot", "scaled_dot"):
        M = H
    if "additive" in score:
        options["attention_size"] = A
    return fastlstm.AttentionLSTM(
        I, H, M, attention=score, feed=feed, attend=attend, output=output, dtype=torch.float64, **options
    )


def some(case: str, **more) -> nn.Module:
    score, way, options = SOME[case]
    return module(score, way, **options | more)


def given(ours: nn.Module, T: int = T, B: int = B, S: int = S) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Input, memory, and a state."""
    torch.manual_seed(2)
    L, H, M = ours.num_layers, ours.hidden_size, ours.memory_size
    fed = {None: None, "attentional": random(B, H), "context": random(B, M)}[ours.feed]
    return random(T, B, ours.input_size), random(S, B, M), [random(L, B, H), random(L, B, H), fed]


def flat(results) -> list[Tensor]:
    y, state, *alignments = results
    return [y, *[s for s in state if s is not None], *alignments]


def gradients(results: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    return torch.autograd.grad(results, leaves, [random(*t.shape) for t in results], materialize_grads=True)
