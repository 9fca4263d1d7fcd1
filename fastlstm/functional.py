"""One stateless function per variant. Arguments are checked here, once: what is below trusts what it gets."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastlstm import backends, checks, layers
from fastlstm.ops.lstm import lstm as lstm_layer


def lstm(
    input: Tensor | PackedSequence,
    weights: Sequence[Sequence[Tensor]],
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
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
    backend: "auto", or the name of the one that must run; `fastlstm info` tells which there are.

    `output` has D * R features in the layout of `input`; `h_n` and `c_n` have the shapes of `h0` and `c0`.
    Raises TypeError, ValueError or RuntimeError for bad arguments, in the words of `nn.LSTM` where it has any.

    >>> w_ih, w_hh = torch.randn(8, 3), torch.randn(8, 2)
    >>> output, (h_n, c_n) = lstm(torch.randn(5, 4, 3), [(w_ih, w_hh)], lengths=[5, 0, 2, 3])
    >>> output.shape, h_n.shape
    (torch.Size([5, 4, 2]), torch.Size([1, 4, 2]))
    """
    D = 2 if bidirectional else 1
    packed = isinstance(input, PackedSequence)
    x = input[0] if isinstance(input, PackedSequence) else input
    checks.check_input(x, packed)
    checks.check_dropout(dropout)
    if hx is not None:
        checks.check_lstm_hx(hx)
    x, hx, weights = _autocast(x, hx, weights)
    H, R = checks.check_lstm_weights(weights, D, x)
    batched = packed or x.dim() == 3
    x, batch_sizes, B, order, restore = _time_major(input, x, batch_first, lengths)

    shapes = (len(weights), B, R), (len(weights), B, H)
    if hx is None:
        c0 = torch.zeros(shapes[1], dtype=x.dtype, device=x.device)
        h0 = c0 if R == H else torch.zeros(shapes[0], dtype=x.dtype, device=x.device)
    else:
        h0, c0 = checks.check_lstm_states(hx, x, batched, shapes)
    if order is not None:
        h0, c0 = h0.index_select(1, order), c0.index_select(1, order)

    if not training:
        dropout = 0.0
    chosen = backends.choose("lstm", x.device, x.dtype, backend).backend
    if chosen == "torch":
        y, h_n, c_n = _lstm_by_torch(x, batch_sizes, (h0, c0), weights, directions=D, dropout=dropout)
    else:
        run = partial(lstm_layer, backend=chosen)
        rows = [_with_absent(w) for w in weights]
        y, h_n, c_n = layers.stack(run, x, batch_sizes, (h0, c0), rows, directions=D, dropout=dropout)

    if restore is not None:
        h_n, c_n = h_n.index_select(1, restore), c_n.index_select(1, restore)
    if packed:
        return PackedSequence(y, batch_sizes, order, restore), (h_n, c_n)
    if restore is not None:
        y = y.index_select(1, restore)
    if not batched:
        return y.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
    return y.transpose(0, 1) if batch_first else y, (h_n, c_n)


class _TimeMajor(NamedTuple):
    """A batch in one of the layouts of `fastlstm.ops`, its size, and the permutation to and from falling lengths."""

    x: Tensor
    batch_sizes: Tensor | None
    B: int
    order: Tensor | None = None
    restore: Tensor | None = None


def _time_major(
    input: Tensor | PackedSequence,
    x: Tensor,
    batch_first: bool,
    lengths: Tensor | Sequence[int] | None,
) -> _TimeMajor:
    """`x` is `input`, or its data where it is packed, in the dtype to compute in."""
    if isinstance(input, PackedSequence):
        checks.check_no_lengths(lengths, "a PackedSequence has its own")
        checks.check_packed(input)
        _, batch_sizes, order, restore = input
        # A tracer doesn't know the values of batch_sizes
        B = len(order) if order is not None else int(batch_sizes[0])
        return _TimeMajor(x, batch_sizes, B, order, restore)
    if x.dim() == 2:
        checks.check_no_lengths(lengths, "an unbatched input is one sequence, which ends where it ends")
        x = x.unsqueeze(1)
    elif batch_first:
        x = x.transpose(0, 1)
    T, B, _ = x.shape
    checks.check_steps(T)
    if lengths is None:
        return _TimeMajor(x, None, B)
    lengths, order = checks.check_lengths(lengths, T, B).sort(descending=True, stable=True)
    batch_sizes = (torch.arange(T, device="cpu")[:, None] < lengths).sum(1)
    order = order.to(x.device)
    return _TimeMajor(x.index_select(1, order), batch_sizes, B, order, order.argsort())


def _autocast(x: Tensor, hx: Sequence[Tensor] | None, weights: Sequence[Sequence[Tensor]]) -> tuple:
    """The same in the dtype of autocast where that is on; like PyTorch's, it leaves float64 and integers alone."""
    if not torch._C._is_any_autocast_enabled():
        return x, hx, weights
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x, hx, weights
    dtype = torch.get_autocast_dtype(device)

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t

    return cast(x), hx and tuple(map(cast, hx)), [tuple(map(cast, w)) for w in weights]


def _with_absent(weights: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """All five weights of a layer, `(w_ih, w_hh, b_ih, b_hh, w_hr)`, with None for those it lacks."""
    w_ih, w_hh, *rest = weights
    w_hr = rest.pop() if len(rest) % 2 else None
    b_ih, b_hh = rest or (None, None)
    return w_ih, w_hh, b_ih, b_hh, w_hr


def _lstm_by_torch(
    x: Tensor,
    batch_sizes: Tensor | None,
    states: tuple[Tensor, Tensor],
    weights: Sequence[Sequence[Tensor]],
    *,
    directions: int,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole stack by PyTorch's own op, as `layers.stack` would run it."""
    flat = [w for layer in weights for w in layer]
    # the flag also keeps what a backward needs, which may follow in evaluation mode too
    train = dropout > 0 or torch.is_grad_enabled()
    options = len(weights[0]) > 3, len(weights) // directions, dropout, train, directions == 2
    if batch_sizes is None:
        return torch._VF.lstm(x, states, flat, *options, False)
    if x.dim() == 2:
        return torch._VF.lstm(x, batch_sizes, states, flat, *options)
    # PyTorch can't pack an empty sequence: here it runs one step on zeros, and nothing of that is kept
    lengths = (batch_sizes[:, None] > torch.arange(x.shape[1], device="cpu")).sum(0)
    empty = (lengths == 0).to(x.device)[:, None]
    packed = pack_padded_sequence(x.masked_fill(empty, 0), lengths.clamp(min=1))
    y, *finals = torch._VF.lstm(packed.data, packed.batch_sizes, states, flat, *options)
    y, _ = pad_packed_sequence(PackedSequence(y, packed.batch_sizes), total_length=x.shape[0])
    h_n, c_n = (torch.where(empty, s0, s) for s0, s in zip(states, finals, strict=True))
    return y.masked_fill(empty, 0), h_n, c_n
