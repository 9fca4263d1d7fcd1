"""The LSTM family written from its equations in plain PyTorch: any dtype, any device. It is the oracle of every other backend.

Sources: Hochreiter & Schmidhuber (1997), with the forget gate of Gers, Schmidhuber & Cummins (2000); peepholes of Gers &
Schmidhuber (2000), where o looks at the new cell; coupled input and forget gates of Greff et al. (2017); projection of
Sak, Senior & Beaufays (2014). Gate order i, f, g, o as in `torch.nn.LSTM`; i, g, o where the gates are coupled.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastlstm.kernels.reference import cuts, join_steps, time_steps


def lstm_reference(
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    w_peephole: Tensor | None = None,
    coupled: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer, one direction: `(y, h_n, c_n, cells)`. Arguments and results are those of `fastlstm.ops.lstm.lstm`."""
    steps, cut = time_steps(x, batch_sizes), cuts(reset, batch_sizes, reverse)
    h, c = h0, c0
    y, cells = [h0] * len(steps), [c0] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        n = len(steps[t])
        h_prev, c_prev = h[:n], c[:n]
        if cut is not None:
            h_prev, c_prev = h_prev.masked_fill(cut[t], 0), c_prev.masked_fill(cut[t], 0)
        a = linear(steps[t], w_ih, b_ih) + linear(h_prev, w_hh, b_hh)
        if coupled:
            a_i, a_g, a_o = a.chunk(3, dim=1)
        else:
            a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
        if w_peephole is not None:
            a_i = a_i + w_peephole[0] * c_prev
            if not coupled:
                a_f = a_f + w_peephole[1] * c_prev
        i = a_i.sigmoid()
        f = 1 - i if coupled else a_f.sigmoid()
        cells[t] = f * c_prev + i * a_g.tanh()
        if w_peephole is not None:
            a_o = a_o + w_peephole[-1] * cells[t]
        m = a_o.sigmoid() * cells[t].tanh()
        y[t] = m if w_hr is None else linear(m, w_hr)
        h, c = torch.cat([y[t], h[n:]]), torch.cat([cells[t], c[n:]])
    return join_steps(y, x, batch_sizes, h0), h, c, join_steps(cells, x, batch_sizes, c0)
