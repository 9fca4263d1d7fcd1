"""The LSTM family over whole sequences."""

from torch import Tensor

from fastlstm.call import Call
from fastlstm.functional.driver import Weights, recurrent
from fastlstm.kernels.lstm import CIFG_LSTM, CIFG_PEEPHOLE_LSTM, LSTM, PEEPHOLE_LSTM
from fastlstm.sequences import Input, Lengths

LSTMState = tuple[Tensor, Tensor]
LSTMResult = tuple[Input, LSTMState] | tuple[Input, LSTMState, Input]


def lstm(
    input: Input,
    weights: Weights,
    hx: LSTMState | None = None,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths = None,
    reset: Tensor | None = None,
    return_cells: bool = False,
    backend: str = "auto",
) -> LSTMResult:
    """The LSTM of `torch.nn.LSTM`, stacked and in one or two directions: `(output, (h_n, c_n))`.

    In each layer and direction, with `h', c'` of the step before (Hochreiter & Schmidhuber 1997; Sak et al. 2014 for P):

        i = σ(W_ii x + b_ii + W_hi h' + b_hi)      f, o alike        g = tanh(W_ig x + b_ig + W_hg h' + b_hg)
        c = f * c' + i * g        h = o * tanh(c), or W_hr (o * tanh(c)) where there is a projection

    Sizes: T time, B batch, I input, H hidden, P projection, R = P or H, L layers, D directions.

    input: (T, B, I), or (B, T, I) with `batch_first`, or one unbatched sequence (T, I), or a PackedSequence.
    weights: an entry per layer and direction, as in `nn.LSTM.all_weights`: `w_ih` (4H, I; D * R for I above the first
        layer), `w_hh` (4H, R), then `b_ih` and `b_hh` (4H) or neither, then `w_hr` (P, H) or not. Gate order i, f, g, o.
    hx: `h0` (L * D, B, R) and `c0` (L * D, B, H), without B where the input is unbatched; zeros where None.
    dropout: the probability that an output between two layers is zeroed, in `training` only.
    lengths: (B,) integers from 0 to T, in any order, on any device. A sequence ends at its own length: `output` is zero
        beyond it, `h_n` and `c_n` are those at its end (`h0`, `c0` for length 0), and its reverse direction starts there.
    reset: (T, B) bool, or (B, T) with `batch_first`, or (T) unbatched: sequences are cut before such a step, and go on from
        zero states, as if what follows were another sequence, in both directions. Gradients don't cross a cut.
    return_cells: the result is `(output, (h_n, c_n), cells)`; `cells` holds the last layer's c of every step, D * H
        features in the layout of `output`, and is differentiable.
    backend: "auto", or the name of the one that must run; `fastlstm info` tells which there are.

    `output` has D * R features in the layout of `input`; `h_n` and `c_n` have the shapes of `h0` and `c0`.
    Raises TypeError, ValueError or RuntimeError for bad arguments, in the words of `nn.LSTM` where it has any.

    >>> w_ih, w_hh = torch.randn(8, 3), torch.randn(8, 2)
    >>> output, (h_n, c_n) = lstm(torch.randn(5, 4, 3), [(w_ih, w_hh)], lengths=[5, 0, 2, 3])
    >>> output.shape, h_n.shape
    (torch.Size([5, 4, 2]), torch.Size([1, 4, 2]))
    """
    call = Call(
        bidirectional=bidirectional, batch_first=batch_first, dropout=dropout, training=training, lengths=lengths,
        reset=reset, return_cells=return_cells, backend=backend,
    )  # fmt: skip
    return recurrent(LSTM, input, weights, hx, call)


def peephole_lstm(
    input: Input,
    weights: Weights,
    hx: LSTMState | None = None,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths = None,
    reset: Tensor | None = None,
    return_cells: bool = False,
    backend: str = "auto",
) -> LSTMResult:
    """The LSTM whose gates see the cell (Gers & Schmidhuber 2000; Graves 2013); arguments and results as in `lstm`.

        i = σ(... + p_i * c')     f = σ(... + p_f * c')     c = f * c' + i * g     o = σ(... + p_o * c)     h = o * tanh(c)

    Each entry of `weights` ends with `w_peephole` (3, H), in the order i, f, o. Where it is zero, this is the LSTM.

    >>> w_ih, w_hh, p = torch.randn(8, 3), torch.randn(8, 2), torch.randn(3, 2)
    >>> peephole_lstm(torch.randn(5, 4, 3), [(w_ih, w_hh, p)])[0].shape
    torch.Size([5, 4, 2])
    """
    call = Call(
        bidirectional=bidirectional, batch_first=batch_first, dropout=dropout, training=training, lengths=lengths,
        reset=reset, return_cells=return_cells, backend=backend,
    )  # fmt: skip
    return recurrent(PEEPHOLE_LSTM, input, weights, hx, call)


def cifg_lstm(
    input: Input,
    weights: Weights,
    hx: LSTMState | None = None,
    *,
    peephole: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths = None,
    reset: Tensor | None = None,
    return_cells: bool = False,
    backend: str = "auto",
) -> LSTMResult:
    """The LSTM with coupled input and forget gates, f = 1 - i (Greff et al. 2017); arguments and results as in `lstm`.

        i = σ(W_ii x + b_ii + W_hi h' + b_hi)     g, o as in the LSTM     c = (1 - i) * c' + i * g     h = o * tanh(c)

    Weights have three gates, in the order i, g, o: `w_ih` (3H, I), `w_hh` (3H, R), biases (3H). With `peephole`, each entry of
    `weights` ends with `w_peephole` (2, H), in the order i, o: i sees c', o sees c.

    >>> w_ih, w_hh = torch.randn(6, 3), torch.randn(6, 2)
    >>> cifg_lstm(torch.randn(5, 4, 3), [(w_ih, w_hh)])[0].shape
    torch.Size([5, 4, 2])
    """
    variant = CIFG_PEEPHOLE_LSTM if peephole else CIFG_LSTM
    call = Call(
        bidirectional=bidirectional, batch_first=batch_first, dropout=dropout, training=training, lengths=lengths,
        reset=reset, return_cells=return_cells, backend=backend,
    )  # fmt: skip
    return recurrent(variant, input, weights, hx, call)
