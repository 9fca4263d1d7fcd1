"""From ONNX."""

from typing import Any

from fastlstm.loaders.layer import Weights, check_shape, layer_of, shape_of, tensors_of


def from_onnx_order(
    W: Any,
    R: Any,
    B: Any = None,
    P: Any = None,
    *,
    input_forget: bool = False,
    linear_before_reset: bool = False,
    layer: int | None = 0,
    reverse: bool = False,
) -> Weights:
    """Weights of an ONNX `LSTM` or `GRU`, by the names that its inputs have there; both directions if there are two.

    W (D, G * H, I), R (D, G * H, H), B (D, 2 * G * H) or None, P (D, 3 * H) or None. Gates i, o, f, g (LSTM), z, r, n (GRU).
    input_forget, linear_before_reset: the operator's attributes. An LSTM with input_forget=1 becomes a CIFG LSTM: its
    forget gate is not used. A GRU has to have linear_before_reset=1, which is not the default of ONNX.
    Other activations than the default ones, and `clip`, have no counterpart here.

    Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, and onnx__GRU.html.
    """
    w_ih, w_hh, b, p = tensors_of(W=W, R=R, B=B, P=P)
    if w_ih is None or w_hh is None or w_ih.dim() != 3 or w_hh.dim() != 3 or not 1 <= len(w_hh) <= 2:
        raise ValueError(
            f"W and R have shapes {shape_of(W)} and {shape_of(R)}, expected (D, G * H, I) and (D, G * H, H), D 1 or 2"
        )
    D, rows, H = w_hh.shape
    if rows not in (3 * H, 4 * H):
        raise ValueError(f"R has shape {(D, rows, H)}, expected (D, 4 * H, H) or (D, 3 * H, H): an LSTM or a GRU")
    order, target = ("zrn", "rzn") if rows == 3 * H else ("iofg", "igo" if input_forget else "ifgo")
    if target == "rzn" and not linear_before_reset:
        raise ValueError(
            "linear_before_reset is 0, expected 1: our GRU, as PyTorch's, resets after the product with the weights, "
            "and no weights make one of the other"
        )
    check_shape("W", w_ih, (D, rows, w_ih.shape[2]), "the directions and gates of R")
    check_shape("B", b, (D, 2 * rows), "two biases for each row of R")
    check_shape("P", p, (D, 3 * H), "three peepholes; a GRU has none")
    if D == 2 and reverse:
        raise ValueError("reverse is True, expected False: W and R have both directions")
    weights: Weights = {}
    for d in range(D):
        b_ih, b_hh = (None, None) if b is None else b[d].chunk(2)
        peephole = None if p is None else p[d].view(3, H)
        weights |= layer_of(
            order, target, w_ih[d], w_hh[d], b_ih, b_hh, peephole, None, layer=layer, reverse=reverse or d == 1
        )
    return weights
