"""Convolutions of the maps of all steps at once, and their gradients, by PyTorch's op, which on a GPU is cuDNN's.

Maps and kernels are channels-last: x (N, *S, C), w (F, *k, C), y (N, *S', F). PyTorch gets them as they lie.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import pad

aten = torch.ops.aten


class Convolution:
    """One, by its geometry: `padding` holds each dimension's before and after, in turn."""

    def __init__(self, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> None:
        before, after = padding[::2], padding[1::2]
        # PyTorch's op pads alike on both sides; what one side has more is padded, or cut from a gradient, apart
        even = [min(pair) for pair in zip(before, after, strict=True)]
        self.extra = [(b - e, a - e) for b, a, e in zip(before, after, even, strict=True)]
        self.flat = flat = len(stride) == 1  # one dimension is made two, of which the first has size 1
        self.geometry = [1] * flat + [*stride], [0] * flat + even, [1] * flat + [*dilation]

    @classmethod
    def same(cls, kernel: Sequence[int]) -> "Convolution":
        """The recurrent one, which keeps the image."""
        ones = [1] * len(kernel)
        return cls(ones, [side for k in kernel for side in ((k - 1) // 2, k // 2)], ones)

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        with in_fixed_order():
            y = aten.convolution(self.map(self.padded(x)), self.map(w), bias, *self.options)
        return self.rows(y)

    def input_gradient(self, dy: Tensor, w: Tensor, image: Sequence[int]) -> Tensor:
        """(N, *S, C), of the `image` S."""
        sizes = [size + sum(extra) for size, extra in zip(image, self.extra, strict=True)]
        dx = self.gradient(dy, dy.new_empty(1).expand(len(dy), *sizes, w.shape[-1]), w, 0)
        for d, (before, _) in enumerate(self.extra):
            dx = dx.narrow(d + 1, before, image[d])
        return dx.contiguous()

    def weight_gradient(self, dy: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """Of the shape of `w`, of which nothing else matters."""
        return self.gradient(dy, self.padded(x), w, 1)

    def gradient(self, dy: Tensor, x: Tensor, w: Tensor, of: int) -> Tensor:
        wanted = [of == 0, of == 1, False]
        with in_fixed_order():
            found = aten.convolution_backward(self.map(dy), self.map(x), self.map(w), None, *self.options, wanted)
        return self.rows(found[of])

    @property
    def options(self) -> tuple:
        """After the tensors and the bias: not transposed, no padding of the output, one group."""
        return *self.geometry, False, [0] * len(self.geometry[0]), 1

    def padded(self, x: Tensor) -> Tensor:
        """By what PyTorch's op can't pad; the same tensor where that is nothing."""
        extra = list(chain.from_iterable(reversed(self.extra)))
        return pad(x, [0, 0, *extra]) if any(extra) else x

    def map(self, rows: Tensor) -> Tensor:
        """A view as PyTorch has it, (N, C, *S)."""
        return (rows.unsqueeze(1) if self.flat else rows).movedim(-1, 1)

    def rows(self, map: Tensor) -> Tensor:
        """And back, contiguous."""
        rows = map.movedim(1, -1).contiguous()
        return rows.squeeze(1) if self.flat else rows


@contextmanager
def in_fixed_order() -> Iterator[None]:
    """cuDNN adds in the same order at every run; some of its gradients would not."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
