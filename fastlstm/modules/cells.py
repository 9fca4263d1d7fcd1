"""Cells: one step of each variant, for loops of one's own."""

from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.backends import check_backend
from fastlstm.checks import check_hx
from fastlstm.functional import quick
from fastlstm.functional.driver import step
from fastlstm.kernels import gru, lstm
from fastlstm.kernels.variant import Variant
from fastlstm.modules.base import Ours, own_repr, take_variant_of_old, weights_of
from fastlstm.modules.forget_bias import add_forget_bias, check_forget_bias


class Cell(Ours, nn.RNNCellBase):
    """What the cells share: the parameters of `nn.RNNCellBase`, and inputs (B, I) or (I) with states alike."""

    variant: Variant
    backend = "auto"
    _forget_bias = 0.0
    weight_peephole: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        forget_bias: float = 0.0,
        backend: str = "auto",
    ) -> None:
        check_backend(backend)
        check_forget_bias(self.variant, forget_bias, bias)
        if forget_bias != 0:
            self._forget_bias = float(forget_bias)
        super().__init__(input_size, hidden_size, bias, len(self.variant.gates), device, dtype)
        self.backend = backend
        shape = self.variant.weights(input_size, hidden_size).get("w_peephole")
        if shape is None:
            self.weight_peephole = None
        else:
            self.weight_peephole = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        add_forget_bias(self, self.variant, ["bias_ih"], self._forget_bias)

    def _quick(self, x: Any, states: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
        """The states after a step on matrices, which most calls are, or None: then all is asked that may be."""
        return quick.step(self.variant, x, states, self._weights(), self.backend) if quick.is_usual() else None

    def _step(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return step(self.variant, x, states, self._weights(), self.backend)

    def _weights(self) -> tuple[Tensor | None, ...]:
        return (*weights_of(self, ("weight_ih", "weight_hh", "bias_ih", "bias_hh")), self.weight_peephole)

    def extra_repr(self) -> str:
        return super().extra_repr() + own_repr(self._forget_bias, self.backend)


class LSTMCell(Cell):
    """`torch.nn.LSTMCell`, fast: one step of the LSTM, `(h, c)` from `input` (B, I) and `hx`, a pair (B, H) or None for zeros.

    Unbatched input (I) takes states (H). By keyword only, as in `LSTM`: `forget_bias` and `backend`.

    >>> cell = LSTMCell(10, 20)
    >>> h, c = cell(torch.randn(3, 10))
    >>> h.shape
    torch.Size([3, 20])
    """

    variant = lstm.LSTM

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if type(hx) is tuple and len(hx) == 2 and (states := self._quick(input, hx)) is not None:
            return states  # type: ignore[return-value]
        x, hx = _pair(self, input, hx)
        check_hx(self.variant, hx, "lstm_cell")
        h, c = self._step(x, hx)
        return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))


class PeepholeLSTMCell(LSTMCell):
    """One step of `fastlstm.PeepholeLSTM`; as `LSTMCell`, with `weight_peephole` (3, H) in the order i, f, o.

    It starts uniform within 1 / sqrt(H), as all parameters.
    """

    variant = lstm.PEEPHOLE_LSTM


class CIFGLSTMCell(LSTMCell):
    """One step of `fastlstm.CIFGLSTM`; as `LSTMCell`, with three gates, in the order i, g, o.

    With `peephole=True` there is `weight_peephole` (2, H), in the order i, o, which starts uniform within 1 / sqrt(H).
    """

    variant = lstm.CIFG_LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        forget_bias: float = 0.0,
        backend: str = "auto",
    ) -> None:
        if not isinstance(peephole, bool):
            raise TypeError(f"peephole should be of type bool, got: {type(peephole).__name__}")
        self.variant = lstm.CIFG_PEEPHOLE_LSTM if peephole else lstm.CIFG_LSTM
        super().__init__(input_size, hidden_size, bias, device, dtype, forget_bias=forget_bias, backend=backend)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        take_variant_of_old(self)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", peephole=True" if self.variant.peepholes else "")


class GRUCell(Cell):
    """`torch.nn.GRUCell`, fast: one step of the GRU, `h` from `input` (B, I) and `hx` (B, H) or None for zeros.

    >>> cell = GRUCell(10, 20)
    >>> cell(torch.randn(3, 10)).shape
    torch.Size([3, 20])
    """

    variant = gru.GRU

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if hx is not None and (states := self._quick(input, (hx,))) is not None:
            return states[0]
        batched = _is_batched(self, input)
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"GRUCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            hx = torch.zeros(x.shape[0], self.hidden_size, dtype=x.dtype, device=x.device)
        elif not batched:
            hx = hx.unsqueeze(0)
        (h,) = self._step(x, (hx,))
        return h if batched else h.squeeze(0)


def _is_batched(cell: Cell, input: Tensor) -> bool:
    dims = input.dim()
    if dims not in (1, 2):
        raise ValueError(f"{type(cell).__name__}: Expected input to be 1D or 2D, got {dims}D instead")
    return dims == 2


def _pair(cell: Cell, input: Tensor, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Input and states with a batch dimension; zeros where no states are given."""
    batched = _is_batched(cell, input)
    x = input if batched else input.unsqueeze(0)
    if hx is None:
        zeros = torch.zeros(x.shape[0], cell.hidden_size, dtype=x.dtype, device=x.device)
        return x, (zeros, zeros)
    for k, s in enumerate(hx):
        if s.dim() not in (1, 2):
            raise ValueError(f"{type(cell).__name__}: Expected hx[{k}] to be 1D or 2D, got {s.dim()}D instead")
    return x, hx if batched else tuple(s.unsqueeze(0) for s in hx)  # type: ignore[return-value]
