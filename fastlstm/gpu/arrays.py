"""Buffers of the loops, and the matrix products over all steps that PyTorch's own GEMM takes."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from fastlstm.gpu.rows import Rows
from fastlstm.gpu.streams import hold

ALIGNMENT = 16  # bytes; what the widest loads need


def on_gpu(op: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """What holds for every op: autocast has had its say before, and what is given lives until the stream is done with it."""

    @wraps(op)
    def run(*args: Any) -> tuple[Tensor, ...]:
        given = [arg for arg in args if isinstance(arg, Tensor)]
        hold(*given)
        device = given[0].device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return op(*args)
        with torch.autocast(device, enabled=False):
            return op(*args)

    return run


class Block:
    """Several (N, columns) arrays in one tensor of bytes: what a forward saves for its backward."""

    def __init__(self, N: int, columns: list[int], dtypes: list[torch.dtype]) -> None:
        self.N, self.columns, self.dtypes = N, columns, dtypes
        self.bytes = [block_bytes(N * n, dtype) for n, dtype in zip(columns, dtypes, strict=True)]
        self.size = sum(self.bytes)

    def new(self, like: Tensor, zero: bool) -> Tensor:
        return (like.new_zeros if zero else like.new_empty)(self.size, dtype=torch.uint8)

    def split(self, block: Tensor) -> list[Tensor]:
        """Views of the arrays."""
        parts = zip(block.split_with_sizes(self.bytes), self.columns, self.dtypes, strict=True)
        return [part.view(dtype)[: self.N * n].view(self.N, n) for part, n, dtype in parts]


def block_bytes(numel: int, dtype: torch.dtype) -> int:
    """The bytes of so many elements, up to a multiple of ALIGNMENT; `numel` may be symbolic."""
    return (numel * dtype.itemsize + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def aligned(tensor: Tensor) -> Tensor:
    """Contiguous, at an address from which the widest loads may read; a copy only where it is needed."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """It, in one piece, for kernels that read it number by number."""
    return None if tensor is None else tensor.contiguous()


def state(tensor: Tensor) -> Tensor:
    """A float32 copy, which a loop may write."""
    return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def nothing(like: Tensor) -> Tensor:
    """The empty tensor that stands for a result that isn't wanted."""
    return like.new_empty(0)


def present(instead: Tensor, **gradients: Tensor | None) -> dict[str, Tensor | int]:
    """Gradients from above as a kernel is given them: those that there are, `instead` of the others what isn't read; and as
    `given` the sum of 1 for the first that there is, 2 for the second, and so on."""
    given = sum([(gradient is not None) << k for k, gradient in enumerate(gradients.values())])
    return {"given": given} | {name: instead if g is None else g for name, g in gradients.items()}


def or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    """The gradient, or zeros of the shape of `like` where nobody gave one."""
    return torch.zeros_like(like) if gradient is None else gradient


def or_new(tensor: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """It, or zeros of that shape."""
    return like.new_zeros(shape) if tensor is None else tensor


def input_gates(out: Tensor, x: Tensor, w_ih: Tensor, *biases: Tensor | None) -> None:
    """`out` (N, G*H) = x W_ih^T + the biases: the share of all steps' pre-activations that doesn't wait for the loop."""
    x, bias = x.reshape(-1, x.shape[-1]), sum_of(*biases)
    if bias is None:
        torch.mm(x, w_ih.t(), out=out)
    else:
        torch.addmm(bias, x, w_ih.t(), out=out)


def sum_of(*biases: Tensor | None) -> Tensor | None:
    """Of those that there are, rounded once."""
    given = [b for b in biases if b is not None]
    return (given[0].float() + given[1].float()).to(given[0].dtype) if len(given) == 2 else given[0] if given else None


def recurrent_gradient(dgates: Tensor, rows: Rows, h: Tensor, h0: Tensor) -> Tensor:
    """(G*H, R): the sum over steps of the gates' gradients times the h they saw, shifted without a copy where it can be."""
    if (shifted := rows.shifted()) is None:
        return dgates.t() @ rows.before(h, h0)
    first, others, seen = shifted
    if rows.T == 1:
        return dgates.t() @ h0
    return torch.addmm(dgates[first].t() @ h0, dgates[others].t(), h[seen])


def bias_gradient(dgates: Tensor) -> Tensor:
    """The sum over rows, which PyTorch takes in float32 and rounds once."""
    return dgates.sum(0)
