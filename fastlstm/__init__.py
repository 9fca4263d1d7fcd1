"""Fast recurrent networks in PyTorch."""

from torch.compiler import config as _compiler

from fastlstm import adapters, functional, loaders
from fastlstm.convert import convert, patch, to_torch
from fastlstm.modules import (
    CIFGLSTM,
    GRU,
    LSTM,
    AttentionLSTM,
    AttentionPooling,
    CIFGLSTMCell,
    ConvLSTM1d,
    ConvLSTM1dCell,
    ConvLSTM2d,
    ConvLSTM2dCell,
    ConvLSTM3d,
    ConvLSTM3dCell,
    GRUCell,
    LSTMCell,
    PeepholeLSTM,
    PeepholeLSTMCell,
    Seq2Seq,
)
from fastlstm.report import report
from fastlstm.stream import Stream
from fastlstm.tracing import trace
from fastlstm.version import __version__

# Inductor keeps programs on disk by the names of ops: those of another version of ours, whose results lay otherwise, would fail
_compiler.cache_key_tag += f"fastlstm {__version__}"

__all__ = [
    "CIFGLSTM",
    "GRU",
    "LSTM",
    "AttentionLSTM",
    "AttentionPooling",
    "CIFGLSTMCell",
    "ConvLSTM1d",
    "ConvLSTM1dCell",
    "ConvLSTM2d",
    "ConvLSTM2dCell",
    "ConvLSTM3d",
    "ConvLSTM3dCell",
    "GRUCell",
    "LSTMCell",
    "PeepholeLSTM",
    "PeepholeLSTMCell",
    "Seq2Seq",
    "Stream",
    "__version__",
    "adapters",
    "convert",
    "functional",
    "loaders",
    "patch",
    "report",
    "to_torch",
    "trace",
]
