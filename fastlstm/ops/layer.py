"""One layer of any variant in one direction: which op runs it, and which weights that takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm.kernels.variant import Variant
from fastlstm.ops import gru, lstm, program


def layer(
    variant: Variant,
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    states: Sequence[Tensor],
    weights: Mapping[str, Any],
    reverse: bool = False,
    return_cells: bool = False,
    *,
    backend: str,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What each step yields, y and then cells if `return_cells`; and the final states.

    Layouts are those of `fastlstm.ops.lstm.lstm`; `states` are in the order of the variant's, `weights` by its names.
    """
    given = weights.get
    w_ih, w_hh, b_ih, b_hh = weights["w_ih"], weights["w_hh"], given("b_ih"), given("b_hh")
    in_program = backend != "reference" and program.is_made()
    if variant.op == "gru":
        (h0,) = states
        if in_program:
            y, h_n = torch.ops.fastlstm.gru_layer(x, batch_sizes, reset, h0, w_ih, w_hh, b_ih, b_hh, reverse)
            return (y,), (h_n,)
        y, h_n = gru.gru(x, batch_sizes, reset, h0, w_ih, w_hh, b_ih, b_hh, reverse=reverse, backend=backend)
        return (y,), (h_n,)
    h0, c0 = states
    if in_program:
        y, h_n, c_n, cells = torch.ops.fastlstm.lstm_layer(
            x, batch_sizes, reset, h0, c0, w_ih, w_hh, b_ih, b_hh, given("w_hr"), given("w_peephole"),
            variant.coupled, reverse, return_cells,
        )  # fmt: skip
        return ((y, cells) if return_cells else (y,)), (h_n, c_n)
    y, h_n, c_n, cells = lstm.lstm(
        x, batch_sizes, reset, h0, c0, w_ih, w_hh, b_ih, b_hh, given("w_hr"), given("w_peephole"),
        coupled=variant.coupled, reverse=reverse, return_cells=return_cells, backend=backend,
    )  # fmt: skip
    return ((y, cells) if return_cells else (y,)), (h_n, c_n)
