"""How each contestant runs a problem: `nn.LSTM`, a stack over any one-layer recurrence, a module, ONNX Runtime.

A forward takes a case and its tensors and gives y (T, B, D*R), zero past each sequence's end, h_n and c_n.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastlstm.parity.cases import Case, Problem, options

Given = dict[str, Tensor]
Forward = Callable[[Case, Given], tuple[Tensor, Tensor, Tensor]]


def run(problem: Problem, dtype: torch.dtype, forward: Forward, device: str = "cpu") -> dict[str, Tensor]:
    """Outputs, final states and the gradients of all that isn't frozen, computed in `dtype` on the problem's numbers."""
    case = problem.case
    given = {key: leaf(tensor.to(device, dtype), case.strided) for key, tensor in problem.given.items()}
    wanted = {key: tensor.requires_grad_() for key, tensor in given.items() if not key.startswith(case.frozen or "-")}
    results = dict(zip(("y", "h_n", "c_n"), forward(case, given), strict=True))
    gradients = torch.autograd.grad(
        [results[key] for key in case.used],
        list(wanted.values()),
        [problem.upstream[key].to(device, dtype) for key in case.used],
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


def stacked(recurrence: Callable[..., tuple[Tensor, Tensor, Tensor]], **chosen: str) -> Forward:
    """Layers and directions over `lstm_reference` or `ops.lstm.lstm`, written apart from `fastlstm.layers`."""

    def forward(case: Case, given: Given) -> tuple[Tensor, Tensor, Tensor]:
        x, batch_sizes = given["x"], None
        valid = torch.ones(case.T, case.B, dtype=torch.bool, device=x.device)
        if case.layout != "dense":
            lengths = torch.tensor(case.lengths, device=x.device)
            valid = torch.arange(case.T, device=x.device)[:, None] < lengths
            batch_sizes = valid.sum(1).cpu()
        layer = x[valid] if case.layout == "packed" else x
        h0, c0 = states(case, given)
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        for k in range(case.layers):
            outputs = []
            for suffix in (f"_l{k}", f"_l{k}_reverse")[: case.directions]:
                weights = [given.get(name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                backwards = case.reverse or suffix.endswith("reverse")
                y, h, c = recurrence(
                    layer, batch_sizes, h0[len(h_n)], c0[len(c_n)], *weights, given.get("weight_hr" + suffix),
                    reverse=backwards, **chosen,
                )  # fmt: skip
                outputs.append(y)
                h_n.append(h)
                c_n.append(c)
            layer = torch.cat(outputs, dim=-1)
        if case.layout == "packed":
            layer = layer.new_zeros(case.T, case.B, layer.shape[-1]).index_put((valid,), layer)
        return layer, torch.stack(h_n), torch.stack(c_n)

    return forward


def torch_lstm(case: Case, given: Given) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.nn.LSTM`. It knows no sequence of length 0 and no reverse alone: those rows keep their states, and the
    sequences are turned round before and after."""
    if case.layout == "dense":
        x = given["x"].flip(0) if case.reverse else given["x"]
        y, h_n, c_n = called(nn.LSTM, case, given, x, states(case, given))
        return y.flip(0) if case.reverse else y, h_n, c_n
    h0, c0 = states(case, given)
    lengths = [length for length in case.lengths if length > 0]
    n = len(lengths)
    x = given["x"][:, :n]
    packed = pack_padded_sequence(turned(x, lengths) if case.reverse else x, torch.tensor(lengths))
    y, h_n, c_n = called(nn.LSTM, case, given, packed, (h0[:, :n].contiguous(), c0[:, :n].contiguous()))
    y, _ = pad_packed_sequence(y, total_length=case.T)
    y = torch.cat([turned(y, lengths) if case.reverse else y, y.new_zeros(case.T, case.B - n, y.shape[2])], dim=1)
    return y, torch.cat([h_n, h0[:, n:]], dim=1), torch.cat([c_n, c0[:, n:]], dim=1)


def torch_chain(case: Case, given: Given) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.nn.LSTM` by its chain of ops, without oneDNN."""
    with warnings.catch_warnings():
        # Setting the flags of oneDNN warns that TF32 needs an Intel GPU.
        warnings.filterwarnings("ignore", message="TF32 acceleration")
        with torch.backends.mkldnn.flags(enabled=False):
            return torch_lstm(case, given)


def fast_lstm(backend: str) -> Forward:
    """`fastlstm.LSTM`, as a user calls it: dense, with a PackedSequence, or with `lengths=`."""
    from fastlstm import LSTM

    def forward(case: Case, given: Given) -> tuple[Tensor, Tensor, Tensor]:
        kind = partial(LSTM, backend=backend)
        hx = None if case.zero_state else (given["h0"], given["c0"])
        if case.layout == "padded":
            return called(kind, case, given, given["x"], hx, lengths=torch.tensor(case.lengths))
        if case.layout == "dense":
            return called(kind, case, given, given["x"], hx)
        y, h_n, c_n = called(kind, case, given, pack_padded_sequence(given["x"], torch.tensor(case.lengths)), hx)
        return pad_packed_sequence(y, total_length=case.T)[0], h_n, c_n

    return forward


def onnx_lstm(case: Case, given: Given) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX Runtime: forward only, float32, no projection, no sequence of length 0."""
    import onnxruntime

    from fastlstm.onnx import lstm_model

    weights = {key: tensor for key, tensor in given.items() if key.startswith(("weight", "bias"))}
    model = lstm_model(weights, case.layers, case.directions, reverse=case.reverse)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    lengths = torch.tensor(case.lengths or [case.T] * case.B, dtype=torch.int32)
    h0, c0 = states(case, given)
    feeds = {"x": given["x"], "lengths": lengths, "h0": h0, "c0": c0}
    outputs = session.run(None, {key: tensor.detach().numpy() for key, tensor in feeds.items()})
    y, h_n, c_n = map(torch.from_numpy, outputs)
    return y, h_n, c_n


def called(
    kind: Callable[..., nn.Module], case: Case, given: Given, x: object, hx: object, **lengths: Tensor
) -> tuple[Any, Tensor, Tensor]:
    """One call of a module of `kind` with the case's weights in place of its own."""
    module = kind(case.I, case.H, device="meta", dtype=given["x"].dtype, **options(case))
    weights = {key: given[key] for key, _ in module.named_parameters()}
    with warnings.catch_warnings():
        # nn.LSTM warns that oneDNN knows no projection: its op chain is the peer then.
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        y, (h_n, c_n) = torch.func.functional_call(module, weights, (x, hx), lengths)
    return y, h_n, c_n


def states(case: Case, given: Given) -> tuple[Tensor, Tensor]:
    """The initial states, zeros where the case gives none."""
    if not case.zero_state:
        return given["h0"], given["c0"]
    states = case.layers * case.directions
    x = given["x"]
    return x.new_zeros(states, case.B, case.P or case.H), x.new_zeros(states, case.B, case.H)


def turned(x: Tensor, lengths: list[int]) -> Tensor:
    """Each sequence of x (T, B, ...) from its end; what lies past the end stays."""
    t = torch.arange(len(x), device=x.device)[:, None]
    end = torch.tensor(lengths, device=x.device)
    return x[torch.where(t < end, end - 1 - t, t), torch.arange(x.shape[1], device=x.device)]
