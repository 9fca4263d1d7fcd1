"""The LSTM that attends to a memory."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm import checks
from fastlstm.backends import check_backend
from fastlstm.call import AttentionCall, Call
from fastlstm.functional.attention_driver import decode, decode_step, project
from fastlstm.functional.attention_lstm import AttentionLSTMResult, AttentionLSTMState
from fastlstm.functional.attention_values import AttentionWeights, Precomputed
from fastlstm.kernels.attention_lstm import PARAMETERS, Attention
from fastlstm.kernels.variant import PARAMETERS as RECURRENT
from fastlstm.modules.base import Ours, own_repr, weights_of
from fastlstm.modules.forget_bias import add_forget_bias, check_forget_bias
from fastlstm.sequences import Lengths

USUAL: dict[str, Any] = {
    "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "attention": "additive", "feed": "attentional",
    "attend": "after", "query_layer": -1, "output": "tanh", "output_dropout": 0.0, "peephole": False, "coupled": False,
}  # fmt: skip


class AttentionLSTM(Ours):
    """An LSTM decoder that attends to an encoder's memory (Bahdanau et al. 2014, https://arxiv.org/abs/1409.0473; Luong et al.
    2015, https://arxiv.org/abs/1508.04025): the whole target in one call, or a step at a time.

        h, c = LSTM([x, fed'], h', c')                    all layers; h', c' and fed' are those of the step before
        e_s = v · tanh(W_q q + W_k m_s)                   the score of slot s of the memory; q is the h of `query_layer`
        α = softmax(e)      context = Σ α_s m_s           over the slots within the memory's length
        output = tanh(W_out [context, h] + b_out)         h of the last layer

    Sizes: T target steps, B batch, I input, H hidden, L layers, S memory slots, M memory, A attention, F fed (H, M or 0).

    `attention`: "additive", as above; "normalized_additive", with g v / |v| in the place of v, and a bias in the tanh; "dot",
    e_s = q · m_s, and "scaled_dot", that by sqrt(H), for M = H; "general", e_s = q · W_k m_s. `attention_size`, A, is H
    where None; only additive scores have one.
    `feed`, what joins the next step's input: "attentional", the output; "context"; or None. The first is zero.
    `attend`: "after" the cells, the query being the new h; or "before" them (Bahdanau), the query being the old h, and the
    context joining the input of the same step; `feed` is None then.
    `query_layer`, an index of the layers. `output`: "tanh", as above, "linear", without the tanh, or "hidden", h alone.
    `dropout` acts between layers; `output_dropout` on the output and what is fed: as "attentional", the dropped output itself.
    `peephole` and `coupled` are those of `PeepholeLSTM` and `CIFGLSTM`, `forget_bias` that of either. `backend` is "auto" or
    the name of the one that must run. Raises ValueError or TypeError for bad options, and for those that mean nothing together.

    Parameters: `weight_ih_l0` (4H, I + F), of [x, fed], or (4H, I + M), of [x, context], `weight_ih_l{k}` (4H, H),
    `weight_hh_l{k}` (4H, H), `bias_ih_l{k}`, `bias_hh_l{k}` (4H), gate order i, f, g, o, and `weight_peephole_l{k}` (3, H);
    with `coupled` three gates, two peepholes. They start uniform within 1 / sqrt(H). Of the attention, as they are used:
    `weight_query` (A, H), `weight_key` (A, M), or (H, M) of "general", `weight_score` (A), `gain_score` (), `bias_score` (A),
    `weight_out` (H, M + H), of [context, h], `bias_out` (H). These start as those of `nn.Linear`, uniform within
    1 / sqrt(columns), but for `gain_score`, sqrt(1 / A), and `bias_score`, 0. `bias=False`: no `bias_ih`, `bias_hh` and
    `bias_out`.

    `forward(input, memory, hx=None)`: `input` (T, B, I), `memory` (S, B, M), (B, T, I) and (B, S, M) with `batch_first`, or
    (T, I) and (S, M); `hx` an `AttentionState` or a pair (h0, c0), zeros where None. It gives `output` (T, B, H) and the state,
    a named tuple: `h`, `c` (L, B, H), `fed` (B, F) or None. By keyword only: `memory_lengths` and `lengths` (B,), zeros
    allowed; and `need_weights`, for `alignments` (T, B, S), or (B, T, S), as a third result. A second derivative, with
    feed=None, "after" and products as scores, needs `need_weights=True` or backend="reference". Everything is described under
    `fastlstm.functional.attention_lstm`.

    >>> decoder = AttentionLSTM(10, 20, memory_size=30)
    >>> output, state = decoder(torch.randn(7, 3, 10), torch.randn(5, 3, 30), memory_lengths=[5, 2, 0])
    >>> output.shape, state.fed.shape
    (torch.Size([7, 3, 20]), torch.Size([3, 20]))

    `step` is one step, for searches; both the state and the precomputed memory have `index_select(rows)`:

    >>> precomputed, state = decoder.precompute(torch.randn(5, 3, 30)), None
    >>> output, state, alignments = decoder.step(torch.randn(3, 10), precomputed, state, need_weights=True)
    >>> state, precomputed = state.index_select(torch.tensor([0, 0])), precomputed.index_select(torch.tensor([0, 0]))
    >>> output.shape, alignments.shape, decoder.step(torch.randn(2, 10), precomputed, state)[0].shape
    (torch.Size([3, 20]), torch.Size([3, 5]), torch.Size([2, 20]))
    """

    _forget_bias = 0.0  # an instance has one where it isn't 0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        attention: str = "additive",
        attention_size: int | None = None,
        feed: str | None = "attentional",
        attend: str = "after",
        query_layer: int = -1,
        output: str = "tanh",
        output_dropout: float = 0.0,
        peephole: bool = False,
        coupled: bool = False,
        forget_bias: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_backend(backend)
        for name, value in {"bias": bias, "batch_first": batch_first, "peephole": peephole, "coupled": coupled}.items():
            checks.check_bool(name, value)
        checks.check_dropout(dropout)
        checks.check_dropout(output_dropout, "output_dropout")
        checks.check_dtype(dtype)
        self.input_size = checks.positive("input_size", input_size)
        self.hidden_size = checks.positive("hidden_size", hidden_size)
        self.memory_size = checks.positive("memory_size", memory_size)
        self.num_layers = checks.positive("num_layers", num_layers)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers "
                f"greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.attention, self.feed, self.attend, self.output = attention, feed, attend, output
        self.query_layer, self.output_dropout = query_layer, float(output_dropout)
        self.peephole, self.coupled, self.backend = peephole, coupled, backend
        checks.check_query_layer(query_layer, num_layers)
        kind = Attention(attention, feed, attend, output)
        checks.check_attention(kind)
        if attention_size is not None:
            checks.positive("attention_size", attention_size)
        self.attention_size = A = checks.check_attention_sizes(kind, hidden_size, memory_size, attention_size)
        shapes: dict[str, tuple[int, ...]] = {}
        self._all_weights: list[list[str]] = []
        cell = checks.CELLS[coupled, peephole]
        check_forget_bias(cell, forget_bias, bias)
        if forget_bias != 0:
            self._forget_bias = float(forget_bias)
        columns = input_size + kind.joined(hidden_size, memory_size)
        for k in range(num_layers):
            of_layer = cell.weights(hidden_size if k else columns, hidden_size, bias=bias)
            self._all_weights.append([f"{RECURRENT[name]}_l{k}" for name in of_layer])
            shapes |= dict(zip(self._all_weights[-1], of_layer.values(), strict=True))
        beside = kind.weights(hidden_size, memory_size, A, bias=bias)
        shapes |= {PARAMETERS[name]: shape for name, shape in beside.items()}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        for name in PARAMETERS.values():
            if name not in shapes:
                self.register_parameter(name, None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All weights anew: the class says how."""
        H, M = self.hidden_size, self.memory_size
        for names in self._all_weights:
            for name in names:
                nn.init.uniform_(getattr(self, name), -1 / math.sqrt(H), 1 / math.sqrt(H))
        biases = [f"{RECURRENT['b_ih']}_l{k}" for k in range(self.num_layers)]
        add_forget_bias(self, checks.CELLS[self.coupled, self.peephole], biases, self._forget_bias)
        A = self.attention_size
        columns = {"weight_query": H, "weight_key": M, "weight_score": A, "weight_out": M + H, "bias_out": M + H}
        for name, n in columns.items():
            if (w := getattr(self, name)) is not None:
                nn.init.uniform_(w, -1 / math.sqrt(n), 1 / math.sqrt(n))
        for name, value in {"gain_score": math.sqrt(1 / A), "bias_score": 0.0}.items():
            if (w := getattr(self, name)) is not None:
                nn.init.constant_(w, value)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """An entry for each layer, as `fastlstm.functional.attention_lstm` takes them."""
        return [weights_of(self, names) for names in self._all_weights]

    @property
    def attention_weights(self) -> AttentionWeights:
        """The others, as `fastlstm.functional.attention_lstm` takes them."""
        return AttentionWeights(*weights_of(self, tuple(PARAMETERS.values())))

    def forward(
        self,
        input: Tensor,
        memory: Tensor,
        hx: AttentionLSTMState | None = None,
        *,
        memory_lengths: Lengths = None,
        lengths: Lengths = None,
        need_weights: bool = False,
    ) -> AttentionLSTMResult:
        """`(output, state)`, and `alignments` if `need_weights`: the class describes them."""
        call, more = self._calls(lengths, need_weights)
        return decode(input, memory, self.all_weights, self.attention_weights, hx, memory_lengths, call, more)

    def precompute(self, memory: Tensor, memory_lengths: Lengths = None) -> Precomputed:
        """A memory for `step`, its keys projected once. Nothing of it is kept here: after a change of weights, call it anew.

        `memory` (S, B, M), (B, S, M) with `batch_first`, or (S, M) for steps of one unbatched sequence, whose `memory_lengths`
        is an integer.
        """
        return project(memory, self.all_weights, self.attention_weights, memory_lengths, *self._calls(None, False))

    def step(
        self,
        input: Tensor,
        precomputed: Precomputed,
        state: AttentionLSTMState | None = None,
        *,
        need_weights: bool = False,
    ) -> AttentionLSTMResult:
        """One step: `(output, state)`, `output` (B, H), and `alignments` (B, S) if `need_weights`.

        `input` (B, I), `precomputed` what `precompute` returned, `state` as `hx` of `forward`. Unbatched, `input` (I) gives
        `output` (H), `alignments` (S), and a state without B.
        """
        call, more = self._calls(None, need_weights)
        return decode_step(input, precomputed, self.all_weights, self.attention_weights, state, call, more)

    def _calls(self, lengths: Lengths, need_weights: bool) -> tuple[Call, AttentionCall]:
        call = Call(
            batch_first=self.batch_first, dropout=self.dropout, training=self.training, lengths=lengths,
            backend=self.backend,
        )  # fmt: skip
        # at each call: an attribute that was edited counts, and the repr does not lie
        kind = Attention(self.attention, self.feed, self.attend, self.output)
        return call, AttentionCall(kind, self.query_layer, self.coupled, self.output_dropout, need_weights)

    def extra_repr(self) -> str:
        shown = {name: getattr(self, name) for name, value in USUAL.items() if getattr(self, name) != value}
        if self.attention_size != self.hidden_size:
            shown["attention_size"] = self.attention_size
        more = "".join(f", {name}={value!r}" for name, value in shown.items())
        more += own_repr(self._forget_bias, self.backend)
        return f"{self.input_size}, {self.hidden_size}, {self.memory_size}{more}"
