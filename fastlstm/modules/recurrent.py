"""Recurrent modules that take the place of PyTorch's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm import functional
from fastlstm.backends import NAMES


class LSTM(nn.RNNBase):
    """`torch.nn.LSTM`, fast: the same arguments, attributes, parameters, initial weights, results and errors.

        i = σ(W_ii x + b_ii + W_hi h' + b_hi)      f, o alike        g = tanh(W_ig x + b_ig + W_hg h' + b_hg)
        c = f * c' + i * g        h = o * tanh(c), or W_hr (o * tanh(c)) with `proj_size`

    Two things are ours, both by keyword only. `backend` is "auto" or the name of the one that must run. `forward` takes
    `lengths` (B,), in any order, zeros allowed, where PyTorch wants a PackedSequence: `output` is zero beyond a sequence's
    length and `h_n`, `c_n` are those at its own end. Everything else is described under `fastlstm.functional.lstm`.

    A `state_dict` of `nn.LSTM` loads here and the other way round. Weights are read afresh at every call.

    >>> lstm = LSTM(10, 20, num_layers=2, bidirectional=True)
    >>> output, (h_n, c_n) = lstm(torch.randn(7, 3, 10), lengths=[7, 2, 0])
    >>> output.shape, h_n.shape
    (torch.Size([7, 3, 40]), torch.Size([4, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        if backend not in NAMES:
            raise ValueError(f"backend is {backend!r}, expected one of {', '.join(map(repr, NAMES))}")
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        self.backend = backend

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        return functional.lstm(
            input,
            self.all_weights,
            hx,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            dropout=self.dropout,
            training=self.training,
            lengths=lengths,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", backend={self.backend!r}" if self.backend != "auto" else "")
