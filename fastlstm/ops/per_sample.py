"""The gradients of weights for each element that was mapped, as differential privacy and influence functions want them.

All elements have gone through the forward as rows of one batch, and one backward gives the gradients dG of all gates; what
is left are products of dG with x and h over each element's rows: a batched product. W_ih's place is taken by ones on the
diagonal, of which dx is dG itself. What is returned can't be differentiated: only calls without a graph come here.

Each function takes an op pair and the batch, and returns gradients by their names, elements first; None where it can't.
"""

from typing import Any

import torch
from torch import Tensor

from fastlstm.gpu.rows import Rows
from fastlstm.ops.vmap import Folded


def lstm(ops: Any, batch: Folded) -> dict[str, Tensor] | None:
    given = dict(zip(ops.arguments, batch.arguments(ops.arguments), strict=True))
    if given["w_hr"] is not None:
        return None
    peephole = given["w_peephole"]
    y, _, _, cells, _ = forward(ops, given | {"return_cells": peephole is not None})
    dgates, dh0, dc0, *_ = gate_gradients(ops, given)
    rows = Rows(given["x"], given["batch_sizes"], given["reset"], len(given["h0"]), given["reverse"])
    found = weight_gradients(given, batch, rows, dgates, dgates, y)
    found["db"] = total(by_element(batch, dgates))
    found["dw_hr"] = found["dw_peephole"] = given["x"].new_empty(batch.N, 0)
    if peephole is not None:
        dG = dgates.unflatten(-1, (-1, cells.shape[-1]))
        before = rows.before(cells.view(rows.N, -1), given["c0"]).view(cells.shape)
        seen = [before] * (len(peephole) - 1) + [cells]
        gates = [*range(len(peephole) - 1), dG.shape[-2] - 1]  # i, f where there is one, and o
        products = [dG[..., k, :] * c for k, c in zip(gates, seen, strict=True)]
        found["dw_peephole"] = torch.stack([total(by_element(batch, p)) for p in products], 1)
    return found | of_rows(batch, {"dh0": dh0, "dc0": dc0})


def gru(ops: Any, batch: Folded) -> dict[str, Tensor]:
    given = dict(zip(ops.arguments, batch.arguments(ops.arguments), strict=True))
    y, *_ = forward(ops, given)
    dgates, dh0, *_ = gate_gradients(ops, given)  # of r, z and W_in x
    rows, H = Rows(given["x"], given["batch_sizes"], given["reset"], len(given["h0"]), given["reverse"]), y.shape[-1]
    # r acts on W_hn h: it is found again
    before = rows.before(y.view(rows.N, H), given["h0"]).view(y.shape)
    a = torch.nn.functional.linear(given["x"], given["w_ih"][:H]) + torch.nn.functional.linear(
        before, given["w_hh"][:H]
    )
    for name in ("b_ih", "b_hh"):
        a = a if given[name] is None else a + given[name][:H]
    of_hidden = torch.cat([dgates[..., : 2 * H], dgates[..., 2 * H :] * a.sigmoid()], -1)
    found = weight_gradients(given, batch, rows, dgates, of_hidden, y)
    found["db_ih"], found["db_hh"] = total(by_element(batch, dgates)), total(by_element(batch, of_hidden))
    return found | of_rows(batch, {"dh0": dh0})


def forward(ops: Any, given: dict[str, Any]) -> tuple[Tensor, ...]:
    """The results of all rows again: the backward is not given them, since a caller may have edited them."""
    return ops.fwd(*[given.get(name) for name in ops.inputs], False)


def gate_gradients(ops: Any, given: dict[str, Any]) -> tuple[Tensor, ...]:
    """dG of all rows, zeros where there is no step, and the gradients of the initial states."""
    x, G = given["x"], len(given["w_ih"])
    changed = {"x": x.new_empty(*x.shape[:-1], G), "w_ih": torch.eye(G).to(x), "need_dx": True, "need_dw": False}
    return ops.bwd(*[(given | changed)[name] for name in ops.bwd_inputs])


def weight_gradients(
    given: dict[str, Any], batch: Folded, rows: Rows, of_input: Tensor, of_hidden: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """Those of W_ih, W_hh and x from dG, which of a GRU differs for the two."""
    x = rows.owned(given["x"]).view(given["x"].shape)
    before = rows.before(y.view(rows.N, -1), given["h0"]).view(y.shape)
    dx = of_input @ given["w_ih"] if given["need_dx"] else x.new_empty(0)
    return {
        **of_rows(batch, {"dx": dx}),
        "dw_ih": by_element(batch, of_input).mT @ by_element(batch, x),
        "dw_hh": by_element(batch, of_hidden).mT @ by_element(batch, before),
    }


def of_rows(batch: Folded, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of what has rows, elements first; empty ones, which are not needed, of each element."""
    found = {name: batch.unfold(name, d) for name, d in gradients.items()}
    return {name: d.new_empty(batch.N, 0) if dim is None else d.movedim(dim, 0) for name, (d, dim) in found.items()}


def by_element(batch: Folded, t: Tensor) -> Tensor:
    """(N, rows of each, columns) of what has the rows of x."""
    return of_rows(batch, {"x": t})["x"].flatten(1, -2)


def total(t: Tensor) -> Tensor:
    """The sum over an element's rows, taken in float32 or more."""
    return t.sum(1, dtype=torch.promote_types(t.dtype, torch.float32)).to(t.dtype)
