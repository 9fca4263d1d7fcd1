"""What the functions of the ConvLSTM run: a whole stack, or a single step of it. Checks are made here, and nowhere below."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm import backends, checks, onnx, stack
from fastlstm.call import Call, ConvCall
from fastlstm.kernels.conv_lstm import unmoved
from fastlstm.ops.conv_layer import conv_layer
from fastlstm.sequences import Batch, autocast, promote_to_state, time_major


def convolutional(
    input: Tensor | None, weights: Sequence[Sequence[Tensor]], hx: Any, call: Call, conv: ConvCall
) -> Any:
    """`(output, (h_n, c_n))`, or `(output, (h_n, c_n), cells)`: what `fastlstm.functional.conv_lstm` describes."""
    checks.check_dropout(call.dropout)
    checks.check_forecast(input, hx, conv.steps, call.bidirectional, call.lengths)
    D = call.directions
    variant, layers = checks.check_conv_weights(weights, D, conv.coupled)
    first, widths = layers[0]["w_ih"], [of_layer["w_hh"].shape[1] for of_layer in layers[::D]]
    n, kernel = first.dim() - 2, first.shape[2:]
    geometry = checks.check_geometry(conv.stride, conv.padding, conv.dilation, kernel)
    if onnx.exporting():
        raise NotImplementedError(
            "a ConvLSTM is to be exported to ONNX, expected another module: ONNX has no such node; torch.export takes it"
        )
    differ = len(set(widths)) > 1
    if hx is not None:
        checks.check_conv_hx(hx, len(widths), differ)
    given = None if hx is None else [list(s) if differ else [s] for s in hx]
    if input is None:
        assert given is not None
        checks.check_forecast_fits(given[0][0], n)
        input = _nothing(first, given[0][0].shape, conv.steps, call.batch_first)
        layers[0] = layers[0] | {"w_ih": first[:, :0]}
        geometry = unmoved(kernel)
    checks.check_conv_input(input)
    x, given, layers = _autocast(input, given, layers)
    checks.check_conv_fits(x, layers[0]["w_ih"], call.batch_first)
    image = checks.check_image(x.shape[-n:], geometry, kernel)
    checks.check_peepholes(layers, image)
    channels_last = _is_channels_last(x, n)

    batch = time_major(input, x.movedim(-n - 1, -1), call.batch_first, call.lengths, call.reset, n + 3)
    initials = _initial(given, batch, widths, D, image, differ)
    chosen = backends.choose(variant, x.device, x.dtype, call.backend, True).backend
    plans = [(_channels_last(w), geometry if k < D else unmoved(w["w_ih"].shape[2:])) for k, w in enumerate(layers)]

    def run(x: Tensor, batch_sizes: Tensor | None, states: Any, plan: Any, reverse: bool, last: bool) -> stack.Results:
        cells = call.return_cells and conv.return_sequence and (last or conv.return_all_layers)
        w, shape = plan
        return conv_layer(
            variant, x, batch_sizes, batch.reset, states, w, shape, hx is None, reverse, cells, conv.checkpoint,
            backend=chosen,
        )  # fmt: skip

    outputs, ends = stack.stack(
        run,
        batch.x,
        batch.batch_sizes,
        initials,
        plans,
        directions=D,
        dropout=call.drop,
        every_layer=conv.return_all_layers,
    )

    def maps(t: Tensor) -> Tensor:
        """Maps (..., *S', channels) in the layout of the input."""
        return t.contiguous().movedim(-1, -n - 1) if channels_last else t.movedim(-1, -n - 1).contiguous()

    if conv.return_sequence:
        found = [[maps(batch.output(t)) for t in of_layer] for of_layer in outputs]  # type: ignore[arg-type]
    else:
        lasts = [[torch.cat(s, -1) for s in zip(*ends[k : k + D], strict=True)] for k in range(0, len(ends), D)]
        found = [[maps(s[0]) for s in batch.finals([t.unsqueeze(0) for t in pair])] for pair in lasts]
        found = found if conv.return_all_layers else found[-1:]
    finals = [_stacked(s, batch, D, differ) for s in zip(*ends, strict=True)]
    h_n, c_n = [[maps(t) for t in s] if differ else maps(s[0]) for s in finals]
    results = [[of_layer[k] for of_layer in found] for k in range(2 if call.return_cells else 1)]
    output, *cells = [of_layers if conv.return_all_layers else of_layers[0] for of_layers in results]
    return output, (h_n, c_n), *cells


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
    if w.shape[1] <= 1 or w.shape[2:].numel() == 1:
        return w.reshape(w.shape[0], *w.shape[2:], w.shape[1])
    return w.movedim(1, -1)


def _initial(
    states: Sequence[list[Tensor]] | None,
    batch: Batch,
    widths: Sequence[int],
    D: int,
    image: tuple[int, ...],
    differ: bool,
) -> list[tuple[Tensor, Tensor]]:
    """For each layer and direction, h0 and c0 (B, *S', H) in the order of the batch."""
    x = batch.x
    if states is None:
        # Two tensors: PyTorch's compiler takes no Function of which two arguments are one
        shapes = {H: (batch.B, *image, H) for H in widths}
        zeros = {H: tuple([torch.zeros(s, dtype=x.dtype, device=x.device) for _ in "hc"]) for H, s in shapes.items()}
        return [zeros[H] for H in widths for _ in range(D)]  # type: ignore[misc]
    of_batch = (batch.B,) if batch.batched else ()
    checks.check_conv_states(
        states, x, D if differ else D * len(widths), of_batch, widths if differ else widths[:1], image
    )
    if not batch.batched:
        states = [[t.unsqueeze(1) for t in s] for s in states]
    rows = [[row.movedim(1, -1) for t in batch.sorted_states(s) for row in t.unbind(0)] for s in states]
    return list(zip(*rows, strict=True))


def _stacked(states: Sequence[Tensor], batch: Batch, D: int, differ: bool) -> Sequence[Tensor]:
    """The final states of all layers as one, or one of each layer where they differ, in the order of the input."""
    size = D if differ else len(states)
    return batch.finals([torch.stack(list(states[k : k + size])) for k in range(0, len(states), size)])


def convolutional_step(
    input: Tensor, weights: Sequence[Tensor], hx: Any, conv: ConvCall, backend: str
) -> tuple[Tensor, Tensor]:
    """`(h, c)` after one step."""
    checks.check_conv_input(input)
    states = None
    if hx is not None:
        checks.check_conv_hx(hx, 1, False)
        states = hx[0].unsqueeze(0), hx[1].unsqueeze(0)
    call = Call(backend=backend)
    _, finals = convolutional(input.unsqueeze(0), [weights], states, call, conv._replace(return_sequence=False))
    h, c = [s.squeeze(0) for s in finals]
    return (h, c) if hx is None else (promote_to_state(hx[1], h), promote_to_state(hx[1], c))
