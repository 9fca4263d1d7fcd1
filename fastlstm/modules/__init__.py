"""The `nn.Module`s."""

from fastlstm.modules.recurrent import LSTM

__all__ = ["LSTM"]
