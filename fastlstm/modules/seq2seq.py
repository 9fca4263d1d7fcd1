"""A whole sequence-to-sequence model around the attention decoder."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastlstm import checks
from fastlstm.functional import AttentionState
from fastlstm.generation import Generated, beam_search
from fastlstm.modules.attention import AttentionLSTM
from fastlstm.modules.recurrent import LSTM
from fastlstm.sequences import Lengths


class Seq2Seq(nn.Module):
    """Sentences to sentences (Bahdanau et al. 2014; Luong et al. 2015): encoder, bridge, attention decoder, output layer.

        memory, (h_n, c_n) = encoder(source_embedding(source))      an `LSTM`, of two directions if `bidirectional`
        h0_l = tanh(W_h,l [h_n,l forward, h_n,l backward] + b_h,l)  of each layer l; c0_l alike
        a = decoder(target_embedding(target), memory, (h0, c0))     an `AttentionLSTM`, whose output is fed back
        logits = W a + b

    `source_vocabulary` and `target_vocabulary` are numbers of tokens; `pad` is in both, `begin` and `end` in the target's.
    Each direction of the encoder has `hidden_size` units: the memory has M = 2 * hidden_size, or hidden_size of one direction.
    `attention` is one of `AttentionLSTM`'s scores; "dot" and "scaled_dot" want `bidirectional=False`. `dropout` is of
    embeddings, between layers, and of the decoder's output.

    Sizes: S source tokens, T target tokens, B sentences, V target_vocabulary. With `batch_first`, B comes before S and T.

    `forward(source (S, B), source_lengths, target (T, B))`, for training: `target` starts with `begin`, and the `logits`
    (T, B, V) are those of the token after each. `source_lengths` (B) are integers from 0 to S, or None where all are S; what
    lies beyond has no influence. `target` may be padded at its end: leave out these logits of the loss (`ignore_index=pad`).

    `generate(source, source_lengths, max_length, *, beam_size=1, length_penalty=0.0)` writes itself what comes out, as in
    `eval()` and without gradients.

    Raises TypeError or ValueError that say what to pass.

    >>> model = Seq2Seq(30, 20, embedding_size=8, hidden_size=16)
    >>> source, target = torch.randint(3, 30, (7, 4)), torch.randint(3, 20, (6, 4))
    >>> target[0] = model.begin
    >>> logits = model(source, [7, 7, 2, 5], target[:-1])
    >>> loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[1:].flatten(), ignore_index=model.pad)
    >>> tokens, scores, alignments = model.generate(source, [7, 7, 2, 5], max_length=10, beam_size=5, length_penalty=1.0)
    >>> logits.shape, len(tokens), scores.shape
    (torch.Size([5, 4, 20]), 4, torch.Size([4]))
    """

    def __init__(
        self,
        source_vocabulary: int,
        target_vocabulary: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        pad: int = 0,
        begin: int = 1,
        end: int = 2,
        bidirectional: bool = True,
        attention: str = "additive",
        dropout: float = 0.0,
        batch_first: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.source_vocabulary = checks.positive("source_vocabulary", source_vocabulary)
        self.target_vocabulary = checks.positive("target_vocabulary", target_vocabulary)
        E, H = checks.positive("embedding_size", embedding_size), checks.positive("hidden_size", hidden_size)
        L = checks.positive("num_layers", num_layers)
        target = {"target_vocabulary": target_vocabulary}
        checks.check_special("pad", pad, source_vocabulary=source_vocabulary, **target)
        checks.check_special("begin", begin, **target)
        checks.check_special("end", end, **target)
        if pad in (begin, end):
            name = "begin" if pad == begin else "end"
            raise ValueError(f"pad is {pad}, expected another token than {name}: what is padded is not learned")
        checks.check_bool("bidirectional", bidirectional)
        checks.check_bool("batch_first", batch_first)
        checks.check_dropout(dropout)
        checks.check_dtype(dtype)
        if bidirectional and attention in ("dot", "scaled_dot"):
            raise ValueError(
                f"attention is {attention!r} and bidirectional is True, expected bidirectional=False or attention='general': "
                f"the memory has 2 * {H} features, and without a weight between them a query of {H} can't be compared with it"
            )
        self.pad, self.begin, self.end, self.dropout, self.batch_first = pad, begin, end, float(dropout), batch_first
        M = 2 * H if bidirectional else H
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        between = self.dropout if L > 1 else 0.0
        self.source_embedding = nn.Embedding(source_vocabulary, E, padding_idx=pad, **made)
        self.target_embedding = nn.Embedding(target_vocabulary, E, padding_idx=pad, **made)
        self.encoder = LSTM(E, H, L, dropout=between, bidirectional=bidirectional, **made)
        self.bridge_h = nn.ModuleList(nn.Linear(M, H, **made) for _ in range(L))
        self.bridge_c = nn.ModuleList(nn.Linear(M, H, **made) for _ in range(L))
        self.decoder = AttentionLSTM(
            E, H, M, L, dropout=between, attention=attention, output_dropout=self.dropout, **made
        )  # fmt: skip
        self.output = nn.Linear(H, target_vocabulary, **made)

    def forward(self, source: Tensor, source_lengths: Lengths, target: Tensor) -> Tensor:
        checks.check_tokens("target", target, self._axes("T"), self.target_vocabulary)
        source, lengths = self._checked(source, source_lengths)
        target = target.t() if self.batch_first else target
        checks.check_sentences(source, target)
        memory, first = self._encode(source, lengths)
        x = self._drop(self.target_embedding(target))
        logits = self.output(self.decoder(x, memory, first, memory_lengths=lengths)[0])
        return logits.transpose(0, 1) if self.batch_first else logits

    def generate(
        self,
        source: Tensor,
        source_lengths: Lengths,
        max_length: int,
        *,
        beam_size: int = 1,
        length_penalty: float = 0.0,
    ) -> Generated:
        """The best that beam search finds for each source, of at most `max_length` tokens: `(tokens, scores, alignments)`.

        `tokens` (B, U): without `begin`, ended by `end` where it ended before `max_length`, and `pad` after; U is the length of
        the longest. `scores` (B): log p(Y) / |Y|^length_penalty, the formula of fairseq and Hugging Face, where |Y| counts
        tokens, `end` once and `begin` not. `alignments` (B, U, S): what each token looked at; zero where `tokens` is padded and
        beyond a source's length.

        `beam_size=1` is greedy: the most probable token at each step. What the search does, and how ties end, is described
        under `fastlstm.generation.beam_search`; `pad` and `begin` are never generated. Whoever else is in the batch, scores and
        alignments of a sentence are the same up to rounding, and its tokens too, but for ties within rounding. Where any logit
        of a step is NaN, or all are minus infinity, a sentence is given up: unless one of its hypotheses had ended before, its
        score is minus infinity, and its tokens, one alone, mean nothing. Everything is as in `eval()`, without gradients; what
        was in training is so again afterwards.
        """
        checks.positive("max_length", max_length)
        checks.positive("beam_size", beam_size)
        length_penalty = checks.check_length_penalty(length_penalty, max_length)
        source, lengths = self._checked(source, source_lengths)
        with evaluating(self), torch.no_grad():
            memory, (h, c) = self._encode(source, lengths)
            rows = torch.arange(source.shape[1], device=source.device).repeat_interleave(beam_size)
            # all beams of a sentence look at the same: only states are reordered
            precomputed = self.decoder.precompute(memory, lengths).index_select(rows)

            def step(tokens: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState, Tensor]:
                x = self.target_embedding(tokens)
                found = self.decoder.step(x, precomputed, state, need_weights=True)
                output, state, alignments = cast(tuple[Tensor, AttentionState, Tensor], found)
                return self.output(output), state, alignments

            return beam_search(
                step, AttentionState(h, c, None).index_select(rows), source.shape[1], max_length,
                begin=self.begin, end=self.end, pad=self.pad, beam_size=beam_size, length_penalty=length_penalty,
                device=source.device,
            )  # fmt: skip

    def _axes(self, time: str) -> str:
        return f"(B, {time})" if self.batch_first else f"({time}, B)"

    def _checked(self, source: Tensor, lengths: Lengths) -> tuple[Tensor, Tensor | None]:
        """(S, B), and lengths on the CPU."""
        checks.check_tokens("source", source, self._axes("S"), self.source_vocabulary)
        source = source.t() if self.batch_first else source
        if lengths is None:
            return source, None
        S, B = source.shape
        return source, checks.check_lengths(lengths, S, B, "source_lengths", "tokens", "source")

    def _encode(self, source: Tensor, lengths: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The memory (S, B, M), and the decoder's first h and c, (L, B, H) each."""
        memory, last = self.encoder(self._drop(self.source_embedding(source)), lengths=lengths)
        h, c = (
            torch.stack([linear(s) for linear, s in zip(bridge, self._by_layer(state), strict=True)]).tanh()
            for bridge, state in zip((self.bridge_h, self.bridge_c), last, strict=True)
        )
        return memory, (h, c)

    def _by_layer(self, state: Tensor) -> Tensor:
        """(L, B, D * H) of (L * D, B, H)."""
        return state.unflatten(0, (self.encoder.num_layers, -1)).transpose(1, 2).flatten(2)

    def _drop(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.dropout, self.training)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module.eval()` for a while: afterwards, come what may, each part of it is as it was."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, was in training.items():
            part.training = was
