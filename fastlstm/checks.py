"""The argument checks of `fastlstm.functional`, in PyTorch's words where it has any. Nothing below checks again."""

from collections.abc import Sequence
from numbers import Number

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

LSTM_WEIGHTS = {
    2: ("w_ih", "w_hh"),
    3: ("w_ih", "w_hh", "w_hr"),
    4: ("w_ih", "w_hh", "b_ih", "b_hh"),
    5: ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"),
}


def check_input(x: Tensor, packed: bool) -> None:
    """`x` is the input, or the data of the packed input: its type, dimensions and layout."""
    if not isinstance(x, Tensor):
        raise TypeError(f"input is of type {type(x).__name__}, expected a Tensor or a PackedSequence")
    if x.layout is not torch.strided:
        raise RuntimeError(f"input has layout {x.layout}, expected torch.strided: the steps are read as dense rows")
    if packed and x.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}: packed data is (sum of lengths, input_size)")
    if x.dim() not in (2, 3):
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {x.dim()}D instead")


def check_lstm_weights(weights: Sequence[Sequence[Tensor]], directions: int, x: Tensor) -> tuple[int, int]:
    """The sizes of the cell state and of the output, (H, R); all weights fit each other and the input `x`."""
    if len(weights) == 0 or len(weights) % directions:
        raise ValueError(
            f"weights has {len(weights)} entries, expected a multiple of {directions}: one per layer and direction"
        )
    names = LSTM_WEIGHTS.get(len(weights[0]))
    if names is None:
        raise ValueError(f"weights[0] has {len(weights[0])} tensors, expected 2 to 5: {', '.join(LSTM_WEIGHTS[5])}")
    w_ih = weights[0][0]
    H = weights[0][-1 if names[-1] == "w_hr" else 1].shape[-1]
    R = weights[0][-1].shape[0] if names[-1] == "w_hr" else H
    _check_input_fits(x, w_ih)
    for k, tensors in enumerate(weights):
        if len(tensors) != len(names):
            raise ValueError(f"weights[{k}] has {len(tensors)} tensors, expected {len(names)}: as many as weights[0]")
        I = w_ih.shape[-1] if k < directions else R * directions
        shapes = {"w_ih": (4 * H, I), "w_hh": (4 * H, R), "b_ih": (4 * H,), "b_hh": (4 * H,), "w_hr": (R, H)}
        for name, w in zip(names, tensors, strict=True):
            if w.shape != shapes[name]:
                raise ValueError(
                    f"{name} of weights[{k}] has shape {tuple(w.shape)}, expected {shapes[name]}: "
                    f"input size {I}, hidden size {H} and output size {R} of its layer"
                )
            if w.dtype != w_ih.dtype or w.device != w_ih.device:
                raise ValueError(
                    f"{name} of weights[{k}] is {w.dtype} on {w.device}, expected {w_ih.dtype} on {w_ih.device}: "
                    "all weights are alike"
                )
    return H, R


def _check_input_fits(x: Tensor, w_ih: Tensor) -> None:
    if x.dtype != w_ih.dtype:
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({w_ih.dtype}). "
            f"Convert input: input.to({w_ih.dtype}), or convert model: model.to({x.dtype})"
        )
    if x.shape[-1] != w_ih.shape[-1]:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {w_ih.shape[-1]}, got {x.shape[-1]}")
    if x.device != w_ih.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {x.device} and parameter tensor at {w_ih.device}"
        )


def check_dropout(dropout: float) -> None:
    if not isinstance(dropout, Number) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed, "
            f"got {dropout!r}"
        )


def check_steps(T: int) -> None:
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def check_packed(packed: PackedSequence) -> None:
    """The steps of a packed input are consistent: only hand-made ones are not."""
    N, batch_sizes, order = packed.data.shape[0], packed.batch_sizes, packed.sorted_indices
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
        raise ValueError(
            f"batch_sizes has dtype {batch_sizes.dtype} and shape {tuple(batch_sizes.shape)}, "
            "expected torch.int64 and (T,): the number of sequences at each step"
        )
    check_steps(len(batch_sizes))
    if torch.compiler.is_compiling():
        return
    sizes = batch_sizes.tolist()
    if sizes[-1] < 0 or sizes != sorted(sizes, reverse=True):
        raise ValueError(f"batch_sizes is {_short(sizes)}, expected not to increase: the longest sequences come first")
    if sum(sizes) != N:
        raise ValueError(f"batch_sizes sums to {sum(sizes)}, expected {N}: the rows of the packed data")
    if order is not None and order.shape != (sizes[0],):
        raise ValueError(
            f"sorted_indices has shape {tuple(order.shape)}, expected {(sizes[0],)}: one index for each sequence"
        )


def check_lengths(lengths: Tensor | Sequence[int], T: int, B: int) -> Tensor:
    """`lengths` as an int64 tensor on the CPU."""
    if not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths, device="cpu")
    if lengths.shape != (B,):
        raise ValueError(
            f"lengths has shape {tuple(lengths.shape)}, expected {(B,)}: one length for each sequence of the batch"
        )
    if B and (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool):
        raise TypeError(f"lengths has dtype {lengths.dtype}, expected integers: each is a number of time steps")
    lengths = lengths.to("cpu", torch.int64)
    if not torch.compiler.is_compiling():
        for n in lengths.tolist():
            if not 0 <= n <= T:
                raise ValueError(f"lengths holds {n}, expected values from 0 to {T}: the number of time steps of input")
    return lengths


def check_no_lengths(lengths: object, why: str) -> None:
    if lengths is not None:
        raise ValueError(f"lengths is given, expected None: {why}")


def check_lstm_hx(hx: Sequence[Tensor]) -> None:
    """`hx` is a pair of tensors; `check_lstm_states` looks at what they are."""
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        got = f"of length {len(hx)}" if isinstance(hx, (tuple, list)) else f"of type {type(hx).__name__}"
        raise RuntimeError(f"lstm expects two hidden states: hx is {got}, expected a tuple (h0, c0)")
    for k, s in enumerate(hx):
        if not isinstance(s, Tensor):
            raise TypeError(f"hx[{k}] is of type {type(s).__name__}, expected a Tensor: hx is a tuple (h0, c0)")


def check_lstm_states(
    hx: Sequence[Tensor], x: Tensor, batched: bool, expected: Sequence[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """`(h0, c0)` with the shapes `expected`, which have a batch of one where the input is not `batched`."""
    dims, kind = (3, "batched") if batched else (2, "unbatched")
    if hx[0].dim() != dims or hx[1].dim() != dims:
        raise RuntimeError(
            f"For {kind} {dims}-D input, hx and cx should also be {dims}-D "
            f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )
    h0, c0 = hx if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    for k, (s, shape) in enumerate(zip((h0, c0), expected, strict=True)):
        if s.shape != shape:
            raise RuntimeError(f"Expected hidden[{k}] size {shape}, got {list(s.shape)}")
        if s.device != x.device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, "
                f"found input tensor at {x.device} and hidden tensor at {s.device}"
            )
        if s.dtype != x.dtype:
            raise RuntimeError(f"hidden[{k}] has dtype {s.dtype}, expected {x.dtype}: the dtype of input and weights")
    return h0, c0


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 12 else f"{str(values[:12])[:-1]}, ...]"
