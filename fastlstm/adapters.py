"""Models of libraries made to use what our modules can do and PyTorch's can't."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.convert import Conversion, convert, why_not_ours
from fastlstm.modules import LSTM
from fastlstm.modules.recurrent import Family

__all__ = ["sb3"]

States = tuple[Tensor, Tensor]


def sb3(policy: nn.Module, *, backend: str = "auto") -> Conversion:
    """Let a recurrent policy of sb3-contrib run whole sequences at once, those inside which episodes begin included.

    Such a policy loops over time in Python as soon as an episode begins inside a batch, as one does in nearly all updates of
    RecurrentPPO. `reset=` of our LSTM cuts sequences at the same steps, in one call. The policy is changed in place: its LSTMs
    by `convert(policy, backend=backend)`, whose result is returned, and its `_process_sequence`. Outputs, states and gradients
    are the same up to rounding, and its optimizer stays valid. `RecurrentPPO.load` makes a policy anew, which needs it again.
    `del policy._process_sequence` and `fastlstm.to_torch(policy)` go back.

    policy: `agent.policy` of a RecurrentPPO, or another that has `lstm_actor`, `lstm_critic` (or None) and `_process_sequence`.
    Raises TypeError if it has not; ValueError if its LSTMs can't be ours, if its `_process_sequence` gives other values than
    this one on a trial, because a subclass overrides it, and for an unknown backend.

    >>> agent = RecurrentPPO("MlpLstmPolicy", "CartPole-v1")  # doctest: +SKIP
    >>> fastlstm.adapters.sb3(agent.policy)  # doctest: +SKIP
    Conversion(converted=['lstm_actor', 'lstm_critic'], skipped={}, new_parameters=[])
    """
    for name in ("lstm_actor", "lstm_critic", "_process_sequence"):
        if not hasattr(policy, name):
            raise TypeError(
                f"policy is of type {type(policy).__name__}, expected a recurrent policy of sb3-contrib, such as "
                f"agent.policy of a RecurrentPPO: it has no attribute {name!r}"
            )
    theirs: Any = policy._process_sequence
    if theirs is not _process_sequence and (why := _why_not_same(theirs)):
        raise ValueError(f"policy is left as it was: its _process_sequence doesn't do what sb3-contrib's does: {why}")
    for name in ("lstm_actor", "lstm_critic"):
        lstm = getattr(policy, name)
        if (lstm is not None or name == "lstm_actor") and (why := _why_not_an_lstm(lstm)):
            raise ValueError(f"policy is left as it was: its {name} can't be a fastlstm.LSTM: {why}")
    report = convert(policy, backend=backend)
    policy._process_sequence = _process_sequence  # type: ignore[assignment]
    return report


def _process_sequence(
    features: Tensor, lstm_states: States, episode_starts: Tensor, lstm: Family
) -> tuple[Tensor, States]:
    """As sb3-contrib's: features (N T, I), states (L, N, H) and episode_starts (N T), which are 0 or 1, give (N T, H)."""
    N = lstm_states[0].shape[1]
    x = features.reshape(N, -1, lstm.input_size).transpose(0, 1)
    reset = episode_starts.reshape(N, -1).transpose(0, 1) != 0
    y, states = lstm(x, lstm_states, reset=reset)
    return y.transpose(0, 1).flatten(0, 1), states


def _why_not_an_lstm(module: Any) -> str | None:
    if isinstance(module, Family):
        return None
    return why_not_ours(module) if isinstance(module, nn.LSTM) else f"it is of type {type(module).__name__}"


def _why_not_same(theirs: Callable[..., Any]) -> str | None:
    """By a trial of both on one LSTM, whose sequences begin anew at the first step, inside, and not at all."""
    N, T, I, H = 3, 4, 2, 3
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        lstm = LSTM(I, H, num_layers=2, device="cpu", dtype=torch.float64, backend="reference")
        x, h, c = (torch.randn(*s, device="cpu", dtype=torch.float64) for s in ((N * T, I), (2, N, H), (2, N, H)))
    starts = torch.tensor([1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0], device="cpu", dtype=torch.float64)
    try:
        with torch.no_grad():
            torch.testing.assert_close(_process_sequence(x, (h, c), starts, lstm), theirs(x, (h, c), starts, lstm))
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        return f"a trial of both ended with {type(error).__name__}: {''.join(first)}"
    return None
