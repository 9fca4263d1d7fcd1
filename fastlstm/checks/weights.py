"""The weights of a stack."""

from collections.abc import Sequence

from torch import Tensor

from fastlstm.kernels.variant import Variant


def check_weights(
    variant: Variant, weights: Sequence[Sequence[Tensor]], directions: int, x: Tensor
) -> tuple[int, int, list[dict[str, Tensor]]]:
    """The sizes of cell state and output, (H, R), and the weights by their names; they fit each other and the input."""
    if len(weights) == 0 or len(weights) % directions:
        raise ValueError(
            f"weights has {len(weights)} entries, expected a multiple of {directions}: one per layer and direction"
        )
    bias, projected = optional_weights(variant, len(weights[0]))
    w_ih, w_hh, *others = weights[0]
    w_hr = others[2 if bias else 0] if projected else None
    for name, w in (("w_ih", w_ih), ("w_hh", w_hh), ("w_hr", w_hr)):
        if w is not None and w.dim() != 2:
            raise ValueError(f"{name} of weights[0] has shape {tuple(w.shape)}, expected two dimensions")
    R, H = w_hr.shape if w_hr is not None else (w_hh.shape[1], w_hh.shape[1])
    _check_input_fits(x, w_ih)
    dtype, device = w_ih.dtype, w_ih.device
    expected = variant.weights(w_ih.shape[1], H, R if projected else None, bias=bias)
    named = []
    for k, tensors in enumerate(weights):
        if len(tensors) != len(expected):
            raise ValueError(
                f"weights[{k}] has {len(tensors)} tensors, expected {len(expected)}: as many as weights[0]"
            )
        if k == directions:
            expected["w_ih"] = expected["w_ih"][0], R * directions
        of_layer = dict(zip(expected, tensors, strict=True))
        for name, w in of_layer.items():
            size = expected[name]
            if w.shape != size:
                raise ValueError(
                    f"{name} of weights[{k}] has shape {tuple(w.shape)}, expected {size}: "
                    f"input size {expected['w_ih'][1]}, hidden size {H} and output size {R} of its layer"
                )
            if w.dtype is not dtype or w.device != device:
                raise ValueError(
                    f"{name} of weights[{k}] is {w.dtype} on {w.device}, expected {dtype} on {device}: "
                    "all weights are alike"
                )
        named.append(of_layer)
    return H, R, named


def optional_weights(variant: Variant, count: int) -> tuple[bool, bool]:
    """Whether there are biases, and a projection, among the weights of a layer: their number tells."""
    least = 3 if variant.peepholes else 2
    more = count - least
    bias, projected = more in (2, 3), more in (1, 3)
    if not 0 <= more <= 3 or (projected and not variant.projects):
        words = ", ".join(variant.weights(0, 0, 0 if variant.projects else None))
        most = least + 2 + variant.projects
        raise ValueError(f"weights[0] has {count} tensors, expected {least} to {most}: {words}")
    return bias, projected


def _check_input_fits(x: Tensor, w_ih: Tensor) -> None:
    check_alike(x, w_ih)
    if x.shape[-1] != w_ih.shape[-1]:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {w_ih.shape[-1]}, got {x.shape[-1]}")


def check_alike(x: Tensor, w: Tensor) -> None:
    """Input and weights are of one dtype, and on one device."""
    if x.dtype != w.dtype:
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({w.dtype}). "
            f"Convert input: input.to({w.dtype}), or convert model: model.to({x.dtype})"
        )
    if x.device != w.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {x.device} and parameter tensor at {w.device}"
        )
