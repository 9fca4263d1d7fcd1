"""How ConvLSTMs are run: a layer by the op or the reference, and as LSTMs where each pixel is a sequence."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch import Tensor

from fastlstm.case import Case, ConvCase
from fastlstm.kernels.conv_lstm import unmoved
from fastlstm.kernels.conv_lstm.reference import conv_lstm_reference
from fastlstm.kernels.variant import PARAMETERS
from fastlstm.ops.conv_layer import conv_layer

Given = dict[str, Tensor]
Forward = Callable[[Any, Given], Given]


def pixelwise(forward: Forward) -> Forward:
    """`forward` of an LSTM, which runs a ConvLSTM's case as well if it has the pixels of one (`flat`)."""

    @wraps(forward)
    def run(case: Case, given: Given) -> Given:
        if not isinstance(case, ConvCase):
            return forward(case, given)
        assert case.flat is not None
        kept: tuple[Any, ...] = (..., *[slice(None, None, step) for step in case.geometry.stride])
        maps = {key: t[kept] if key == "x" else t for key, t in given.items() if key in ("x", *case.states)}
        rows = {key: t.movedim(2, -1).flatten(1, -2) for key, t in maps.items()}
        weights = {key: t.reshape(t.shape[:2]) for key, t in given.items() if key not in maps}
        results = forward(case.flat, rows | weights)
        return {key: t.unflatten(1, (case.B, *case.image)).movedim(-1, 2) for key, t in results.items()}

    return run


def one_conv_layer(
    case: ConvCase,
    backend: str | None,
    layer: int,
    x: Tensor,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    initial: Sequence[Tensor],
    weights: Given,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """y, h_n, c_n, then cells where there are any; all have their channels before the image, as modules have them."""
    geometry = case.geometry if layer == 0 else unmoved(case.kernel)
    of_names = {name: weights[long] for name, long in PARAMETERS.items() if long in weights}
    of_names = {name: w.movedim(1, -1) if w.dim() > 1 else w for name, w in of_names.items()}
    if case.kind.peepholes and not case.hadamard:
        of_names["w_peephole"] = of_names["w_peephole"].flatten(1)
    if case.blind and layer == 0:
        of_names["w_ih"] = of_names["w_ih"][..., :0]
    x, states = x.movedim(2, -1), (initial[0].movedim(1, -1), initial[1].movedim(1, -1))
    if backend is not None:
        (y, *cells), finals = conv_layer(
            case.kind, x, batch_sizes, reset, states, of_names, geometry, case.zero_state, reverse, case.return_cells,
            backend=backend,
        )  # fmt: skip
    else:
        some = [of_names.get(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_peephole")]
        y, h_n, c_n, *cells = conv_lstm_reference(
            x, batch_sizes, reset, *states, *some, *geometry, case.kind.coupled, False, reverse
        )
        finals = h_n, c_n
    y, *cells = [t.movedim(-1, 2) for t in (y, *cells)]
    return y, *[t.movedim(-1, 1) for t in finals], *cells
