"""The ConvLSTM: equations, geometry and derivation in README.md, oracle in reference.py; its gate math is the LSTM family's."""

from collections.abc import Sequence
from typing import NamedTuple

from fastlstm.kernels.variant import Variant

CONV_LSTM = Variant("conv_lstm", "conv_lstm", "ifgo", ("h", "c"))
PEEPHOLE_CONV_LSTM = Variant("peephole_conv_lstm", "conv_lstm", "ifgo", ("h", "c"), peepholes="ifo")
CIFG_CONV_LSTM = Variant("cifg_conv_lstm", "conv_lstm", "igo", ("h", "c"))
CIFG_PEEPHOLE_CONV_LSTM = Variant("cifg_peephole_conv_lstm", "conv_lstm", "igo", ("h", "c"), peepholes="io")


class Geometry(NamedTuple):
    """The convolution of a layer's input: an int per dimension; of padding one before and one after, in turn."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def image(self, S: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """S', the size of what comes out of an image of size `S`; a size below 1 means that nothing does."""
        sizes = []
        for d, (size, k) in enumerate(zip(S, kernel, strict=True)):
            padded = size + self.padding[2 * d] + self.padding[2 * d + 1]
            sizes.append((padded - self.dilation[d] * (k - 1) - 1) // self.stride[d] + 1)
        return tuple(sizes)


def same(kernel: Sequence[int], dilation: Sequence[int] | None = None) -> tuple[int, ...]:
    """The padding that PyTorch calls "same": half of it before, and of an odd one the extra at the end."""
    widths = [d * (k - 1) for k, d in zip(kernel, dilation or (1,) * len(kernel), strict=True)]
    return tuple([side for width in widths for side in (width // 2, width - width // 2)])


def unmoved(kernel: Sequence[int]) -> Geometry:
    """That of every layer above the first, and of the recurrent convolution: S' is S."""
    return Geometry((1,) * len(kernel), same(kernel), (1,) * len(kernel))
