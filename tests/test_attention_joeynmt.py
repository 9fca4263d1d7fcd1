"""JoeyNMT's decoder, an oracle that nobody here wrote: outputs, states, alignments and all gradients are ours."""

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastlstm
from fastlstm import loaders
from fastlstm.parity import difference

with np.printoptions():  # it sets them for the whole process
    joeynmt = pytest.importorskip(
        "joeynmt.decoders",
        reason="JoeyNMT is not installed: .ci/run does it, without its dependencies",
        exc_type=ImportError,
    )

T, B, I, S, M = 6, 4, 5, 9, 7
LENGTHS = (9, 1, 6, 3)
ATTENTION = {"additive": "bahdanau", "general": "luong"}
# attention, layers, whether the attentional vector is fed
CASES = list(product(ATTENTION, (1, 2, 3), (True, False)))
Given = dict[str, Tensor]


def theirs(attention: str, layers: int, fed: bool, H: int) -> nn.Module:
    return joeynmt.RecurrentDecoder(
        rnn_type="lstm", emb_size=I, hidden_size=H, encoder=SimpleNamespace(output_size=M), attention=ATTENTION[attention],
        num_layers=layers, vocab_size=1, init_hidden="zero", input_feeding=fed,
    ).double()  # fmt: skip


def ours(decoder: nn.Module, attention: str, layers: int, fed: bool, dtype: torch.dtype) -> nn.Module:
    feed = "attentional" if fed else None
    module = fastlstm.AttentionLSTM(I, decoder.hidden_size, M, layers, attention=attention, feed=feed, dtype=dtype)
    module.load_state_dict(loaders.from_joeynmt(decoder.state_dict()))
    return module


def draw(layers: int, H: int) -> tuple[Given, Given]:
    """Inputs, and the gradients that the outputs get."""
    shapes = {"x": (T, B, I), "memory": (S, B, M), "h0": (layers, B, H), "c0": (layers, B, H), "fed0": (B, H)}
    results = {"y": (T, B, H), "h_n": (layers, B, H), "c_n": (layers, B, H), "alignments": (T, B, S)}
    given, upstream = ({key: torch.randn(s, dtype=torch.float64) for key, s in of.items()} for of in (shapes, results))
    return given, upstream


def run_theirs(decoder: nn.Module, given: Given) -> Given:
    mask = (torch.arange(S) < torch.tensor(LENGTHS)[:, None])[:, None]
    x, memory, h0, c0 = (given[key].transpose(0, 1) for key in ("x", "memory", "h0", "c0"))
    _, (h, c), alignments, y = decoder(x, memory, None, mask, x.shape[1], (h0, c0), given["fed0"][:, None])
    results = {"y": y, "h_n": h, "c_n": c, "alignments": alignments}
    return {key: result.transpose(0, 1) for key, result in results.items()}


def run_ours(module: nn.Module, given: Given) -> Given:
    state = (given["h0"], given["c0"], given["fed0"] if module.feed else None)
    y, (h, c, _), alignments = module(
        given["x"], given["memory"], state, memory_lengths=torch.tensor(LENGTHS), need_weights=True
    )
    return {"y": y, "h_n": h, "c_n": c, "alignments": alignments}


def all_of(run: Callable[[nn.Module, Given], Given], module: nn.Module, given: Given, upstream: Given) -> Given:
    """Results and gradients, by our names, in the module's dtype."""
    dtype = next(module.parameters()).dtype
    given = {key: tensor.to(dtype).requires_grad_() for key, tensor in given.items()}
    results = run(module, given)
    weights = {name: w for name, w in module.named_parameters() if not name.startswith("output_layer")}
    gradients = torch.autograd.grad(
        list(results.values()), [*given.values(), *weights.values()], [upstream[key].to(dtype) for key in results],
        allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    of_inputs, of_weights = gradients[: len(given)], dict(zip(weights, gradients[len(given) :], strict=True))
    if isinstance(module, joeynmt.RecurrentDecoder):  # what reorders the weights, reorders their gradients
        of_weights = loaders.from_joeynmt(of_weights)
    found = results | dict(zip(given, of_inputs, strict=True)) | of_weights
    return {key if key in results else f"d{key}": tensor.detach() for key, tensor in found.items()}


@pytest.mark.parametrize(("attention", "layers", "fed"), CASES)
def test_float64(attention: str, layers: int, fed: bool) -> None:
    decoder = theirs(attention, layers, fed, H=8)
    given, upstream = draw(layers, H=8)
    expected = all_of(run_theirs, decoder, given, upstream)
    results = all_of(run_ours, ours(decoder, attention, layers, fed, torch.float64), given, upstream)
    assert results.keys() == expected.keys()
    assert fed == bool(results["dfed0"].any())
    assert {"dmemory", "dweight_key", "dweight_out", "dbias_out", f"dweight_hh_l{layers - 1}"} < results.keys()
    for key, tensor in results.items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-11, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("attention", "layers", "fed"), CASES)
def test_float32(attention: str, layers: int, fed: bool) -> None:
    """As `fastlstm parity` has it: at most twice the error of JoeyNMT's in float32, and one rounding. Draws are pooled."""
    draws: list[tuple[Given, Given, Given]] = []
    for _ in range(4):
        decoder = theirs(attention, layers, fed, H=17).float()
        module = ours(decoder, attention, layers, fed, torch.float32)
        given, upstream = ({k: t.float() for k, t in some.items()} for some in draw(layers, H=17))
        runs = (run_ours, module), (run_theirs, decoder), (run_theirs, theirs(attention, layers, fed, H=17))
        runs[2][1].load_state_dict(decoder.state_dict())
        draws.append(tuple(all_of(run, one, given, upstream) for run, one in runs))
    for key in draws[0][0]:
        mine, peer, exact = (torch.stack([found[k][key] for found in draws]) for k in range(3))
        error, allowed = difference(mine, exact), 2 * difference(peer, exact) + torch.finfo(torch.float32).eps
        assert error <= allowed, f"{key}: {error:.1e}, allowed is {allowed:.1e}"


@pytest.mark.parametrize(("attention", "layers", "fed"), CASES)
def test_one_step_after_another(attention: str, layers: int, fed: bool) -> None:
    """As both are decoded with, where the next input is not known yet."""
    decoder = theirs(attention, layers, fed, H=8)
    module = ours(decoder, attention, layers, fed, torch.float64)
    given, _ = draw(layers, H=8)
    with torch.no_grad():
        expected = run_theirs(decoder, given)
        lengths = torch.tensor(LENGTHS)
        precomputed = module.precompute(given["memory"], lengths)
        state = (given["h0"], given["c0"], given["fed0"] if fed else None)
        for t, x_t in enumerate(given["x"]):
            y, state, alignments = module.step(x_t, precomputed, state, need_weights=True)
            torch.testing.assert_close((y, alignments), (expected["y"][t], expected["alignments"][t]))
        torch.testing.assert_close((state.h, state.c), (expected["h_n"], expected["c_n"]))
