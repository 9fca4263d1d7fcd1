"""What every public function runs: a whole stack, or a single step of it. Checks are made here, and nowhere below."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm import backends, checks, onnx, stack, torch_backend
from fastlstm.call import Call
from fastlstm.functional import quick
from fastlstm.kernels.variant import Variant
from fastlstm.ops.layer import layer
from fastlstm.sequences import Batch, Input, autocast, each, promote_to_state, time_major

Weights = Sequence[Sequence[Tensor]]


def recurrent(variant: Variant, input: Input, weights: Weights, hx: Any, call: Call) -> Any:
    """`(output, final)`, or `(output, final, cells)`: what `fastlstm.functional.lstm` describes, for any variant.

    `hx` and `final` are a tensor where the variant has one state, and a tuple where it has more.
    """
    if quick.is_usual() and (results := quick.layers(variant, input, weights, hx, call)) is not None:
        return results
    single = len(variant.states) == 1
    x: Tensor = input[0] if isinstance(input, PackedSequence) else input
    checks.check_input(x, isinstance(input, PackedSequence), variant.op.upper())
    checks.check_dropout(call.dropout)
    if hx is not None:
        checks.check_hx(variant, hx)
    given = (hx,) if single and hx is not None else hx
    data, states, weights = _autocast(x, given, weights)
    H, R, named = checks.check_weights(variant, weights, call.directions, data)
    if onnx.exporting():
        y, finals = onnx.exported(variant, input, data, named, states, call)
        return y, finals[0] if single else finals

    batch = time_major(input, data, call.batch_first, call.lengths, call.reset)
    states = _initial(states, batch, [(len(named), batch.B, width) for width in variant.widths(H, R)])
    chosen = backends.choose(variant, data.device, data.dtype, call.backend, call.beyond_torch).backend
    if chosen == "torch":
        steps, finals = torch_backend.run(variant, batch, states, named, call)
    else:

        def run(
            x: Tensor, batch_sizes: Tensor | None, states: Any, weights: Any, reverse: bool, last: bool
        ) -> stack.Results:
            cells = call.return_cells and last
            return layer(variant, x, batch_sizes, batch.reset, states, weights, reverse, cells, backend=chosen)

        initials = list(zip(*[each(s) for s in states], strict=True))
        outputs, ends = stack.stack(
            run, batch.x, batch.batch_sizes, initials, named, directions=call.directions, dropout=call.drop
        )
        steps, finals = outputs[-1], tuple(torch.stack(s) for s in zip(*ends, strict=True))
    finals = batch.finals(finals)
    like = x if given is None else given[0]
    # nn.LSTM's too, where oneDNN doesn't run it; an h that was projected is a product's, in autocast's dtype
    promotes = variant.promotes or (variant.counterpart and (R != H or isinstance(input, PackedSequence)))
    if promotes and like.dtype != data.dtype:
        first = int(R != H)
        steps, finals = ((*t[:first], *[promote_to_state(like, wide) for wide in t[first:]]) for t in (steps, finals))
    results = batch.output(steps[0]), finals[0] if single else finals
    return (*results, batch.output(steps[1])) if call.return_cells else results


def step(
    variant: Variant, input: Tensor, hx: Sequence[Tensor], weights: Sequence[Any], backend: str
) -> tuple[Tensor, ...]:
    """The states after one step, h first. `weights` are w_ih, w_hh, b_ih, b_hh and w_peephole, or None for those that lack.

    Few checks, each cheap: this runs once per time step of a loop of a user's own.
    """
    if quick.is_usual() and (results := quick.step(variant, input, hx, weights, backend)) is not None:
        return results
    x, states = input, hx
    if torch._C._is_any_autocast_enabled():
        x, *tensors = autocast(input, *hx, *weights)
        states, weights = tensors[: len(hx)], tensors[len(hx) :]
    w_ih, w_hh, b_ih, b_hh, w_peephole = weights
    checks.check_cell(variant, x, states, w_ih, w_hh, b_ih, b_hh, w_peephole)
    # The reference, where there are no kernels, is as good for one step as PyTorch's own op; and ONNX has no cells
    chosen = "reference" if onnx.exporting() else backends.choose(variant, x.device, x.dtype, backend, True).backend
    named = {"w_ih": w_ih, "w_hh": w_hh, "b_ih": b_ih, "b_hh": b_hh, "w_peephole": w_peephole}
    (h,), (_, *others) = layer(variant, x, None, None, states, named, backend=chosen)
    if h.dtype == hx[-1].dtype:
        return h, *others
    return tuple([promote_to_state(hx[-1], s) for s in (h, *others)])


def _autocast(x: Tensor, states: Sequence[Tensor] | None, weights: Weights) -> tuple:
    if not torch._C._is_any_autocast_enabled():
        return x, states, weights
    cast = None if states is None else autocast(x, *states)[1:]
    return autocast(x)[0], cast, [autocast(x, *w)[1:] for w in weights]


def _initial(states: Sequence[Tensor] | None, batch: Batch, shapes: list[tuple[int, ...]]) -> Sequence[Tensor]:
    """The initial states in the order of the batch: those given, or zeros."""
    x = batch.x
    if states is None:
        first = torch.zeros(shapes[-1], dtype=x.dtype, device=x.device)
        return [first if s == shapes[-1] else torch.zeros(s, dtype=x.dtype, device=x.device) for s in shapes]
    return batch.sorted_states(checks.check_states(states, x, batch.batched, shapes))
