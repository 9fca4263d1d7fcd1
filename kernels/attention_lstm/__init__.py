"""The Attention LSTM: what an attention is, as a value; equations and derivation in README.md, oracle in reference.py."""

import math
from typing import NamedTuple

from fastlstm.kernels.variant import Variant

ATTENTION_LSTM = Variant("attention_lstm", "attention_lstm", "ifgo", ("h", "c"))

ADDITIVE = ("additive", "normalized_additive")
DOT = ("dot", "scaled_dot")  # of h and memory as they are
SCORES = (*ADDITIVE, *DOT, "general")
FEEDS = (None, "attentional", "context")  # in the order in which the op counts them
ATTENDS = ("after", "before")
OUTPUTS = ("tanh", "linear", "hidden")

# A weight's name in our functions, and in our modules, in their order
PARAMETERS = {
    "w_query": "weight_query",
    "w_key": "weight_key",
    "w_score": "weight_score",
    "g_score": "gain_score",
    "b_score": "bias_score",
    "w_out": "weight_out",
    "b_out": "bias_out",
}


class Attention(NamedTuple):
    """A decoder's attention, by the words of `fastlstm.AttentionLSTM`: which score, what is fed, when, and what comes out.

    Sizes: I input, H hidden, M memory, A attention.
    """

    score: str = "additive"
    feed: str | None = "attentional"
    attend: str = "after"
    output: str = "tanh"

    @property
    def additive(self) -> bool:
        return self.score in ADDITIVE

    @property
    def before(self) -> bool:
        return self.attend == "before"

    @property
    def at_once(self) -> bool:
        """Whether the recurrence does not depend on the attention, so that all steps may be attended at once."""
        return self.feed is None and not self.before

    def fed(self, H: int, M: int) -> int:
        """F, the width of what is fed."""
        return {None: 0, "attentional": H, "context": M}[self.feed]

    def joined(self, H: int, M: int) -> int:
        """How many columns of the first layer's weight_ih follow those of x."""
        return M if self.before else self.fed(H, M)

    def scale(self, H: int) -> float:
        """What queries are multiplied with."""
        return 1 / math.sqrt(H) if self.score == "scaled_dot" else 1.0

    def weights(self, H: int, M: int, A: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
        """The shape of each weight beside the recurrent ones."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.additive:
            shapes |= {"w_query": (A, H), "w_key": (A, M), "w_score": (A,)}
        if self.score == "normalized_additive":
            shapes |= {"g_score": (), "b_score": (A,)}
        if self.score == "general":
            shapes["w_key"] = H, M
        if self.output != "hidden":
            shapes["w_out"] = H, M + H
            if bias:
                shapes["b_out"] = (H,)
        return shapes
