"""The GRU's ops on a GPU: `fastlstm::gru_fwd` and `gru_bwd`, one layer and direction."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastlstm.gpu.arrays import (
    Block,
    aligned,
    bias_gradient,
    contiguous,
    nothing,
    on_gpu,
    or_zeros,
    present,
    recurrent_gradient,
)
from fastlstm.gpu.loop import Given, Loop
from fastlstm.gpu.rows import Rows


@on_gpu
def gru_fwd(
    x: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, h0: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_ih: Tensor | None, b_hh: Tensor | None, reverse: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`(y, h_n, saved)`; arguments are those of `fastlstm.ops.gru.gru`."""
    B, H = h0.shape
    rows = Rows(x, batch_sizes, reset, B, reverse)
    block = known_block(rows.N, x.dtype, H, save)
    saved = block.new(x, zero=False)
    gates, hn, h = block.split(saved)
    torch.mm(x.reshape(rows.N, x.shape[-1]), w_ih.t(), out=gates)
    y, loop, final = rows.new(H, x), Loop(rows, x.dtype, alone=True), rows.steps is None
    # where all sequences end at the last step its h is written to both
    h_n = h0.new_empty(B, H) if final else None
    given: Given = {
        "gates": gates, "hn": hn, "y": y, "h0": aligned(h0), "h_n": h_n, "h_state": None, "w": aligned(w_hh),
        "b_ih": contiguous(b_ih), "b_hh": contiguous(b_hh),
    }  # fmt: skip
    flags = {"BIAS_IH": b_ih is not None, "BIAS_HH": b_hh is not None, "SAVE": save, "FINAL": final}
    loop.add("gru_forward", H, H, 4, given, flags)
    loop.run()
    if loop.empty:
        h_n = h0.clone()
    if save:
        h.copy_(y.view(h.shape))  # what is returned is the caller's, who may edit it
    return y, rows.take("last", y, h0) if h_n is None else h_n, saved if save else nothing(saved)


@on_gpu
def gru_bwd(
    dy: Tensor | None, dh_n: Tensor | None, x: Tensor, batch_sizes: Tensor | None, reset: Tensor | None,
    h0: Tensor, w_ih: Tensor, w_hh: Tensor, saved: Tensor,
    reverse: bool, need_dx: bool, need_dw: bool, need_dh: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`(dx, dh0, dw_ih, dw_hh, db_ih, db_hh)`, empty where not needed.

    `dgates` holds n, r, z and the share of n that r acts on: its first three are the gradients of W_ih x, its last of W_hh h.
    """
    B, H = h0.shape
    rows = Rows(x, batch_sizes, reset, B, reverse)
    gates, hn, h = known_block(rows.N, x.dtype, H, True).split(saved)
    dgates, through = rows.new(4 * H, x), torch.empty(B, H, dtype=torch.float32, device=x.device)
    loop = Loop(rows, x.dtype, alone=True)
    upstream = [None if d is None else aligned(d) for d in (dy, dh_n)]
    given: Given = {
        "dgates": dgates, "gates": gates, "hn": hn, "y": h, "h0": aligned(h0), "through": through,
        "w": aligned(w_hh.t()), **present(dgates, dy=upstream[0], dh_n=upstream[1]),
    }  # fmt: skip
    loop.add("gru_backward", H, 3 * H, 1, given, {})
    loop.run()
    if loop.empty:
        through = or_zeros(dh_n, h0)

    dgates = dgates.view(rows.N, 4 * H)
    of_input, of_hidden = dgates[:, : 3 * H], dgates[:, H:]
    dx = (of_input @ w_ih.roll(H, 0)).view(x.shape) if need_dx else nothing(x)
    if need_dh:  # through W_hh and, which for a sequence of length 0 is all, through z
        dh0 = (rows.to_initial(of_hidden, lambda first: first @ w_hh, None) + through).to(x.dtype)
    else:
        dh0 = nothing(x)
    if not need_dw:
        return dx, dh0, *(nothing(x) for _ in range(4))
    db = bias_gradient(dgates)
    return (
        dx,
        dh0,
        (of_input.t() @ rows.owned(x)).roll(-H, 0),
        recurrent_gradient(of_hidden, rows, h, h0),
        db[: 3 * H].roll(-H),
        db[H:].clone(),
    )


def saved_like(x: Tensor, H: int, save: bool) -> Tensor:
    """An empty tensor like the one that a forward saves for its backward; sizes may be symbolic."""
    block = saved_block(math.prod(x.shape[:-1]), x.dtype, H, True)
    return x.new_empty(block.size if save else 0, dtype=torch.uint8)


def saved_block(N: int, dtype: torch.dtype, H: int, save: bool) -> Block:
    """What the forward saves, by the columns of each: the activated gates, what r acts on, and h."""
    return Block(N, [3 * H, H * save, H * save], [dtype, dtype, dtype])


known_block = lru_cache(maxsize=1024)(saved_block)  # of sizes that are numbers
