"""A small LSTM of one's own, held to the equations: a mistake in one gradient is found, then mended.

python examples/own_kernel.py
fastlstm parity --impl examples.own_kernel:WithMistake --case 'lstm T5 B3 I4 H16'
"""

import torch
from torch import Tensor, nn

from fastlstm.parity import assert_parity

ONE_LAYER = ["lstm T5 B3 I4 H16", "lstm T20 B2 I17 H33", "lstm T1 B1 I16 H32", "lstm T5 B3 I4 H17 loss:c_n"]


class Gates(torch.autograd.Function):
    """h, c = one step's gates, forward and backward by hand: what a kernel would do.

    a (B, 4H) has the pre-activations of i, f, g, o; c_prev is (B, H).
    """

    @staticmethod
    def forward(ctx, a: Tensor, c_prev: Tensor, mistake: bool) -> tuple[Tensor, Tensor]:
        i, f, g, o = a.chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c_prev + i * g
        ctx.save_for_backward(i, f, g, o, c, c_prev)
        ctx.mistake = mistake
        return o * c.tanh(), c

    @staticmethod
    def backward(ctx, dh: Tensor, dc: Tensor) -> tuple[Tensor, Tensor, None]:
        i, f, g, o, c, c_prev = ctx.saved_tensors
        dc = dc + dh * o * (1 - c.tanh() ** 2)
        df = dc * (
            c if ctx.mistake else c_prev
        )  # the mistake: f was multiplied with the state before, not with the new one
        d_gates = dc * g * i * (1 - i), df * f * (1 - f), dc * i * (1 - g**2), dh * c.tanh() * o * (1 - o)
        return torch.cat(d_gates, 1), dc * f, None


class Small(nn.Module):
    """One layer, dense batches: the constructor and the parameter names of `nn.LSTM`."""

    mistake = False

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        shapes = {"weight_ih": (4 * hidden_size, input_size), "weight_hh": (4 * hidden_size, hidden_size)}
        shapes |= dict.fromkeys(("bias_ih", "bias_hh"), (4 * hidden_size,))
        for name, shape in shapes.items():
            self.register_parameter(f"{name}_l0", nn.Parameter(torch.empty(shape).uniform_(-0.1, 0.1)))

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if not isinstance(x, Tensor):
            raise NotImplementedError("dense batches only")
        h, c = (s[0] for s in hx) if hx else x.new_zeros(2, x.shape[1], self.hidden_size)
        y = []
        for a in x @ self.weight_ih_l0.T + self.bias_ih_l0 + self.bias_hh_l0:
            h, c = Gates.apply(a + h @ self.weight_hh_l0.T, c, self.mistake)
            y.append(h)
        return torch.stack(y), (h[None], c[None])


class WithMistake(Small):
    mistake = True


if __name__ == "__main__":
    print("With a mistake in one gradient:\n")
    try:
        assert_parity(WithMistake, "lstm", cases=ONE_LAYER)
    except AssertionError as error:
        print(error)
    else:
        raise SystemExit("the mistake was not found")
    print("\nMended; two directions are refused, as they should be:\n")
    print(assert_parity(Small, "lstm", cases=[*ONE_LAYER, "lstm T7 B3 I4 H17 bi"]))
