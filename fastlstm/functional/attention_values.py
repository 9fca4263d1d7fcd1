"""What the Attention LSTM takes and gives, as values."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree


class AttentionWeights(NamedTuple):
    """The weights of an attention beside the recurrent ones. Sizes: H hidden, M memory, A attention.

    `w_query` (A, H), `w_key` (A, M) and `w_score` (A) of additive scores; `g_score` () and `b_score` (A) where they are
    normalised; `w_key` (H, M) alone of "general" ones; none of dot kinds. `w_out` (H, M + H), of [context, h], and `b_out`
    (H) or None, unless the output is "hidden".
    """

    w_query: Tensor | None = None
    w_key: Tensor | None = None
    w_score: Tensor | None = None
    g_score: Tensor | None = None
    b_score: Tensor | None = None
    w_out: Tensor | None = None
    b_out: Tensor | None = None


class AttentionState(NamedTuple):
    """The state between two steps. Sizes: L layers, B batch, H hidden, F fed: H ("attentional") or M ("context").

    `h` and `c` (L, B, H); `fed` (B, F), which joins the next step's input, None where nothing is fed. Unbatched, without B.
    """

    h: Tensor
    c: Tensor
    fed: Tensor | None

    def index_select(self, rows: Tensor) -> "AttentionState":
        """The state of the sequences `rows`, indices of the batch in any order and number: for a beam search.

        >>> import torch
        >>> state = AttentionState(torch.zeros(1, 3, 5), torch.zeros(1, 3, 5), torch.zeros(3, 5))
        >>> state.index_select(torch.tensor([2, 2, 0, 1])).fed.shape
        torch.Size([4, 5])
        """
        if self.h.dim() != 3:
            raise ValueError(f"h has shape {tuple(self.h.shape)}, expected (L, B, H): an unbatched state has no rows")
        fed = None if self.fed is None else self.fed.index_select(0, rows)
        return AttentionState(self.h.index_select(1, rows), self.c.index_select(1, rows), fed)


class Precomputed(NamedTuple):
    """A memory that is ready for steps: what `precompute` returns. Gradients reach the memory and its projection.

    Sizes: S slots, B batch, M memory, A attention. `memory` (S, B, M), zero beyond a length; `keys` (S, B, A), the projected
    memory, or None where keys are the memory; `memory_lengths` (B,), int64 on the CPU, or None. B is 1 where unbatched.
    """

    memory: Tensor
    keys: Tensor | None
    memory_lengths: Tensor | None

    def index_select(self, rows: Tensor) -> "Precomputed":
        """That of the sequences `rows`, indices of the batch in any order and number: for a beam search.

        >>> import torch
        >>> precomputed = Precomputed(torch.zeros(7, 3, 5), None, torch.tensor([7, 0, 2]))
        >>> precomputed.index_select(torch.tensor([2, 2, 0, 1])).memory_lengths
        tensor([2, 2, 7, 0])
        """
        keys, lengths = self.keys, self.memory_lengths
        return Precomputed(
            self.memory.index_select(1, rows),
            None if keys is None else keys.index_select(1, rows),
            None if lengths is None else lengths.index_select(0, rows.cpu()),
        )


# For torch.export.save of programs that take or return it (PyTorch has no public name for that), and torch.export.load
torch.serialization.add_safe_globals([AttentionState])
_pytree._register_namedtuple(AttentionState, serialized_type_name="fastlstm.AttentionState")
