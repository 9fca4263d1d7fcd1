"""What one has instead of our decoder with attention: a well-written loop, JoeyNMT's, and PyTorch's LSTM and then attention."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from fastlstm.benchmarks.work import Work, refuse
from fastlstm.case import AttentionCase
from fastlstm.loaders import from_joeynmt

CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
NOT_LOOPED = ("bias", "A", "attend", "output", "query_layer", "peephole", "coupled")
OTHERS = ("weight_query", "weight_key", "weight_score", "weight_out", "bias_out")


class Weights(nn.Module):
    """Weights that are not a cell's, by our names, and gradients of all in our order."""

    def __init__(self, work: Work, case: AttentionCase) -> None:
        super().__init__()
        refuse(case, "this peer", NOT_LOOPED)
        if case.attention not in ("additive", "dot", "general"):
            raise NotImplementedError(f"{case.attention} scores are not measured")
        self.attention, self.feed = case.attention, case.feed
        self.lengths = torch.tensor(case.memory_lengths) if case.memory_lengths else None
        self.order = [name for name, _ in work.module.named_parameters()]
        for name, weight in work.module.named_parameters():
            self.register_parameter(name, nn.Parameter(weight.detach().clone()) if name in OTHERS else None)

    def mask(self, memory: Tensor) -> Tensor | None:
        """(B, S), where there is nothing; None where all memories are whole."""
        if self.lengths is None:
            return None
        return torch.arange(len(memory), device=memory.device) >= self.lengths.to(memory.device)[:, None]

    def our_name(self, name: str) -> str:
        return name

    def as_ours(self, gradients: list[Tensor]) -> list[Tensor]:
        names = [self.our_name(name) for name, _ in self.named_parameters()]
        found = dict(zip(names, gradients, strict=True))
        return [found[name] for name in self.order]


class AttentionLoop(Weights):
    """Step by step: the cells, one softmax and two small products. Keys are projected once, memory is laid batch first once."""

    def __init__(self, work: Work, case: AttentionCase) -> None:
        super().__init__(work, case)
        given = dict(work.module.named_parameters())
        self.cells = nn.ModuleList()
        for k in range(case.layers):
            inputs = case.H if k else case.I + case.F
            cell = nn.LSTMCell(inputs, case.H, dtype=work.dtype, device=work.x.device)
            for name, own in cell.named_parameters():
                own.data.copy_(given[f"{name}_l{k}"].data)
            self.cells.append(cell)
        self.ready = None
        if case.layout == "step":
            with torch.no_grad():
                self.ready = self.precompute(work.memory)

    def forward(
        self, x: Tensor, memory: Tensor, h0: Tensor, c0: Tensor, fed: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        h, c = list(h0), list(c0)
        if self.ready is not None:
            y, fed = self.step(x, *self.ready, h, c, fed)
            return y, torch.stack(h), torch.stack(c), *([] if fed is None else [fed])
        ready = self.precompute(memory)
        outputs = []
        if self.feed:
            fed = x.new_zeros(x.shape[1], h0.shape[2] if self.feed == "attentional" else memory.shape[2])
        for x_t in x:
            y, fed = self.step(x_t, *ready, h, c, fed)
            outputs.append(y)
        return torch.stack(outputs), torch.stack(h), torch.stack(c)

    def precompute(self, memory: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        values = memory.transpose(0, 1).contiguous()
        keys = values if self.attention == "dot" else linear(values, self.weight_key)
        return values, keys, self.mask(memory)

    def step(
        self,
        x: Tensor,
        values: Tensor,
        keys: Tensor,
        mask: Tensor | None,
        h: list[Tensor],
        c: list[Tensor],
        fed: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and what is fed next; `h` and `c` are changed."""
        below = x if fed is None else torch.cat([x, fed], 1)
        for k, cell in enumerate(self.cells):
            h[k], c[k] = cell(below, (h[k], c[k]))
            below = h[k]
        if self.attention == "additive":
            scores = torch.tanh(linear(below, self.weight_query)[:, None] + keys) @ self.weight_score
        else:
            scores = torch.bmm(keys, below[:, :, None])[:, :, 0]
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        context = torch.bmm(torch.softmax(scores, 1)[:, None], values)[:, 0]
        y = torch.tanh(linear(torch.cat([context, below], 1), self.weight_out, self.bias_out))
        return y, {"attentional": y, "context": context}.get(self.feed) if self.feed else None

    def our_name(self, name: str) -> str:
        if not name.startswith("cells."):
            return name
        _, k, part = name.split(".")
        return f"{part}_l{k}"


class LSTMThenAttention(Weights):
    """Nothing is fed: PyTorch's LSTM over all steps, then its attention over all of them."""

    def __init__(self, work: Work, case: AttentionCase) -> None:
        super().__init__(work, case)
        if case.feed or case.attention == "additive" or case.layout == "step":
            raise NotImplementedError("PyTorch attends all steps at once where nothing is fed and scores are products")
        self.lstm = nn.LSTM(case.I, case.H, case.layers, dtype=work.dtype, device=work.x.device)
        given = dict(work.module.named_parameters())
        for name, own in self.lstm.named_parameters():
            own.data.copy_(given[name].data)

    def forward(self, x: Tensor, memory: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, ...]:
        h, finals = self.lstm(x, (h0, c0))
        values, mask = memory.transpose(0, 1), self.mask(memory)
        keys = values if self.attention == "dot" else linear(values, self.weight_key)
        kept = None if mask is None else ~mask[:, None, None]
        heads = [t[:, None] for t in (h.transpose(0, 1), keys, values)]
        context = scaled_dot_product_attention(*heads, kept, scale=1.0)[:, 0].transpose(0, 1)
        return torch.tanh(linear(torch.cat([context, h], 2), self.weight_out, self.bias_out)), *finals

    def our_name(self, name: str) -> str:
        return name.removeprefix("lstm.")


class JoeyDecoder(nn.Module):
    """JoeyNMT's decoder, whose vocabulary is of one word: it predicts with every step."""

    def __init__(self, work: Work, case: AttentionCase) -> None:
        super().__init__()
        refuse(case, "JoeyNMT, as it is measured here,", NOT_LOOPED)
        if case.attention not in ("additive", "general") or case.feed == "context":
            raise NotImplementedError(
                "JoeyNMT has additive and general scores, and feeds the attentional vector or nothing"
            )
        if case.layout == "step":
            raise NotImplementedError("JoeyNMT projects the keys at every step that it is called for")
        self.lengths = torch.tensor(case.memory_lengths or [case.S] * case.B)
        attention = {"additive": "bahdanau", "general": "luong"}[case.attention]
        self.decoder = load_joeynmt().RecurrentDecoder(
            rnn_type="lstm", emb_size=case.I, hidden_size=case.H, encoder=SimpleNamespace(output_size=case.M),
            attention=attention, num_layers=case.layers, vocab_size=1, init_hidden="zero", input_feeding=bool(case.feed),
        ).to(work.x.device, work.dtype)  # fmt: skip
        given = {name: weight.detach() for name, weight in work.module.named_parameters()}
        self.order = list(given)
        theirs = {f"rnn.{name}": weight for name, weight in given.items() if name.startswith(CELL)}
        theirs["attention.key_layer.weight"] = given["weight_key"]
        if case.attention == "additive":
            theirs["attention.query_layer.weight"] = given["weight_query"]
            theirs["attention.energy_layer.weight"] = given["weight_score"][None]
        theirs["att_vector_layer.weight"] = given["weight_out"].roll(case.H, dims=1)  # [h, context] is its order
        theirs["att_vector_layer.bias"] = given["bias_out"]
        self.decoder.load_state_dict(theirs, strict=False)
        self.decoder.output_layer.requires_grad_(False)

    def forward(self, x: Tensor, memory: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, ...]:
        mask = torch.arange(len(memory), device=memory.device) < self.lengths.to(memory.device)[:, None]
        x, values, *states = (t.transpose(0, 1) for t in (x, memory, h0, c0))
        _, finals, _, y = self.decoder(x, values, None, mask[:, None], x.shape[1], tuple(states))
        return tuple(t.transpose(0, 1) for t in (y, *finals))

    def as_ours(self, gradients: list[Tensor]) -> list[Tensor]:
        """What reorders the weights, reorders their gradients."""
        names = [name for name, weight in self.decoder.named_parameters() if weight.requires_grad]
        found = from_joeynmt(dict(zip(names, gradients, strict=True)))
        return [found[name] for name in self.order]


def load_joeynmt() -> Any:
    try:
        with np.printoptions():  # it sets them for the whole process
            import joeynmt.decoders
    except ImportError as error:
        raise NotImplementedError(f"{error.name} is not installed: JoeyNMT's decoder imports it") from error
    return joeynmt.decoders
