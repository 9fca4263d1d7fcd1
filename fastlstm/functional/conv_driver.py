"""What the functions of the ConvLSTM run: a whole stack, or a single step of it. Checks are made here, and nowhere below."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm import backends, checks, onnx, stack
from fastlstm.call import Call, ConvCall
from fastlstm.functional import quick
from fastlstm.kernels.conv_lstm import Geometry, unmoved
from fastlstm.kernels.variant import Variant
from fastlstm.ops.conv_finals import Place, joined, places
from fastlstm.ops.conv_layer import conv_layer, is_per_pixel
from fastlstm.sequences import Batch, autocast, each, promote_to_state, time_major

Weights = Sequence[Sequence[Tensor]]


class Checked(NamedTuple):
    """The arguments of a call, right but for the states' sizes, in the layouts of `fastlstm.ops.conv_lstm`: views."""

    variant: Variant
    x: Tensor
    # not moved: of h and of c, a tensor for all layers, or where these differ, one for each
    states: list[list[Tensor]] | None
    layers: list[tuple[dict[str, Tensor], Geometry]]  # and directions
    widths: tuple[int, ...]
    differ: bool
    image: tuple[int, ...]
    channels_last: bool
    backend: str

    def maps(self, t: Tensor) -> Tensor:
        """Maps (..., *S', channels) in the layout of the input."""
        to = -len(self.image) - 1
        return t.contiguous().movedim(-1, to) if self.channels_last else t.movedim(-1, to).contiguous()


def convolutional(input: Tensor | None, weights: Weights, hx: Any, call: Call, conv: ConvCall) -> Any:
    """`(output, (h_n, c_n))`, or `(output, (h_n, c_n), cells)`: what `fastlstm.functional.conv_lstm` describes."""
    checks.check_dropout(call.dropout)
    checks.check_forecast(input, hx, conv.steps, call.bidirectional, call.lengths)
    right = _check(input, weights, hx, call, conv)
    more = call.return_cells or conv.return_all_layers or not conv.return_sequence
    if len(right.layers) == 1 and call.lengths is None and not more:
        y, states = _single(right, (1,), call, conv)
        return right.maps(y), states
    D, differ, maps = call.directions, right.differ, right.maps
    batch = time_major(right.x, right.x, call.batch_first, call.lengths, call.reset, len(right.image) + 3)
    moved = not right.channels_last and D == 1 and conv.return_sequence

    def run(
        x: Tensor, batch_sizes: Tensor | None, states: Any, of_layer: Any, reverse: bool, last: bool
    ) -> stack.Results:
        cells = call.return_cells and conv.return_sequence and (last or conv.return_all_layers)
        (w, geometry), place = of_layer
        return conv_layer(
            right.variant, x, batch_sizes, batch.reset, states, w, geometry, hx is None, reverse, cells, conv.checkpoint,
            moved and last, conv.return_sequence or not last, place, backend=right.backend,
        )  # fmt: skip

    count = D if differ else len(right.layers)  # of the final states that are one tensor
    into: Sequence[Place] | None = _places(right, batch, count) if count > 1 and not conv.checkpoint else None

    outputs, ends = stack.stack(
        run,
        batch.x,
        batch.batch_sizes,
        _initial(right, batch, D),
        list(zip(right.layers, into or repeat(None), strict=False)),
        directions=D,
        dropout=call.drop,
        every_layer=conv.return_all_layers,
    )

    if conv.return_sequence:
        found = [[maps(batch.output(t)) for t in of_layer] for of_layer in outputs]  # type: ignore[arg-type]
    else:
        lasts = [[torch.cat(s, -1) for s in zip(*ends[k : k + D], strict=True)] for k in range(0, len(ends), D)]
        wanted = lasts if conv.return_all_layers else lasts[-1:]
        found = [
            [maps(s[0]) for s in batch.finals([t[None] for t in pair[: 1 + call.return_cells]])] for pair in wanted
        ]
    if into:
        wholes = [joined(into[k : k + count], ends[k : k + count]) for k in range(0, len(ends), count)]
        finals = [batch.finals(s) for s in zip(*wholes, strict=True)]
    else:
        finals = [_stacked(s, batch, count, right) for s in zip(*ends, strict=True)]
    h_n, c_n = [[maps(t) for t in s] if differ else maps(s[0]) for s in finals]
    output, *cells = [list(of_layers) for of_layers in zip(*found, strict=True)] if conv.return_all_layers else found[0]
    return output, (h_n, c_n), *cells


def convolutional_step(
    input: Tensor, weights: Sequence[Tensor], hx: Any, conv: ConvCall, backend: str
) -> tuple[Tensor, Tensor]:
    """`(h, c)` after one step."""
    checks.check_conv_input(input, step=True)
    call = Call(backend=backend)
    right = _check(input[None], [weights], hx, call, conv, step=True)
    _, (h, c) = _single(right, (), call, conv)
    return (h, c) if hx is None else (promote_to_state(hx[1], h), promote_to_state(hx[1], c))


def _single(right: Checked, leading: tuple[int, ...], call: Call, conv: ConvCall) -> tuple[Any, tuple[Tensor, Tensor]]:
    """Of one layer in one direction, y, whose maps are not moved, and `(h_n, c_n)`: a loop of a user's own runs this each step.

    States have a size of 1 before those of the batch, or nothing: `leading`.
    """
    n, (H,), ((weights, geometry),) = len(right.image), right.widths, right.layers
    batch = time_major(right.x, right.x, call.batch_first, None, call.reset, n + 3)
    states = None if right.states is None else (right.states[0][0], right.states[1][0])
    if states is None:
        h0, c0 = _zeros(batch.x, (batch.B, *right.image, H))
    else:
        checks.check_conv_pair(states, batch.x, leading, (batch.B,) if batch.batched else (), H, right.image)
        # squeezed, not indexed: a gradient is a view then
        h0, c0 = [(s.squeeze(0) if leading else s).movedim(-n - 1, -1) for s in states]
        h0, c0 = (h0, c0) if batch.batched else (h0[None], c0[None])
    (y,), ends = conv_layer(
        right.variant, batch.x, None, batch.reset, (h0, c0), weights, geometry, states is None,
        checkpoint=conv.checkpoint, moved=not right.channels_last, backend=right.backend,
    )  # fmt: skip
    ends = ends if batch.batched else tuple([s.squeeze(0) for s in ends])
    h_n, c_n = [right.maps(s[None] if leading else s) for s in ends]
    return batch.output(y), (h_n, c_n)


def _check(input: Tensor | None, weights: Weights, hx: Any, call: Call, conv: ConvCall, step: bool = False) -> Checked:
    sizes, layers = checks.check_conv_weights(weights, call.directions, conv.coupled)
    geometry = checks.check_geometry(conv.stride, conv.padding, conv.dilation, sizes.kernel)
    if onnx.exporting_anyhow():
        raise NotImplementedError(
            "a ConvLSTM is to be exported to ONNX, expected another module: ONNX has no such node; torch.export takes it"
        )
    first, n, differ = layers[0]["w_ih"], len(sizes.kernel), sizes.differ
    if hx is not None:
        checks.check_conv_hx(hx, len(sizes.widths), differ)
    given = None if hx is None else [list(s) if differ else [s] for s in hx]
    only = conv.spatial_size
    if input is None:
        assert given is not None
        checks.check_forecast_fits(given[0][0], n)
        input = _nothing(first, given[0][0].shape, conv.steps, call.batch_first)
        layers[0] = layers[0] | {"w_ih": first[:, :0]}
        only = only and checks.check_image(only, geometry, sizes.kernel, "spatial_size")
        geometry = unmoved(sizes.kernel)
    checks.check_conv_input(input)
    x, given, layers = _autocast(input, given, layers)
    checks.check_conv_fits(x, layers[0]["w_ih"], call.batch_first, step)
    if only is not None:
        checks.check_only("input" if conv.steps is None else "h0", x.shape[-n:], only)
    image = checks.check_image(x.shape[-n:], geometry, sizes.kernel)
    checks.check_peepholes(layers, image)
    return Checked(
        sizes.variant,
        x.movedim(-n - 1, -1),
        given,
        list(zip([_channels_last(w) for w in layers], (geometry,) * call.directions + sizes.inner, strict=True)),
        sizes.widths,
        differ,
        image,
        _is_channels_last(x, n),
        backends.choose(sizes.variant, x.device, x.dtype, call.backend, True).backend,
    )


def _nothing(like: Tensor, state: torch.Size, steps: Any, batch_first: bool) -> Tensor:
    """An input of no channels, over the image of a state of this shape; `like` is a weight."""
    n = like.dim() - 2
    leading = (steps,) if len(state) == n + 2 else (state[1], steps) if batch_first else (steps, state[1])
    return like.new_empty(*leading, 0, *state[-n:])


def _autocast(x: Tensor, states: Any, layers: list[dict[str, Tensor]]) -> tuple:
    if not torch._C._is_any_autocast_enabled():
        return x, states, layers
    cast = None if states is None else [list(autocast(x, *s)[1:]) for s in states]
    return autocast(x)[0], cast, [dict(zip(w, autocast(x, *w.values())[1:], strict=True)) for w in layers]


def _is_channels_last(x: Tensor, n: int) -> bool:
    """Whether maps (..., C, *S) lie so, and not as usual, which those of one channel do as well."""
    return n > 1 and not x.is_contiguous() and x.movedim(-n - 1, -1).is_contiguous()


def _channels_last(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer's weights in the layouts of `fastlstm.ops.conv_lstm`: views."""
    moved = {name: _moved(w) if w.dim() > 1 else w for name, w in weights.items()}
    w_peephole = weights.get("w_peephole")
    if w_peephole is not None and max(w_peephole.shape[2:]) == 1:
        moved["w_peephole"] = w_peephole.flatten(1)
    return moved


def _moved(w: Tensor) -> Tensor:
    """`w` (rows, C, *k) as (rows, *k, C): where that moves nothing, so that its gradient has the strides that DDP looks for."""
    rows, C, *kernel = w.shape
    return w.reshape(rows, *kernel, C) if C <= 1 or max(kernel) == 1 else w.movedim(1, -1)


def _initial(right: Checked, batch: Batch, D: int) -> list[tuple[Tensor, Tensor]]:
    """For each layer and direction, h0 and c0 (B, *S', H) in the order of the batch."""
    states, widths, image = right.states, right.widths, right.image
    if states is None:
        zeros = {H: _zeros(batch.x, (batch.B, *image, H)) for H in widths}
        return [zeros[H] for H in widths for _ in range(D)]
    leading, widths = (D, widths) if right.differ else (D * len(widths), widths[:1])
    checks.check_conv_states(states, batch.x, (leading,), (batch.B,) if batch.batched else (), widths, image)
    if not batch.batched:
        states = [[t.unsqueeze(1) for t in s] for s in states]
    rows = [[row for t in batch.sorted_states(s) for row in each(t.movedim(2, -1))] for s in states]
    return list(zip(*rows, strict=True))


def _zeros(x: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two tensors: PyTorch's compiler takes no Function of which two arguments are one. On the CPU a number each, as nobody
    reads more where states are `fresh`."""
    if x.is_cpu:
        return x.new_zeros(()).expand(shape), x.new_zeros(()).expand(shape)
    return torch.zeros(shape, dtype=x.dtype, device=x.device), torch.zeros(shape, dtype=x.dtype, device=x.device)


def _places(right: Checked, batch: Batch, count: int) -> list[Place] | None:
    """Where the final states of each layer and direction go, `count` of them side by side, or None where only an op's results
    may tell them: in programs, under transforms, for tensors of other kinds."""
    tensors = [batch.x, *[w[name] for w, _ in right.layers for name in ("w_ih", "w_hh")]]
    if not batch.x.is_cpu or right.backend != "numba" or not quick.runs_at_once():
        return None
    if any(type(t) is not Tensor for t in tensors) or any(is_per_pixel(w, geometry) for w, geometry in right.layers):
        return None
    widths = right.widths if right.differ else right.widths[:1]
    return [p for H in widths for p in places(batch.x, count, (batch.B, *right.image, H), right.channels_last)]


def _stacked(states: Sequence[Tensor], batch: Batch, size: int, right: Checked) -> tuple[Tensor, ...]:
    """The final states of all layers and directions, `size` of them as one, in the order of the input."""
    if size == 1:  # nothing to copy
        return batch.finals([s[None] for s in states])
    if right.channels_last:
        return batch.finals([torch.stack(list(states[k : k + size])) for k in range(0, len(states), size)])
    to = -len(right.image) - 1  # maps are moved by the copy that is made anyway
    moved = [s.movedim(-1, to) for s in states]
    return batch.finals([torch.stack(moved[k : k + size]).movedim(to, -1) for k in range(0, len(moved), size)])
