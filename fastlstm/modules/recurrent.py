"""Recurrent modules that take the place of PyTorch's, and their siblings that PyTorch lacks."""

from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.functional import LSTMResult
from fastlstm.kernels import gru, lstm
from fastlstm.modules.base import Recurrent, take_variant_of_old
from fastlstm.sequences import Input, Lengths


class Family(Recurrent):
    """What the LSTM family shares: a pair of states, and cells."""

    # not called here: what nn.LSTM has for a pair of states, and others call
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def forward(
        self,
        input: Input,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths = None,
        reset: Tensor | None = None,
        return_cells: bool = False,
    ) -> LSTMResult:
        return self._run(input, hx, lengths, reset, return_cells)


class LSTM(Family):
    """`torch.nn.LSTM`, fast: the same arguments, attributes, parameters, initial weights, results and errors.

        i = σ(W_ii x + b_ii + W_hi h' + b_hi)      f, o alike        g = tanh(W_ig x + b_ig + W_hg h' + b_hg)
        c = f * c' + i * g        h = o * tanh(c), or W_hr (o * tanh(c)) with `proj_size`

    What is ours is by keyword only. `backend` is "auto" or the name of the one that must run. `forget_bias` is added to b_if
    (in `bias_ih`) when the module is made and at `reset_parameters`, and is nothing at run time: with 1 or more, cells begin by
    remembering (Gers et al. 2000; Jozefowicz et al. 2015). Where it isn't 0, `bias=False` raises ValueError.

    `forward` takes `lengths` (B,), in any order, zeros allowed, where PyTorch wants a PackedSequence: `output` is zero beyond a
    sequence's length and `h_n`, `c_n` are those at its own end; `reset` (T, B), which cuts sequences before a step; and
    `return_cells`. Everything is described under `fastlstm.functional.lstm`.

    A `state_dict` of `nn.LSTM` loads here and the other way round. Weights are read afresh at every call.

    >>> lstm = LSTM(10, 20, num_layers=2, bidirectional=True)
    >>> output, (h_n, c_n) = lstm(torch.randn(7, 3, 10), lengths=[7, 2, 0])
    >>> output.shape, h_n.shape
    (torch.Size([7, 3, 40]), torch.Size([4, 3, 20]))
    """

    variant = lstm.LSTM


class PeepholeLSTM(Family):
    """The LSTM whose gates see the cell (Gers & Schmidhuber 2000; Graves 2013): i and f the old one, o the new one.

        i = σ(... + p_i * c')     f = σ(... + p_f * c')     c = f * c' + i * g     o = σ(... + p_o * c)     h = o * tanh(c)

    Arguments and results are those of `LSTM`. Beside its parameters there is `weight_peephole_l{k}`, with `_reverse` for the
    other direction, of shape (3, H), in the order i, f, o. As all parameters, peepholes start uniform within 1 / sqrt(H), not
    at 0: gates see the cell from the first step on. For a start as the plain LSTM's, zero them: `torch.nn.init.zeros_`.

    >>> lstm = PeepholeLSTM(10, 20)
    >>> lstm(torch.randn(7, 3, 10))[0].shape, lstm.weight_peephole_l0.shape
    (torch.Size([7, 3, 20]), torch.Size([3, 20]))
    """

    variant = lstm.PEEPHOLE_LSTM


class CIFGLSTM(Family):
    """The LSTM with coupled input and forget gates, f = 1 - i (Greff et al. 2017): a quarter fewer weights.

        i = σ(W_ii x + b_ii + W_hi h' + b_hi)     g, o as in the LSTM     c = (1 - i) * c' + i * g     h = o * tanh(c)

    Arguments and results are those of `LSTM`. Weights have three gates, in the order i, g, o: 3H rows. With `peephole=True`
    there is `weight_peephole_l{k}` (2, H) as well, in the order i, o: i sees the old cell, o the new one; it starts uniform
    within 1 / sqrt(H), as all parameters. `forget_bias` is subtracted from b_ii: f = 1 - σ(a) = σ(-a).

    >>> lstm = CIFGLSTM(10, 20, peephole=True)
    >>> lstm(torch.randn(7, 3, 10))[0].shape, lstm.weight_hh_l0.shape, lstm.weight_peephole_l0.shape
    (torch.Size([7, 3, 20]), torch.Size([60, 20]), torch.Size([2, 20]))
    """

    variant = lstm.CIFG_LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        forget_bias: float = 0.0,
        backend: str = "auto",
    ) -> None:
        if not isinstance(peephole, bool):
            raise TypeError(f"peephole should be of type bool, got: {type(peephole).__name__}")
        self.variant = lstm.CIFG_PEEPHOLE_LSTM if peephole else lstm.CIFG_LSTM
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype,
            forget_bias=forget_bias, backend=backend,
        )  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        take_variant_of_old(self)

    @property
    def peephole(self) -> bool:
        return bool(self.variant.peepholes)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", peephole=True" if self.peephole else "")


class GRU(Recurrent):
    """`torch.nn.GRU`, fast: the same arguments, attributes, parameters, initial weights, results and errors.

        r = σ(W_ir x + b_ir + W_hr h' + b_hr)   z alike   n = tanh(W_in x + b_in + r * (W_hn h' + b_hn))
        h = (1 - z) * n + z * h'

    By keyword only, as in `LSTM`: `backend`, and for `forward` `lengths` and `reset`.
    A `state_dict` of `nn.GRU` loads here and the other way round. Weights are read afresh at every call.

    >>> gru = GRU(10, 20, num_layers=2, bidirectional=True)
    >>> output, h_n = gru(torch.randn(7, 3, 10))
    >>> output.shape, h_n.shape
    (torch.Size([7, 3, 40]), torch.Size([4, 3, 20]))
    """

    variant = gru.GRU

    def forward(
        self,
        input: Input,
        hx: Tensor | None = None,
        *,
        lengths: Lengths = None,
        reset: Tensor | None = None,
    ) -> tuple[Input, Tensor]:
        return self._run(input, hx, lengths, reset)


def build(variant: str, *args: Any, **options: Any) -> nn.RNNBase:
    """The module of a variant by its name in `fastlstm.backends.VARIANTS`, from the arguments that it takes.

    >>> build("cifg_peephole_lstm", 3, 5)
    fastlstm.CIFGLSTM(3, 5, peephole=True)
    """
    if variant == lstm.CIFG_PEEPHOLE_LSTM.name:
        return CIFGLSTM(*args, peephole=True, **options)
    kinds = {kind.variant.name: kind for kind in (LSTM, GRU, PeepholeLSTM, CIFGLSTM)}
    return kinds[variant](*args, **options)
