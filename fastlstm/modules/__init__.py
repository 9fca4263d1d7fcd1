"""The `nn.Module`s."""

from fastlstm.modules.cells import CIFGLSTMCell, GRUCell, LSTMCell, PeepholeLSTMCell
from fastlstm.modules.recurrent import CIFGLSTM, GRU, LSTM, PeepholeLSTM, build

__all__ = [
    "CIFGLSTM",
    "GRU",
    "LSTM",
    "CIFGLSTMCell",
    "GRUCell",
    "LSTMCell",
    "PeepholeLSTM",
    "PeepholeLSTMCell",
    "build",
]
