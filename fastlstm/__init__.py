"""Fast recurrent networks in PyTorch."""

from fastlstm import functional
from fastlstm.modules import LSTM
from fastlstm.version import __version__

__all__ = ["LSTM", "__version__", "functional"]
