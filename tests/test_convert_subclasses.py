"""`convert` of subclasses that only add construction, of those that do more, and of modules that share Parameters."""

import abc
import copy
import gc
import pickle
import weakref
from typing import Generic, TypeVar

import pytest
import torch
from test_convert import assert_same, input_for, run
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastlstm
from fastlstm.convert import Conversion, convert, to_torch


class Forgetful(nn.LSTM):
    """As many libraries have it."""

    def __init__(self, size: int, forget_bias: float = 1.0) -> None:
        self.forget_bias = forget_bias
        super().__init__(size, 5)
        self.note = "mine"

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.bias_ih_l0[5:10] += self.forget_bias

    def extra_repr(self) -> str:
        return super(Forgetful, self).extra_repr() + f", forget_bias={self.forget_bias}"  # noqa: UP008 (as old code has it)

    def double_note(self) -> str:
        return self.note * 2


class Named(abc.ABC, Generic[TypeVar("T")]):
    @property
    @abc.abstractmethod
    def inner(self) -> int: ...

    @property
    def label(self) -> str:
        return f"{type(self).__name__} of {self.hidden_size}"


class OrthogonalGRU(nn.GRU, Named[int]):
    inner = 3

    def reset_parameters(self) -> None:
        nn.GRU.reset_parameters(self)
        nn.init.orthogonal_(self.weight_hh_l0)


class Grandchild(Forgetful):
    pass


class Cell(nn.LSTMCell):
    def zeros(self, B: int) -> Tensor:
        return torch.zeros(B, self.hidden_size)


class ReluCell(nn.GRUCell):
    pass


KINDS = {
    "LSTM": (lambda: Forgetful(3), fastlstm.LSTM),
    "grandchild": (lambda: Grandchild(3, forget_bias=2.0), fastlstm.LSTM),
    "GRU with a mixin": (lambda: OrthogonalGRU(3, 5), fastlstm.GRU),
    "LSTMCell": (lambda: Cell(3, 5), fastlstm.LSTMCell),
    "GRUCell": (lambda: ReluCell(3, 5), fastlstm.GRUCell),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str) -> tuple[nn.Module, Tensor]:
    module = KINDS[kind][0]()
    return module, input_for("Cell" if isinstance(module, nn.RNNCellBase) else "")


@each_kind
def test_there_and_back(kind: str) -> None:
    (module, x), ours = made(kind), KINDS[kind][1]
    theirs, attributes, parameters = type(module), vars(module).keys(), list(module.parameters())
    shown = repr(module).replace("(", f"[fastlstm.{ours.__name__}](", 1)
    before = run(module, x)
    assert convert(module) == Conversion([""], {}, [])
    assert isinstance(module, ours)
    assert isinstance(module, theirs)
    assert type(module).forward is ours.forward
    assert_same(module, x, before)
    assert repr(module) == shown
    assert convert(module) == Conversion([], {}, [])

    assert to_torch(module) == Conversion([""], {}, [])
    assert type(module) is theirs
    assert vars(module).keys() == attributes
    assert_same(module, x, before)
    assert all(p is q for p, q in zip(module.parameters(), parameters, strict=True))


def test_it_runs_ours() -> None:
    module = Forgetful(3)
    convert(module, backend="numba")
    assert "backend='numba'" in repr(module)
    y, _ = module(torch.randn(4, 2, 3), lengths=[4, 1])
    assert not y[1:, 1].any()


def test_methods_and_construction_work_on() -> None:
    lstm, gru = Forgetful(3, 4.0), OrthogonalGRU(3, 5)
    convert(nn.ModuleList([lstm, gru]))
    assert lstm.double_note() == "minemine"
    assert gru.label == "OrthogonalGRU of 5"
    twins = Forgetful(3, 4.0), OrthogonalGRU(3, 5)
    for module, twin in zip((lstm, gru), twins, strict=True):
        for m in (module, twin):
            torch.manual_seed(3)
            m.reset_parameters()
        torch.testing.assert_close(module.state_dict(), twin.state_dict(), rtol=0, atol=0)
    assert (lstm.bias_ih_l0[5:10] > 3).all()
    again = type(lstm)(3, forget_bias=2.0)
    assert isinstance(again, fastlstm.LSTM)
    assert again(torch.randn(4, 2, 3))[0].shape == (4, 2, 5)
    cell = Cell(3, 5)
    convert(cell)
    assert type(cell)(3, 5)(torch.randn(2, 3))[0].shape == (2, 5)


@pytest.mark.parametrize(
    "copier",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "copy", "pickle"],
)
@each_kind
def test_copies(kind: str, copier) -> None:
    module, x = made(kind)
    convert(module, backend="reference")
    twin = copier(module)
    assert type(twin) is type(module)
    assert twin.backend == "reference"
    assert_same(twin, x, run(module, x))
    to_torch(twin)
    assert type(twin) is KINDS[kind][0]().__class__


def test_modules_of_one_class_stay_of_one_class_that_can_go() -> None:
    class Local(nn.LSTM):
        pass

    model = nn.ModuleList([Local(3, 5), Local(3, 5)])
    convert(model)
    assert type(model[0]) is type(model[1])
    kept = weakref.ref(type(model[0]))
    del model, Local
    gc.collect()
    assert kept() is None


def test_parametrized() -> None:
    module, x = Forgetful(3), input_for("LSTM")
    parametrizations.weight_norm(module, "weight_hh_l0")
    before = run(module, x)
    assert convert(module) == Conversion([""], {}, [])
    assert isinstance(module, fastlstm.LSTM)
    assert_same(module, x, before)
    assert to_torch(module) == Conversion([""], {}, [])
    assert not isinstance(module, fastlstm.LSTM)
    assert_same(module, x, before)


# PyTorch's compiler makes an instance of each autograd.Function that it traces
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled() -> None:
    """With a break of the graph, as at PyTorch's."""
    model, x = nn.Sequential(Forgetful(3)), torch.randn(4, 2, 3)
    before = run(model, x)
    convert(model)
    assert_same(torch.compile(model, backend="eager"), x, before)


def subclass(base: type[nn.Module], **own: object) -> nn.Module:
    return type("Mine", (base,), own)(3, 5)


class Mixin:
    def permute_hidden(self, hx, permutation):
        return super().permute_hidden(hx, permutation)


class Mixed(Mixin, nn.LSTM):
    pass


class AbstractFirst(Named[int], nn.GRU):
    inner = 3


LEFT = {
    "forward": (
        lambda: subclass(nn.LSTM, forward=lambda self, x: x),
        "Mine is a subclass of nn.LSTM that has forward of",
    ),
    "of a mixin": (lambda: Mixed(3, 5), "Mixed is a subclass of nn.LSTM that has permute_hidden of its own"),
    "layout": (
        lambda: AbstractFirst(3, 5),
        "AbstractFirst is a subclass of nn.GRU whose objects can't become ours in place: __class__ assignment",
    ),
    "several": (
        lambda: subclass(nn.GRU, check_input=lambda *_: None, check_hidden_size=lambda *_: None),
        "subclass of nn.GRU that has check_hidden_size, check_input of its own: ours would not run it",
    ),
    "attributes": (
        lambda: subclass(nn.LSTMCell, __getattr__=lambda self, name: nn.Module.__getattr__(self, name)),
        "has __getattr__ of its own",
    ),
    "a name of ours": (lambda: subclass(nn.GRUCell, variant="mine"), "has variant of its own"),
    "an attribute of ours": (
        lambda: subclass(nn.LSTM, __init__=with_attribute(nn.LSTM, "variant")),
        "it has an attribute 'variant' of its own",
    ),
    "a peephole": (
        lambda: subclass(nn.LSTMCell, __init__=with_attribute(nn.LSTMCell, "weight_peephole")),
        "it has an attribute 'weight_peephole' of its own",
    ),
    "RNN": (lambda: subclass(nn.RNN), "Mine has no counterpart"),
}


def with_attribute(base: type[nn.Module], name: str):
    def init(self, *sizes: int) -> None:
        base.__init__(self, *sizes)
        setattr(self, name, nn.Parameter(torch.zeros(3)))

    return init


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_is_told(case: str) -> None:
    make, reason = LEFT[case]
    module = make()
    kind, attributes = type(module), dict(vars(module))
    with pytest.warns(UserWarning, match="convert leaves 1 of 1 recurrent modules as they are:\n  the model itself: "):
        converted, skipped, _ = convert(module)
    assert (converted, list(skipped)) == ([], [""])
    assert reason in skipped[""]
    assert type(module) is kind
    assert vars(module) == attributes


class Shared(nn.Module):
    """A layer and a cell with the same weights, as reinforcement learning has them, and directions, layers and modules tied."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.cell = nn.LSTM(3, 5), nn.LSTMCell(3, 5)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(self.cell, name, getattr(self.layer, f"{name}_l0"))
        self.both = nn.GRU(5, 4, num_layers=2, bidirectional=True)
        for name in list(self.both._parameters):
            if name.endswith("_reverse"):
                setattr(self.both, name, getattr(self.both, name.removesuffix("_reverse")))
        self.deep, self.again = nn.LSTM(8, 8, num_layers=2), nn.LSTM(8, 8)
        for name in list(self.again._parameters):
            setattr(self.deep, name.replace("_l0", "_l1"), getattr(self.deep, name))
            setattr(self.again, name, getattr(self.deep, name))

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.layer(x)
        h, _ = self.cell(x[0], (h[0], c[0]))
        return self.again(self.deep(self.both(torch.cat([y, h[None]]))[0])[0])[0]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("keep_type", [False, True])
def test_shared_parameters_stay_shared(keep_type: bool) -> None:
    model, x = Shared(), torch.randn(4, 2, 3)
    models = [model, copy.deepcopy(model)]
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in models]
    names, parameters = [*dict(model.named_parameters(remove_duplicate=False))], [*model.parameters()]
    assert len(names) - len(parameters) == 4 + 8 + 4 + 4
    changes = (lambda m: None, lambda m: convert(m, keep_type=keep_type), to_torch)
    for change in changes:
        change(model)
        assert [*dict(model.named_parameters(remove_duplicate=False))] == names
        assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
        for m, optimizer in zip(models, optimizers, strict=True):
            train(m, optimizer, x)
        torch.testing.assert_close(*(m.state_dict() for m in models))
    assert model.cell.weight_hh is model.layer.weight_hh_l0
    assert model.again.bias_ih_l0 is model.deep.bias_ih_l1


def test_copies_of_what_shares_share() -> None:
    model, x = Shared(), torch.randn(4, 2, 3)
    convert(model)
    twin = copy.deepcopy(model)
    assert len([*twin.parameters()]) == len([*model.parameters()])
    assert twin.cell.weight_hh is twin.layer.weight_hh_l0
    for m in (model, twin):
        train(m, torch.optim.SGD(m.parameters(), lr=0.1), x)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
