"""What stands for a layer in an exported or traced program: one op, which runs as the layer itself runs, gradients included.

Such a program holds ops and no `autograd.Function`s: with `lstm_fwd` in it, its backward would give no gradients. These ops are
made of other ops (composite, as PyTorch says), so a program that is only to infer is decomposed to `lstm_fwd` where it is
compiled. Their schemas are a promise: programs that were saved name them.
"""

from typing import Any

import torch
from torch import Tensor

from fastlstm import backends
from fastlstm.ops import attend, attention_lstm, conv_lstm, gru, lstm

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
    "bool reverse, bool return_cells, bool checkpoint, *, bool moved=False, "
    "bool return_y=True) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells)"
)
LIBRARY.define(
    "attention_lstm_layer(Tensor x, Tensor? batch_sizes, Tensor h0, Tensor c0, Tensor? fed0, Tensor memory, Tensor? keys, "
    "Tensor? memory_lengths, Tensor? dropped_layers, Tensor? dropped_output, Tensor? dropped_fed, Tensor w_ih, "
    "Tensor? w_ih_above, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_peephole, Tensor? w_query, Tensor? b_query, "
    "Tensor? w_score, Tensor? w_out, Tensor? b_out, bool coupled, bool before, int feed, int query_layer, bool tanh, "
    "float scale, bool return_alignments) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor fed_n, Tensor alignments)"
)
LIBRARY.define(
    "attend_layer(Tensor query, Tensor memory, Tensor keys, Tensor? memory_lengths, Tensor w_score, bool return_alignments) "
    "-> (Tensor context, Tensor alignments)"
)


def lstm_layer(*args: Any) -> tuple[Tensor, ...]:
    *tensors, coupled, reverse, return_cells = args
    return lstm.lstm(*tensors, coupled=coupled, reverse=reverse, return_cells=return_cells, backend=_backend())


def gru_layer(*args: Any) -> tuple[Tensor, ...]:
    *tensors, reverse = args
    return gru.gru(*tensors, reverse=reverse, backend=_backend())


def conv_lstm_layer(*args: Any, moved: bool = False, return_y: bool = True) -> tuple[Tensor, ...]:
    *tensors, stride, padding, dilation, coupled, fresh, reverse, return_cells, checkpoint = args
    return conv_lstm.conv_lstm(
        *tensors, stride=stride, padding=padding, dilation=dilation, coupled=coupled, fresh=fresh, reverse=reverse,
        return_cells=return_cells, checkpoint=checkpoint, moved=moved, return_y=return_y, backend=_backend(),
    )  # fmt: skip


def attention_lstm_layer(*args: Any) -> tuple[Tensor, ...]:
    *tensors, coupled, before, feed, query_layer, tanh, scale, return_alignments = args
    return attention_lstm.attention_lstm(
        *tensors, coupled=coupled, before=before, feed=feed, query_layer=query_layer, tanh=tanh, scale=scale,
        return_alignments=return_alignments, backend=_backend(),
    )  # fmt: skip


def attend_layer(*args: Any) -> tuple[Tensor, ...]:
    *tensors, return_alignments = args
    return attend.attend(*tensors, return_alignments=return_alignments, backend=_backend())


LIBRARY.impl("lstm_layer", lstm_layer, "CompositeImplicitAutograd")
LIBRARY.impl("gru_layer", gru_layer, "CompositeImplicitAutograd")
LIBRARY.impl("conv_lstm_layer", conv_lstm_layer, "CompositeImplicitAutograd")
LIBRARY.impl("attention_lstm_layer", attention_lstm_layer, "CompositeImplicitAutograd")
LIBRARY.impl("attend_layer", attend_layer, "CompositeImplicitAutograd")


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
