"""Recurrences as ONNX nodes: in what `torch.onnx.export` makes of our modules, and in models made here by hand.

    torch.onnx.export(model, (x,), "model.onnx", dynamo=True, dynamic_shapes=({0: "T", 1: "B"},))

gives one node per layer, of both directions where there are two, for any number of steps and sequences; `lengths=` becomes its
`sequence_lens`. It has to be given the module: a program of `torch.export` holds our ops already. ONNX has no projection, no
cuts (`reset=`), no cell states of every step and no PackedSequence: these raise NotImplementedError, which the exporter
quotes. ONNX Runtime runs these nodes on the CPU in float32, and in float16 by way of it, but not in float64.

ONNX orders gates i, o, f, g and peepholes i, o, f; of a GRU z, r, n. Its coupled LSTM has the rows of four gates all the same.
Sources: https://onnx.ai/onnx/operators/onnx__LSTM.html and https://onnx.ai/onnx/operators/onnx__GRU.html.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm import checks, stack
from fastlstm.backends import VARIANTS
from fastlstm.call import Call
from fastlstm.kernels.variant import PARAMETERS, Variant
from fastlstm.sequences import Input, time_major

# One direction's weights by their names in `fastlstm.functional`
Named = Mapping[str, Tensor]
DTYPES = (torch.float16, torch.float32, torch.float64)
ORDERS = {"lstm": "iofg", "gru": "zrn"}  # of ONNX's gates; its peepholes have them without g


def exporting() -> bool:
    """Whether `torch.onnx.export` is tracing. PyTorch's own flag is slow to ask, and importing it the first time slower."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def exporting_anyhow() -> bool:
    """As `exporting`, or with `dynamo=False`: for what has no node that could stand in for it."""
    made = torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None
    return made and torch.onnx.is_in_onnx_export()


def check_exporter(name: str, has_node: bool) -> None:
    """Raises NotImplementedError where `torch.onnx.export(..., dynamo=False)` traces a module."""
    if torch.compiler.is_exporting() or not torch.onnx.is_in_onnx_export():
        return
    if has_node:
        raise NotImplementedError(
            f"{name} is to be exported by torch.onnx.export with dynamo=False, expected dynamo=True, or a module of PyTorch's: "
            "fastlstm.to_torch(model) makes it one"
        )
    raise NotImplementedError(f"{name} is to be exported to ONNX, expected another module: ONNX has no such node")


# Asked for real where Dynamo traces for the exporter: it takes PyTorch's flag for False.
exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]
exporting_anyhow._dynamo_marked_constant = True  # type: ignore[attr-defined]


def exported(
    variant: Variant, input: Input, x: Tensor, weights: Sequence[Named], states: Sequence[Tensor] | None, call: Call
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output and the final states, as `fastlstm.functional` gives them, of nodes that stand in for the computation.

    Arguments are its driver's, and checked, but for the shapes of `states` and for `lengths`. `x` is `input` in the dtype to
    compute in. Raises NotImplementedError for what ONNX can't express.
    """
    _check_exportable(input, x, weights[0], call)
    batch = time_major(input, x, call.batch_first, None, None)
    x, lengths, D = batch.x, call.lengths, call.directions
    layers = range(0, len(weights), D)
    initials: list[list[Tensor] | None] = [None] * len(layers)
    if states is not None:
        shape = (len(weights), batch.B, weights[0]["w_hh"].shape[1])
        states = checks.check_states(states, x, batch.batched, [shape] * len(states))
        initials = [[s[k : k + D] for s in states] for k in layers]
    if lengths is not None:
        if not batch.batched:
            checks.check_no_lengths(lengths, "an unbatched input is one sequence, which ends where it ends")
        lengths = checks.check_lengths(lengths, x.shape[0], batch.B).int()
    # A node has both directions: to the stack, it is one
    run, sides = partial(_symbolic_layer, variant), [weights[k : k + D] for k in layers]
    outputs, finals = stack.stack(run, x, lengths, initials, sides, directions=1, dropout=call.drop)
    output = batch.output(outputs[-1][0])
    assert isinstance(output, Tensor)
    return output, batch.finals([torch.cat(s) if len(s) > 1 else s[0] for s in zip(*finals, strict=True)])


def _check_exportable(input: Input, x: Tensor, weights: Named, call: Call) -> None:
    if isinstance(input, PackedSequence):
        raise NotImplementedError(
            "input is a PackedSequence, expected a Tensor and lengths=: ONNX knows no packed sequences"
        )
    if "w_hr" in weights:
        raise NotImplementedError(
            f"proj_size is {weights['w_hr'].shape[0]}, expected 0 in an export: ONNX's LSTM has no projection"
        )
    if call.reset is not None:
        raise NotImplementedError("reset is given, expected None in an export: ONNX's recurrences can't be cut")
    if call.return_cells:
        raise NotImplementedError(
            "return_cells is True, expected False in an export: ONNX's LSTM gives the last cell states only"
        )
    if x.dtype not in DTYPES:
        raise NotImplementedError(
            f"input has dtype {x.dtype}, expected one of {', '.join(map(str, DTYPES))} in an export: "
            "ONNX's recurrences know no other before opset 22"
        )


def _symbolic_layer(
    variant: Variant,
    x: Tensor,
    lengths: Tensor | None,
    states: Sequence[Tensor] | None,
    sides: Sequence[Named],
    reverse: bool,
    last: bool,
) -> stack.Results:
    """`y` (T, B, D * H) and the final states (D, B, H) of one node; its values are made up, its shapes are right."""
    T, B, _ = x.shape
    D, H = len(sides), sides[0]["w_hh"].shape[1]
    count = len(variant.states)
    W, R, bias, P = operands(variant, sides)
    initial: Sequence[Tensor | None] = [None] * count if states is None else states
    inputs = [x, W, R, bias, lengths, *initial, P]
    while inputs[-1] is None:
        inputs.pop()
    y, *finals = torch.onnx.ops.symbolic_multi_out(
        variant.op.upper(),
        inputs,
        attributes(variant, H, D),
        dtypes=[x.dtype] * (1 + count),
        shapes=[(T, D, B, H), *[(D, B, H)] * count],
    )
    # The made-up values are on the CPU
    y, finals = y.to(x.device), [s.to(x.device) for s in finals]
    if states is not None and lengths is not None:
        # ONNX Runtime gives zeros for a sequence of length 0
        empty = (lengths == 0).to(x.device)[:, None]
        finals = [torch.where(empty, s0, s) for s0, s in zip(states, finals, strict=True)]
    return (torch.cat(y.unbind(1), dim=-1) if D == 2 else y.squeeze(1),), tuple(finals)


def attributes(variant: Variant, H: int, directions: int, reverse: bool = False) -> dict[str, Any]:
    """Those of a variant's node; `reverse` runs a single direction from the end."""
    direction = "bidirectional" if directions == 2 else "reverse" if reverse else "forward"
    common = {"hidden_size": H, "direction": direction}
    if variant.op == "gru":
        return common | {"linear_before_reset": 1}
    return common | ({"input_forget": 1} if variant.coupled else {})


def operands(variant: Variant, sides: Sequence[Named]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """A node's inputs `W` (D, G*H, I), `R` (D, G*H, H), `B` (D, 2*G*H) and `P` (D, 3*H), or None; G = 4, of a GRU 3."""

    def rows(*names: str) -> Tensor | None:
        """The directions' weights of these names, one below the other in each."""
        if names[0] not in sides[0]:
            return None
        return torch.stack([torch.cat([reordered(variant, name, side[name]) for name in names]) for side in sides])

    W, R = rows("w_ih"), rows("w_hh")
    assert W is not None
    assert R is not None
    P = rows("w_peephole")
    return W, R, rows("b_ih", "b_hh"), None if P is None else P.flatten(1)


def reordered(variant: Variant, name: str, weight: Tensor) -> Tensor:
    """The gates' rows of a weight, or the peepholes', in ONNX's order."""
    letters = variant.peepholes if name == "w_peephole" else variant.gates
    H = weight.shape[0] // len(letters)
    # Slices, since the exporter evaluates no split of a constant beforehand
    gates = {letter: weight[k * H : (k + 1) * H] for k, letter in enumerate(letters)}
    if variant.coupled:
        # Honoured or not, `input_forget` then gives f = 1 - i, which is σ(-i)
        gates["f"] = -gates["i"]
    return torch.cat([gates[letter] for letter in ORDERS[variant.op] if letter in gates])


def recurrent_model(
    variant: str, weights: Mapping[str, Tensor], layers: int, directions: int, reverse: bool = False
) -> Any:
    """An `onnx.ModelProto` of `layers` x `directions` of a variant by its name, from the weights of its module, float32.

    Inputs: x (T, B, I), lengths (B) int32, h0 and c0 (L*D, B, H). Outputs: y (T, B, D*H), zero past each sequence's end,
    h_n and c_n (L*D, B, H); a GRU has no c0 and c_n. `reverse` runs a single direction from each sequence's end.

    >>> import fastlstm
    >>> model = recurrent_model("gru", fastlstm.GRU(3, 5).state_dict(), layers=1, directions=1)
    >>> [node.op_type for node in model.graph.node]
    ['Split', 'GRU', 'Transpose', 'Reshape', 'Concat']
    """
    from onnx import TensorProto, helper, numpy_helper

    kind, H = VARIANTS[variant], weights["weight_hh_l0"].shape[1]
    initials, finals = [f"{s}0" for s in kind.states], [f"{s}_n" for s in kind.states]
    constants = {"shape": torch.tensor([0, 0, -1])}
    nodes = [
        helper.make_node("Split", [state], [f"{state}_l{k}" for k in range(layers)], axis=0, num_outputs=layers)
        for state in initials
    ]
    x = "x"
    for k in range(layers):
        sides = [_named(weights, suffix) for suffix in (f"_l{k}", f"_l{k}_reverse")[:directions]]
        of_layer = dict(zip((f"W_l{k}", f"R_l{k}", f"B_l{k}", f"P_l{k}"), operands(kind, sides), strict=True))
        constants |= {name: t for name, t in of_layer.items() if t is not None}
        W, R, B, P = ("" if t is None else name for name, t in of_layer.items())
        inputs = [x, W, R, B, "lengths", *(f"{state}_l{k}" for state in initials), *([P] if P else [])]
        outputs = [f"{name}_l{k}" for name in ("y", *finals)]
        options = attributes(kind, H, directions, reverse)
        nodes.append(helper.make_node(kind.op.upper(), inputs, outputs, **options))
        # ONNX gives (T, D, B, H).
        nodes.append(helper.make_node("Transpose", [f"y_l{k}"], [f"yt_l{k}"], perm=[0, 2, 1, 3]))
        x = "y" if k == layers - 1 else f"x_l{k + 1}"
        nodes.append(helper.make_node("Reshape", [f"yt_l{k}", "shape"], [x]))
    for state in finals:
        nodes.append(helper.make_node("Concat", [f"{state}_l{k}" for k in range(layers)], [state], axis=0))

    def value(name: str, kind: int, dims: int) -> Any:
        return helper.make_tensor_value_info(name, kind, [None] * dims)

    graph = helper.make_graph(
        nodes,
        variant,
        [value("lengths", TensorProto.INT32, 1), *(value(name, TensorProto.FLOAT, 3) for name in ("x", *initials))],
        [value(name, TensorProto.FLOAT, 3) for name in ("y", *finals)],
        [numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in constants.items()],
    )
    # IR 10 and opset 18: old enough for every ONNX Runtime that the package supports.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _named(weights: Mapping[str, Tensor], suffix: str) -> Named:
    """A module's weights of one layer and direction, by their names in `fastlstm.functional`."""
    return {name: weights[long + suffix] for name, long in PARAMETERS.items() if long + suffix in weights}
