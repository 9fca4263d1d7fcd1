"""A sequence as one vector: attention whose query is learned."""

import math

import torch
from torch import Tensor, nn

from fastlstm import checks
from fastlstm.modules.base import shown_name
from fastlstm.sequences import Lengths, own


class AttentionPooling(nn.Module):
    """What matters of a sequence, as one vector for a classifier: a mean of its steps, by weights that are learned.

        e_s = w_score · tanh(W_key m_s + b_key)     α = softmax(e) over s < length     pooled = Σ_s α_s m_s

    with a `weight_score` for each of the heads, whose means stand one after the other.

    `forward(memory, lengths=None)` takes the outputs of a (bidirectional) LSTM, (S, B, M), or (B, S, M) with `batch_first`,
    and gives `pooled` (B, heads * M) and `weights` (B, heads, S). What lies beyond a length has weight 0 and no influence, be
    it NaN; a sequence of length 0 gives zeros. The softmax is in at least float32.

    Parameters: `weight_key` (A, M), `bias_key` (A), `weight_score` (heads, A); A is `attention_size`, M where it is None.

    Raises TypeError and ValueError where sizes are no positive ints, where a memory has other dimensions, size or dtype, and
    where lengths do not fit it.

    Source: Yang et al. (2016), and Lin et al. (2017) for heads.

    >>> lstm, pooling = fastlstm.LSTM(10, 20, bidirectional=True), AttentionPooling(40, heads=2)
    >>> output, _ = lstm(torch.randn(7, 3, 10), lengths=[7, 2, 0])
    >>> pooled, weights = pooling(output, [7, 2, 0])
    >>> pooled.shape, weights.shape
    (torch.Size([3, 80]), torch.Size([3, 2, 7]))
    """

    def __init__(
        self,
        memory_size: int,
        attention_size: int | None = None,
        heads: int = 1,
        *,
        batch_first: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.memory_size = checks.positive("memory_size", memory_size)
        self.attention_size = checks.positive(
            "attention_size", memory_size if attention_size is None else attention_size
        )
        self.heads = checks.positive("heads", heads)
        checks.check_bool("batch_first", batch_first)
        checks.check_dtype(dtype, "weights are fractions")
        self.batch_first = batch_first
        M, A = self.memory_size, self.attention_size
        self.weight_key = nn.Parameter(torch.empty(A, M, device=device, dtype=dtype))
        self.bias_key = nn.Parameter(torch.empty(A, device=device, dtype=dtype))
        self.weight_score = nn.Parameter(torch.empty(heads, A, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All weights anew, as those of `nn.Linear`: uniform within 1 / sqrt(what each sums over)."""
        for weight in (self.weight_key, self.bias_key, self.weight_score):
            bound = 1 / math.sqrt(self.attention_size if weight is self.weight_score else self.memory_size)
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, memory: Tensor, lengths: Lengths = None) -> tuple[Tensor, Tensor]:
        self._check(memory)
        memory = memory if self.batch_first else memory.transpose(0, 1)
        B, S, _ = memory.shape
        beyond = torch.zeros(B, S, dtype=torch.bool, device=memory.device)
        if lengths is not None:
            lengths = checks.check_lengths(lengths, S, B, of="memory").to(memory.device)
            beyond = torch.arange(S, device=memory.device) >= lengths.unsqueeze(1)
            memory = memory.masked_fill(beyond.unsqueeze(-1), 0)
        keys = nn.functional.linear(memory, self.weight_key, self.bias_key).tanh()
        scores = nn.functional.linear(keys, self.weight_score).transpose(1, 2)
        hidden = beyond.unsqueeze(1)
        # where nothing is left, any finite scores do: their weights are zeroed
        scores = scores.masked_fill(hidden & ~hidden.all(-1, keepdim=True), -torch.inf)
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        weights = weights.masked_fill(hidden, 0).to(memory.dtype)
        return (weights @ memory).flatten(1), own(weights)

    def _check(self, memory: Tensor) -> None:
        axes = "(B, S, M)" if self.batch_first else "(S, B, M)"
        if not isinstance(memory, Tensor):
            raise TypeError(f"memory is of type {type(memory).__name__}, expected a Tensor {axes}")
        checks.check_strided("memory", memory, "it is read as dense rows")
        if memory.dim() != 3 or memory.shape[2] != self.memory_size:
            raise ValueError(
                f"memory has shape {tuple(memory.shape)}, expected {axes} with M = {self.memory_size}: "
                "the module's memory_size, which of a bidirectional LSTM is 2 * hidden_size"
            )
        if memory.device != self.weight_key.device:
            raise RuntimeError(f"memory is on {memory.device}, expected {self.weight_key.device}: that of the weights")
        dtype, device = self.weight_key.dtype, memory.device.type
        if memory.dtype == dtype:
            return
        casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        # like PyTorch's, it leaves float64 and integers alone
        if not casts or not memory.is_floating_point() or torch.float64 in (memory.dtype, dtype):
            raise ValueError(f"memory has dtype {memory.dtype}, expected {dtype}: that of the weights")

    def _get_name(self) -> str:
        return shown_name(self, super()._get_name())

    def extra_repr(self) -> str:
        more = ", batch_first=True" if self.batch_first else ""
        return f"{self.memory_size}, {self.attention_size}, heads={self.heads}{more}"
