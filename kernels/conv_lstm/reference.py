"""The ConvLSTM written from its equations in plain PyTorch: any dtype, any device. It is the oracle of every other backend.

Source: Shi et al. (2015), https://arxiv.org/abs/1506.04214; coupled input and forget gates of Greff et al. (2017).
Gate order i, f, g, o; i, g, o where the gates are coupled. Maps are channels-last: a pixel is a row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d, pad

from fastlstm.kernels.reference import cuts, join_steps, time_steps

CONVOLUTIONS = (conv1d, conv2d, conv3d)


def conv_lstm_reference(
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_peephole: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    coupled: bool = False,
    fresh: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer, one direction: `(y, h_n, c_n, cells)`. Arguments and results are those of `fastlstm.ops.conv_lstm.conv_lstm`.

    `fresh` states are zeros, whose product is zero: nothing has to be known of it here.
    """
    steps, cut = time_steps(x, batch_sizes), cuts(reset, batch_sizes, reverse)
    ones, around = [1] * len(stride), [side for k in w_hh.shape[1:-1] for side in ((k - 1) // 2, k // 2)]
    fed: Sequence[Tensor] = []
    if steps and x.shape[-1]:
        fed = convolution(torch.cat(steps), w_ih, b_ih, stride, padding, dilation).split([len(x_t) for x_t in steps])
    elif steps:  # no input: its convolution is not there, its bias is
        bias = h0.new_zeros(w_ih.shape[0]) if b_ih is None else b_ih
        fed = [bias.expand(len(x_t), *h0.shape[1:-1], -1) for x_t in steps]
    h, c = h0, c0
    y, cells = [h0] * len(steps), [c0] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        n = len(steps[t])
        h_prev, c_prev = h[:n], c[:n]
        if cut is not None:
            cut_t = cut[t].reshape(n, *[1] * (h.dim() - 1))
            h_prev, c_prev = h_prev.masked_fill(cut_t, 0), c_prev.masked_fill(cut_t, 0)
        a = fed[t] + convolution(h_prev, w_hh, b_hh, ones, around, ones)
        if coupled:
            a_i, a_g, a_o = a.chunk(3, dim=-1)
        else:
            a_i, a_f, a_g, a_o = a.chunk(4, dim=-1)
        if w_peephole is not None:
            a_i = a_i + w_peephole[0] * c_prev
            if not coupled:
                a_f = a_f + w_peephole[1] * c_prev
        i = a_i.sigmoid()
        f = 1 - i if coupled else a_f.sigmoid()
        cells[t] = f * c_prev + i * a_g.tanh()
        if w_peephole is not None:
            a_o = a_o + w_peephole[-1] * cells[t]
        y[t] = a_o.sigmoid() * cells[t].tanh()
        h, c = torch.cat([y[t], h[n:]]), torch.cat([cells[t], c[n:]])
    return join_steps(y, x, batch_sizes, h0), h, c, join_steps(cells, x, batch_sizes, c0)


def convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """`x` (N, *S, C) with `w` (F, *k, C) to (N, *S', F); `padding` holds each dimension's before and after, in turn."""
    before_after = zip(padding[::2], padding[1::2], strict=True)
    backwards = [side for pair in reversed(list(before_after)) for side in pair]  # `pad` begins at the last dimension
    padded = pad(x.movedim(-1, 1), backwards)
    convolve = CONVOLUTIONS[len(stride) - 1]
    return convolve(padded, w.movedim(-1, 1), bias, tuple(stride), 0, tuple(dilation)).movedim(1, -1)
