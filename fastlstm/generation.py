"""Greedy and beam search over a decoder's step: batched, on tensors, every sentence as if it were alone."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor


class Generated(NamedTuple):
    """The best beam of each sentence."""

    tokens: Tensor  # (B, U), without `begin`, ended by `end` where it ended, and `pad` after
    scores: Tensor  # (B), log p(Y) / |Y|^length_penalty
    alignments: Tensor  # (B, U, S), zero where `tokens` is padded


class Reorderable(Protocol):
    def index_select(self, rows: Tensor) -> Self: ...


State = TypeVar("State", bound=Reorderable)
Step = Callable[[Tensor, State], tuple[Tensor, State, Tensor]]


class _Candidates(NamedTuple):
    """The most probable ways to go on by one token, C of each sentence, and those K of them that do go on."""

    tokens: Tensor  # (B, C)
    parents: Tensor  # (B, C), the beams that they go on from
    kept: Tensor  # (B, K), which of the C
    alignments: Tensor  # (B, K, S), of the beams that they go on from


class _Best(NamedTuple):
    """The best hypothesis of each sentence so far, each (B)."""

    scores: Tensor
    steps: Tensor  # at which it came to its end
    places: Tensor  # among the candidates of that step

    def or_better(self, scores: Tensor, t: int, places: Tensor) -> "_Best":
        better = scores > self.scores
        return _Best(
            torch.where(better, scores, self.scores),
            torch.where(better, t, self.steps),
            torch.where(better, places, self.places),
        )


@torch.no_grad()
def beam_search(
    step: Step[State],
    state: State,
    batch: int,
    max_length: int,
    *,
    begin: int,
    end: int,
    pad: int,
    beam_size: int = 1,
    length_penalty: float = 0.0,
    device: torch.device | str | None = None,
) -> Generated:
    """The best sequences Y of at most `max_length` tokens that beams of `beam_size` find; one beam is greedy search.

    `step(tokens (R), state)` gives `logits (R, V)`, the next state and `alignments (R, S)`, of R = batch * beam_size rows, of
    which those of one sentence stand together; the first `state` has as many. `state.index_select(rows)` reorders it.

        score(Y) = log p(Y) / |Y|^length_penalty

    is what the best is best in, the formula of fairseq and Hugging Face. |Y| counts tokens, `end` once and `begin` not: with
    0 the score is the log-probability, with 1 its mean per token. At each step the `beam_size` most probable candidates
    count: those that `end` are hypotheses from then on and never grow, and as many others go on. What stands at `max_length`
    without an `end` is a hypothesis as well. A sentence's search is over when `beam_size` hypotheses have ended, or where
    nothing that goes on can still come to a higher score. Of equal candidates first comes the one whose beam is ahead, then
    the lower token; of equal scores, the one that ended first.

    `pad` and `begin` are never generated (`end` is, if `begin` is the same); the probabilities of the others are left as they
    are. Sums are in float32, or in float64 where the logits are.

    Source: fairseq's search (Ott et al. 2019).
    """
    B, K = batch, beam_size
    first_row = K * torch.arange(B, device=device).unsqueeze(1)
    tokens = torch.full((B, K), begin, device=device)
    log_p = torch.full((B, K), -torch.inf, device=device)
    log_p[:, 0] = 0
    best = _Best(log_p.new_full((B,), -torch.inf), tokens.new_zeros(B), tokens.new_zeros(B))
    ended, over = tokens.new_zeros(B), torch.zeros(B, dtype=torch.bool, device=device)
    history: list[_Candidates] = []
    for t in range(max_length):
        logits, state, alignments = step(tokens.flatten(), state)
        after = log_p.unsqueeze(-1) + _log_softmax(logits, {pad, begin} - {end}).unflatten(0, (B, K))
        # at most one of a beam's ends it, so that K of 2K go on; greedy search is over where it ends
        found, places = largest(after.flatten(1), 2 * K if K > 1 else 1)
        candidates, parents = places % after.shape[-1], places // after.shape[-1]
        ends = candidates == end
        scores = (found / (t + 1) ** length_penalty).masked_fill(~ends | over.unsqueeze(1), -torch.inf)[:, :K]
        first = scores.max(1)
        best = best.or_better(first.values, t, first.indices)
        ended = ended + (scores > -torch.inf).sum(1)
        log_p, kept = (x[:, :K] for x in found.masked_fill(ends, -torch.inf).sort(dim=1, descending=True, stable=True))
        history.append(_Candidates(candidates, parents, kept, alignments.unflatten(0, (B, K))))
        # log p only falls, and the longest gets the most of it
        limit = log_p[:, 0] / max_length**length_penalty
        over = over | (ended >= K) | (best.scores >= limit)
        if over.all():
            break
        tokens = candidates.gather(1, kept)
        if K > 1:
            state = state.index_select((first_row + parents.gather(1, kept)).flatten())
    else:
        best = best.or_better(limit.masked_fill(over, -torch.inf), max_length - 1, kept[:, 0])
    return _traced(best, history, pad)


def _log_softmax(logits: Tensor, never: set[int]) -> Tensor:
    log_p = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    log_p[:, sorted(never)] = -torch.inf
    return log_p


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of x (B, N), and where they are: of equal ones the first, which `topk` leaves open."""
    if count == 1:
        return x.max(-1, keepdim=True)
    found = x.topk(min(count + 1, x.shape[1]))
    if x.shape[1] > count and (found.values[:, count - 1] > found.values[:, count]).all():
        places, order = found.indices[:, :count].sort(1)
        values, order = found.values.gather(1, order).sort(dim=1, descending=True, stable=True)
        return values, places.gather(1, order)
    x, each = x.clone(), []
    for _ in range(count):
        each.append(x.max(-1, keepdim=True))
        x.scatter_(1, each[-1].indices, -torch.inf)
    return torch.cat([one.values for one in each], 1), torch.cat([one.indices for one in each], 1)


def _traced(best: _Best, history: list[_Candidates], pad: int) -> Generated:
    """Back from where each sentence's best hypothesis came to its end."""
    U = int(best.steps.max()) + 1 if len(best.steps) else 0
    place = best.places.unsqueeze(1)
    tokens, alignments = [], []
    for t in reversed(range(U)):
        said = (best.steps >= t).unsqueeze(1)
        # where it ended before, `place` waits
        parents = torch.where(said, history[t].parents.gather(1, place), 0)
        tokens.append(torch.where(said, history[t].tokens.gather(1, place), pad))
        looked = history[t].alignments.take_along_dim(parents.unsqueeze(-1), 1)
        alignments.append(torch.where(said.unsqueeze(-1), looked, 0))
        if t:
            place = torch.where(said, history[t - 1].kept.gather(1, parents), place)
    rows, slots = history[0].tokens.shape[0], history[0].alignments.shape[-1]
    return Generated(
        torch.cat([best.places.new_empty(rows, 0), *reversed(tokens)], 1),
        best.scores,
        torch.cat([history[0].alignments.new_empty(rows, 0, slots), *reversed(alignments)], 1),
    )
