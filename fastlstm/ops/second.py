"""The gradients of a backward by kernels: a forward and a backward over dual numbers, each a pair of rows (`kernels/pairs`).

A backward has found the gradients of a loss; u is what came for them. <u, gradients> is how fast the loss changes along u. That
is linear in what came from above, whose gradient is therefore how the results change along u: a forward over dual numbers. And
its gradients by the arguments are those of that forward. Autograd makes a graph of all that where a graph is wanted: see
`derivatives`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "w_peephole")


def can(given: Mapping[str, Any], along: Mapping[str, Tensor | None]) -> bool:
    """Whether kernels do it: on a CPU, where nothing has come for gradients of weights, which no row stands for."""
    if given["x"].device.type != "cpu" or any(along.get(name) is not None for name in WEIGHTS):
        return False
    # `is_grads_batched` maps what came, by means of its own
    mapped = torch._C._functorch.is_legacy_batchedtensor
    return not any(mapped(t) for t in (*given.values(), *along.values()) if isinstance(t, Tensor))


def gradients_of_gradients(
    given: Mapping[str, Any], along: Mapping[str, Tensor | None], needed: Sequence[str]
) -> list[Tensor]:
    """Those of what came from above, d + result, and of the arguments, for the names in `needed`; `given` has all of them.

    `along`: what came for the arguments' gradients, by the arguments' names. In float32 for half dtypes, as the reference.
    """
    dtype = given["x"].dtype
    if dtype in (torch.float16, torch.bfloat16):
        given, along = widened(given), widened(along)
        return [t.to(dtype) for t in gradients_of_gradients(given, along, needed)]
    x, batch_sizes, reset, h0, c0 = given["x"], given["batch_sizes"], given["reset"], given["h0"], given.get("c0")
    w_ih, columns = with_biases(given)
    w_hh, w_hr, w_peephole = given["w_hh"], given.get("w_hr"), given.get("w_peephole")
    rows = [
        with_ones(x, along.get("x"), columns),
        None if batch_sizes is None else batch_sizes * 2,
        None if reset is None else reset.repeat_interleave(2, -1),
        pairs(h0, along.get("h0")),
        None if c0 is None else pairs(c0, along.get("c0")),
    ]
    coupled, reverse = given.get("coupled", False), given["reverse"]
    results = "dy", "dh_n", "dc_n", "dcells"
    upstream = [None if given.get(name) is None else pairs(None, given[name]) for name in results]
    back, need_dw = not set(needed) <= set(results), any(name in WEIGHTS for name in needed)
    *dual, dx, dh0, dc0, dw_ih, dw_hh, dw_hr, dw_peephole = torch.ops.fastlstm.pairs_bwd(
        *upstream,
        *rows,
        w_ih,
        w_hh,
        w_hr,
        w_peephole,
        coupled,
        reverse,
        "dcells" in needed,
        back,
        "x" in needed,
        need_dw,
    )
    found = {name: second_of(t) for name, t in zip(results, dual, strict=True) if name in needed}
    if back:
        found |= {name: first_of(t) for name, t in (("x", dx), ("h0", dh0), ("c0", dc0)) if name in needed}
    if "x" in needed:
        found["x"] = found["x"][..., : x.shape[-1]]
    if need_dw:
        found |= {"w_hh": dw_hh, "w_hr": dw_hr, "w_peephole": dw_peephole} | without_biases(given, dw_ih)
    return [found[name] for name in needed]


def widened(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: t.float() if isinstance(t, Tensor) and t.is_floating_point() else t for k, t in values.items()}


def pairs(first: Tensor | None, second: Tensor | None) -> Tensor:
    """Rows of both in turn, zeros for None."""
    like = first if first is not None else second
    assert like is not None
    found = like.new_empty(*like.shape[:-1], 2, like.shape[-1])
    for k, rows in enumerate((first, second)):
        found[..., k, :] = 0 if rows is None else rows
    return found.flatten(-3, -2)


def first_of(rows: Tensor) -> Tensor:
    return rows.unflatten(-2, (-1, 2))[..., 0, :]


def second_of(rows: Tensor) -> Tensor:
    return rows.unflatten(-2, (-1, 2))[..., 1, :]


def with_ones(x: Tensor, x_dot: Tensor | None, columns: int) -> Tensor:
    """Pairs of rows, with so many columns more: 1, which is 0 along u."""
    found = x.new_empty(*x.shape[:-1], 2, x.shape[-1] + columns)
    found[..., 0, : x.shape[-1]] = x
    found[..., 1, : x.shape[-1]] = 0 if x_dot is None else x_dot
    if columns:
        found[..., 0, -1], found[..., 1, -1] = 1, 0
    return found.flatten(-3, -2)


def with_biases(given: Mapping[str, Any]) -> tuple[Tensor, int]:
    """W_ih with the biases as its last column, and how many columns that are: a row has no bias of its own, as it is 0 along u.

    A GRU's has rows more, of the part of n that r acts on: gates r, z, q, n.
    """
    w_ih, b_ih, b_hh = given["w_ih"], given["b_ih"], given["b_hh"]
    if "c0" not in given:
        n = len(w_ih) // 3
        w_ih = torch.cat([w_ih[: 2 * n], torch.zeros_like(w_ih[:n]), w_ih[2 * n :]])
        if b_ih is not None:
            b_ih = torch.cat([b_ih[: 2 * n] + b_hh[: 2 * n], b_hh[2 * n :], b_ih[2 * n :]])
    elif b_ih is not None:
        b_ih = b_ih + b_hh
    return (w_ih, 0) if b_ih is None else (torch.cat([w_ih, b_ih[:, None]], 1), 1)


def without_biases(given: Mapping[str, Any], d: Tensor) -> dict[str, Tensor]:
    """The gradients of W_ih and the biases from that of `with_biases`."""
    d, db = (d[:, :-1], d[:, -1]) if given["b_ih"] is not None else (d, None)
    if "c0" in given:
        return {"w_ih": d} | ({} if db is None else {"b_ih": db, "b_hh": db.clone()})
    n = len(d) // 4
    found = {"w_ih": torch.cat([d[: 2 * n], d[3 * n :]])}
    return found if db is None else found | {"b_ih": torch.cat([db[: 2 * n], db[3 * n :]]), "b_hh": db[: 3 * n]}
