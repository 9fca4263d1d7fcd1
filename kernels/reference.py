"""What the references share: a batch of sequences as a list of steps, and back."""

import torch
from torch import Tensor


def time_steps(x: Tensor, batch_sizes: Tensor | None) -> list[Tensor]:
    """The valid rows of each step: `x` is dense (T, B, I), one step (B, I), or packed (N, I) or padded (T, B, I) with
    `batch_sizes`. A row of what is dense or padded may be a map (*S, C) in the place of I."""
    if batch_sizes is None:
        return list(x.unbind(0)) if x.dim() > 2 else [x]
    if x.dim() == 2:
        return list(x.split(batch_sizes.tolist()))
    return [x_t[:n] for x_t, n in zip(x.unbind(0), batch_sizes.tolist(), strict=True)]


def join_steps(y: list[Tensor], x: Tensor, batch_sizes: Tensor | None, state: Tensor) -> Tensor:
    """The rows of all steps, each like one of `state`, in the layout of `x`; rows that a padded step skipped are zero."""
    if not y:
        return state.new_empty(*x.shape[: x.dim() - state.dim() + 1], *state.shape[1:])
    if x.dim() == 2:
        return torch.cat(y)
    if batch_sizes is not None:
        y = [torch.cat([y_t, state.new_zeros(x.shape[1] - len(y_t), *state.shape[1:])]) for y_t in y]
    return torch.stack(y)


def cuts(reset: Tensor | None, batch_sizes: Tensor | None, reverse: bool) -> list[Tensor] | None:
    """For each step t, (n, 1): the rows whose state is zeroed before t is run. None where there is no `reset`.

    `reset` has the layout of x without its last dimension, and cuts a sequence between t - 1 and t. Run in reverse, that cut is
    met before t - 1; a sequence that begins its run at t has nothing before it to be cut off there.
    """
    if reset is None:
        return None
    before = time_steps(reset.reshape(*reset.shape, 1), batch_sizes)
    if not reverse or not before:
        return before
    after = [*before[1:], before[-1][:0]]
    return [torch.cat([cut, cut.new_zeros(len(b) - len(cut), 1)]) for b, cut in zip(before, after, strict=True)]
