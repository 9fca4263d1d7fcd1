"""One step of each variant, behind the cells. Few checks, each cheap: they run once per time step of a loop of one's own."""

from torch import Tensor

from fastlstm import backends, checks, onnx
from fastlstm.kernels.gru import GRU
from fastlstm.kernels.lstm import CIFG_LSTM, CIFG_PEEPHOLE_LSTM, LSTM, PEEPHOLE_LSTM
from fastlstm.kernels.variant import Variant
from fastlstm.ops.gru import gru
from fastlstm.ops.lstm import lstm
from fastlstm.sequences import autocast, promote_to_state


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
    return _lstm_cell(LSTM, input, hx, w_ih, w_hh, b_ih, b_hh, None, backend)


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
    return _lstm_cell(PEEPHOLE_LSTM, input, hx, w_ih, w_hh, b_ih, b_hh, w_peephole, backend)


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
    return _lstm_cell(variant, input, hx, w_ih, w_hh, b_ih, b_hh, w_peephole, backend)


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
    x, h0, w_ih, w_hh, b_ih, b_hh = autocast(input, hx, w_ih, w_hh, b_ih, b_hh)
    checks.check_cell(GRU, x, (h0,), w_ih, w_hh, b_ih, b_hh, None)
    chosen = _choose(GRU, x, backend)
    return promote_to_state(hx, gru(x, None, None, h0, w_ih, w_hh, b_ih, b_hh, backend=chosen)[0])


def _lstm_cell(
    variant: Variant,
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_peephole: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    checks.check_lstm_hx(hx, "lstm_cell")
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_peephole = autocast(input, *hx, w_ih, w_hh, b_ih, b_hh, w_peephole)
    checks.check_cell(variant, x, (h0, c0), w_ih, w_hh, b_ih, b_hh, w_peephole)
    chosen = _choose(variant, x, backend)
    h, _, c, _ = lstm(
        x, None, None, h0, c0, w_ih, w_hh, b_ih, b_hh, None, w_peephole, coupled=variant.coupled, backend=chosen,
    )  # fmt: skip
    return promote_to_state(hx[1], h), promote_to_state(hx[1], c)


def _choose(variant: Variant, x: Tensor, backend: str) -> str:
    """The reference where there are no kernels, as good as PyTorch's own op for one step; and for ONNX, which has no cells."""
    if onnx.exporting():
        return "reference"
    return backends.choose(variant, x.device, x.dtype, backend, True).backend
