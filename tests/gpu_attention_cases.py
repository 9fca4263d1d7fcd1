"""Problems for the ops of an LSTM that attends, and what the reference finds for them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlstm.kernels.attention_lstm.reference import attend_reference, attention_lstm_reference
from fastlstm.parity import difference

RESULTS = "y", "h_n", "c_n", "fed_n", "alignments"
TENSORS = (
    "x", "batch_sizes", "h0", "c0", "fed0", "memory", "keys", "memory_lengths", "dropped_layers", "dropped_output",
    "dropped_fed", "w_ih", "w_ih_above", "w_hh", "b_ih", "b_hh", "w_peephole", "w_query", "b_query", "w_score", "w_out",
    "b_out",
)  # fmt: skip
OF_BACKWARD = tuple(name for name in TENSORS if name[:2] != "b_")
GRADIENTS = (
    "x", "h0", "c0", "fed0", "memory", "keys", "w_ih", "w_ih_above", "w_hh", "b_ih", "w_peephole", "w_query", "b_query",
    "w_score", "w_out", "b_out",
)  # fmt: skip
FLAGS = "coupled", "before", "feed", "query_layer", "tanh", "scale"
Tensors = dict[str, Tensor | None]


@dataclass(frozen=True)
class Case:
    T: int = 3
    B: int = 3
    I: int = 9
    H: int = 17
    L: int = 1
    S: int = 7
    M: int = 13
    A: int = 21
    score: str = "additive"  # or "dot", "general"
    before: bool = False
    feed: int = 1
    query_layer: int = 0
    tanh: bool = True
    hidden: bool = False  # there is no W_out
    bias: bool = True
    peephole: bool = False
    coupled: bool = False
    dropped: bool = False
    memory_lengths: tuple[int, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None

    @property
    def flags(self) -> tuple:
        return (
            self.coupled,
            self.before,
            self.feed,
            self.query_layer,
            self.tanh,
            0.5 if self.score != "additive" else 1.0,
        )

    def tensors(self, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensors:
        T, B, I, H, L, S, M, A = self.T, self.B, self.I, self.H, self.L, self.S, self.M, self.A
        G, P = (3, 2) if self.coupled else (4, 3)
        F, additive = (0, H, M)[self.feed], self.score == "additive"
        shapes = {"x": (T, B, I), "h0": (L, B, H), "c0": (L, B, H), "memory": (S, B, M)}
        shapes |= {"w_ih": (G * H, I + (M if self.before else F)), "w_hh": (L, G * H, H)}
        shapes |= {"fed0": (B, F)} if self.feed else {}
        shapes |= {} if self.score == "dot" else {"keys": (S, B, A if additive else H)}
        shapes |= {"w_ih_above": (L - 1, G * H, H)} if L > 1 else {}
        shapes |= {"w_peephole": (L, P, H)} if self.peephole else {}
        shapes |= {"w_query": (A, H), "w_score": (A,)} if additive else {}
        shapes |= {} if self.hidden else {"w_out": (H, M + H)}
        if self.bias:
            shapes |= {"b_ih": (L, G * H), "b_hh": (L, G * H)}
            shapes |= {"b_query": (A,)} if additive else {}
            shapes |= {} if self.hidden else {"b_out": (H,)}
        found: Tensors = dict.fromkeys(TENSORS)
        found |= {name: torch.randn(shape, dtype=dtype, device=device) / 2 for name, shape in shapes.items()}
        if self.dropped:
            masks = {"dropped_output": (T, B, H)} | ({"dropped_fed": (T, B, M)} if self.feed == 2 else {})
            masks |= {"dropped_layers": (L - 1, T, B, H)} if L > 1 else {}
            found |= {name: torch.randint(0, 2, shape, device=device).to(dtype) * 2 for name, shape in masks.items()}
        for name in ("memory_lengths", "batch_sizes"):
            numbers = getattr(self, name)
            found[name] = None if numbers is None else torch.tensor(numbers)
        return found


def floating(given: Tensors, dtype: torch.dtype) -> Tensors:
    """The same numbers in another dtype."""
    return {k: t.detach().to(dtype) if t is not None and t.is_floating_point() else t for k, t in given.items()}


def by_reference(run: Callable, given: Tensors, upstream: list[Tensor]) -> tuple[list[Tensor], Tensors]:
    """Its results, and the gradients of all that is given."""
    given = {k: t.requires_grad_() if t is not None and t.is_floating_point() else t for k, t in given.items()}
    results = run(given)
    wanted = [k for k, t in given.items() if t is not None and t.requires_grad]
    loss = sum((r * d).sum() for r, d in zip(results, upstream, strict=True))
    found = torch.autograd.grad(loss, [given[k] for k in wanted], allow_unused=True)
    return [r.detach() for r in results], dict(zip(wanted, found, strict=True))


def decoded(case: Case) -> Callable[[Tensors], tuple[Tensor, ...]]:
    return lambda given: attention_lstm_reference(*(given[k] for k in TENSORS), *case.flags, True)


def attended(given: Tensors) -> tuple[Tensor, ...]:
    return attend_reference(*given.values(), True)


def hold(ours: Tensors, peers: Tensors, exact: Tensors, dtype: torch.dtype) -> None:
    """The rule of `fastlstm.parity`: twice the error of PyTorch's ops, plus one rounding; of numbers so few as these are, what
    any one of the ops' results errs by is luck, so it is the largest of their errors."""
    there = [name for name, oracle in exact.items() if oracle is not None and oracle.numel()]
    # a backward isn't told whether there are biases
    assert not [name for name in exact if name not in there and not name.startswith("db_") and ours[name].numel()]
    allowed = 2 * max(difference(peers[name], exact[name]) for name in there) + torch.finfo(dtype).eps
    for name in there:
        assert ours[name].shape == exact[name].shape, name
        assert ours[name].dtype == dtype, name
        error = difference(ours[name], exact[name])
        assert error <= allowed, f"the error of {name} is {error:.1e}, allowed is {allowed:.1e}"
