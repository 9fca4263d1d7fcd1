"""What an Attention LSTM runs: its ops, or in a program that is made what stands for them."""

from typing import Any

import torch
from torch import Tensor

from fastlstm.ops import attend, attention_lstm, program


def attention_layer(
    *tensors: Tensor | None, backend: str, **flags: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`fastlstm.ops.attention_lstm.attention_lstm`, of its arguments and flags in their order."""
    if backend != "reference" and program.is_made():
        return torch.ops.fastlstm.attention_lstm_layer(*tensors, *flags.values())
    return attention_lstm.attention_lstm(*tensors, **flags, backend=backend)  # type: ignore[arg-type]


def attend_layer(*tensors: Tensor | None, return_alignments: bool, backend: str) -> tuple[Tensor, Tensor]:
    """`fastlstm.ops.attend.attend`, of its arguments in their order."""
    if backend != "reference" and program.is_made():
        return torch.ops.fastlstm.attend_layer(*tensors, return_alignments)
    return attend.attend(*tensors, return_alignments=return_alignments, backend=backend)  # type: ignore[arg-type]
