"""`convert`, `to_torch` and `patch`: the same objects, Parameters and results, whatever hangs on them."""

import copy
import doctest
import pickle
import re
import threading
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastlstm
from fastlstm.convert import Conversion, patch

KINDS = ("LSTM", "GRU", "LSTMCell", "GRUCell")
OPTIONS = {
    "plain": {},
    "stacked": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False},
    "projected": {"proj_size": 2},
}
CASES = (
    [(kind, "plain") for kind in KINDS] + [("LSTM", o) for o in OPTIONS] + [("GRU", "stacked"), ("GRUCell", "no bias")]
)
convert = fastlstm.convert


def input_for(kind: str) -> Tensor:
    return torch.randn(2, 3) if kind.endswith("Cell") else torch.randn(4, 2, 3)


def flat(result: Tensor | tuple) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Results and the gradients of all parameters."""
    module.zero_grad()
    out = flat(module(x))
    sum((t.square() * (k + 1)).sum() for k, t in enumerate(out)).backward()
    return [t.detach().clone() for t in out] + [p.grad.clone() for p in module.parameters() if p.grad is not None]


def assert_same(module: nn.Module, x: Tensor, before: list[Tensor]) -> None:
    torch.testing.assert_close(run(module, x), before)


# PyTorch runs a projection by its chain of ops, and says so
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_there_and_back(kind: str, options: str) -> None:
    module = getattr(nn, kind)(3, 5, **OPTIONS[options])
    x, attributes, parameters = input_for(kind), dict(vars(module)), list(module.parameters())
    before = run(module, x)
    assert convert(module) == Conversion([""], {}, [])
    assert type(module) is getattr(fastlstm, kind)
    assert_same(module, x, before)
    assert repr(module) == f"fastlstm.{getattr(nn, kind)(3, 5, **OPTIONS[options])!r}"
    fresh = getattr(fastlstm, kind)(3, 5, **OPTIONS[options])
    assert vars(module).keys() == vars(fresh).keys()

    assert fastlstm.to_torch(module) == Conversion([""], {}, [])
    assert type(module) is getattr(nn, kind)
    assert_same(module, x, before)
    assert vars(module).keys() == attributes.keys()
    assert all(p is q for p, q in zip(module.parameters(), parameters, strict=True))


class Model(nn.Module):
    """The same LSTM at two places, another one, a cell, and what is none."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 5)
        self.inner = nn.ModuleDict({"gru": nn.GRU(5, 5), "again": self.encoder})
        self.cell = nn.GRUCell(5, 2)
        self.rnn = nn.RNN(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner["gru"](self.encoder(x)[0])[0]
        return self.rnn(self.cell(y[-1])[None])[0]


def test_a_model_trains_on_with_its_optimizer() -> None:
    model, x = Model(), torch.randn(4, 2, 3)
    twin = copy.deepcopy(model)
    for m in (model, twin):
        optimizer = torch.optim.Adam(m.parameters(), lr=0.1)
        for step in range(4):
            if step == 2 and m is model:
                with pytest.warns(
                    UserWarning, match=r"convert leaves 1 of 5 recurrent modules as they are:\n  rnn: torch"
                ):
                    report = convert(m, backend="reference")
            optimizer.zero_grad()
            m(x).square().sum().backward()
            optimizer.step()
    assert report.converted == ["encoder", "inner.gru", "inner.again", "cell"]
    assert report.skipped == {"rnn": "torch.nn.modules.rnn.RNN has no counterpart in fastlstm"}
    assert model.inner["again"] is model.encoder
    assert model.inner["gru"].backend == "reference"
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    with pytest.warns(
        UserWarning, match=r"convert leaves 1 of 1 recurrent modules as they are:\n  rnn: torch"
    ) as caught:
        assert convert(model) == Conversion([], report.skipped, [])
    assert caught[0].filename == __file__
    assert model.encoder.backend == "reference"


def test_what_hangs_on_a_module_stays() -> None:
    lstm, x, calls = nn.LSTM(3, 5).eval(), torch.randn(4, 2, 3, requires_grad=True), []
    lstm.note = "mine"
    lstm.weight_hh_l0.requires_grad_(False)
    lstm.register_buffer("seen", torch.ones(1))
    lstm.register_forward_hook(lambda *_: calls.append("forward"))
    lstm.register_full_backward_hook(lambda *_: calls.append("backward"))
    lstm.register_state_dict_post_hook(lambda *_: calls.append("state_dict"))
    before = run(lstm, x)
    convert(lstm)
    assert_same(lstm, x, before)
    lstm.state_dict()
    assert calls == ["forward", "backward"] * 2 + ["state_dict"]
    assert not lstm.training
    assert lstm.note == "mine"
    assert not lstm.weight_hh_l0.requires_grad
    assert "seen" in dict(lstm.named_buffers())


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w

    def right_inverse(self, w: Tensor) -> Tensor:
        return w / 2


DRESSES: dict[str, Callable[[nn.Module, str], object]] = {
    "parametrized": lambda m, name: parametrize.register_parametrization(m, name, Doubled()),
    "weight norm": lambda m, name: parametrizations.weight_norm(m, name),
    "pruned": lambda m, name: prune.l1_unstructured(m, name, 0.5),
}


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("kind", KINDS)
def test_dressed_weights(kind: str, dress: str) -> None:
    name = "weight_hh" if kind.endswith("Cell") else "weight_hh_l0"
    module, x = getattr(nn, kind)(3, 5), input_for(kind)
    DRESSES[dress](module, name)
    before = run(module, x)
    assert convert(module) == Conversion([""], {}, [])
    assert isinstance(module, getattr(fastlstm, kind))
    assert_same(module, x, before)
    if dress != "pruned" and kind.endswith("Cell"):  # PyTorch can't copy the others once they ran
        assert_same(copy.deepcopy(module), x, before)
    assert fastlstm.to_torch(module) == Conversion([""], {}, [])
    assert_same(module, x, before)


def test_weight_norm_of_old() -> None:
    lstm, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(lstm, "weight_hh_l0")
    before = run(lstm, x)
    convert(lstm)
    assert_same(lstm, x, before)


def test_a_parametrized_module_alone_is_converted() -> None:
    cell = parametrize.register_parametrization(nn.LSTMCell(3, 5), "weight_hh", Doubled())
    twin = copy.deepcopy(cell)
    convert(cell)
    assert isinstance(twin, nn.LSTMCell)
    parametrize.remove_parametrizations(cell, "weight_hh")
    assert type(cell) is fastlstm.LSTMCell


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", KINDS)
def test_copies(kind: str, copier: Callable[[nn.Module], nn.Module]) -> None:
    module, x = getattr(nn, kind)(3, 5), input_for(kind)
    convert(module, backend="reference")
    twin = copier(module)
    assert type(twin) is getattr(fastlstm, kind)
    assert twin.backend == "reference"
    assert_same(twin, x, run(module, x))
    assert_same(twin.double(), x.double(), run(copier(module).double(), x.double()))


@pytest.mark.parametrize("first", ["compile", "convert"])
def test_compiled(first: str) -> None:
    model, x = nn.Sequential(nn.LSTM(3, 5)), torch.randn(4, 2, 3)
    before = run(model, x)
    if first == "compile":
        compiled = torch.compile(model, backend="eager")
        assert_same(compiled, x, before)
        assert convert(compiled, backend="reference").converted == ["_orig_mod.0"]
    else:
        convert(model, backend="reference")
        compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same(compiled, x, before)


def scripted() -> nn.Module:
    with pytest.warns(DeprecationWarning, match="script"):
        return torch.jit.script(nn.LSTM(3, 5))


def replaced_forward() -> nn.Module:
    lstm = nn.LSTM(3, 5)
    lstm.forward = types.MethodType(nn.LSTM.forward, lstm)
    return lstm


def with_backend() -> nn.Module:
    lstm = nn.LSTM(3, 5)
    lstm.backend = "theirs"
    return lstm


LEFT = {
    "forward": (replaced_forward, "its forward was replaced"),
    "backend": (with_backend, "it has an attribute 'backend' of its own"),
    "scripted": (scripted, "LSTM was compiled by torch.jit"),
    "quantizable": (lambda: torch.ao.nn.quantizable.LSTM(3, 5), "quantizable.modules.rnn.LSTM has no counterpart"),
    "RNNCell": (lambda: nn.RNNCell(3, 5), "torch.nn.modules.rnn.RNNCell has no counterpart"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_is_told(case: str) -> None:
    make, reason = LEFT[case]
    model = nn.ModuleDict({"it": make()})
    kind = type(model["it"])
    with pytest.warns(UserWarning, match=re.escape(reason)):
        converted, skipped, _ = convert(model)
    assert not [name for name in converted if name == "it"]
    assert reason in skipped["it"]
    assert type(model["it"]) is kind


class OurChild(fastlstm.GRU):
    pass


BACK = {
    "peephole": (lambda: fastlstm.PeepholeLSTM(3, 5), "PeepholeLSTM has no counterpart in torch.nn"),
    "cifg": (
        lambda: fastlstm.CIFGLSTMCell(3, 5),
        "CIFGLSTMCell has no counterpart in torch.nn with the same Parameters",
    ),
    "subclass": (lambda: OurChild(3, 5), "OurChild is a subclass of fastlstm's module"),
}


@pytest.mark.parametrize("case", BACK)
def test_what_has_no_way_back_is_told(case: str) -> None:
    make, reason = BACK[case]
    module = make()
    with pytest.warns(UserWarning, match=re.escape(reason)):
        converted, skipped, _ = fastlstm.to_torch(module)
    assert converted == []
    assert reason in skipped[""]
    assert convert(module) == Conversion([], {}, [])


def test_a_module_that_only_has_such_a_name_is_no_matter() -> None:
    wrapper = type("LSTM", (nn.Sequential,), {})(nn.LSTM(3, 5))
    assert convert(wrapper) == Conversion(["0"], {}, [])


def test_errors() -> None:
    lstm = nn.LSTM(3, 5)
    with pytest.raises(ValueError, match="backend is 'gpu', expected one of 'auto', "):
        convert(lstm, backend="gpu")
    assert type(lstm) is nn.LSTM
    for function in (convert, fastlstm.to_torch, fastlstm.report):
        with pytest.raises(TypeError, match=r"model is of type list, expected an nn\.Module, whose submodules"):
            function([lstm])


def test_patch() -> None:
    torchs = [getattr(nn, kind) for kind in KINDS]
    with patch():
        for space in (torch.nn, torch.nn.modules, torch.nn.modules.rnn):
            assert [getattr(space, kind) for kind in KINDS] == [getattr(fastlstm, kind) for kind in KINDS]
        lstm = nn.LSTM(3, 5)
    assert [getattr(nn.modules.rnn, kind) for kind in KINDS] == torchs
    assert_same(convert_twin(lstm), x := torch.randn(4, 2, 3), run(lstm, x))


def convert_twin(ours: nn.Module) -> nn.Module:
    """PyTorch's LSTM with the same weights."""
    twin = nn.LSTM(3, 5)
    twin.load_state_dict(ours.state_dict())
    return twin


def test_patches_nest_and_end_on_exceptions() -> None:
    torchs = nn.GRU
    with patch():
        with pytest.raises(ValueError, match="greater than zero"), patch():
            nn.GRU(3, 0)
        assert nn.GRU is fastlstm.GRU
    assert nn.GRU is torchs


def test_patches_of_threads_overlap() -> None:
    torchs, inside, leave = nn.LSTM, threading.Event(), threading.Event()

    def other() -> None:
        with patch():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with patch():
        thread.start()
        assert inside.wait(10)
    assert nn.LSTM is fastlstm.LSTM
    leave.set()
    thread.join()
    assert nn.LSTM is torchs


def test_the_examples_of_the_docstrings() -> None:
    # `fastlstm.convert` is the function
    results = doctest.testmod(__import__("sys").modules["fastlstm.convert"])
    assert results.failed == 0
    assert results.attempted > 5
