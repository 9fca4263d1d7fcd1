"""One stateless function per variant. Arguments are checked here, once: what is below trusts what it gets."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm import backends, checks, onnx, stack, torch_backend
from fastlstm.cells import cifg_lstm_cell, gru_cell, lstm_cell, peephole_lstm_cell
from fastlstm.kernels.gru import GRU
from fastlstm.kernels.lstm import CIFG_LSTM, CIFG_PEEPHOLE_LSTM, LSTM, PEEPHOLE_LSTM
from fastlstm.kernels.variant import Variant
from fastlstm.ops.gru import gru as gru_layer
from fastlstm.ops.lstm import lstm as lstm_layer
from fastlstm.sequences import Batch, Input, Lengths, autocast, promote_to_state, time_major

__all__ = ["cifg_lstm", "cifg_lstm_cell", "gru", "gru_cell", "lstm", "lstm_cell", "peephole_lstm", "peephole_lstm_cell"]

Weights = Sequence[Sequence[Tensor]]
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
    return _lstm_family(
        LSTM, input, weights, hx, bidirectional, batch_first, dropout, training, lengths, reset, return_cells, backend
    )


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
    return _lstm_family(
        PEEPHOLE_LSTM, input, weights, hx, bidirectional, batch_first, dropout, training, lengths, reset, return_cells,
        backend,
    )  # fmt: skip


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
    return _lstm_family(
        variant,
        input,
        weights,
        hx,
        bidirectional,
        batch_first,
        dropout,
        training,
        lengths,
        reset,
        return_cells,
        backend,
    )


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
    x = input[0] if isinstance(input, PackedSequence) else input
    checks.check_input(x, isinstance(input, PackedSequence), "GRU")
    checks.check_dropout(dropout)
    if hx is not None:
        checks.check_gru_hx(hx)
    given = x if hx is None else hx
    x, hx, weights = _autocast(x, hx, weights)
    directions = 2 if bidirectional else 1
    H, _, names = checks.check_weights(GRU, weights, directions, x)
    drop = dropout if training else 0.0
    initial = None if hx is None else (hx,)
    if onnx.exporting():
        y, finals = onnx.exported(GRU, input, x, weights, names, initial, directions, batch_first, drop, lengths, reset)
        return y, finals[0]
    batch = time_major(input, x, batch_first, lengths, reset)
    (h0,) = _initial(initial, batch, [(len(weights), batch.B, H)])

    chosen = backends.choose(GRU, x.device, x.dtype, backend, reset is not None).backend
    if chosen == "torch":
        (y,), finals = torch_backend.gru(batch, h0, weights, directions, drop)
    else:

        def run(x, batch_sizes, states, weights, reverse, last):  # type: ignore[no-untyped-def]
            y, h_n = gru_layer(x, batch_sizes, batch.reset, *states, *weights, reverse=reverse, backend=chosen)
            return (y,), (h_n,)

        (y,), finals = stack.stack(run, batch.x, batch.batch_sizes, (h0,), weights, directions=directions, dropout=drop)
    return batch.output(promote_to_state(given, y)), promote_to_state(given, batch.finals(finals)[0])


def _lstm_family(
    variant: Variant,
    input: Input,
    weights: Weights,
    hx: LSTMState | None,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    lengths: Lengths,
    reset: Tensor | None,
    return_cells: bool,
    backend: str,
) -> LSTMResult:
    x = input[0] if isinstance(input, PackedSequence) else input
    checks.check_input(x, isinstance(input, PackedSequence))
    checks.check_dropout(dropout)
    if hx is not None:
        checks.check_lstm_hx(hx)
    x, hx, weights = _autocast(x, hx, weights)
    directions = 2 if bidirectional else 1
    H, R, names = checks.check_weights(variant, weights, directions, x)
    drop = dropout if training else 0.0
    if onnx.exporting():
        y, (h_n, c_n) = onnx.exported(
            variant, input, x, weights, names, hx, directions, batch_first, drop, lengths, reset, return_cells
        )
        return y, (h_n, c_n)
    batch = time_major(input, x, batch_first, lengths, reset)
    h0, c0 = _initial(hx, batch, [(len(weights), batch.B, R), (len(weights), batch.B, H)])

    beyond_torch = reset is not None or return_cells
    chosen = backends.choose(variant, x.device, x.dtype, backend, beyond_torch).backend
    if chosen == "torch":
        (y, *cells), finals = torch_backend.lstm(batch, (h0, c0), weights, directions, drop)
    else:
        layer = partial(lstm_layer, coupled=variant.coupled, backend=chosen)

        def run(x, batch_sizes, states, weights, reverse, last):  # type: ignore[no-untyped-def]
            wanted = return_cells and last
            y, h_n, c_n, cells = layer(
                x, batch_sizes, batch.reset, *states, *weights, reverse=reverse, return_cells=wanted
            )
            return (y, cells) if wanted else (y,), (h_n, c_n)

        rows = [_with_absent(names, w) for w in weights]
        (y, *cells), finals = stack.stack(
            run, batch.x, batch.batch_sizes, (h0, c0), rows, directions=directions, dropout=drop
        )
    h_n, c_n = batch.finals(finals)
    if return_cells:
        return batch.output(y), (h_n, c_n), batch.output(cells[0])
    return batch.output(y), (h_n, c_n)


def _autocast(x: Tensor, hx: Tensor | LSTMState | None, weights: Weights) -> tuple:
    if not torch._C._is_any_autocast_enabled():
        return x, hx, weights
    states = autocast(x, *hx)[1:] if isinstance(hx, (tuple, list)) else autocast(x, hx)[1]
    return autocast(x)[0], states, [autocast(x, *w)[1:] for w in weights]


def _initial(hx: Sequence[Tensor] | None, batch: Batch, shapes: list[tuple[int, ...]]) -> Sequence[Tensor]:
    """The initial states in the order of the batch: those given, or zeros."""
    x = batch.x
    if hx is None:
        first = torch.zeros(shapes[-1], dtype=x.dtype, device=x.device)
        zeros = [first if s == shapes[-1] else torch.zeros(s, dtype=x.dtype, device=x.device) for s in shapes]
        return zeros
    return batch.sorted_states(checks.check_states(hx, x, batch.batched, shapes))


def _with_absent(names: Sequence[str], weights: Sequence[Tensor]) -> list[Tensor | None]:
    """All six weights of a layer of the LSTM family, with None for those it lacks."""
    given = dict(zip(names, weights, strict=True))
    return [given.get(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "w_peephole")]
