"""The options of one use of a stack, as one value: from the public functions down to whatever runs it."""

from typing import NamedTuple

from torch import Tensor

from fastlstm.kernels.attention_lstm import Attention
from fastlstm.sequences import Lengths


class Call(NamedTuple):
    """The options that `fastlstm.functional.lstm` describes. (Made at every call, which a dataclass would take longer for.)"""

    bidirectional: bool = False
    batch_first: bool = False
    dropout: float = 0.0
    training: bool = False
    lengths: Lengths = None
    reset: Tensor | None = None
    return_cells: bool = False
    backend: str = "auto"

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def drop(self) -> float:
        """The dropout that is to be done."""
        return self.dropout if self.training else 0.0

    @property
    def beyond_torch(self) -> bool:
        """Whether something is asked for that PyTorch's own ops don't do."""
        return self.reset is not None or self.return_cells


Sizes = int | tuple[int, ...]
Padding = str | int | tuple[int, ...] | tuple[tuple[int, int], ...]


class ConvCall(NamedTuple):
    """The options beyond those of `Call` that `fastlstm.functional.conv_lstm` describes."""

    coupled: bool = False
    stride: Sizes = 1
    dilation: Sizes = 1
    padding: Padding = "same"
    return_all_layers: bool = False
    return_sequence: bool = True
    steps: int | None = None
    checkpoint: bool = False
    spatial_size: tuple[int, ...] | None = None  # of a module with "hadamard" peepholes: the only S


class AttentionCall(NamedTuple):
    """The options beyond those of `Call` that `fastlstm.functional.attention_lstm` describes."""

    attention: Attention = Attention()
    query_layer: int = -1
    coupled: bool = False
    output_dropout: float = 0.0
    need_weights: bool = False
