"""The LSTM written from its equations in plain PyTorch: any dtype, any device. It is the oracle of every other backend.

Source: Hochreiter & Schmidhuber (1997), with the forget gate of Gers, Schmidhuber & Cummins (2000); projection of
Sak, Senior & Beaufays (2014). Gate order i, f, g, o, as in `torch.nn.LSTM`.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear


def lstm_reference(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, one direction. Arguments and results are those of `fastlstm.ops.lstm.lstm`."""
    steps = time_steps(x, batch_sizes)
    h, c = h0, c0
    y = [h0] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        n = len(steps[t])
        a = linear(steps[t], w_ih, b_ih) + linear(h[:n], w_hh, b_hh)
        i, f, g, o = a.chunk(4, dim=1)
        c_t = f.sigmoid() * c[:n] + i.sigmoid() * g.tanh()
        h_t = o.sigmoid() * c_t.tanh()
        y[t] = h_t if w_hr is None else linear(h_t, w_hr)
        h, c = torch.cat([y[t], h[n:]]), torch.cat([c_t, c[n:]])
    return join_steps(y, x, batch_sizes, h0), h, c


def time_steps(x: Tensor, batch_sizes: Tensor | None) -> list[Tensor]:
    """The valid rows of each step: `x` is dense (T, B, I), packed (N, I), or padded (T, B, I) with `batch_sizes`."""
    if batch_sizes is None:
        return list(x.unbind(0))
    if x.dim() == 2:
        return list(x.split(batch_sizes.tolist()))
    return [x_t[:n] for x_t, n in zip(x.unbind(0), batch_sizes.tolist(), strict=True)]


def join_steps(y: list[Tensor], x: Tensor, batch_sizes: Tensor | None, h0: Tensor) -> Tensor:
    """The outputs of all steps in the layout of `x`; rows that a padded step skipped are zero."""
    if not y:
        return h0.new_empty(*x.shape[:-1], h0.shape[1])
    if x.dim() == 2:
        return torch.cat(y)
    if batch_sizes is not None:
        y = [torch.cat([y_t, h0.new_zeros(x.shape[1] - len(y_t), h0.shape[1])]) for y_t in y]
    return torch.stack(y)
