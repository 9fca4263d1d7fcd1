"""How each contestant runs a problem: PyTorch's module, a stack over any one-layer recurrence, a module of ours, ONNX Runtime.

A forward takes a case and its tensors and gives the outputs that the case has, by name: y (T, B, D*R), zero past each
sequence's end, h_n, c_n, and cells (T, B, D*H), zero there as well.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastlstm.backends import VARIANTS
from fastlstm.case import AttentionCase, Case, ConvCase
from fastlstm.kernels.gru.reference import gru_reference
from fastlstm.kernels.lstm.reference import lstm_reference
from fastlstm.kernels.variant import PARAMETERS
from fastlstm.ops.layer import layer
from fastlstm.parity.attention import at_once, by_decoder, by_steps, decoded
from fastlstm.parity.conv import Given, one_conv_layer, pixelwise
from fastlstm.parity.problems import Problem

Forward = Callable[[Case, Given], Given]
Call = Callable[..., Any]
WEIGHTS = ("weight", "bias", "gain")  # how their names begin
IN_PYTORCH: dict[str, Callable[..., nn.Module]] = {
    name: getattr(nn, kind.counterpart) for name, kind in VARIANTS.items() if kind.counterpart
}


def run(problem: Problem, dtype: torch.dtype, forward: Forward, device: str = "cpu") -> Given:
    """Outputs, final states and, unless the case is of inference, the gradients of all that isn't frozen, computed in `dtype`
    on the problem's numbers."""
    case = problem.case
    reset = {key: tensor.to(device) for key, tensor in problem.given.items() if key == "reset"}
    given = {key: leaf(t.to(device, dtype), case.strided) for key, t in problem.given.items() if key not in reset}
    if case.mode == "infer":
        with torch.no_grad():
            return {key: tensor.cpu() for key, tensor in forward(case, given | reset).items()}
    # Parameters, so that a module can be given them as its own
    given |= {key: nn.Parameter(t, requires_grad=False) for key, t in given.items() if key.startswith(WEIGHTS)}
    wanted = {key: tensor.requires_grad_() for key, tensor in given.items() if not key.startswith(case.frozen or "-")}
    results = forward(case, given | reset)
    used = [key for key in results if not case.loss or key in case.loss]
    for key in used:
        if results[key].shape != problem.upstream[key].shape:
            have, want = tuple(results[key].shape), tuple(problem.upstream[key].shape)
            raise ValueError(f"{key} has shape {have}, expected {want}")
    gradients = torch.autograd.grad(
        [results[key] for key in used],
        list(wanted.values()),
        [problem.upstream[key].to(device, dtype) for key in used],
        allow_unused=True,
        materialize_grads=True,
    )
    results |= {f"d{key}": gradient for key, gradient in zip(wanted, gradients, strict=True)}
    return {key: tensor.detach().cpu() for key, tensor in results.items()}


def leaf(tensor: Tensor, strided: bool) -> Tensor:
    """A fresh copy; strided: every second number of a larger tensor, its outer dimensions transposed."""
    if not strided:
        return tensor.clone()
    return tensor.transpose(0, -1).repeat_interleave(2, dim=-1)[..., ::2].transpose(0, -1)


def stacked(backend: str | None = None) -> Forward:
    """Layers and directions over the op with `backend`, or over the reference (None), written apart from `fastlstm.stack`."""

    def forward(case: Case, given: Given) -> Given:
        if isinstance(case, AttentionCase):
            return decoded(case, given, backend)
        x, batch_sizes = given["x"], None
        valid = torch.ones(case.T, case.B, dtype=torch.bool, device=x.device)
        if case.lengths:
            lengths = torch.tensor(case.lengths, device=x.device)
            valid = torch.arange(case.T, device=x.device)[:, None] < lengths
            batch_sizes = valid.sum(1).cpu()
        packed = case.layout == "packed"
        layer = x[valid] if packed else x
        reset = given.get("reset")
        if reset is not None and packed:
            reset = reset[valid]
        initial = [case.each(s) for s in states(case, given)]
        finals: list[tuple[Tensor, ...]] = []
        for k in range(case.layers):
            sides = []
            for suffix in (f"_l{k}", f"_l{k}_reverse")[: case.directions]:
                weights = {key.removesuffix(suffix): t for key, t in given.items() if key.endswith(suffix)}
                backwards = case.reverse or suffix.endswith("reverse")
                of_layer = [s[len(finals)] for s in initial]
                args: tuple = (layer, batch_sizes, reset, of_layer, weights, backwards)
                if isinstance(case, ConvCase):
                    y, *others = one_conv_layer(case, backend, k, *args)
                else:
                    y, *others = one_layer(case, backend, *args)
                sides.append((y, *others[len(initial) :]))
                finals.append(tuple(others[: len(initial)]))
            steps = [torch.cat(pair, dim=1 if packed else 2) for pair in zip(*sides, strict=True)]
            layer = steps[0]
        if packed:
            steps = [t.new_zeros(case.T, case.B, t.shape[-1]).index_put((valid,), t) for t in steps]
        return named(case, steps, [case.joined(s) for s in zip(*finals, strict=True)])

    return forward


by_reference = stacked()


def one_layer(
    case: Case,
    backend: str | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    initial: list[Tensor],
    weights: Given,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """y, then the final states, then cells where there are any."""
    of_names = {name: weights.get(long) for name, long in PARAMETERS.items()}
    if backend is not None:
        (y, *cells), finals = layer(
            case.kind, x, batch_sizes, reset, initial, of_names,
            reverse=reverse, return_cells=case.return_cells, backend=backend,
        )  # fmt: skip
        return y, *finals, *cells
    w_ih, w_hh, b_ih, b_hh, w_hr, w_peephole = of_names.values()
    args: tuple = (x, batch_sizes, reset, *initial, w_ih, w_hh, b_ih, b_hh)
    if case.kind.op == "gru":
        return gru_reference(*args, reverse)
    return lstm_reference(*args, w_hr, w_peephole, case.kind.coupled, reverse)


# Modules without weights, for all draws of a case
@lru_cache(maxsize=8)
def _ours(case: Case, backend: str, dtype: torch.dtype) -> nn.Module:
    return case.module(backend=backend, device="meta", dtype=dtype)


@lru_cache(maxsize=8)
def _theirs(case: Case, dtype: torch.dtype) -> nn.Module:
    return IN_PYTORCH[case.kind.name](case.I, case.H, device="meta", dtype=dtype, **case.options)


@pixelwise
def by_torch(case: Case, given: Given) -> Given:
    """`torch.nn.LSTM` or `GRU`. They know no sequence of length 0 and no reverse alone: those rows keep their states, and the
    sequences are turned round before and after."""
    x, initial = given["x"], states(case, given)
    module = _theirs(case, x.dtype)
    if not case.lengths:
        y, finals = called(bound(module, given), case, x.flip(0) if case.reverse else x, initial)
        return named(case, [y.flip(0) if case.reverse else y], finals)
    lengths = [length for length in case.lengths if length > 0]
    n = len(lengths)
    x = x[:, :n]
    packed = pack_padded_sequence(turned(x, lengths) if case.reverse else x, torch.tensor(lengths))
    y, finals = called(bound(module, given), case, packed, [s[:, :n].contiguous() for s in initial])
    y, _ = pad_packed_sequence(y, total_length=case.T)
    y = torch.cat([turned(y, lengths) if case.reverse else y, y.new_zeros(case.T, case.B - n, y.shape[2])], dim=1)
    return named(case, [y], [torch.cat([s, s0[:, n:]], dim=1) for s, s0 in zip(finals, initial, strict=True)])


def by_torch_chain(case: Case, given: Given) -> Given:
    """PyTorch's module by its chain of ops, without oneDNN and cuDNN."""
    cudnn = torch.backends.cudnn.enabled
    with warnings.catch_warnings():
        # Setting the flags of oneDNN warns that TF32 needs an Intel GPU.
        warnings.filterwarnings("ignore", message="TF32 acceleration")
        with torch.backends.mkldnn.flags(enabled=False):
            torch.backends.cudnn.enabled = False
            try:
                return by_torch(case, given)
            finally:
                torch.backends.cudnn.enabled = cudnn


def by_module(backend: str) -> Forward:
    """A module of ours."""

    def forward(case: Case, given: Given) -> Given:
        return as_called(case, given, bound(_ours(case, backend, given["x"].dtype), given))

    return forward


def bound(module: nn.Module, given: Given) -> Call:
    """A call of a module with the case's weights in place of its own; a cell's names are those of a layer without "_l0"."""
    names = {key: key if key in given else f"{key}_l0" for key, _ in module.named_parameters()}
    weights = {key: given[name] for key, name in names.items()}
    return lambda *args, **options: torch.func.functional_call(module, weights, args, options)


def as_called(case: Case, given: Given, module: Call) -> Given:
    """By a module as a user calls it: dense, with a PackedSequence, or with `lengths=`; a cell with one step."""
    if isinstance(case, AttentionCase):
        return by_decoder(case, given, module)
    x: Tensor | PackedSequence | None = given["x"]
    hx = None if case.zero_state else [case.handed(s) for s in states(case, given)]
    if case.layout == "cell":
        finals = module(given["x"][0], None if hx is None else of_states([s[0] for s in hx]))
        after = [s[None] for s in (finals if isinstance(finals, tuple) else (finals,))]
        return named(case, [after[0], after[-1]], after)
    extra: dict[str, Any] = {"return_cells": True} if case.return_cells else {}
    if isinstance(case, ConvCase) and case.blind:
        x, extra["steps"] = None, case.T
    if case.layout == "lengths":
        extra["lengths"] = torch.tensor(case.lengths)
    if case.layout == "packed":
        x = pack_padded_sequence(given["x"], torch.tensor(case.lengths))
    if case.resets:
        extra["reset"] = given["reset"]
    y, finals, *cells = called(module, case, x, hx, **extra)
    finals = [torch.cat(s, dim=2) if isinstance(s, list) else s for s in finals]
    steps = [pad_packed_sequence(t, total_length=case.T)[0] if case.layout == "packed" else t for t in (y, *cells)]
    return named(case, steps, finals)


def by_ops(case: Case, given: Given) -> Given:
    """The reference in the order of sums that a case has beside that of the steps: all of them attended at once."""
    assert isinstance(case, AttentionCase)
    return at_once(case, given)


def by_step(backend: str) -> Forward:
    """A decoder of ours, one step after another."""

    def forward(case: Case, given: Given) -> Given:
        assert isinstance(case, AttentionCase)
        return by_steps(case, given, _ours(case, backend, given["x"].dtype))

    return forward


@pixelwise
def by_onnx(case: Case, given: Given) -> Given:
    """ONNX Runtime: forward only, float32, no projection, no sequence of length 0, no resets, no cells."""
    import onnxruntime

    from fastlstm.onnx import recurrent_model

    weights = {key: tensor for key, tensor in given.items() if key.startswith(("weight", "bias"))}
    model = recurrent_model(case.kind.name, weights, case.layers, case.directions, reverse=case.reverse)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    lengths = torch.tensor(case.lengths or [case.T] * case.B, dtype=torch.int32)
    initial = dict(zip(case.states, states(case, given), strict=True))
    feeds = {"x": given["x"], "lengths": lengths, **initial}
    outputs = session.run(None, {key: tensor.detach().numpy() for key, tensor in feeds.items()})
    y, *finals = map(torch.from_numpy, outputs)
    return named(case, [y], finals)


def named(case: Case, steps: list[Tensor], finals: list[Tensor] | tuple[Tensor, ...]) -> Given:
    """The outputs by name; cells only where the case has them."""
    results = {"y": steps[0]} | dict(zip((f"{s}_n" for s in case.kind.states), finals, strict=True))
    return results | ({"cells": steps[1]} if case.return_cells else {})


def called(module: Call, case: Case, x: object, hx: Any, **extra: Any) -> Any:
    """One call of a module: `(y, finals)`, and cells if asked for."""
    with warnings.catch_warnings():
        # nn.LSTM warns that oneDNN knows no projection: its op chain is the peer then.
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        y, finals, *cells = module(x, hx if hx is None else of_states(hx), **extra)
    return y, finals if isinstance(finals, (tuple, list)) else (finals,), *cells


def of_states(states: list[Any]) -> Any:
    """As a module takes them: one alone, or a pair."""
    return states[0] if len(states) == 1 else tuple(states)


def states(case: Case, given: Given) -> list[Tensor]:
    """The initial states, zeros where the case gives none."""
    if not case.zero_state:
        return [given[key] for key in case.states]
    return [given["x"].new_zeros(shape) for shape in case.states.values()]


def turned(x: Tensor, lengths: list[int]) -> Tensor:
    """Each sequence of x (T, B, ...) from its end; what lies past the end stays."""
    t = torch.arange(len(x), device=x.device)[:, None]
    end = torch.tensor(lengths, device=x.device)
    return x[torch.where(t < end, end - 1 - t, t), torch.arange(x.shape[1], device=x.device)]
