"""The options and weights of an Attention LSTM. Sizes: I input, H hidden, M memory, A attention, F fed, L layers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fastlstm.checks.conv_options import is_int
from fastlstm.checks.once import once
from fastlstm.kernels.attention_lstm import ATTENDS, DOT, FEEDS, OUTPUTS, SCORES, Attention
from fastlstm.kernels.lstm import CIFG_LSTM, CIFG_PEEPHOLE_LSTM, LSTM, PEEPHOLE_LSTM
from fastlstm.kernels.variant import Variant

# The cell of each layer: is it coupled, has it peepholes
CELLS = {
    (False, False): LSTM,
    (False, True): PEEPHOLE_LSTM,
    (True, False): CIFG_LSTM,
    (True, True): CIFG_PEEPHOLE_LSTM,
}
Shape = tuple[int, ...]


def check_attention(attention: Attention) -> None:
    """The options are some that there are, and mean something together."""
    words = {"attention": SCORES, "feed": FEEDS, "attend": ATTENDS, "output": OUTPUTS}
    for (name, known), value in zip(words.items(), attention, strict=True):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, known))}")
    _, feed, attend, output = attention
    if attend == "before" and feed is not None:
        raise ValueError(
            f"feed is {feed!r}, expected None where attend is 'before': the context joins the input of the same step"
        )
    if feed == "attentional" and output == "hidden":
        raise ValueError(
            "feed is 'attentional', expected 'context' or None where output is 'hidden': "
            "there is no attentional vector to feed"
        )
    if attention.at_once and output == "hidden":
        raise ValueError(
            "output is 'hidden', expected 'tanh' or 'linear' where attend is 'after' and feed is None: "
            "nothing would use what is attended to"
        )


def check_attention_sizes(attention: Attention, H: int, M: int, A: int | None) -> int:
    """A of a module: that given, or the usual one where it is None."""
    score = attention.score
    if score in DOT and M != H:
        raise ValueError(
            f"memory_size is {M}, expected {H}, the hidden_size, where attention is {score!r}: "
            "h and memory are multiplied as they are; 'general' takes any memory_size"
        )
    if A is not None and not attention.additive:
        raise ValueError(
            f"attention_size is {A!r}, expected None where attention is {score!r}: "
            "keys are as wide as h, hidden_size; only additive scores have a size of their own"
        )
    return H if A is None else A


def check_query_layer(query_layer: Any, L: int) -> int:
    """From 0 to L - 1; counted from the end where it is negative."""
    if not is_int(query_layer):
        raise TypeError(f"query_layer should be of type int, got: {type(query_layer).__name__}")
    if not -L <= query_layer < L:
        raise ValueError(f"query_layer is {query_layer}, expected {-L} to {L - 1}: an index of the {L} layers")
    return query_layer % L


class DecoderSizes(NamedTuple):
    """What the shapes of all weights tell."""

    cell: Variant
    names: tuple[str, ...]  # of the weights of a layer
    I: int
    H: int
    M: int


def check_decoder_weights(
    weights: Sequence[Sequence[Tensor]], beside: Mapping[str, Tensor | None], attention: Attention, coupled: bool
) -> tuple[DecoderSizes, list[dict[str, Tensor]]]:
    """The sizes, and each layer's weights by their names. All fit each other; `beside` are those of the attention."""
    try:
        shapes = tuple([tuple([w.shape for w in of_layer]) for of_layer in weights])
        more = tuple([None if w is None else w.shape for w in beside.values()])
    except (TypeError, AttributeError):
        _check_types(weights, beside)
        raise
    sizes = _check_shapes(shapes, tuple(beside), more, attention, coupled)
    layers = [dict(zip(sizes.names, of_layer, strict=True)) for of_layer in weights]
    first = weights[0][0]
    dtype, device = first.dtype, first.device
    for k, of_layer in enumerate(weights):
        for w in of_layer:
            if w.dtype is not dtype or w.device != device:
                name = next(name for name in sizes.names if layers[k][name] is w)
                _raise_unlike(f"{name} of weights[{k}]", w, first)
    for name, other in beside.items():
        if other is not None and (other.dtype is not dtype or other.device != device):
            _raise_unlike(name, other, first)
    return sizes, layers


def _raise_unlike(name: str, w: Tensor, first: Tensor) -> None:
    raise ValueError(
        f"{name} is {w.dtype} on {w.device}, expected {first.dtype} on {first.device}: all weights are alike"
    )


def _check_types(weights: Any, beside: Mapping[str, Any]) -> None:
    """What has no shapes, or is no sequence."""
    if not isinstance(weights, (tuple, list)):
        raise TypeError(f"weights is of type {type(weights).__name__}, expected a list: an entry per layer")
    for k, of_layer in enumerate(weights):
        if not isinstance(of_layer, (tuple, list)):
            raise TypeError(
                f"weights[{k}] is of type {type(of_layer).__name__}, expected a tuple of Tensors: w_ih, w_hh, ..."
            )
        for n, w in enumerate(of_layer):
            if not isinstance(w, Tensor):
                raise TypeError(
                    f"weights[{k}][{n}] is of type {type(w).__name__}, expected a Tensor: what a layer lacks is left out"
                )
    for name, w in beside.items():
        if w is not None and not isinstance(w, Tensor):
            raise TypeError(f"{name} is of type {type(w).__name__}, expected a Tensor or None")


@once
def _check_shapes(
    shapes: tuple[tuple[Shape, ...], ...],
    names_beside: tuple[str, ...],
    beside: tuple[Shape | None, ...],
    attention: Attention,
    coupled: bool,
) -> DecoderSizes:
    check_attention(attention)
    if len(shapes) == 0:
        raise ValueError("weights has 0 entries, expected at least 1: one per layer")
    count = len(shapes[0])
    if not 2 <= count <= 5:
        raise ValueError(f"weights[0] has {count} tensors, expected 2 to 5: w_ih, w_hh, b_ih, b_hh, w_peephole")
    names = ("w_ih", "w_hh", *(("b_ih", "b_hh") if count > 3 else ()), *(("w_peephole",) if count % 2 else ()))
    cell = CELLS[coupled, bool(count % 2)]
    for k, of_layer in enumerate(shapes):
        if len(of_layer) != count:
            raise ValueError(f"weights[{k}] has {len(of_layer)} tensors, expected {count}: as many as weights[0]")
        for name, shape in zip(names[:2], of_layer, strict=False):
            if len(shape) != 2:
                raise ValueError(f"{name} of weights[{k}] has shape {tuple(shape)}, expected two dimensions")
    columns, H = shapes[0][0][1], shapes[0][1][1]
    given = dict(zip(names_beside, beside, strict=True))
    M = _check_beside(given, attention, H)
    joined = attention.joined(H, M)
    if columns < joined:
        what = "the context" if attention.before else f"the {attention.feed} vector that is fed"
        raise ValueError(
            f"w_ih of weights[0] has shape {tuple(shapes[0][0])}, expected at least {joined} columns: "
            f"after those of the input come {joined} of {what}"
        )
    for k, of_layer in enumerate(shapes):
        expected = cell.weights(H if k else columns, H, bias=count > 3)
        for name, shape in zip(names, of_layer, strict=True):
            if tuple(shape) != expected[name]:
                raise ValueError(
                    f"{name} of weights[{k}] has shape {tuple(shape)}, expected {expected[name]}: "
                    f"{len(cell.gates)} gates, {H if k else columns} columns of input and hidden size {H}"
                )
    return DecoderSizes(cell, names, columns - joined, H, M)


def _check_beside(given: dict[str, Shape | None], attention: Attention, H: int) -> int:
    """M. The attention has the weights that its score and output take."""
    wanted = attention.weights(H, 0, 0)
    optional = {"b_out"} & wanted.keys()
    options = f"attention is {attention.score!r} and output is {attention.output!r}"
    for name, shape in given.items():
        if shape is None and name in wanted.keys() - optional:
            raise ValueError(f"{name} is None, expected a Tensor where {options}")
        if shape is not None and name not in wanted:
            raise ValueError(f"{name} is given, expected None where {options}")
        if shape is not None and len(shape) != len(wanted[name]):
            raise ValueError(f"{name} has shape {tuple(shape)}, expected {_dimensions(len(wanted[name]))}")
    w_key, w_query = given["w_key"], given["w_query"]
    M = H if w_key is None else w_key[1]
    A = H if w_query is None else w_query[0]
    for name, expected in attention.weights(H, M, A).items():
        shape = given[name]
        if shape is not None and tuple(shape) != expected:
            raise ValueError(
                f"{name} has shape {tuple(shape)}, expected {expected}: hidden size {H}, memory size {M}"
                + f" and attention size {A}" * attention.additive
            )
    return M


def _dimensions(n: int) -> str:
    return "no dimensions" if n == 0 else "one dimension" if n == 1 else "two dimensions"
