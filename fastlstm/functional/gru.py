"""The GRU over whole sequences."""

from torch import Tensor

from fastlstm.call import Call
from fastlstm.functional.driver import Weights, recurrent
from fastlstm.kernels.gru import GRU
from fastlstm.sequences import Input, Lengths


def gru(
    input: Input,
    weights: Weights,
    hx: Tensor | None = None,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Input, Tensor]:
    """The GRU of `torch.nn.GRU` (Cho et al. 2014), stacked and in one or two directions: `(output, h_n)`.

        r = σ(W_ir x + b_ir + W_hr h' + b_hr)   z alike   n = tanh(W_in x + b_in + r * (W_hn h' + b_hn))
        h = (1 - z) * n + z * h'

    Arguments are those of `lstm`, with three gates in the order r, z, n: `w_ih` (3H, I), `w_hh` (3H, H), then `b_ih` and `b_hh`
    (3H) or neither. `hx` and `h_n` are one tensor (L * D, B, H).

    >>> w_ih, w_hh = torch.randn(6, 3), torch.randn(6, 2)
    >>> output, h_n = gru(torch.randn(5, 4, 3), [(w_ih, w_hh)])
    >>> output.shape, h_n.shape
    (torch.Size([5, 4, 2]), torch.Size([1, 4, 2]))
    """
    call = Call(
        bidirectional=bidirectional, batch_first=batch_first, dropout=dropout, training=training, lengths=lengths,
        reset=reset, backend=backend,
    )  # fmt: skip
    return recurrent(GRU, input, weights, hx, call)
