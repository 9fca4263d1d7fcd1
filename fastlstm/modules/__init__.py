"""The `nn.Module`s."""

from fastlstm.modules.attention import AttentionLSTM
from fastlstm.modules.cells import CIFGLSTMCell, GRUCell, LSTMCell, PeepholeLSTMCell
from fastlstm.modules.conv import ConvLSTM1d, ConvLSTM2d, ConvLSTM3d
from fastlstm.modules.conv_cells import ConvLSTM1dCell, ConvLSTM2dCell, ConvLSTM3dCell
from fastlstm.modules.pooling import AttentionPooling
from fastlstm.modules.recurrent import CIFGLSTM, GRU, LSTM, PeepholeLSTM, build
from fastlstm.modules.seq2seq import Seq2Seq

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
    "build",
]
