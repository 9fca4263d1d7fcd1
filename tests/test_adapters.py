"""Adapters of libraries: the same numbers as the library's own code, in one call."""

import copy
import pickle
from types import ModuleType

import pytest
import torch
from test_convert import flat
from torch import Tensor, nn

import fastlstm
from fastlstm.adapters import sb3
from fastlstm.convert import Conversion

BOTH = Conversion(["lstm_actor", "lstm_critic"], {}, [])


class Policy(nn.Module):
    """A double of sb3-contrib's RecurrentActorCriticPolicy: its attributes, and the loop over time that it has."""

    def __init__(self, critic: bool = True, **options) -> None:
        super().__init__()
        self.lstm_actor = nn.LSTM(3, 5, **options)
        self.lstm_critic = nn.LSTM(3, 5, **options) if critic else None

    @staticmethod
    def _process_sequence(features, lstm_states, episode_starts, lstm):
        N = lstm_states[0].shape[1]
        steps = []
        keeps = (1.0 - episode_starts).reshape(N, -1).T
        for x, keep in zip(features.reshape(N, -1, lstm.input_size).swapaxes(0, 1), keeps, strict=True):
            y, lstm_states = lstm(x[None], tuple(keep.view(1, N, 1) * s for s in lstm_states))
            steps.append(y)
        return torch.cat(steps).transpose(0, 1).flatten(0, 1), lstm_states


class Halving(Policy):
    @staticmethod
    def _process_sequence(features, lstm_states, episode_starts, lstm):
        return Policy._process_sequence(features, lstm_states, episode_starts / 2, lstm)


def passed(policy, N: int, T: int, share: float) -> list[Tensor]:
    """What `_process_sequence` returns, and all gradients, where an episode begins at `share` of the steps."""
    draw = torch.Generator().manual_seed(5)
    lstm = policy.lstm_actor

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=lstm.weight_ih_l0.dtype).requires_grad_()

    states = [drawn(lstm.num_layers, N, lstm.hidden_size) for _ in range(2)]
    x, starts = drawn(N * T, lstm.input_size), (torch.rand(N * T, generator=draw) < share).float()
    results = flat(policy._process_sequence(x, tuple(states), starts, lstm))
    goal = sum((r.square() * (k + 1)).sum() for k, r in enumerate(results))
    return [*results, *torch.autograd.grad(goal, [x, *states, *lstm.parameters()])]


SHARES = {"none": 0.0, "some": 0.3, "all": 1.0}


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize(("N", "T"), [(1, 1), (3, 1), (1, 7), (4, 6)])
def test_sb3(N: int, T: int, share: float) -> None:
    policy = Policy(num_layers=2).double()
    expected = passed(policy, N, T, share)
    assert sb3(policy) == BOTH
    torch.testing.assert_close(passed(policy, N, T, share), expected)


def test_sb3_without_a_critic_and_there_and_back() -> None:
    policy, before = Policy(critic=False), torch.random.get_rng_state()
    expected = passed(policy, 3, 5, 0.3)
    assert sb3(policy, backend="numba").converted == ["lstm_actor"]
    assert policy.lstm_actor.backend == "numba"
    assert torch.equal(torch.random.get_rng_state(), before)
    for twin in (policy, copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        torch.testing.assert_close(passed(twin, 3, 5, 0.3), expected)
    assert sb3(policy) == Conversion([], {}, [])

    del policy._process_sequence
    assert fastlstm.to_torch(policy).converted == ["lstm_actor"]
    torch.testing.assert_close(passed(policy, 3, 5, 0.3), expected)


def test_sb3_errors() -> None:
    with pytest.raises(
        TypeError, match=r"policy is of type Linear, expected a recurrent policy .* attribute 'lstm_actor'"
    ):
        sb3(nn.Linear(2, 2))
    policy = Halving()
    with pytest.raises(ValueError, match=r"policy is left as it was: its _process_sequence .* with AssertionError"):
        sb3(policy)
    assert type(policy.lstm_actor) is nn.LSTM
    policy = Policy()
    policy.lstm_critic.forward = policy.lstm_actor.forward
    with pytest.raises(
        ValueError, match=r"left as it was: its lstm_critic can't be a fastlstm\.LSTM: its forward was rep"
    ):
        sb3(policy)
    policy.lstm_critic = nn.GRU(3, 5)
    with pytest.raises(ValueError, match=r"its lstm_critic can't be a fastlstm\.LSTM: it is of type GRU"):
        sb3(policy)
    assert type(policy.lstm_actor) is nn.LSTM
    assert "_process_sequence" not in vars(policy)
    with pytest.raises(ValueError, match="backend is 'gpu', expected one of"):
        sb3(Policy(), backend="gpu")


# RecurrentPPO itself: what .ci/run installs for it, with what its packages say of NumPy, Python and each other
@pytest.fixture
def library() -> ModuleType:
    reason = "pip install --no-deps sb3-contrib stable-baselines3 gymnasium Farama-Notifications"
    return pytest.importorskip("sb3_contrib", reason=reason)


def trained(library, adapted: bool, **options) -> tuple[nn.Module, int]:
    """The policy after updates on batches inside which episodes begin, and how often an LSTM was called in one."""
    sizes = {"n_steps": 48, "batch_size": 24, "n_epochs": 2}
    options = {"lstm_hidden_size": 6, "net_arch": [4], **options}
    agent = library.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", **sizes, seed=0, device="cpu", policy_kwargs=options)
    if adapted:
        sb3(agent.policy)
    agent.learn(48)
    calls: list[nn.Module] = []
    agent.policy.lstm_actor.register_forward_hook(lambda module, *_: calls.append(module))
    agent.train()
    return agent.policy, len(calls)


OPTIONS = {
    "two LSTMs": {"n_lstm_layers": 2},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "no critic": {"enable_critic_lstm": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_updates_of_recurrent_ppo(library, options: dict) -> None:
    (theirs, in_theirs), (ours, in_ours) = (trained(library, adapted, **options) for adapted in (False, True))
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()))
    assert in_ours == 4  # two minibatches, two epochs
    assert in_theirs > 2 * in_ours
