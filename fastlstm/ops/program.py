"""What stands for a layer in an exported or traced program: one op, which runs as the layer itself runs, gradients included.

Such a program holds ops and no `autograd.Function`s: with `lstm_fwd` in it, its backward would give no gradients. These ops are
made of other ops (composite, as PyTorch says), so a program that is only to infer is decomposed to `lstm_fwd` where it is
compiled. Their schemas are a promise: programs that were saved name them.
"""

from typing import Any

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.ops import conv_lstm, gru, lstm

LIBRARY = torch.library.Library("fastlstm", "FRAGMENT")  # kept: its ops live as long as it does
LIBRARY.define(
    "lstm_layer(Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
    "Tensor? b_hh, Tensor? w_hr, Tensor? w_peephole, bool coupled, bool reverse, bool return_cells) "
    "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells)"
)
LIBRARY.define(
    "gru_layer(Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
    "bool reverse) -> (Tensor y, Tensor h_n)"
)
LIBRARY.define(
    "conv_lstm_layer(Tensor x, Tensor? batch_sizes, Tensor? reset, Tensor h0, Tensor c0, Tensor w_ih, Tensor w_hh, "
    "Tensor? b_ih, Tensor? b_hh, Tensor? w_peephole, int[] stride, int[] padding, int[] dilation, bool coupled, bool fresh, "
    "bool reverse, bool return_cells, bool checkpoint) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells)"
)


def lstm_layer(*args: Any) -> tuple[Tensor, ...]:
    *tensors, coupled, reverse, return_cells = args
    return lstm.lstm(*tensors, coupled=coupled, reverse=reverse, return_cells=return_cells, backend=_backend())


def gru_layer(*args: Any) -> tuple[Tensor, ...]:
    *tensors, reverse = args
    return gru.gru(*tensors, reverse=reverse, backend=_backend())


def conv_lstm_layer(*args: Any) -> tuple[Tensor, ...]:
    *tensors, stride, padding, dilation, coupled, fresh, reverse, return_cells, checkpoint = args
    return conv_lstm.conv_lstm(
        *tensors, stride=stride, padding=padding, dilation=dilation, coupled=coupled, fresh=fresh, reverse=reverse,
        return_cells=return_cells, checkpoint=checkpoint, backend=_backend(),
    )  # fmt: skip


LIBRARY.impl("lstm_layer", lstm_layer, "CompositeImplicitAutograd")
LIBRARY.impl("gru_layer", gru_layer, "CompositeImplicitAutograd")
LIBRARY.impl("conv_lstm_layer", conv_lstm_layer, "CompositeImplicitAutograd")


def is_made() -> bool:
    """Whether a program is being made of what runs: by `torch.export` or by `torch.jit.trace`."""
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


def _backend() -> str:
    """The kernels of the device, where they were built; the reference under a transform of `torch.func`.

    Such a transform calls a composite op while it is at work itself, and then takes ops only, no Functions.
    """
    if torch._C._are_functorch_transforms_active() or backends.extension_status() != "built":
        return "reference"
    return "kernels"
