"""The cells of the ConvLSTM: one step, for loops of one's own."""

import torch
from torch import Tensor

from fastlstm import checks
from fastlstm.call import ConvCall, Padding, Sizes
from fastlstm.functional.conv_driver import convolutional_step
from fastlstm.modules.base import weights_of
from fastlstm.modules.conv import Convolutional, Device


class ConvLSTMCell(Convolutional):
    """What `ConvLSTM1dCell`, `ConvLSTM2dCell` and `ConvLSTM3dCell` share."""

    weight_peephole: Tensor | None

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Sizes,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        padding: Padding = "same",
        peephole: str | None = None,
        coupled: bool = False,
        spatial_size: Sizes | None = None,
        forget_bias: float = 0.0,
        backend: str = "auto",
    ) -> None:
        options = (stride, dilation, padding, peephole, coupled, spatial_size, forget_bias, backend)
        super().__init__(in_channels, bias, *options)
        self.hidden_channels = checks.positive("hidden_channels", hidden_channels)
        self.kernel_size = kernel_size
        self._kernel = checks.per_dimension("kernel_size", kernel_size, self.dims)
        image = self._image(checks.check_geometry(stride, padding, dilation, self._kernel), self._kernel)
        self._names = self._make("", in_channels, hidden_channels, self._kernel, image, device, dtype)
        for name in ("bias_ih", "bias_hh", "weight_peephole"):
            if name not in self._names:
                self.register_parameter(name, None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All weights anew, uniform within 1 / sqrt(hidden channels * pixels of the kernel)."""
        self._reset(self._names, self.hidden_channels, self._kernel)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        conv = ConvCall(self.coupled, self.stride, self.dilation, self.padding, spatial_size=self._only)
        return convolutional_step(input, weights_of(self, self._names), hx, conv, self.backend)

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"{self.in_channels}, {self.hidden_channels}, kernel_size={self.kernel_size}{bias}{self._own_repr()}"


class ConvLSTM1dCell(ConvLSTMCell):
    """One step of `ConvLSTM1d`: as `ConvLSTM2dCell`, of maps (B, C, L)."""

    dims = 1


class ConvLSTM2dCell(ConvLSTMCell):
    """One step of `ConvLSTM2d`: `(h, c)`, each (B, H, *S'), from `input` (B, C, *S) and `hx`, a pair like them or None.

    None stands for zeros. Unbatched input (C, *S) takes and gives states (H, *S'). Options are those of `ConvLSTM2d`;
    parameters are `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh` and `weight_peephole`, None where there is none.

    >>> cell = ConvLSTM2dCell(1, 8, kernel_size=3)
    >>> h, c = cell(torch.randn(2, 1, 20, 30))
    >>> h.shape
    torch.Size([2, 8, 20, 30])
    """

    dims = 2


class ConvLSTM3dCell(ConvLSTMCell):
    """One step of `ConvLSTM3d`: as `ConvLSTM2dCell`, of maps (B, C, D, H, W)."""

    dims = 3
