"""The GRU written from its equations in plain PyTorch: any dtype, any device. It is the oracle of every other backend.

Source: Cho et al. (2014), in the form of `torch.nn.GRU`: the reset gate acts on W_hn h' + b_hn. Gate order r, z, n.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastlstm.kernels.reference import cuts, join_steps, time_steps


def gru_reference(
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    h0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """One layer, one direction: `(y, h_n)`. Arguments and results are those of `fastlstm.ops.gru.gru`."""
    steps, cut = time_steps(x, batch_sizes), cuts(reset, batch_sizes, reverse)
    # One product for all steps, as PyTorch's: its bias' gradient is one sum, which rounds less than a sum of sums
    steps = linear(torch.cat(steps), w_ih, b_ih).split([len(x_t) for x_t in steps]) if steps else []
    h = h0
    y = [h0] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        n_rows = len(steps[t])
        h_prev = h[:n_rows] if cut is None else h[:n_rows].masked_fill(cut[t], 0)
        x_r, x_z, x_n = steps[t].chunk(3, dim=1)
        h_r, h_z, h_n = linear(h_prev, w_hh, b_hh).chunk(3, dim=1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * h_n).tanh()
        y[t] = (1 - z) * n + z * h_prev
        h = torch.cat([y[t], h[n_rows:]])
    return join_steps(y, x, batch_sizes, h0), h
