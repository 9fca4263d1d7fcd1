"""From frameworks that differ from PyTorch in the order of the gates only."""

from typing import Any

from fastlstm.backends import VARIANTS
from fastlstm.loaders.layer import Weights, layer_of, tensors_of

ORDERS = tuple(dict.fromkeys(variant.gates for variant in VARIANTS.values()))  # ours


def from_order(
    order: str,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    w_peephole: Any = None,
    w_hr: Any = None,
    *,
    layer: int | None = 0,
    reverse: bool = False,
) -> Weights:
    """Weights that are PyTorch's but for their gate order.

    order: the gates, a letter for each block of rows: "ifgo" in any order for the LSTM, "igo" for the CIFG LSTM, "rzn" for the
        GRU. "fgo" is the CIFG LSTM that learns f and has i = 1 - f, where ours learns i and has f = 1 - i: as σ(-a) = 1 - σ(a),
        it becomes ours when the rows of its gate are negated, biases and peephole included.
    w_ih (G * H, I), w_hh (G * H, R), biases (G * H) or None, for G gates; w_peephole (G - 1, H), in the same order without g;
        w_hr (P, H), the projection.

    >>> from_order("fgo", [[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]])["weight_ih_l0"].T
    tensor([[-1.,  2.,  3.]], dtype=torch.float64)
    """
    tensors = tensors_of(w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, w_peephole=w_peephole, w_hr=w_hr)
    return layer_of(order, target_of(order), *tensors, layer=layer, reverse=reverse)


def target_of(order: str, orders: tuple[str, ...] = ORDERS) -> str:
    """Our order of these gates, one of `orders`."""
    letters = sorted(order) if isinstance(order, str) else []
    for target in orders:
        if letters in (sorted(target), sorted(target.replace("i", "f"))):
            return target
    raise ValueError(f"order is {order!r}, expected the letters of {', '.join(map(repr, orders))} or 'fgo', each once")
