"""How decoders with attention are run: by the op or the reference, by a module, and step after step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastlstm.case import AttentionCase
from fastlstm.kernels.attention_lstm import FEEDS
from fastlstm.kernels.attention_lstm.reference import attend_reference, attention_lstm_reference
from fastlstm.kernels.lstm.reference import lstm_reference
from fastlstm.ops.attention_lstm import attention_lstm

Given = dict[str, Tensor]


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
    if case.layout == "lengths":
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
        "return_alignments": case.need_weights,
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
    if case.layout == "lengths":
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
    context, alignments = attend_reference(query, memory, keys, lengths, score_weight(given), case.need_weights)
    y = linear(torch.cat([context, y], 2), given["weight_out"], given.get("bias_out"))
    y = y.tanh() if case.output == "tanh" else y
    if over is not None:
        y, alignments = y.masked_fill(over, 0), alignments.masked_fill(over, 0) if case.need_weights else alignments
    h_n, c_n = [torch.stack(s) for s in zip(*finals, strict=True)]
    return named(case, y, (h_n, c_n), alignments)


def score_weight(given: Given) -> Tensor | None:
    """That of additive scores; where they are normalised, gain * v / |v|."""
    v = given.get("weight_score")
    if v is None or "gain_score" not in given:
        return v
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    return (given["gain_score"].to(wide.dtype) * wide / wide.norm()).to(v.dtype)


def by_decoder(case: AttentionCase, given: Given, decoder: Callable[..., Any]) -> Given:
    """A module, as a user calls it: the whole target at once."""
    memory, lengths = _memory(case, given)
    extra: dict[str, Any] = {"need_weights": True} if case.need_weights else {}
    if lengths is not None:
        extra["memory_lengths"] = lengths
    if case.layout == "lengths":
        extra["lengths"] = case.lengths
    hx = None if case.zero_state else tuple(initial(case, given))
    y, state, *alignments = decoder(given["x"], memory, hx, **extra)
    return named(case, y, state, *alignments)


def by_steps(case: AttentionCase, given: Given, module: nn.Module) -> Given:
    """The same by one step after another: as one decodes."""
    weights = {key: given[key] for key, _ in module.named_parameters()}
    state = None if case.zero_state else tuple(initial(case, given))
    inputs = (given["x"], *_memory(case, given), state, case.need_weights)
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


def _memory(case: AttentionCase, given: Given) -> tuple[Tensor, tuple[int, ...] | None]:
    none = beyond(case, given)
    if none is None:
        return given["memory"], None
    return given["memory"].masked_fill(none, math.nan), case.memory_lengths


def named(case: AttentionCase, y: Tensor, finals: tuple[Tensor | None, ...], alignments: Tensor | None = None) -> Given:
    """The outputs by name: what is fed, and alignments, only where the case has them."""
    results = {"y": y} | {f"{key[:-1]}_n": s for key, s in zip(case.states, finals, strict=False) if s is not None}
    return results | ({"alignments": alignments} if case.need_weights and alignments is not None else {})
