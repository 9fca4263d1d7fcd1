"""`convert(keep_type=True)`: what was PyTorch's stays so to `isinstance`, and is ours in all else."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from test_convert import KINDS, Doubled, assert_same, input_for, run
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastlstm
from fastlstm.convert import Conversion, convert, to_torch

each_kind = pytest.mark.parametrize("kind", KINDS)


def both(kind: str) -> tuple[type[nn.Module], type[nn.Module]]:
    return getattr(nn, kind), getattr(fastlstm, kind)


@each_kind
def test_there_and_back(kind: str) -> None:
    torchs, ours = both(kind)
    module, x = torchs(3, 5), input_for(kind)
    parameters, before = list(module.parameters()), run(module, x)
    assert convert(module, keep_type=True, backend="reference") == Conversion([""], {}, [])
    assert isinstance(module, torchs)
    assert isinstance(module, ours)
    assert type(module).forward is ours.forward
    assert module.backend == "reference"
    assert repr(module) == f"{kind}[fastlstm.{kind}](3, 5, backend='reference')"
    assert_same(module, x, before)
    for again in (True, False):
        kept = type(module)
        assert convert(module, keep_type=again) == Conversion([], {}, [])
        assert type(module) is kept

    assert to_torch(module) == Conversion([""], {}, [])
    assert type(module) is torchs
    assert vars(module).keys() == vars(torchs(3, 5)).keys()
    assert_same(module, x, before)
    assert all(p is q for p, q in zip(module.parameters(), parameters, strict=True))


@each_kind
def test_of_what_is_ours(kind: str) -> None:
    torchs, ours = both(kind)
    options = {} if "GRU" in kind else {"forget_bias": 2.0}
    model, x = nn.Sequential(ours(3, 5, backend="numba", **options)), input_for(kind)
    before = run(model, x)
    assert convert(model, keep_type=True) == Conversion(["0"], {}, [])
    assert isinstance(model[0], torchs)
    assert model[0].backend == "numba"
    assert_same(model, x, before)
    torch.manual_seed(0)
    model[0].reset_parameters()
    torch.manual_seed(0)
    assert_same(model, x, run(ours(3, 5, **options), x))


def test_variants_that_pytorch_lacks_are_let_alone() -> None:
    module = fastlstm.PeepholeLSTM(3, 5)
    assert convert(module, keep_type=True) == Conversion([], {}, [])
    assert type(module) is fastlstm.PeepholeLSTM


@pytest.mark.parametrize(
    "copier",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: type(m)(3, 5)],
    ids=["deepcopy", "copy", "pickle", "built"],
)
@each_kind
def test_copies(kind: str, copier: Callable[[nn.Module], nn.Module]) -> None:
    module, x = both(kind)[0](3, 5), input_for(kind)
    convert(module, keep_type=True)
    twin = copier(module)
    assert type(twin) is type(module)
    twin.load_state_dict(module.state_dict())
    assert_same(twin, x, run(module, x))


def test_parametrized() -> None:
    module, x = parametrize.register_parametrization(nn.GRU(3, 5), "weight_hh_l0", Doubled()), input_for("GRU")
    before = run(module, x)
    convert(module, keep_type=True)
    assert isinstance(module, nn.GRU)
    assert isinstance(module, fastlstm.GRU)
    assert_same(module, x, before)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert isinstance(module, nn.GRU)
    assert isinstance(module, fastlstm.GRU)


class Asking(nn.Module):
    """As many forwards do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.rnn(x)
        h = state[0] if isinstance(self.rnn, nn.LSTM) else state
        return y + h


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_compiled(kind: str) -> None:
    """As a whole where Dynamo is allowed to; else in two parts, as at PyTorch's own."""
    model, x = Asking(kind), torch.randn(4, 2, 3)
    before = run(model, x)
    convert(model, keep_type=True)
    assert_same(model, x, before)
    assert_same(torch.compile(model, backend="aot_eager"), x, before)
    torch._dynamo.reset()
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"Attempted to wrap RNN(?s:.*)allow_rnn=True"):
        whole(x)
    with torch._dynamo.config.patch(allow_rnn=True):
        assert_same(whole, x, before)


def test_exported() -> None:
    model, x = Asking("LSTM"), torch.randn(4, 2, 3)
    convert(model, keep_type=True)
    program = torch.export.export(model, (x,))
    assert [str(n.target) for n in program.graph.nodes if "fastlstm" in str(n.target)] == [
        "fastlstm.lstm_layer.default"
    ]
    torch.testing.assert_close(program.module()(x), model(x))
