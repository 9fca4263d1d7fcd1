"""One step of each variant, behind the cells."""

from torch import Tensor

from fastlstm.checks import check_hx
from fastlstm.functional.driver import step
from fastlstm.kernels.gru import GRU
from fastlstm.kernels.lstm import CIFG_LSTM, CIFG_PEEPHOLE_LSTM, LSTM, PEEPHOLE_LSTM
from fastlstm.kernels.variant import Variant


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `fastlstm.functional.lstm`, as `torch.nn.LSTMCell` takes it: `(h, c)`.

    Sizes: B batch, I input, H hidden. `input` (B, I), `hx` a pair (B, H), `w_ih` (4H, I), `w_hh` (4H, H), biases (4H) or None.

    >>> import torch
    >>> h, c = lstm_cell(torch.randn(3, 5), (torch.zeros(3, 2), torch.zeros(3, 2)), torch.randn(8, 5), torch.randn(8, 2))
    >>> h.shape, c.shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    """
    return _pair(LSTM, input, hx, (w_ih, w_hh, b_ih, b_hh, None), backend)


def peephole_lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_peephole: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `fastlstm.functional.peephole_lstm`: `(h, c)`. As `lstm_cell`, with `w_peephole` (3, H)."""
    return _pair(PEEPHOLE_LSTM, input, hx, (w_ih, w_hh, b_ih, b_hh, w_peephole), backend)


def cifg_lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_peephole: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `fastlstm.functional.cifg_lstm`: `(h, c)`. As `lstm_cell`, with 3H rows, and `w_peephole` (2, H) or None."""
    variant = CIFG_LSTM if w_peephole is None else CIFG_PEEPHOLE_LSTM
    return _pair(variant, input, hx, (w_ih, w_hh, b_ih, b_hh, w_peephole), backend)


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """One step of `fastlstm.functional.gru`, as `torch.nn.GRUCell` takes it: `h`.

    Sizes: B batch, I input, H hidden. `input` (B, I), `hx` (B, H), `w_ih` (3H, I), `w_hh` (3H, H), biases (3H) or None.
    """
    return step(GRU, input, (hx,), (w_ih, w_hh, b_ih, b_hh, None), backend)[0]


def _pair(
    variant: Variant,
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: tuple[Tensor | None, ...],
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_hx(variant, hx, "lstm_cell")
    h, c = step(variant, input, hx, weights, backend)
    return h, c
