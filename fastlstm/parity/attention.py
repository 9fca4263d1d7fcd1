"""The cases of the Attention LSTM, and how they are run: by the op or the reference, by a module, and step after step."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import fastlstm
from fastlstm.backends import ATTENTION
from fastlstm.kernels.attention_lstm import FEEDS, Attention
from fastlstm.kernels.attention_lstm.reference import attend_reference, attention_lstm_reference
from fastlstm.kernels.lstm.reference import lstm_reference
from fastlstm.kernels.variant import Variant
from fastlstm.ops.attention_lstm import attention_lstm
from fastlstm.parity.cases import Case

Given = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """A decoder and its memory. Sizes: S slots, M memory, A attention (0: H). What lies beyond a memory's length is NaN."""

    variant: str = "attention_lstm"
    S: int = 6
    M: int = 8
    A: int = 0
    attention: str = "additive"
    feed: str | None = "attentional"
    attend: str = "after"
    output: str = "tanh"
    query_layer: int = -1
    peephole: bool = False
    coupled: bool = False
    memory_lengths: tuple[int, ...] = ()  # B of them
    memory_gain: float = 1.0  # scale of the memory; a large one makes large keys
    weights: bool = True  # the alignments are asked for
    least_draws: int = 1  # more where all but a few numbers are saturated, and those few are luck
    used: tuple[str, ...] = ("y", "h_n", "c_n", "fed_n", "alignments")

    @property
    def kind(self) -> Variant:
        return ATTENTION[self.variant]

    @property
    def value(self) -> Attention:
        return Attention(self.attention, self.feed, self.attend, self.output)

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("h0", "c0"), (self.layers, self.B, self.H))
        F = self.value.fed(self.H, self.M)
        return shapes | ({"fed0": (self.B, F)} if F else {})

    @property
    def others(self) -> dict[str, tuple[float, tuple[int, ...]]]:
        return {"memory": (self.memory_gain, (self.S, self.B, self.M))}

    @property
    def outputs(self) -> dict[str, int]:
        return {"y": self.H} | ({"alignments": self.S} if self.weights else {})

    @property
    def draws(self) -> int:
        # four times those of a stack: an attention has weights of A numbers, and a gain of one
        return max(self.least_draws, math.ceil(256 / (self.B * self.H)))

    @property
    def flat(self) -> Case | None:
        return None

    def module(self, **more: Any) -> nn.Module:
        sized = {"attention_size": self.A} if self.A else {}
        some = ("attention", "feed", "attend", "output", "query_layer", "peephole", "coupled", "bias")
        options: dict[str, Any] = {name: getattr(self, name) for name in some} | sized
        return fastlstm.AttentionLSTM(self.I, self.H, self.M, self.layers, **options, **more)


def beyond(case: AttentionCase, given: Given) -> Tensor | None:
    """(S, B, 1), where there is no memory."""
    if not case.memory_lengths:
        return None
    slots = torch.arange(case.S, device=given["x"].device)
    return (slots[:, None] >= torch.tensor(case.memory_lengths, device=slots.device))[..., None]


def initial(case: AttentionCase, given: Given) -> list[Tensor]:
    if case.zero_state:
        return [given["x"].new_zeros(shape) for shape in case.states.values()]
    return [given[key] for key in case.states]


def decoded(case: AttentionCase, given: Given, backend: str | None) -> Given:
    """By the op with `backend`, or by the reference (None), from arguments that are put together here."""
    x, memory, none = given["x"], given["memory"], beyond(case, given)
    lengths = torch.tensor(case.memory_lengths) if none is not None else None
    batch_sizes = None
    if case.layout == "padded":
        batch_sizes = (torch.arange(case.T)[:, None] < torch.tensor(case.lengths)).sum(1)
    keys, w_key = None, given.get("weight_key")
    if none is not None:
        memory = memory.masked_fill(none, math.nan)
    if w_key is not None:
        keys = linear(memory if none is None else memory.masked_fill(none, 0), w_key)
    h0, c0, fed0 = (*initial(case, given), None)[:3]
    of_layers: dict[str, list[Tensor]] = {}
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole"):
        of_layers[name] = [given[f"{name}_l{k}"] for k in range(case.layers) if f"{name}_l{k}" in given]
    w_ih, *above = of_layers.pop("weight_ih")
    tensors = (
        x, batch_sizes, h0, c0, fed0, memory, keys, lengths, None, None, None, w_ih, torch.stack(above) if above else None,
        *[torch.stack(some) if some else None for some in of_layers.values()],
        given.get("weight_query"), given.get("bias_score"), score_weight(given), given.get("weight_out"), given.get("bias_out"),
    )  # fmt: skip
    flags = {
        "coupled": case.coupled, "before": case.value.before, "feed": FEEDS.index(case.feed),
        "query_layer": case.query_layer % case.layers, "tanh": case.output == "tanh", "scale": case.value.scale(case.H),
        "return_alignments": case.weights,
    }  # fmt: skip
    if backend is None:
        results = attention_lstm_reference(*tensors, *flags.values())
    else:
        results = attention_lstm(*tensors, **flags, backend=backend)  # type: ignore[arg-type]
    y, h_n, c_n, fed_n, alignments = results
    return named(case, y, (h_n, c_n, fed_n), alignments)


def at_once(case: AttentionCase, given: Given) -> Given:
    """The reference where nothing is fed: layer by layer, then the attention of all steps. It sums in another order."""
    y, finals = given["x"], []
    none, sizes, over = beyond(case, given), None, None
    lengths = torch.tensor(case.memory_lengths) if none is not None else None
    if case.layout == "padded":
        over = torch.arange(case.T)[:, None] >= torch.tensor(case.lengths)
        sizes = (~over).sum(1)
        over = over.to(y.device)[..., None]
    query_layer = case.query_layer % case.layers
    for k, (h0, c0) in enumerate(zip(*initial(case, given), strict=True)):
        of_layer = [given.get(f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        y, *final, _ = lstm_reference(
            y, sizes, None, h0, c0, *of_layer, None, given.get(f"weight_peephole_l{k}"), case.coupled, False
        )  # fmt: skip
        finals.append(final)
        if k == query_layer:
            query = y
    memory = given["memory"] if none is None else given["memory"].masked_fill(none, 0)
    query, keys = query * case.value.scale(case.H), memory
    if "weight_key" in given:
        keys = linear(memory, given["weight_key"])
    if "weight_query" in given:
        query = linear(query, given["weight_query"], given.get("bias_score"))
    context, alignments = attend_reference(query, memory, keys, lengths, score_weight(given), case.weights)
    y = linear(torch.cat([context, y], 2), given["weight_out"], given.get("bias_out"))
    y = y.tanh() if case.output == "tanh" else y
    if over is not None:
        y, alignments = y.masked_fill(over, 0), alignments.masked_fill(over, 0) if case.weights else alignments
    h_n, c_n = [torch.stack(s) for s in zip(*finals, strict=True)]
    return named(case, y, (h_n, c_n), alignments)


def score_weight(given: Given) -> Tensor | None:
    """That of additive scores; where they are normalised, gain * v / |v|."""
    v = given.get("weight_score")
    if v is None or "gain_score" not in given:
        return v
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    return (given["gain_score"].to(wide.dtype) * wide / wide.norm()).to(v.dtype)


def by_decoder(case: AttentionCase, given: Given, backend: str) -> Given:
    """A module of ours, as a user calls it: the whole target at once."""
    module, weights = _module(case, given, backend)
    memory, lengths = _memory(case, given)
    extra: dict[str, Any] = {"memory_lengths": lengths, "need_weights": case.weights}
    if case.layout == "padded":
        extra["lengths"] = case.lengths
    hx = None if case.zero_state else tuple(initial(case, given))
    y, state, *alignments = torch.func.functional_call(module, weights, (given["x"], memory, hx), extra)
    return named(case, y, state, *alignments)


def by_steps(case: AttentionCase, given: Given, backend: str) -> Given:
    """The same by one step after another: as one decodes."""
    module, weights = _module(case, given, backend)
    state = None if case.zero_state else tuple(initial(case, given))
    inputs = (given["x"], *_memory(case, given), state, case.weights)
    weights = {f"decoder.{key}": weight for key, weight in weights.items()}
    y, state, *alignments = torch.func.functional_call(Steps(module), weights, inputs)
    return named(case, y, state, *alignments)


class Steps(nn.Module):
    """A loop over `step`, of which a module's weights can be replaced."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor, memory: Tensor, lengths: Any, state: Any, need_weights: bool) -> tuple[Any, ...]:
        precomputed, results = self.decoder.precompute(memory, lengths), []
        for x_t in x:
            y, state, *alignments = self.decoder.step(x_t, precomputed, state, need_weights=need_weights)
            results.append((y, *alignments))
        y, *alignments = [torch.stack(steps) for steps in zip(*results, strict=True)]
        return y, state, *alignments


def _module(case: AttentionCase, given: Given, backend: str) -> tuple[Any, Given]:
    module = case.module(backend=backend, device="meta", dtype=given["x"].dtype)
    return module, {key: given[key] for key, _ in module.named_parameters()}


def _memory(case: AttentionCase, given: Given) -> tuple[Tensor, tuple[int, ...] | None]:
    none = beyond(case, given)
    if none is None:
        return given["memory"], None
    return given["memory"].masked_fill(none, math.nan), case.memory_lengths


def named(case: AttentionCase, y: Tensor, finals: tuple[Tensor | None, ...], alignments: Tensor | None = None) -> Given:
    """The outputs by name: what is fed, and alignments, only where the case has them."""
    results = {"y": y} | {f"{key[:-1]}_n": s for key, s in zip(case.states, finals, strict=False) if s is not None}
    return results | ({"alignments": alignments} if case.weights and alignments is not None else {})


PADDED: dict[str, Any] = {
    "T": 7,
    "B": 5,
    "layout": "padded",
    "lengths": (7, 5, 5, 1, 0),
    "memory_lengths": (3, 6, 0, 1, 4),
}
DECODERS: dict[str, Case] = {
    "additive": AttentionCase(),
    "one": AttentionCase(T=1, B=1, I=1, H=1, S=1, M=1),
    "step": AttentionCase(T=1, B=4, I=16, H=32, S=9, M=16),
    "h17": AttentionCase(H=17, M=9, A=13, S=11),
    "h65": AttentionCase(I=65, H=65, M=33, A=65, S=17),
    "h128": AttentionCase(T=6, B=16, I=32, H=128, M=64, S=20),
    "b1": AttentionCase(B=1, I=17, H=33),
    "b33": AttentionCase(B=33, I=3, M=5),
    "one_slot": AttentionCase(S=1),
    "many_slots": AttentionCase(B=2, H=16, M=16, S=300),
    "long": AttentionCase(T=60, B=4, I=3, H=5, M=6),
    "memory_lengths": AttentionCase(memory_lengths=(6, 0, 3)),
    "padded": AttentionCase(**PADDED),
    "stack": AttentionCase(layers=3, M=5, **PADDED),
    "query_layer": AttentionCase(layers=3, query_layer=1, B=4),
    "normalized": AttentionCase(attention="normalized_additive", M=5, A=13),
    "dot": AttentionCase(attention="dot", memory_lengths=(1, 6, 0)),
    "dot_h64": AttentionCase(attention="dot", H=64, M=64, S=33),
    "scaled_dot": AttentionCase(attention="scaled_dot", H=17, M=17, **PADDED),
    "general": AttentionCase(attention="general", M=5, layers=2, memory_lengths=(4, 6, 1)),
    "context": AttentionCase(feed="context", M=5, memory_lengths=(4, 6, 1)),
    "context_hidden": AttentionCase(feed="context", output="hidden", attention="general", M=5),
    "linear": AttentionCase(output="linear"),
    "peephole": AttentionCase(peephole=True, layers=2),
    "coupled": AttentionCase(coupled=True, attention="general"),
    "coupled_peephole": AttentionCase(coupled=True, peephole=True, **PADDED),
    "before": AttentionCase(attend="before", feed=None, M=5, memory_lengths=(4, 6, 0)),
    "before_stack": AttentionCase(attend="before", feed=None, layers=2, query_layer=0, attention="dot", **PADDED),
    "before_hidden": AttentionCase(attend="before", feed=None, output="hidden", attention="general"),
    "unfed": AttentionCase(feed=None, M=5, memory_lengths=(4, 6, 0)),
    "unfed_long": AttentionCase(feed=None, T=64, S=40, B=8, H=64, M=16),
    "unfed_normalized": AttentionCase(feed=None, attention="normalized_additive", layers=2, **PADDED),
    "unfed_dot": AttentionCase(feed=None, attention="dot", memory_lengths=(4, 6, 0)),
    "unfed_dot_no_weights": AttentionCase(feed=None, attention="dot", weights=False, memory_lengths=(4, 6, 0)),
    "unfed_general": AttentionCase(
        feed=None, attention="general", M=5, layers=3, query_layer=0, weights=False, **PADDED
    ),
    "no_weights": AttentionCase(weights=False, memory_lengths=(4, 6, 1)),
    "no_bias": AttentionCase(bias=False),
    "zero_state": AttentionCase(zero_state=True),
    "strided": AttentionCase(I=17, H=16, M=7, strided=True, memory_lengths=(4, 6, 1)),
    "saturated": AttentionCase(T=6, B=16, I=16, H=16, gain=30.0, least_draws=8),
    "large_keys": AttentionCase(B=16, H=16, M=16, memory_gain=100.0, least_draws=8),
    "peaked": AttentionCase(B=16, H=16, M=16, attention="dot", feed=None, memory_gain=4.0, least_draws=8),
    "only_y": AttentionCase(used=("y",)),
    "only_h_n": AttentionCase(used=("h_n",), memory_lengths=(4, 6, 1)),
    "only_c_n": AttentionCase(used=("c_n",), layers=2),
    "only_fed_n": AttentionCase(used=("fed_n",)),
    "only_alignments": AttentionCase(used=("alignments",), M=5, memory_lengths=(4, 6, 1)),
    "frozen_input": AttentionCase(frozen=("x",)),
    "frozen_memory": AttentionCase(frozen=("memory", "weight_key")),
    "frozen_states": AttentionCase(frozen=("h0", "c0", "fed0")),
    "frozen_weights": AttentionCase(frozen=("weight", "bias")),
    "frozen_attention": AttentionCase(frozen=("weight_query", "weight_key", "weight_score", "weight_out")),
}
ATTENTION_CASES: dict[str, Case] = {f"attention_lstm_{name}": case for name, case in DECODERS.items()}
