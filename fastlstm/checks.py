"""The argument checks of `fastlstm.functional`, in PyTorch's words where it has any. Nothing below checks again."""

from collections.abc import Sequence
from numbers import Number

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm.kernels.variant import Variant


def check_input(x: Tensor, packed: bool, name: str) -> None:
    """`x` is the input, or the data of the packed input: its type, dimensions and layout."""
    if not isinstance(x, Tensor):
        raise TypeError(f"input is of type {type(x).__name__}, expected a Tensor or a PackedSequence")
    if x.layout is not torch.strided:
        raise RuntimeError(f"input has layout {x.layout}, expected torch.strided: the steps are read as dense rows")
    if packed and x.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}: packed data is (sum of lengths, input_size)")
    if x.dim() not in (2, 3):
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {x.dim()}D instead")


def check_weights(
    variant: Variant, weights: Sequence[Sequence[Tensor]], directions: int, x: Tensor
) -> tuple[int, int, tuple[str, ...]]:
    """The sizes of the cell state and of the output, (H, R), and the weights' names; they fit each other and the input."""
    if len(weights) == 0 or len(weights) % directions:
        raise ValueError(
            f"weights has {len(weights)} entries, expected a multiple of {directions}: one per layer and direction"
        )
    bias, projected = _optional_weights(variant, len(weights[0]))
    w_ih, w_hh, *others = weights[0]
    w_hr = others[2 if bias else 0] if projected else None
    for name, w in (("w_ih", w_ih), ("w_hh", w_hh), ("w_hr", w_hr)):
        if w is not None and w.dim() != 2:
            raise ValueError(f"{name} of weights[0] has shape {tuple(w.shape)}, expected two dimensions")
    R, H = w_hr.shape if w_hr is not None else (w_hh.shape[1], w_hh.shape[1])
    _check_input_fits(x, w_ih)
    dtype, device = w_ih.dtype, w_ih.device
    expected = variant.weights(w_ih.shape[1], H, R if projected else None, bias=bias)
    for k, tensors in enumerate(weights):
        if len(tensors) != len(expected):
            raise ValueError(
                f"weights[{k}] has {len(tensors)} tensors, expected {len(expected)}: as many as weights[0]"
            )
        if k == directions:
            expected["w_ih"] = expected["w_ih"][0], R * directions
        for (name, size), w in zip(expected.items(), tensors, strict=True):
            if w.shape != size:
                raise ValueError(
                    f"{name} of weights[{k}] has shape {tuple(w.shape)}, expected {size}: "
                    f"input size {expected['w_ih'][1]}, hidden size {H} and output size {R} of its layer"
                )
            if w.dtype is not dtype or w.device != device:
                raise ValueError(
                    f"{name} of weights[{k}] is {w.dtype} on {w.device}, expected {dtype} on {device}: "
                    "all weights are alike"
                )
    return H, R, tuple(expected)


def _optional_weights(variant: Variant, count: int) -> tuple[bool, bool]:
    """Whether there are biases, and a projection, among the weights of a layer: their number tells."""
    least = 3 if variant.peepholes else 2
    more = count - least
    bias, projected = more in (2, 3), more in (1, 3)
    if not 0 <= more <= 3 or (projected and not variant.projects):
        words = ", ".join(variant.weights(0, 0, 0 if variant.projects else None))
        most = least + 2 + variant.projects
        raise ValueError(f"weights[0] has {count} tensors, expected {least} to {most}: {words}")
    return bias, projected


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


def check_hx(variant: Variant, hx: object, name: str = "lstm") -> None:
    """`hx` is a tensor, or a pair of them where there are two states; `check_states` looks at what they are."""
    if len(variant.states) == 1:
        if not isinstance(hx, Tensor):
            raise TypeError(f"hx is of type {type(hx).__name__}, expected a Tensor: a GRU has one state")
        return
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        got = f"of length {len(hx)}" if isinstance(hx, (tuple, list)) else f"of type {type(hx).__name__}"
        raise RuntimeError(f"{name} expects two hidden states: hx is {got}, expected a tuple (h0, c0)")
    for k, s in enumerate(hx):
        if not isinstance(s, Tensor):
            raise TypeError(f"hx[{k}] is of type {type(s).__name__}, expected a Tensor: hx is a tuple (h0, c0)")


def check_states(
    hx: Sequence[Tensor], x: Tensor, batched: bool, expected: Sequence[tuple[int, ...]]
) -> Sequence[Tensor]:
    """`(h0, c0)` or `(h0,)` with the shapes `expected`, which have a batch of one where the input is not `batched`."""
    dims, kind = (3, "batched") if batched else (2, "unbatched")
    if [s.dim() for s in hx] != [dims] * len(hx):
        names = "hx and cx" if len(hx) == 2 else "hx"
        got = f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors" if len(hx) == 2 else f"{hx[0].dim()}-D tensor"
        raise RuntimeError(f"For {kind} {dims}-D input, {names} should also be {dims}-D but got {got}")
    states = hx if batched else [s.unsqueeze(1) for s in hx]
    for k, (s, shape) in enumerate(zip(states, expected, strict=True)):
        name = f"hidden[{k}]" if len(hx) == 2 else "hidden"
        if s.shape != shape:
            raise RuntimeError(f"Expected {name} size {shape}, got {list(s.shape)}")
        _check_state_fits(s, name, x)
    return states


def _check_state_fits(s: Tensor, name: str, x: Tensor) -> None:
    if s.device != x.device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, "
            f"found input tensor at {x.device} and hidden tensor at {s.device}"
        )
    if s.dtype != x.dtype:
        raise RuntimeError(f"{name} has dtype {s.dtype}, expected {x.dtype}: the dtype of input and weights")


def check_cell(
    variant: Variant, x: Tensor, states: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, *others: Tensor | None
) -> None:
    """One step's arguments fit each other: `others` are `b_ih`, `b_hh` and `w_peephole`, or None.

    What is right passes the first look, which costs a third of finding out what is wrong: a loop calls this at every step.
    """
    if not _cell_fits(variant, x, states, w_ih, w_hh, others):
        _check_cell(variant, x, states, w_ih, w_hh, *others)


def _cell_fits(
    variant: Variant,
    x: Tensor,
    states: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    others: Sequence[Tensor | None],
) -> bool:
    if x.dim() != 2 or x.layout is not torch.strided:
        return False
    B, I = x.shape
    H = w_hh.shape[-1]
    rows, dtype, device = len(variant.gates) * H, x.dtype, x.device
    if w_ih.shape != (rows, I) or w_hh.shape != (rows, H):
        return False
    for s in states:
        if s.shape != (B, H) or s.dtype is not dtype or s.device != device:
            return False
    b_ih, b_hh, w_peephole = others
    if b_ih is not None and b_hh is not None:
        if b_ih.shape != (rows,) or b_ih.dtype is not dtype or b_ih.device != device:
            return False
        if b_hh.shape != (rows,) or b_hh.dtype is not dtype or b_hh.device != device:
            return False
    elif b_ih is not b_hh:
        return False
    if w_peephole is None:
        peepholes_fit = True
    else:
        peepholes_fit = w_peephole.shape == (len(variant.peepholes), H) and w_peephole.dtype is dtype
        peepholes_fit = peepholes_fit and w_peephole.device == device
    return (
        peepholes_fit
        and w_ih.dtype is dtype
        and w_hh.dtype is dtype
        and w_ih.device == device
        and w_hh.device == device
    )


def _check_cell(
    variant: Variant, x: Tensor, states: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, *others: Tensor | None
) -> None:
    if x.dim() != 2:
        raise ValueError(f"input has {x.dim()} dimensions, expected 2: (batch, input_size)")
    if x.layout is not torch.strided:
        raise RuntimeError(f"input has layout {x.layout}, expected torch.strided: the batch is read as dense rows")
    B, I = x.shape
    H = w_hh.shape[-1]
    rows = len(variant.gates) * H
    if w_ih.dim() != 2 or w_ih.shape[1] != I:
        raise RuntimeError(f"input has inconsistent input_size: got {I} expected {w_ih.shape[-1]}")
    for k, s in enumerate(states):
        if s.dim() == 0 or s.shape[0] != B:
            raise RuntimeError(
                f"Input batch size {B} doesn't match hidden{k} batch size {s.shape[0] if s.dim() else 1}"
            )
        if s.dim() == 1 or s.shape[1] != H:
            raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {[*s.shape, None][1]}, expected {H}")
        if s.dim() != 2:
            raise RuntimeError(f"hidden{k} has {s.dim()} dimensions, expected 2: (batch, hidden_size)")
    expected = ((rows, I), (rows, H), (rows,), (rows,), (len(variant.peepholes), H))
    names = ("w_ih", "w_hh", "b_ih", "b_hh", "w_peephole")
    for name, w, size in zip(names, (w_ih, w_hh, *others), expected, strict=True):
        if w is not None and w.shape != size:
            raise ValueError(f"{name} has shape {tuple(w.shape)}, expected {size}: input size {I} and hidden size {H}")
    dtype, device = x.dtype, x.device
    for name, t in zip(("w_ih", "w_hh", "hidden0", "hidden1"), (w_ih, w_hh, *states), strict=False):
        if t.dtype != dtype or t.device != device:
            raise RuntimeError(f"{name} is {t.dtype} on {t.device}, expected {dtype} on {device}: those of input")
    for name, other in zip(names[2:], others, strict=True):
        if other is not None and (other.dtype != dtype or other.device != device):
            raise RuntimeError(
                f"{name} is {other.dtype} on {other.device}, expected {dtype} on {device}: those of input"
            )


def check_reset(reset: Tensor, T: int, B: int | None, batch_first: bool) -> None:
    """B is None for an unbatched input."""
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset is of type {type(reset).__name__}, expected a Tensor of bool")
    shape = (T,) if B is None else (B, T) if batch_first else (T, B)
    if reset.shape != shape:
        raise ValueError(f"reset has shape {tuple(reset.shape)}, expected {shape}: the steps and the batch of input")
    if reset.dtype != torch.bool:
        raise TypeError(
            f"reset has dtype {reset.dtype}, expected torch.bool: it tells before which steps the state is zeroed"
        )


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 12 else f"{str(values[:12])[:-1]}, ...]"
