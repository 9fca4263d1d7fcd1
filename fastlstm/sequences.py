"""From what users hand over (padded, packed, unbatched, batch first, unsorted) to the layouts of `fastlstm.ops`, and back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm import checks

# What users hand over as one batch of sequences
Input = Tensor | PackedSequence
Lengths = Tensor | Sequence[int] | None


class Batch(NamedTuple):
    """A batch in one of the layouts of `fastlstm.ops`, and what it takes to give results in the user's layout.

    `x` and `reset` are time-major, in the order of falling lengths; `order` and `restore` lead there and back.
    """

    x: Tensor
    batch_sizes: Tensor | None
    reset: Tensor | None
    B: int
    order: Tensor | None
    restore: Tensor | None
    packed: bool
    batched: bool
    batch_first: bool
    cpu_order: Tensor | None = None  # `order` on the CPU, of lengths that were given

    def sorted_states(self, states: Sequence[Tensor]) -> Sequence[Tensor]:
        return states if self.order is None else [s.index_select(1, self.order) for s in states]

    def output(self, y: Tensor) -> Input:
        """Rows of all steps in the layout that the input had."""
        if self.packed:
            return PackedSequence(y, self.batch_sizes, self.order, self.restore)
        if self.restore is not None:
            y = y.index_select(1, self.restore)
        if not self.batched:
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    def finals(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Final states in the order that the initial ones had."""
        if self.restore is not None:
            states = [s.index_select(1, self.restore) for s in states]
        return tuple(states) if self.batched else tuple(s.squeeze(1) for s in states)


def each(state: Tensor) -> Sequence[Tensor]:
    """The parts of a state (L, ...). Where a compiler watches, not by `unbind`: it may keep a part for the backward beside the
    whole, not see that they are one memory, and write to the whole before the part is read (Inductor did)."""
    return [state[k] for k in range(len(state))] if torch.compiler.is_compiling() else state.unbind(0)


def own(result: Tensor) -> Tensor:
    """For the caller, who may edit it in place: PyTorch's op that made `result` keeps it for its backward."""
    return result.clone() if torch.is_grad_enabled() or torch._C._get_tracing_state() is not None else result


def time_major(
    input: Input, x: Tensor, batch_first: bool, lengths: Lengths, reset: Tensor | None, dims: int = 3
) -> Batch:
    """`x` is `input`, or its data where it is packed, in the dtype to compute in; `dims` are those of a padded batch."""
    if isinstance(input, PackedSequence):
        checks.check_no_lengths(lengths, "a PackedSequence has its own")
        checks.check_packed(input)
        _, batch_sizes, order, restore = input
        # A tracer doesn't know the values of batch_sizes
        B = len(order) if order is not None else int(batch_sizes[0])
        if reset is not None:
            _check_capture(x, "reset= of a PackedSequence", "give sequences of equal lengths, as one tensor")
            reset = _reset(reset, len(batch_sizes), B, batch_first, order, x)
            reset = reset[(torch.arange(B, device="cpu") < batch_sizes[:, None]).to(x.device)]
        return Batch(x, batch_sizes, reset, B, order, restore, True, True, batch_first)
    batched = x.dim() == dims
    if not batched:
        checks.check_no_lengths(lengths, "an unbatched input is one sequence, which ends where it ends")
        x = x.unsqueeze(1)
    elif batch_first:
        x = x.transpose(0, 1)
    T, B = x.shape[:2]
    checks.check_steps(T)
    sizes = order = restore = cpu_order = None
    if lengths is not None:
        _check_capture(
            x, "lengths=", "give a PackedSequence that was made before, which has its lengths there once it was used"
        )
        lengths, cpu_order = checks.check_lengths(lengths, T, B).sort(descending=True, stable=True)
        sizes = (torch.arange(T, device="cpu")[:, None] < lengths).sum(1)
        order = cpu_order.to(x.device)
        restore = order.argsort()
        x = x.index_select(1, order)
    if reset is not None:
        reset = _reset(reset, T, B if batched else None, batch_first, order, x)
    return Batch(x, sizes, reset, B, order, restore, False, batched, batch_first, cpu_order)


def _check_capture(x: Tensor, what: str, remedy: str) -> None:
    """Raise where a CUDA graph is being captured: what follows copies numbers to the GPU."""
    if x.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{what} can't be captured in a CUDA graph: it is copied to the GPU from other memory; {remedy}"
        )


def _reset(reset: Tensor, T: int, B: int | None, batch_first: bool, order: Tensor | None, x: Tensor) -> Tensor:
    """`reset` as (T, B), sorted, where `x` is; B is None for an unbatched input."""
    checks.check_reset(reset, T, B, batch_first, x)
    if B is None:
        reset = reset.unsqueeze(1)
    elif batch_first:
        reset = reset.transpose(0, 1)
    reset = reset.to(x.device)
    return (reset if order is None else reset.index_select(1, order)).contiguous()


def autocast(*tensors: Tensor | None) -> Sequence[Any]:
    """The same in the dtype of autocast where that is on; like PyTorch's, it leaves float64 and integers alone.

    The first one tells the device.
    """
    if not torch._C._is_any_autocast_enabled():
        return tensors
    assert tensors[0] is not None
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def promote_to_state(state: Tensor, result: Tensor) -> Tensor:
    """The result of a GRU, a cell or a packed LSTM in the dtype of PyTorch's: on the CPU, autocast's does not narrow the state.

    `state` is the initial one, as it was given. (A dense `nn.LSTM` gives autocast's dtype, and so does ours.)
    """
    if result.dtype == state.dtype or state.device.type != "cpu":
        return result
    return result.to(torch.promote_types(result.dtype, state.dtype))
