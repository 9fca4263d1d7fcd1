"""LSTMs as ONNX models."""

from collections.abc import Mapping

import torch
from torch import Tensor


def lstm_model(weights: Mapping[str, Tensor], layers: int, directions: int, reverse: bool = False):  # type: ignore[no-untyped-def]
    """An `onnx.ModelProto` of `layers` x `directions` LSTM, from weights by `torch.nn.LSTM`'s names, float32.

    Inputs: x (T, B, I), lengths (B) int32, h0 and c0 (L*D, B, H). Outputs: y (T, B, D*H), zero past each sequence's end,
    h_n and c_n (L*D, B, H). `reverse` runs a single direction from each sequence's end. ONNX knows no projection.
    The gates are reordered from PyTorch's i, f, g, o to ONNX's i, o, f, c (https://onnx.ai/onnx/operators/onnx__LSTM.html).
    """
    from onnx import TensorProto, helper, numpy_helper

    direction = "bidirectional" if directions == 2 else "reverse" if reverse else "forward"
    H = weights["weight_hh_l0"].shape[1]
    constants = {"shape": torch.tensor([0, 0, -1])}
    nodes = [
        helper.make_node("Split", [state], [f"{state}_l{k}" for k in range(layers)], axis=0, num_outputs=layers)
        for state in ("h0", "c0")
    ]
    x = "x"
    for k in range(layers):
        suffixes = (f"_l{k}", f"_l{k}_reverse")[:directions]
        constants[f"W_l{k}"] = torch.stack([onnx_gates(weights["weight_ih" + s]) for s in suffixes])
        constants[f"R_l{k}"] = torch.stack([onnx_gates(weights["weight_hh" + s]) for s in suffixes])
        bias = ""
        if f"bias_ih_l{k}" in weights:
            bias = f"B_l{k}"
            both = [onnx_gates(weights[name + s]) for s in suffixes for name in ("bias_ih", "bias_hh")]
            constants[bias] = torch.cat(both).view(directions, 8 * H)
        inputs = [x, f"W_l{k}", f"R_l{k}", bias, "lengths", f"h0_l{k}", f"c0_l{k}"]
        outputs = [f"y_l{k}", f"h_n_l{k}", f"c_n_l{k}"]
        nodes.append(helper.make_node("LSTM", inputs, outputs, hidden_size=H, direction=direction))
        # ONNX gives (T, D, B, H).
        nodes.append(helper.make_node("Transpose", [f"y_l{k}"], [f"yt_l{k}"], perm=[0, 2, 1, 3]))
        x = "y" if k == layers - 1 else f"x_l{k + 1}"
        nodes.append(helper.make_node("Reshape", [f"yt_l{k}", "shape"], [x]))
    for state in ("h_n", "c_n"):
        nodes.append(helper.make_node("Concat", [f"{state}_l{k}" for k in range(layers)], [state], axis=0))

    def value(name: str, kind: int, dims: int):  # type: ignore[no-untyped-def]
        return helper.make_tensor_value_info(name, kind, [None] * dims)

    graph = helper.make_graph(
        nodes,
        "lstm",
        [value("lengths", TensorProto.INT32, 1), *(value(name, TensorProto.FLOAT, 3) for name in ("x", "h0", "c0"))],
        [value(name, TensorProto.FLOAT, 3) for name in ("y", "h_n", "c_n")],
        [numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in constants.items()],
    )
    # IR 10 and opset 18: old enough for every ONNX Runtime that the package supports.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def onnx_gates(weight: Tensor) -> Tensor:
    """Rows i, f, g, o as i, o, f, g."""
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, o, f, g])
