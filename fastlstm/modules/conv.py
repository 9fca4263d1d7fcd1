"""The ConvLSTM in one to three dimensions."""

import math
import warnings
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm import checks
from fastlstm.backends import CONVOLUTIONAL, check_backend
from fastlstm.call import Call, ConvCall, Padding, Sizes
from fastlstm.functional import ConvLSTMResult, ConvLSTMState
from fastlstm.functional.conv_driver import convolutional
from fastlstm.kernels.conv_lstm import Geometry
from fastlstm.kernels.variant import PARAMETERS, Variant
from fastlstm.modules.base import Ours, own_repr, weights_of
from fastlstm.modules.forget_bias import add_forget_bias, check_forget_bias
from fastlstm.sequences import Lengths

Device = torch.device | str | int | None
SHOWN = {"stride": 1, "dilation": 1, "padding": "same", "peephole": None, "coupled": False, "spatial_size": None}


class Convolutional(Ours):
    """What the modules and the cells share: the options of a first layer, and parameters in PyTorch's names and order."""

    dims: int  # of an image
    variant: Variant
    _forget_bias = 0.0  # an instance has one where it isn't 0

    def __init__(
        self,
        in_channels: int,
        bias: bool,
        stride: Sizes,
        dilation: Sizes,
        padding: Padding,
        peephole: str | None,
        coupled: bool,
        spatial_size: Sizes | None,
        forget_bias: float,
        backend: str,
    ) -> None:
        super().__init__()
        check_backend(backend)
        checks.check_bool("bias", bias)
        checks.check_bool("coupled", coupled)
        if peephole not in (None, "channel", "hadamard"):
            raise ValueError(f"peephole is {peephole!r}, expected None, 'channel' or 'hadamard'")
        if spatial_size is not None:
            checks.per_dimension("spatial_size", spatial_size, self.dims)
        elif peephole == "hadamard":
            raise ValueError(
                "spatial_size is None, expected the size of the input's image: 'hadamard' peepholes have a weight for each "
                "pixel; peephole='channel' has one for each channel, for images of any size"
            )
        self.variant = CONVOLUTIONAL[("cifg_" if coupled else "") + ("peephole_" if peephole else "") + "conv_lstm"]
        check_forget_bias(self.variant, forget_bias, bias)
        if forget_bias != 0:
            self._forget_bias = float(forget_bias)
        self.in_channels = checks.positive("in_channels", in_channels)
        self.bias = bias
        self.stride, self.dilation, self.padding = stride, dilation, padding
        self.peephole, self.coupled, self.spatial_size = peephole, coupled, spatial_size
        self.backend = backend

    def _image(self, geometry: Geometry, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """What peepholes are to look at: S', or a pixel."""
        self._only: tuple[int, ...] | None = None  # S that is taken
        if self.peephole != "hadamard":
            return (1,) * self.dims
        self._only = checks.per_dimension("spatial_size", self.spatial_size, self.dims)
        return checks.check_image(self._only, geometry, kernel, "spatial_size")

    def _make(
        self, suffix: str, C: int, H: int, kernel: tuple[int, ...], image: tuple[int, ...], device: Device, dtype: Any
    ) -> list[str]:
        """The parameters of a layer in one direction; their names."""
        checks.check_dtype(dtype)
        shapes = self.variant.weights(C, H, bias=self.bias)
        wide = {"w_ih": kernel, "w_hh": kernel, "w_peephole": image}
        names = []
        for name, shape in shapes.items():
            names.append(PARAMETERS[name] + suffix)
            shape = (*shape, *wide.get(name, ()))
            setattr(self, names[-1], nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        return names

    def _reset(self, names: list[str], H: int, kernel: tuple[int, ...]) -> None:
        bound = 1 / math.sqrt(H * math.prod(kernel))
        for name in names:
            nn.init.uniform_(getattr(self, name), -bound, bound)
        biases = [name for name in names if name.startswith(PARAMETERS["b_ih"])]
        add_forget_bias(self, self.variant, biases, self._forget_bias)

    def _own_repr(self) -> str:
        shown = {name: getattr(self, name) for name, usual in SHOWN.items() if getattr(self, name) != usual}
        return "".join(f", {name}={value!r}" for name, value in shown.items()) + own_repr(
            self._forget_bias, self.backend
        )


class ConvLSTM(Convolutional):
    """What `ConvLSTM1d`, `ConvLSTM2d` and `ConvLSTM3d` share."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int | list[int],
        kernel_size: Sizes | list[Sizes],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        padding: Padding = "same",
        peephole: str | None = None,
        coupled: bool = False,
        spatial_size: Sizes | None = None,
        checkpoint: bool = False,
        forget_bias: float = 0.0,
        backend: str = "auto",
    ) -> None:
        options = (stride, dilation, padding, peephole, coupled, spatial_size, forget_bias, backend)
        super().__init__(in_channels, bias, *options)
        checks.check_dropout(dropout)
        for name, value in (("batch_first", batch_first), ("bidirectional", bidirectional), ("checkpoint", checkpoint)):
            checks.check_bool(name, value)
        self.num_layers = checks.positive("num_layers", num_layers)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers "
                f"greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        self.hidden_channels, self.kernel_size = copy(hidden_channels), copy(kernel_size)  # lists are the caller's
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional
        self.checkpoint = checkpoint
        self._hidden = [checks.positive("hidden_channels", H) for H in self._per_layer("hidden_channels")]
        self._kernels = [checks.per_dimension("kernel_size", k, self.dims) for k in self._per_layer("kernel_size")]
        image = self._image(checks.check_geometry(stride, padding, dilation, self._kernels[0]), self._kernels[0])
        self._all_weights: list[list[str]] = []
        C, D = in_channels, 2 if bidirectional else 1
        for layer, (H, kernel) in enumerate(zip(self._hidden, self._kernels, strict=True)):
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:D]:
                self._all_weights.append(self._make(suffix, C, H, kernel, image, device, dtype))
            C = D * H
        self.reset_parameters()

    def _per_layer(self, name: str) -> list[Any]:
        value = getattr(self, name)
        if not isinstance(value, list):
            if isinstance(value, tuple) and name == "hidden_channels":
                raise TypeError(f"{name} is {value}, expected an int, or a list with one for each of num_layers")
            return [value] * self.num_layers
        if len(value) != self.num_layers:
            raise ValueError(
                f"{name} is {value}, a list of {len(value)}, expected one of {self.num_layers}: an entry for each of "
                "num_layers" + ("; a tuple has a number for each dimension" if name == "kernel_size" else "")
            )
        return value

    def reset_parameters(self) -> None:
        """All weights anew, uniform within 1 / sqrt(hidden channels * pixels of the kernel)."""
        D = 2 if self.bidirectional else 1
        for k, names in enumerate(self._all_weights):
            self._reset(names, self._hidden[k // D], self._kernels[k // D])

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """An entry for each layer and direction, as `fastlstm.functional.conv_lstm` takes them."""
        return [weights_of(self, names) for names in self._all_weights]

    def forward(
        self,
        input: Tensor | None,
        hx: ConvLSTMState | None = None,
        *,
        lengths: Lengths = None,
        reset: Tensor | None = None,
        return_cells: bool = False,
        return_all_layers: bool = False,
        return_sequence: bool = True,
        steps: int | None = None,
    ) -> ConvLSTMResult:
        call = Call(
            self.bidirectional,
            self.batch_first,
            self.dropout,
            self.training,
            lengths,
            reset,
            return_cells,
            self.backend,
        )
        conv = ConvCall(
            self.coupled,
            self.stride,
            self.dilation,
            self.padding,
            return_all_layers,
            return_sequence,
            steps,
            self.checkpoint,
            self._only,
        )
        return convolutional(input, self.all_weights, hx, call, conv)

    def extra_repr(self) -> str:
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        shown = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        shown |= {"checkpoint": True} if self.checkpoint else {}
        more = "".join(f", {name}={value!r}" for name, value in shown.items())
        return f"{self.in_channels}, {self.hidden_channels}, kernel_size={self.kernel_size}{more}{self._own_repr()}"


class ConvLSTM1d(ConvLSTM):
    """The LSTM over maps of one dimension, (T, B, C, L): as `ConvLSTM2d`.

    >>> lstm = ConvLSTM1d(3, 8, kernel_size=5)
    >>> lstm(torch.randn(7, 2, 3, 40))[0].shape
    torch.Size([7, 2, 8, 40])
    """

    dims = 1


class ConvLSTM2d(ConvLSTM):
    """The LSTM over maps (Shi et al. 2015, https://arxiv.org/abs/1506.04214): gates come of convolutions, pixel by pixel.

        i = σ(W_ii ∗ x + b_ii + W_hi ∗ h' + b_hi + p_i * c')      f alike      g = tanh(W_ig ∗ x + b_ig + W_hg ∗ h' + b_hg)
        c = f * c' + i * g      o = σ(W_io ∗ x + b_io + W_ho ∗ h' + b_ho + p_o * c)      h = o * tanh(c)

    Sizes: T time, B batch, C channels, S the input's image, S' the output's, H hidden channels, L layers, D directions.

    `hidden_channels` is an int, or a list with one for each layer. `kernel_size` is an int, a tuple with one for each
    dimension, or a list with one of these for each layer. `stride`, `dilation` and `padding` ("same", "valid", an int, or a
    tuple with an int or a pair (before, after) for each dimension) are those of the first layer's input convolution; the
    recurrent one keeps the image. "same" pads the extra of an even kernel at the end, as PyTorch does, and gives
    S' = ceil(S / stride).
    `peephole`: None; "channel", a weight per channel; or "hadamard", as in the paper, one per channel and pixel, for which
    `spatial_size`, S, must be given, and no other will do. `coupled`: f = 1 - i, as in `CIFGLSTM`.
    `checkpoint`: gates are not kept for the backward, but computed again there: more time, and over many steps less memory.
    `dropout`, between layers, zeroes elements. `forget_bias` is that of `LSTM`, or of `CIFGLSTM` with `coupled`. `backend` is
    "auto" or the name of the one that must run.

    Parameters: `weight_ih_l{k}` (4H, C, *kernel), `weight_hh_l{k}` (4H, H, *kernel), `bias_ih_l{k}`, `bias_hh_l{k}` (4H), with
    `_reverse` for the other direction; gate order i, f, g, o. `weight_peephole_l{k}` (3, H, 1, ...) or (3, H, *S'), in the
    order i, f, o. With `coupled` three gates i, g, o, and two peepholes i, o. All start uniform within
    1 / sqrt(H * prod(kernel)), but for `forget_bias`.

    `forward(input, hx=None)`: `input` (T, B, C, *S), (B, T, C, *S) with `batch_first`, or (T, C, *S); `hx` a pair
    (L * D, B, H, *S') or None for zeros. It gives `output` (T, B, D * H, *S') and `(h_n, c_n)` like `hx`; where layers differ
    in H, each state is a list of L tensors (D, B, H, *S'), given and returned. By keyword only: `lengths` (B,) and `reset`
    (T, B), as in `LSTM`; `return_cells`; `return_all_layers`; `return_sequence=False` for the last step alone; and `steps=K`
    with `input=None`, which forecasts from `hx`. Everything is described under `fastlstm.functional.conv_lstm`.

    >>> lstm = ConvLSTM2d(1, [16, 8], kernel_size=[5, (3, 1)], num_layers=2, peephole="channel")
    >>> output, (h_n, c_n) = lstm(torch.randn(7, 2, 1, 20, 30))
    >>> output.shape, [h.shape for h in h_n]
    (torch.Size([7, 2, 8, 20, 30]), [torch.Size([1, 2, 16, 20, 30]), torch.Size([1, 2, 8, 20, 30])])
    >>> lstm(None, (h_n, c_n), steps=3)[0].shape
    torch.Size([3, 2, 8, 20, 30])
    """

    dims = 2


class ConvLSTM3d(ConvLSTM):
    """The LSTM over maps of three dimensions, (T, B, C, D, H, W): as `ConvLSTM2d`.

    >>> lstm = ConvLSTM3d(1, 4, kernel_size=3, stride=2)
    >>> lstm(torch.randn(5, 2, 1, 8, 9, 10))[0].shape
    torch.Size([5, 2, 4, 4, 5, 5])
    """

    dims = 3
