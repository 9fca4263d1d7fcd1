"""Fast recurrent networks in PyTorch."""

from fastlstm import functional
from fastlstm.modules import (
    CIFGLSTM,
    GRU,
    LSTM,
    CIFGLSTMCell,
    GRUCell,
    LSTMCell,
    PeepholeLSTM,
    PeepholeLSTMCell,
)
from fastlstm.version import __version__

__all__ = [
    "CIFGLSTM",
    "GRU",
    "LSTM",
    "CIFGLSTMCell",
    "GRUCell",
    "LSTMCell",
    "PeepholeLSTM",
    "PeepholeLSTMCell",
    "__version__",
    "functional",
]
