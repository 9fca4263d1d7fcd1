"""Attention decoders of others give their results here, by their formulas: of JoeyNMT, fairseq, OpenNMT-py and TensorFlow.

JoeyNMT's own code is run in test_attention_joeynmt.py.
"""

import doctest
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softmax

import fastlstm
from fastlstm import loaders

T, B, I, H, S = 4, 3, 5, 6, 7
LENGTHS = torch.tensor([7, 1, 4])
GATES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64) / 2


def cells(names: str, inputs: int, layers: int, gates: int = 4) -> dict[str, Tensor]:
    """Of each layer, by its name, what nn.LSTMCell has."""
    found = {}
    for k in range(layers):
        G = gates * H
        shapes = (G, H if k else inputs), (G, H), (G,), (G,)
        found |= {names.format(part=part, k=k): draw(*shape) for part, shape in zip(GATES, shapes, strict=True)}
    return found


def decoded(
    step: Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]],
    score: Callable[[Tensor], Tensor],
    result: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    memory: Tensor,
    state: tuple[Tensor, Tensor],
    F: int,
) -> tuple[Tensor, Tensor]:
    """Outputs and alignments. `step` makes h and c of the layers from [x, fed]; `score` of the top h gives (B, S); `result` of
    the context and that h gives the output and what is fed."""
    fed = x.new_zeros(B, F)
    masked = torch.arange(S) >= LENGTHS[:, None]
    outputs, weights = [], []
    for x_t in x:
        state = step(torch.cat([x_t, fed], 1), state)
        h = state[0][-1]
        alpha = softmax(score(h).masked_fill(masked, -torch.inf), 1)
        context = torch.einsum("bs,sbm->bm", alpha, memory)
        y, fed = result(context, h)
        outputs.append(y)
        weights.append(alpha)
    return torch.stack(outputs), torch.stack(weights)


def layers_of(weights: dict[str, Tensor], names: str, layers: int) -> Callable:
    """A step of PyTorch's cells."""

    def step(x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = [], []
        for k in range(layers):
            of_layer = [weights[names.format(part=part, k=k)] for part in GATES]
            x, cell = torch.lstm_cell(x, [state[0][k], state[1][k]], *of_layer)
            h.append(x)
            c.append(cell)
        return torch.stack(h), torch.stack(c)

    return step


def check(weights: dict[str, Tensor], expected: Callable, M: int, layers: int, **options: Any) -> None:
    module = fastlstm.AttentionLSTM(I, H, M, layers, dtype=torch.float64, **options)
    module.load_state_dict(weights)
    x, memory, state = draw(T, B, I), draw(S, B, M), (draw(layers, B, H), draw(layers, B, H))
    with torch.no_grad():
        y, _, alignments = module(x, memory, state, memory_lengths=LENGTHS, need_weights=True)
        torch.testing.assert_close((y, alignments), expected(x, memory, state), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("attention", ["additive", "general"])
def test_from_joeynmt(attention: str, layers: int) -> None:
    M, names = 8, "rnn.{part}_l{k}"
    theirs = cells(names, I + H, layers)
    W_k, W_q, v, W, b = draw(H, M), draw(H, H), draw(1, H), draw(H, H + M), draw(H)
    theirs |= {"attention.key_layer.weight": W_k, "att_vector_layer.weight": W, "att_vector_layer.bias": b}
    if attention == "additive":
        theirs |= {"attention.query_layer.weight": W_q, "attention.energy_layer.weight": v}
    theirs |= {"output_layer.weight": draw(11, H), "bridge_layer.weight": draw(H, M), "bridge_layer.bias": draw(H)}

    def expected(x: Tensor, memory: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        keys = linear(memory, W_k).transpose(0, 1)

        def score(h: Tensor) -> Tensor:
            if attention == "general":
                return torch.einsum("bh,bsh->bs", h, keys)
            return linear(torch.tanh(linear(h, W_q)[:, None] + keys), v)[..., 0]

        def result(context: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.tanh(linear(torch.cat([h, context], 1), W, b))
            return y, y

        return decoded(layers_of(theirs, names, layers), score, result, x, memory, state, H)

    check(loaders.from_joeynmt(theirs), expected, M, layers, attention=attention)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("M", [H, 8])
def test_from_fairseq(M: int, layers: int) -> None:
    names = "layers.{k}.{part}"
    theirs = cells(names, I + H, layers)
    W_in, W = draw(M, H), draw(H, M + H)
    theirs |= {"attention.input_proj.weight": W_in, "attention.output_proj.weight": W}
    theirs |= {"embed_tokens.weight": draw(9, I), "fc_out.weight": draw(9, H), "encoder_hidden_proj.bias": draw(H)}

    def expected(x: Tensor, memory: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        def result(context: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.tanh(linear(torch.cat([context, h], 1), W))
            return y, y

        def score(h: Tensor) -> Tensor:
            return (memory * linear(h, W_in)).sum(2).T

        return decoded(layers_of(theirs, names, layers), score, result, x, memory, state, H)

    check(loaders.from_fairseq(theirs), expected, M, layers, attention="general")


OPENNMT = {
    "dot": {"attention": "dot"},
    "general": {"attention": "general"},
    "mlp": {"attention": "normalized_additive", "output": "linear"},
}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", OPENNMT)
def test_from_opennmt(kind: str, layers: int) -> None:
    names = "rnn.layers.{k}.{part}"
    theirs = cells(names, I + H, layers)
    W_in, W_q, b_q, W_c, v, W, b = (
        draw(H, H), draw(H, H), draw(H), draw(H, H), draw(1, H), draw(H, 2 * H), draw(H),
    )  # fmt: skip
    theirs |= {"attn.linear_out.weight": W, "embeddings.make_embedding.emb_luts.0.weight": draw(9, I)}
    if kind == "general":
        theirs["attn.linear_in.weight"] = W_in
    if kind == "mlp":
        theirs |= {"attn.linear_query.weight": W_q, "attn.linear_query.bias": b_q, "attn.linear_context.weight": W_c}
        theirs |= {"attn.v.weight": v, "attn.linear_out.bias": b}

    def expected(x: Tensor, memory: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        def score(h: Tensor) -> Tensor:
            if kind == "mlp":
                return linear(torch.tanh(linear(h, W_q, b_q) + linear(memory, W_c)), v)[..., 0].T
            return torch.einsum("bh,sbh->bs", linear(h, W_in) if kind == "general" else h, memory)

        def result(context: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            y = linear(torch.cat([context, h], 1), W)
            y = y + b if kind == "mlp" else torch.tanh(y)
            return y, y

        return decoded(layers_of(theirs, names, layers), score, result, x, memory, state, H)

    check(loaders.from_opennmt(theirs), expected, H, layers, **OPENNMT[kind])


# name: attention of ours, whether it has Bahdanau's query and v, g, b, and an attention layer
TENSORFLOW = {
    "bahdanau": ("additive", True, False, True),
    "bahdanau, normalized": ("normalized_additive", True, True, True),
    "luong": ("general", False, False, True),
    "luong, scaled": ("general", False, True, True),
    "bahdanau, the context": ("additive", True, False, False),
    "luong, the context": ("general", False, False, False),
}


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("case", TENSORFLOW)
def test_from_tensorflow_attention(case: str, layers: int, peephole: bool) -> None:
    attention, additive, gain, projects = TENSORFLOW[case]
    M, A = 8, 5 if additive else H
    F = H if projects else M
    # two products of the same numbers, as their kernels are: input and state together, gates i, j, f, o
    kernels = [draw((H if k else I + F) + H, 4 * H) for k in range(layers)]
    biases, diags = [draw(4 * H) for _ in kernels], [[draw(H) for _ in "ifo"] for _ in kernels]
    W_m, W_q, v, g, b, W = draw(M, A), draw(H, A), draw(A), draw(), draw(A), draw(H + M, H)
    given = (
        [*zip(kernels, biases, *zip(*diags, strict=True), strict=True)]
        if peephole
        else [*zip(kernels, biases, strict=True)]
    )
    theirs: list[Any] = [given, W_m, *([W_q, v] if additive else [None, None]), g if gain else None]
    theirs += [b if additive and gain else None, W if projects else None]

    def step(x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hs, cs = [], []
        for k, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            h, c = state[0][k], state[1][k]
            p_i, p_f, p_o = diags[k] if peephole else (0, 0, 0)
            i, j, f, o = (torch.cat([x, h], 1) @ kernel + bias).chunk(4, 1)
            c = torch.sigmoid(f + 1.0 + p_f * c) * c + torch.sigmoid(i + p_i * c) * torch.tanh(j)
            x = torch.sigmoid(o + p_o * c) * torch.tanh(c)
            hs.append(x)
            cs.append(c)
        return torch.stack(hs), torch.stack(cs)

    def expected(x: Tensor, memory: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        keys = memory @ W_m

        def score(h: Tensor) -> Tensor:
            if not additive:
                return (g if gain else 1.0) * torch.einsum("bh,sbh->bs", h, keys)
            if gain:
                return (g * v / (v**2).sum().sqrt() * torch.tanh(keys + h @ W_q + b)).sum(2).T
            return (v * torch.tanh(keys + h @ W_q)).sum(2).T

        def result(context: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            if not projects:
                return h, context
            y = torch.cat([h, context], 1) @ W
            return y, y

        return decoded(step, score, result, x, memory, state, F)

    options = {"output": "linear"} if projects else {"output": "hidden", "feed": "context"}
    sized = {"attention_size": A} if additive else {}
    weights = loaders.from_tensorflow_attention(*theirs)
    check(weights, expected, M, layers, attention=attention, peephole=peephole, **options, **sized)


JOEY = cells("rnn.{part}_l{k}", I + H, 2) | {"attention.key_layer.weight": draw(H, 8)}
JOEY |= {"att_vector_layer.weight": draw(H, H + 8), "att_vector_layer.bias": draw(H)}
BAHDANAU = JOEY | {"attention.query_layer.weight": draw(H, H), "attention.energy_layer.weight": draw(1, H)}
FAIRSEQ = cells("layers.{k}.{part}", I + H, 1)
FAIRSEQ |= {"attention.input_proj.weight": draw(8, H), "attention.output_proj.weight": draw(H, 8 + H)}
OPEN = cells("rnn.layers.{k}.{part}", I + H, 1) | {"attn.linear_out.weight": draw(H, 2 * H)}
MLP = {
    "attn.linear_query.weight": draw(H, H),
    "attn.linear_query.bias": draw(H),
    "attn.linear_context.weight": draw(H, H),
}
MLP |= OPEN | {"attn.v.weight": draw(1, H), "attn.linear_out.bias": draw(H)}
CELL = [(draw(I + H + H, 4 * H), draw(4 * H))]
joeynmt, fairseq, opennmt = loaders.from_joeynmt, loaders.from_fairseq, loaders.from_opennmt
tensorflow = loaders.from_tensorflow_attention


def without(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: weight for key, weight in weights.items() if key != name}


def gru(names: str) -> dict[str, Tensor]:
    return cells(names, I + H, 1, gates=3)


ERRORS = {
    "no layers": (lambda: joeynmt({}), r"weights lacks \['rnn.weight_ih_l0', .*\], expected all of"),
    "a bias": (lambda: joeynmt(without(JOEY, "rnn.bias_hh_l1")), r"weights lacks \['rnn.bias_hh_l1'\]"),
    "a GRU": (lambda: joeynmt(JOEY | gru("rnn.{part}_l{k}")), "'rnn.weight_ih_l0' of 3 gates, expected 4: JoeyNMT's decoder"),
    "fairseq's GRU": (lambda: fairseq(FAIRSEQ | gru("layers.{k}.{part}")), "of 3 gates, expected 4: fairseq's decoder is a GR"),
    "no key": (lambda: joeynmt(without(JOEY, "attention.key_layer.weight")), r"lacks \['attention.key_layer.weight'\]"),
    "no energy": (lambda: joeynmt(without(BAHDANAU, "attention.energy_layer.weight")), r"lacks \['attention.energy_layer.wei"),
    "unknown": (lambda: joeynmt(JOEY | {"pe.pe": draw(1)}), "weights has 'pe.pe', expected .* beside the layers: ours has not"),
    "key": (lambda: joeynmt(JOEY | {"attention.key_layer.weight": draw(5, 8)}), r"shape \(5, 8\), expected \(6, 8\): the hidd"),
    "a key of none": (lambda: joeynmt(JOEY | {"attention.key_layer.weight": draw()}), r"shape \(\), expected \(H, M\)"),
    "of fairseq": (lambda: fairseq(FAIRSEQ | {"attention.input_proj.weight": draw()}), r"shape \(\), expected \(M, H\)"),
    "query": (lambda: joeynmt(BAHDANAU | {"attention.query_layer.weight": draw(H, 5)}), r"query_layer.weight has shape \(6, 5"),
    "energy": (lambda: joeynmt(BAHDANAU | {"attention.energy_layer.weight": draw(H)}), r"shape \(6,\), expected \(1, 6\)"),
    "out": (lambda: joeynmt(JOEY | {"att_vector_layer.weight": draw(H, H)}), r"shape \(6, 6\), expected \(6, 14\): the hidden"),
    "out's bias": (lambda: joeynmt(JOEY | {"att_vector_layer.bias": draw(8)}), r"shape \(8,\), expected \(6,\): the hidden si"),
    "fairseq's key": (lambda: fairseq(FAIRSEQ | {"attention.input_proj.weight": draw(8, 5)}), r"expected \(8, 6\): \(M, H\)"),
    "fairseq's out": (lambda: fairseq(FAIRSEQ | {"attention.output_proj.weight": draw(H, 8)}), r"expected \(6, 14\): the hidd"),
    "no attention": (lambda: fairseq(cells("layers.{k}.{part}", I, 1)), r"weights lacks \['attention.input_proj.weight', "),
    "coverage": (lambda: opennmt(OPEN | {"attn.linear_cover.weight": draw(H, 1)}), "weights has 'attn.linear_cover.weight'"),
    "a gate": (lambda: opennmt(OPEN | {"context_gate.gate.weight": draw(H, 1)}), "weights has 'context_gate.gate.weight'"),
    "no input feed": (lambda: opennmt(cells("rnn.{part}_l{k}", I, 1)), r"weights lacks \['rnn.layers.0.weight_ih'"),
    "linear_in": (lambda: opennmt(OPEN | {"attn.linear_in.weight": draw(H, 5)}), r"shape \(6, 5\), expected \(6, 6\): the hid"),
    "mlp": (lambda: opennmt(MLP | {"attn.v.weight": draw(H)}), r"attn.v.weight has shape \(6,\), expected \(1, 6\)"),
    "mlp without": (lambda: opennmt(without(MLP, "attn.linear_out.bias")), r"weights lacks \['attn.linear_out.bias'\]"),
    "no cells": (lambda: tensorflow([], draw(8, H)), "cells is empty, expected the kernel and the bias of at least one"),
    "a kernel alone": (lambda: tensorflow([CELL[0][:1]], draw(8, H)), r"cells\[0\] has 1 entries, expected 2 or 5: \(kernel"),
    "memory_kernel": (lambda: tensorflow(CELL, draw(8)), r"memory_kernel has shape \(8,\), expected \(M, A\)"),
    "luong": (lambda: tensorflow(CELL, draw(8, 5)), r"memory_kernel has shape \(8, 5\), expected \(8, 6\): its products with"),
    "luong's b": (lambda: tensorflow(CELL, draw(8, H), attention_b=draw(H)), "attention_b is given, expected None: only Bahda"),
    "v alone": (lambda: tensorflow(CELL, draw(8, H), None, draw(H)), "query_kernel and attention_v have to come together"),
    "g alone": (lambda: tensorflow(CELL, draw(8, 5), draw(H, 5), draw(5), draw()), "attention_g and attention_b have to come"),
    "g": (lambda: tensorflow(CELL, draw(8, H), attention_g=draw(1)), r"attention_g has shape \(1,\), expected \(\): one numbe"),
    "query_kernel": (lambda: tensorflow(CELL, draw(8, 5), draw(5, 5), draw(5)), r"query_kernel has shape \(5, 5\), expected"),
    "v": (lambda: tensorflow(CELL, draw(8, 5), draw(H, 5), draw(6)), r"attention_v has shape \(6,\), expected \(5,\): the col"),
    "b": (lambda: tensorflow(CELL, draw(8, 5), draw(H, 5), draw(5), draw(), draw(6)), r"attention_b has shape \(6,\), expecte"),
    "attention_kernel": (
        lambda: tensorflow(CELL, draw(8, H), attention_kernel=draw(H + 8, 5)), r"shape \(14, 5\), expected \(14, 6\): \[h, con",
    ),
    "two peepholes": (lambda: tensorflow([(*CELL[0], draw(H), draw(H))], draw(8, H)), "peepholes has 2 entries, expected 3: w"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("load", [joeynmt, fairseq, opennmt])
def test_a_module_is_no_mapping(load: Callable) -> None:
    with pytest.raises(TypeError, match="weights is of type Linear, expected a mapping: the state_dict of a decoder"):
        load(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (None, "cells is of type NoneType, expected a list: of each layer"),
        (CELL[0], r"cells\[0\] is of type Tensor, expected a tuple: \(kernel, bias\), or these and three peepholes"),
        ([None], r"cells\[0\] is of type NoneType"),
    ],
)
def test_what_are_no_cells(cells: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        tensorflow(cells, draw(8, H))


@pytest.mark.parametrize(("load", "given"), [(joeynmt, BAHDANAU), (fairseq, FAIRSEQ), (opennmt, MLP)])
def test_weights_are_copies(load: Callable, given: dict[str, Tensor]) -> None:
    before = {name: weight.clone() for name, weight in given.items()}
    for weight in load(given).values():
        assert weight.is_contiguous()
        weight.zero_()
    assert all(given[name].equal(weight) for name, weight in before.items())


def test_the_examples_of_the_docstrings() -> None:
    results = doctest.testmod(loaders.attention)
    assert results.failed == 0
    assert results.attempted > 0
