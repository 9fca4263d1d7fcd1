"""The initial states."""

from collections.abc import Sequence

from torch import Tensor

from fastlstm.kernels.variant import Variant


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
        check_state_fits(s, name, x)
    return states


def check_state_fits(s: Tensor, name: str, x: Tensor) -> None:
    if s.device != x.device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, "
            f"found input tensor at {x.device} and hidden tensor at {s.device}"
        )
    if s.dtype != x.dtype:
        raise RuntimeError(f"{name} has dtype {s.dtype}, expected {x.dtype}: the dtype of input and weights")
