"""The ConvLSTM over whole sequences of maps."""

from collections.abc import Sequence

from torch import Tensor

from fastlstm.call import Call, ConvCall, Padding, Sizes
from fastlstm.functional.conv_driver import convolutional, convolutional_step
from fastlstm.functional.driver import Weights
from fastlstm.sequences import Lengths

# A tensor for all layers, or where these have different channels, a list of one for each
Maps = Tensor | list[Tensor]
ConvLSTMState = tuple[Maps, Maps]
ConvLSTMResult = tuple[Maps, ConvLSTMState] | tuple[Maps, ConvLSTMState, Maps]


def conv_lstm(
    input: Tensor | None,
    weights: Weights,
    hx: ConvLSTMState | None = None,
    *,
    coupled: bool = False,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    padding: Padding = "same",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths = None,
    reset: Tensor | None = None,
    return_cells: bool = False,
    return_all_layers: bool = False,
    return_sequence: bool = True,
    steps: int | None = None,
    checkpoint: bool = False,
    backend: str = "auto",
) -> ConvLSTMResult:
    """The LSTM over maps (Shi et al. 2015, https://arxiv.org/abs/1506.04214), stacked and in one or two directions:
    `(output, (h_n, c_n))`.

    In each layer and direction, with `h', c'` of the step before, `∗` a convolution and `*` elementwise:

        i = σ(W_ii ∗ x + b_ii + W_hi ∗ h' + b_hi + p_i * c')      f alike      g = tanh(W_ig ∗ x + b_ig + W_hg ∗ h' + b_hg)
        c = f * c' + i * g      o = σ(W_io ∗ x + b_io + W_ho ∗ h' + b_ho + p_o * c)      h = o * tanh(c)

    Sizes: T time, B batch, C channels, S the input's image (1 to 3 dimensions), S' the output's, k a kernel, H hidden channels,
    L layers, D directions.

    input: (T, B, C, *S), or (B, T, C, *S) with `batch_first`, or one unbatched sequence (T, C, *S); None to forecast `steps`.
    weights: an entry per layer and direction: `w_ih` (4H, C, *k; D * H of the layer below in the place of C above the first),
        `w_hh` (4H, H, *k), then `b_ih` and `b_hh` (4H) or neither, then `w_peephole` (3, H, 1, ...), a weight per channel, or
        (3, H, *S'), one per channel and pixel, or not. Gate order i, f, g, o; of peepholes i, f, o. With `coupled`, f = 1 - i:
        three gates i, g, o, and two peepholes i, o.
    hx: `h0` and `c0` (L * D, B, H, *S'), without B where the input is unbatched; where layers have different H, two lists of L
        tensors (D, B, H, *S'). Zeros where None.
    stride, dilation: an int, or one per dimension; padding: "same", "valid", an int, or a tuple of ints or of (before, after).
        All are those of the first layer's input convolution, as in `torch.nn.Conv2d`; the others keep the image. "same" pads
        half before, and of an odd number the extra at the end, as PyTorch does; it gives S' = ceil(S / stride).
    dropout: the probability that an element of an output between two layers is zeroed, in `training` only.
    lengths, reset: as in `fastlstm.functional.lstm`: whole maps end, and are cut.
    return_cells: the result ends with `cells`, c of every step, in the layout of `output`.
    return_all_layers: `output`, and `cells`, are lists of L.
    return_sequence: False gives the last step alone, (B, D * H, *S'): each sequence's own, and of the reverse direction that
        after step 0; the state where a length is 0. Of the last layer, the others are not even made.
    steps: with `input=None`, how many steps to go on from `hx` as if zeros were fed: biases act, nothing is convolved.
    checkpoint: gates are not kept for the backward, but computed again there, some steps at a time: less memory where there
        are many (of about 10 it may be more), and more time. It is for the kernels; the reference keeps what it keeps.
    backend: "auto", or the name of the one that must run; `fastlstm info` tells which there are.

    `output` is (T, B, D * H, *S') in the layout of `input`; `h_n` and `c_n` have the shapes of `h0` and `c0`. Where
    `input.flatten(0, 1)` is channels_last (channels_last_3d) and not contiguous too, so are these; else they are contiguous.
    Raises TypeError, ValueError or RuntimeError for bad arguments.

    >>> import torch
    >>> w_ih, w_hh = torch.randn(8, 3, 5, 5), torch.randn(8, 2, 3, 3)
    >>> output, (h_n, c_n) = conv_lstm(torch.randn(6, 4, 3, 16, 20), [(w_ih, w_hh)], stride=2)
    >>> output.shape, h_n.shape
    (torch.Size([6, 4, 2, 8, 10]), torch.Size([1, 4, 2, 8, 10]))
    """
    call = Call(
        bidirectional=bidirectional, batch_first=batch_first, dropout=dropout, training=training, lengths=lengths,
        reset=reset, return_cells=return_cells, backend=backend,
    )  # fmt: skip
    conv = ConvCall(coupled, stride, dilation, padding, return_all_layers, return_sequence, steps, checkpoint)
    return convolutional(input, weights, hx, call, conv)


def conv_lstm_cell(
    input: Tensor,
    weights: Sequence[Tensor],
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    coupled: bool = False,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    padding: Padding = "same",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `conv_lstm`, of one layer: `(h, c)`, each (B, H, *S').

    `input` (B, C, *S), `weights` an entry of those of `conv_lstm`, `hx` a pair (B, H, *S') or None for zeros; all without B
    where the input is unbatched.

    >>> import torch
    >>> h, c = conv_lstm_cell(torch.randn(4, 3, 16, 20), (torch.randn(8, 3, 5, 5), torch.randn(8, 2, 3, 3)))
    >>> h.shape
    torch.Size([4, 2, 16, 20])
    """
    return convolutional_step(input, weights, hx, ConvCall(coupled, stride, dilation, padding), backend)
