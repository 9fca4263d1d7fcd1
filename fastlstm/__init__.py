"""Fast recurrent networks in PyTorch."""

from fastlstm.version import __version__

__all__ = ["__version__"]
