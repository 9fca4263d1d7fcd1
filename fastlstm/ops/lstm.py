"""The LSTM over one layer and one direction, differentiable: one call for the whole sequence."""

from torch import Tensor


def lstm(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of every step and the final states `(y, h_n, c_n)`.

    Sizes: T time, B batch, I input, H hidden, R = P (the projection) where `w_hr` is given, else H.
    `x` is one of three layouts, of any strides, and `y` has the same leading dimensions:
    dense (T, B, I) without `batch_sizes`; packed (N, I) with `batch_sizes` (T,), as in a `PackedSequence`;
    padded (T, B, I) with `batch_sizes`: step t reads and writes its first `batch_sizes[t]` rows, and `y` is zero elsewhere.
    `batch_sizes` is int64, on the CPU, not increasing, and may hold zeros. `reverse` runs each sequence from its end.
    `h0` (B, R), `c0` (B, H), `w_ih` (4H, I), `w_hh` (4H, R), `b_ih` and `b_hh` (4H) or None, `w_hr` (P, H) or None.
    Arguments are checked in `fastlstm.functional`.
    """
    from fastlstm.kernels.lstm.reference import lstm_reference

    return lstm_reference(x, batch_sizes, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, reverse)
