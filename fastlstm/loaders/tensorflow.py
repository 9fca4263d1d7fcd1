"""From TensorFlow's cells of old."""

from collections.abc import Sequence
from typing import Any

import torch

from fastlstm.loaders.layer import Weights, check_shape, layer_of, shape_of, tensor_of, tensors_of


def from_tensorflow(
    kernel: Any,
    bias: Any,
    peepholes: Sequence[Any] | None = None,
    projection_kernel: Any = None,
    *,
    forget_bias: float = 1.0,
    layer: int | None = 0,
    reverse: bool = False,
) -> Weights:
    """Weights of `tf.compat.v1.nn.rnn_cell.LSTMCell`, `BasicLSTMCell` or `LSTMBlockCell`.

    kernel (I + R, 4 * H) of input and state together, bias (4 * H): gates i, g, f, o. peepholes: `w_i_diag`, `w_f_diag` and
    `w_o_diag`, each (H). projection_kernel (H, P). TensorFlow adds `forget_bias` when it runs: here it becomes part of the
    bias. Its default is that of TensorFlow; a cell that was made with another one needs it here.
    TensorFlow's GRUCell resets before the product with the weights, which our GRU can't do.

    Source: https://www.tensorflow.org/api_docs/python/tf/compat/v1/nn/rnn_cell/LSTMCell
    """
    w, b, w_hr = tensors_of(kernel=kernel, bias=bias, projection_kernel=projection_kernel)
    if w is None or w.dim() != 2 or w.shape[1] % 4:
        raise ValueError(f"kernel has shape {shape_of(kernel)}, expected (I + R, 4 * H)")
    H = w.shape[1] // 4
    if w_hr is not None:
        check_shape(
            "projection_kernel",
            w_hr,
            (H, w_hr.shape[1] if w_hr.dim() == 2 else 1),
            "(H, P), with the hidden size of kernel",
        )
    R = H if w_hr is None else w_hr.shape[1]
    if b is None or w.shape[0] <= R:
        raise ValueError(
            f"kernel and bias have shapes {shape_of(kernel)} and {shape_of(bias)}, expected (I + {R}, {4 * H}) and ({4 * H})"
        )
    check_shape("bias", b, (4 * H,), "one for each column of kernel")
    diags = None
    if peepholes is not None:
        given = [p for p in peepholes if p is not None] if hasattr(peepholes, "__iter__") else []
        if len(given) != 3:
            raise ValueError(f"peepholes has {len(given)} entries, expected 3: w_i_diag, w_f_diag, w_o_diag")
        named = {f"w_{gate}_diag": tensor_of(f"w_{gate}_diag", p) for gate, p in zip("ifo", given, strict=True)}
        for name, diag in named.items():
            check_shape(name, diag, (H,), "the hidden size of kernel")
        diags = torch.stack([torch.as_tensor(diag) for diag in named.values()])
    w_ih, w_hh = w[:-R].T, w[-R:].T
    w_hr = None if w_hr is None else w_hr.T
    return layer_of(
        "igfo", "ifgo", w_ih, w_hh, b, None, diags, w_hr, forget_bias=forget_bias, layer=layer, reverse=reverse
    )
