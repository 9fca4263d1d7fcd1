"""From Keras."""

from typing import Any

from fastlstm.loaders.layer import Weights, check_shape, layer_of, shape_of, tensor_of


def from_keras(
    kernel: Any, recurrent_kernel: Any, bias: Any = None, *, layer: int | None = 0, reverse: bool = False
) -> Weights:
    """Weights of `keras.layers.LSTM` or `GRU`, and of their cells: `from_keras(*keras_layer.get_weights())`.

    kernel (I, G * H), recurrent_kernel (H, G * H), bias (4 * H) of the LSTM, (2, 3 * H) of the GRU, or None. Gates i, f, g, o
    (LSTM), z, r, n (GRU). A GRU has to have reset_after=True, Keras's default since TensorFlow 2; without biases it doesn't
    show, and is not checked. Other activations than the default ones, as the "hard_sigmoid" of old, have no counterpart here.
    The backward layer of a `Bidirectional` is a part of its own, with `reverse=True`.
    """
    w_ih, w_hh, b = tensor_of(kernel), tensor_of(recurrent_kernel), tensor_of(bias)
    if w_ih is None or w_hh is None or w_ih.dim() != 2 or w_hh.dim() != 2:
        raise ValueError(
            f"kernel and recurrent_kernel have shapes {shape_of(kernel)} and {shape_of(recurrent_kernel)}, "
            "expected (I, G * H) and (H, G * H)"
        )
    H, rows = w_hh.shape
    if rows not in (3 * H, 4 * H):
        raise ValueError(f"recurrent_kernel has shape {(H, rows)}, expected (H, 4 * H) or (H, 3 * H): an LSTM or a GRU")
    if rows == 4 * H:
        order, target, b_ih, b_hh = "ifgo", "ifgo", b, None
        check_shape("bias", b, (rows,), "one for each column of recurrent_kernel")
    else:
        order, target = "zrn", "rzn"
        check_shape(
            "bias", b, (2, rows), "one of the input and one of the state; a single one is that of reset_after=False"
        )
        b_ih, b_hh = (None, None) if b is None else (b[0], b[1])
    return layer_of(order, target, w_ih.T, w_hh.T, b_ih, b_hh, None, None, layer=layer, reverse=reverse)
