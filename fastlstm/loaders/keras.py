"""From Keras."""

from typing import Any

from fastlstm.loaders.layer import Weights, check_shape, layer_of, shape_of, tensors_of


def from_keras(
    kernel: Any, recurrent_kernel: Any, bias: Any = None, *, layer: int | None = 0, reverse: bool = False
) -> Weights:
    """Weights of `keras.layers.LSTM`, `GRU`, `ConvLSTM1D` to `3D` and their cells: `from_keras(*keras_layer.get_weights())`.

    kernel (I, G * H), recurrent_kernel (H, G * H), bias (4 * H) of the LSTM, (2, 3 * H) of the GRU, or None. Gates i, f, g, o
    (LSTM), z, r, n (GRU). A GRU has to have reset_after=True, Keras's default since TensorFlow 2; without biases it doesn't
    show, and is not checked. Other activations than the default ones, as the "hard_sigmoid" of old, have no counterpart here.
    The backward layer of a `Bidirectional` is a part of its own, with `reverse=True`.

    ConvLSTM: kernel (*k, C, 4 * H), recurrent_kernel (*k, H, 4 * H), bias (4 * H) or None, whatever the `data_format`; gates
    i, f, g, o. Our modules take `stride`, `dilation` and `padding` as that layer does, whose default is "valid". Where strides
    are more than 1 and padding is "same", Keras pads by the size S of the image, and ours needs to be told: for each dimension

        n = max(0, (ceil(S / stride) - 1) * stride + k - S)        padding = ((n // 2, n - n // 2), ...)

    For k = 3 and stride 2 that is (1, 1) of an odd S, and (0, 1) of an even one, where our "same" is (1, 1).

    Source: https://keras.io/api/layers/recurrent_layers/
    """
    w_ih, w_hh, b = tensors_of(kernel=kernel, recurrent_kernel=recurrent_kernel, bias=bias)
    if w_ih is None or w_hh is None or w_ih.dim() != w_hh.dim() or not 2 <= w_hh.dim() <= 5:
        raise ValueError(
            f"kernel and recurrent_kernel have shapes {shape_of(kernel)} and {shape_of(recurrent_kernel)}, "
            "expected (I, G * H) and (H, G * H), or (*k, C, 4 * H) and (*k, H, 4 * H)"
        )
    *k, H, rows = w_hh.shape
    if rows not in ((4 * H,) if k else (3 * H, 4 * H)):
        expected = "(*k, H, 4 * H): a ConvLSTM" if k else "(H, 4 * H) or (H, 3 * H): an LSTM or a GRU"
        raise ValueError(f"recurrent_kernel has shape {(*k, H, rows)}, expected {expected}")
    if rows == 4 * H:
        order, target, b_ih, b_hh = "ifgo", "ifgo", b, None
        check_shape("bias", b, (rows,), "one for each column of recurrent_kernel")
    else:
        order, target = "zrn", "rzn"
        check_shape(
            "bias", b, (2, rows), "one of the input and one of the state; a single one is that of reset_after=False"
        )
        b_ih, b_hh = (None, None) if b is None else (b[0], b[1])
    w_ih, w_hh = (w.movedim((-1, -2), (0, 1)) for w in (w_ih, w_hh))
    return layer_of(order, target, w_ih, w_hh, b_ih, b_hh, None, None, convolved=bool(k), layer=layer, reverse=reverse)
