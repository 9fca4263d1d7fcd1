"""The character model: embedding, recurrent layers, linear."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fastlstm.backends import VARIANTS
from fastlstm.modules import build

State = tuple[Tensor, ...]
# with the same parameters as ours
PYTORCHS: dict[str, type[nn.RNNBase]] = {
    name: getattr(nn, kind.counterpart) for name, kind in VARIANTS.items() if kind.counterpart
}


class CharModel(nn.Module):
    """`(T, B)` characters to `(T, B, V)` logits of the next ones."""

    def __init__(
        self, rnn: Callable[..., nn.Module], vocabulary: int, embedding: int, hidden: int, layers: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.rnn = rnn(embedding, hidden, layers)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, characters: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        # A GRU's state is a bare tensor, an LSTM's a pair.
        hx = state[0] if state is not None and len(state) == 1 else state
        y, hx = self.rnn(self.embedding(characters), hx)
        return self.head(y), hx if isinstance(hx, tuple) else (hx,)


def build_model(
    variant: str, library: str, vocabulary: int, embedding: int, hidden: int, layers: int, seed: int
) -> CharModel:
    """A model of `library` ("fastlstm" or "torch"); the seed gives both the same weights."""
    rnn = partial(build, variant) if library == "fastlstm" else PYTORCHS[variant]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CharModel(rnn, vocabulary, embedding, hidden, layers)


@torch.no_grad()
def generate(model: CharModel, prompt: Tensor, length: int, seed: int, temperature: float = 0.7) -> Tensor:
    """`length` characters that follow `prompt` (S,), drawn from the model. The seed decides which."""
    generator = torch.Generator().manual_seed(seed)
    device = model.head.weight.device
    characters, state, drawn = prompt.long()[:, None], None, []
    for _ in range(length):
        logits, state = model(characters.to(device), state)
        p = torch.softmax(logits[-1, 0].float().cpu() / temperature, dim=0)
        characters = torch.multinomial(p, 1, generator=generator)[:, None]
        drawn.append(characters.view(1))
    return torch.cat(drawn) if drawn else prompt[:0].long()
