"""The rows of a batch of sequences on a GPU: where each step's begin, and which row comes before which."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Steps(NamedTuple):
    """Where the rows of sequences of different lengths lie, as int64 on the device; -1 stands for none."""

    offsets: Tensor  # (T,): the first row of each step
    sizes: Tensor  # (T,): how many of its rows take part
    head: Tensor  # (B,): each sequence's row of its first step
    tail: Tensor  # (B,): and of its last
    earlier: Tensor  # (N,): for each row that of the step before in time, or N + b where sequence b begins there
    later: Tensor  # (N,): and of the step after


# One copy to the device per batch, which waits for it: for all layers, directions and passes that are given the same tensor.
_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_captured: list[list[Tensor]] = []  # CUDA graphs read them at every replay


def steps_of(batch_sizes: Tensor, B: int, N: int, padded: bool, device: torch.device) -> Steps:
    """Of `batch_sizes` (T,) on the CPU."""
    return Steps(*copied(batch_sizes, (B, N, padded), device, lambda: count_steps(batch_sizes, B, N, padded)))


def copied(numbers: Tensor, key: tuple, device: torch.device, parts: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
    """`parts()` of `numbers`, both on the CPU, as copies on the device, kept for as long as `numbers` lives and isn't changed;
    `key` is what else they depend on."""
    # a tensor that was made in inference mode has no version: its numbers, then
    version = numbers.numpy().tobytes() if numbers.is_inference() else numbers._version
    key = version, *key, device
    known = _copies.get(numbers)
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if known is None or known[0] != key:
        if capturing:
            raise RuntimeError(
                "lengths would be copied to the GPU while a CUDA graph is captured, which CUDA refuses: give a PackedSequence, "
                "the same one in a forward and backward before the capture and in it, so that its lengths are there"
            )
        found = parts()
        known = _copies[numbers] = key, torch.cat(list(found)).to(device).split([len(part) for part in found])
    if device.type == "cuda":  # one storage, made on whichever stream asked first
        known[1][0].record_stream(torch.cuda.current_stream(device))
        if capturing:
            _captured.append(known[1])
    return known[1]


def count_steps(batch_sizes: Tensor, B: int, N: int, padded: bool) -> Steps:
    """The same on the CPU."""
    T = len(batch_sizes)
    steps, sequences = torch.arange(T), torch.arange(B)
    lengths = (batch_sizes > sequences[:, None]).sum(1)
    offsets = steps * B if padded else batch_sizes.cumsum(0) - batch_sizes
    taken = torch.full_like(batch_sizes, B) if padded else batch_sizes
    t = steps.repeat_interleave(taken)
    b = torch.arange(N) - offsets[t]

    def neighbour(step: Tensor) -> Tensor:
        inside = (step >= 0) & (step < lengths[b])
        return torch.where(inside, offsets[step.clamp(0, max(T - 1, 0))] + b, N + b)

    tails = offsets[(lengths - 1).clamp(min=0)] + sequences if T else lengths
    head, tail = (torch.where(lengths > 0, rows, -1) for rows in (sequences, tails))
    return Steps(offsets, batch_sizes, head, tail, neighbour(t - 1), neighbour(t + 1))


class Rows:
    """Sequences in one of the layouts of `fastlstm.ops`, as rows of (N, *) arrays.

    `steps` is None where all steps have B rows. `reset` (N, 1) says of each row, as uint8, whether its state is zeroed before
    its step is run; None where none is.
    """

    def __init__(self, x: Tensor, batch_sizes: Tensor | None, reset: Tensor | None, B: int, reverse: bool) -> None:
        self.B, self.reverse, self.device = B, reverse, x.device
        self.leading = x.shape[:-1]
        self.N = self.leading.numel()
        self.padded = x.dim() == 3 and batch_sizes is not None
        self.steps = self.reset = None
        if batch_sizes is None:
            self.T = x.shape[0] if x.dim() == 3 else 1
        else:
            self.T = len(batch_sizes)
            self.steps = steps_of(batch_sizes, B, self.N, self.padded, x.device)
        if reset is not None:
            cut = reset.reshape(-1, 1).view(torch.uint8)
            # a cut lies between t - 1 and t: run in reverse, it is met before t - 1, by the rows that come from t
            self.reset = self.before(cut, cut.new_zeros(B, 1)) if reverse else cut

    def new(self, columns: int, like: Tensor) -> Tensor:
        """A new array of rows in the layout of the input; zeros where there are rows that no step owns."""
        return (like.new_zeros if self.padded else like.new_empty)((*self.leading, columns))

    def owned(self, x: Tensor) -> Tensor:
        """`x` as (N, ...), zeros where there are rows that no step owns: they may hold anything."""
        flat = x.flatten(0, len(self.leading) - 1)
        if self.steps is None or not self.padded:
            return flat
        unowned = torch.arange(self.B, device=self.device) >= self.steps.sizes[:, None]
        return flat.masked_fill(unowned.view(-1, *[1] * (flat.dim() - 1)), 0)

    def take(self, of: str, array: Tensor, otherwise: Tensor) -> Tensor:
        """Each sequence's row of `array` where it is first (or "last") run, and of `otherwise` (B, *) where it has length 0."""
        array = array.view(self.N, array.shape[-1])
        if self.N == 0:
            return otherwise.clone()
        at_head = (of == "first") != self.reverse
        if self.steps is None:
            start = 0 if at_head else self.N - self.B
            return array[start : start + self.B].clone()
        at = self.steps.head if at_head else self.steps.tail
        return torch.where((at < 0)[:, None], otherwise, array[at.clamp(min=0)])

    def before(self, array: Tensor, initial: Tensor) -> Tensor:
        """(N, *): for each row that of the step before, in the order in which steps are run; zeros where it is cut from it."""
        if self.steps is not None:
            result = torch.cat([array, initial])[self.steps.later if self.reverse else self.steps.earlier]
        elif self.N:
            shifted = (array[self.B :], initial) if self.reverse else (initial, array[: self.N - self.B])
            result = torch.cat(shifted)
        else:
            result = array
        return result if self.reset is None else result.masked_fill_(self.reset.bool(), 0)

    def shifted(self) -> tuple[slice, slice, slice] | None:
        """The rows of the first step, the others, and for these those of the step before; None where only `before` has them."""
        if self.steps is not None or self.reset is not None or self.N == 0:
            return None
        B, N = self.B, self.N
        if self.reverse:
            return slice(N - B, N), slice(0, N - B), slice(B, N)
        return slice(0, B), slice(B, N), slice(0, N - B)

    def to_initial(self, dgates: Tensor, back: Callable[[Tensor], Tensor], dh_n: Tensor | None) -> Tensor:
        """(B, R): the gradient of h0, taken `back` from the gates of each sequence's first step; for a sequence of length 0
        that of h_n, or 0 where there is none."""
        if self.N == 0:
            return back(dgates.new_zeros(self.B, dgates.shape[1])) if dh_n is None else dh_n.clone()
        if self.steps is None:
            first = self.N - self.B if self.reverse else 0
            dh0 = back(dgates[first : first + self.B])
        else:
            dh0 = back(self.take("first", dgates, dgates.new_zeros(self.B, dgates.shape[1])))
        if self.reset is not None:
            dh0.masked_fill_(self.take("first", self.reset, self.reset.new_zeros(self.B, 1)).bool(), 0)
        if self.steps is None or dh_n is None:
            return dh0
        return torch.where((self.steps.head < 0)[:, None], dh_n, dh0)
