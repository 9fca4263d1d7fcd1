"""From what people write in PyTorch, which has no ConvLSTM: by how many convolutions make the gates of a layer.

Convolutions are as PyTorch's: weights (out, in, *k), of 1 to 3 dimensions, "same" padded. Where x is convolved with another
stride or padding, our modules take that as well. Kernels (*k, in, out) are turned by `kernel.movedim((-1, -2), (0, 1))`.
"""

from collections.abc import Mapping
from typing import Any

import torch

from fastlstm.checks import positive
from fastlstm.loaders.layer import Weights, check_shape, layer_of, shape_of, tensor_of, tensors_of
from fastlstm.loaders.order import target_of

ORDERS = ("ifgo", "igo")  # ours


def from_conv_cat(
    order: str,
    weight: Any,
    bias: Any,
    in_channels: int,
    w_peephole: Any = None,
    *,
    forget_bias: float = 0.0,
    norm: bool = False,
    layer: int | None = 0,
    reverse: bool = False,
) -> Weights:
    """Weights of one convolution over `torch.cat([x, h], dim=1)`.

    order: the gates, a letter for each block of rows: "ifgo" in any order, "igo" where f = 1 - i, "fgo" where i = 1 - f.
    weight (G * H, in_channels + H, *k), bias (G * H) or None, for G gates.
    w_peephole (G - 1, H, 1, ...) or (G - 1, H, *S), in the same order without g: those of the old cell for i and f, and of the
        new one for o. Weights that are kept apart, each (1, H, *S), are joined by `torch.cat`.
    forget_bias: what is added to f when the layer runs; here it becomes part of the bias.
    norm: whether gates are normalised before their σ and tanh. Ours are not: True raises.

    | who | order | what else |
    | --- | --- | --- |
    | ndrplz/ConvLSTM_pytorch, the package conv-lstm | "ifog" | |
    | Hzzone/Precipitation-Nowcasting | "ifgo" | w_peephole: `torch.cat([Wci, Wcf, Wco])` |
    | jhhuang96/ConvLSTM-PyTorch | "ifgo" | `norm=True`: GroupNorm |
    | TensorFlow's ConvLSTMCell of old | "igfo" | `forget_bias=1.0`, with kernels (*k, in, out) |
    | uzh-rpg/RVT | "fiog" | a 1x1 kernel |

    >>> part = from_conv_cat("ifog", torch.ones(20, 3 + 5, 3, 3), torch.zeros(20), 3)
    >>> {name: tuple(w.shape) for name, w in part.items() if "weight" in name}
    {'weight_ih_l0': (20, 3, 3, 3), 'weight_hh_l0': (20, 5, 3, 3)}
    """
    w, G = tensor_of("weight", weight), len(target_of(order, ORDERS))
    if w is None or w.dim() not in (3, 4, 5) or w.shape[0] % G:
        raise ValueError(f"weight has shape {shape_of(weight)}, expected ({G} * H, in_channels + H, *k)")
    positive("in_channels", in_channels)
    rows, _, *k = w.shape
    check_shape(
        "weight", w, (rows, in_channels + rows // G, *k), f"{in_channels} in_channels and {rows // G} of the state"
    )
    return from_conv_pair(
        order, w[:, :in_channels], w[:, in_channels:], bias, None, w_peephole,
        forget_bias=forget_bias, norm=norm, layer=layer, reverse=reverse,
    )  # fmt: skip


def from_conv_pair(
    order: str,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    w_peephole: Any = None,
    *,
    forget_bias: float = 0.0,
    norm: bool = False,
    layer: int | None = 0,
    reverse: bool = False,
) -> Weights:
    """Weights of two convolutions that are added, one of x and one of h.

    w_ih (G * H, C, *k), w_hh (G * H, H, *k), biases (G * H) or None, for G gates. order, w_peephole, forget_bias, norm: as in
    `from_conv_cat`.

    OpenSTL's ConvLSTMCell: `from_conv_pair("ifgo", cell.conv_x[0].weight, cell.conv_h[0].weight)`; what it makes with
    `layer_norm=True` has `norm=True`, and its `conv_o` and `conv_last` are not used by itself. Flax and Haiku: "igfo" with
    `forget_bias=1.0`, and kernels (*k, in, out).
    """
    target = target_of(order, ORDERS)
    if norm:
        raise ValueError("norm is True, expected False: our gates are not normalised, and no weights make up for that")
    if forget_bias and "f" not in order:
        raise ValueError(f"forget_bias is {forget_bias}, expected 0.0: {order!r} has no f to add it to")
    tensors = tensors_of(w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, w_peephole=w_peephole, w_hr=None)
    options: dict[str, Any] = {"forget_bias": forget_bias, "convolved": True, "layer": layer, "reverse": reverse}
    return layer_of(order, target, *tensors, **options)


def from_conv_eight(weights: Mapping[str, Any], *, layer: int | None = 0, reverse: bool = False) -> Weights:
    """Weights of eight convolutions, one of x and one of h for each gate: automan000/Convolutional_LSTM_PyTorch.

    weights: the `state_dict` of one of its cells: `Wxi.weight` (H, C, *k), `Whi.weight` (H, H, *k), and so on for the gates
        i, f, c (our g) and o; biases `Wxi.bias` (H) and so on, all or none. Peepholes are `Wci`, `Wcf` and `Wco`, (1, H, *S) or
        (1, H, 1, ...): theirs are zeros that no state_dict has, and ours are then made with `peephole=None`.

    As in `from_conv_eight(model.cell0.state_dict()) | from_conv_eight(model.cell1.state_dict(), layer=1)`.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights is of type {type(weights).__name__}, expected a mapping: the state_dict of a cell")
    convolutions = {of: [f"W{of}{gate}" for gate in "ifco"] for of in "xh"}
    names = {f"w_{of}": [f"{conv}.weight" for conv in convolutions[of]] for of in "xh"}
    names |= {f"b_{of}": [f"{conv}.bias" for conv in convolutions[of]] for of in "xh"}
    names["peephole"] = ["Wci", "Wcf", "Wco"]
    known = [name for group in names.values() for name in group]
    if unknown := sorted(weights.keys() - set(known)):
        raise ValueError(f"weights has {unknown[0]!r}, expected names as in a ConvLSTM of eight convolutions: {known}")
    found: dict[str, Any] = {}
    for part, group in names.items():
        tensors = tensors_of(**{name: weights.get(name) for name in group})
        given = [tensor for tensor in tensors if tensor is not None]
        if len(given) < len(group) and (given or part.startswith("w_")):
            lacking = [name for name, tensor in zip(group, tensors, strict=True) if tensor is None]
            raise ValueError(f"weights lacks {lacking}, expected all of {group}")
        for name, tensor in zip(group, given, strict=False):
            check_shape(name, tensor, tuple(given[0].shape), f"that of {group[0]}")
        found[part] = torch.cat(given) if given else None
    return from_conv_pair(
        "ifgo", found["w_x"], found["w_h"], found["b_x"], found["b_h"], found["peephole"], layer=layer, reverse=reverse
    )
