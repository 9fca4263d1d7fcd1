"""`convert(model, ConvLSTM=...)`: what people paste for a ConvLSTM gives its place to ours, with its results and its ways."""

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import conv_lstm
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrizations

import fastlstm
from fastlstm.convert import Conversion
from fastlstm.modules.conv_adapter import PastedConvLSTM

B, T, C, S = 2, 3, 3, (4, 5)
convert = fastlstm.convert


class Cell(nn.Module):
    """As ndrplz's: gates i, f, o, g of one convolution over x and h."""

    order = "ifog"

    def __init__(self, input_dim: int, hidden_dim: int, kernel_size: tuple[int, int], bias: bool) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        self.conv = nn.Conv2d(input_dim + hidden_dim, 4 * hidden_dim, kernel_size, padding=padding, bias=bias)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        a = dict(zip(self.order, self.conv(torch.cat([x, h], dim=1)).split(self.hidden_dim, dim=1), strict=True))
        c = a["f"].sigmoid() * c + a["i"].sigmoid() * a["g"].tanh()
        return a["o"].sigmoid() * c.tanh(), c


class Pasted(nn.Module):
    """As ndrplz's ConvLSTM, and as those of its copies that take a state."""

    cell: type[Cell] = Cell

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int | list[int],
        kernel_size: tuple[int, int] | list[tuple[int, int]],
        num_layers: int = 1,
        batch_first: bool = False,
        bias: bool = True,
        return_all_layers: bool = False,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.hidden_dim = hidden_dim if isinstance(hidden_dim, list) else [hidden_dim] * num_layers
        self.kernel_size = kernel_size if isinstance(kernel_size, list) else [kernel_size] * num_layers
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.bias = bias
        self.return_all_layers = return_all_layers
        sizes = zip([input_dim, *self.hidden_dim], self.hidden_dim, self.kernel_size, strict=False)
        self.cell_list = nn.ModuleList(self.cell(*size, bias) for size in sizes)

    def forward(self, input_tensor: Tensor, hidden_state: Any = None) -> tuple[list[Tensor], list[list[Tensor]]]:
        x = input_tensor if self.batch_first else input_tensor.transpose(0, 1)
        outputs, states = [], []
        for k, cell in enumerate(self.cell_list):
            zeros = torch.zeros(len(x), cell.hidden_dim, *x.shape[3:], device=cell.conv.weight.device)
            h, c = (zeros, zeros) if hidden_state is None else hidden_state[k]
            y = []
            for x_t in x.unbind(1):
                h, c = cell(x_t, h, c)
                y.append(h)
            x = torch.stack(y, dim=1)
            outputs.append(x)
            states.append([h, c])
        return (outputs, states) if self.return_all_layers else (outputs[-1:], states[-1:])


class Model(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.encoder = inner
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        return self.encoder(x)


def input_for(batch_first: bool, **options: Any) -> Tensor:
    return torch.randn(*((B, T) if batch_first else (T, B)), C, *S, **options)


MAKE: dict[str, Callable[..., nn.Module]] = {
    "pasted": lambda hidden, kernel, *rest, **options: Pasted(C, hidden, kernel, *rest, **options),
    "package": lambda hidden, kernel, *rest, **options: conv_lstm.ConvLSTM(
        C, hidden, [k[0] for k in kernel] if isinstance(kernel, list) else kernel[0], *rest, **options
    ),
}
CASES: dict[str, tuple[Any, ...]] = {"one": (4, (3, 3)), "two": (4, (5, 5), 2), "differ": ([4, 6], [(3, 3), (5, 5)], 2)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("return_all_layers", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", MAKE)
def test_it_returns_and_trains_as_theirs(
    kind: str, case: str, batch_first: bool, return_all_layers: bool, bias: bool
) -> None:
    theirs = MAKE[kind](*CASES[case], batch_first=batch_first, return_all_layers=return_all_layers, bias=bias).double()
    model, x = Model(copy.deepcopy(theirs)), input_for(batch_first, dtype=torch.float64)
    assert convert(model, ConvLSTM=type(theirs)).converted == ["encoder"]
    for module in (theirs, model.encoder):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            outputs, states = module(x)
            loss = sum(t.square().sum() for t in [*outputs, *(t for state in states for t in state)])
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x))


def test_new_parameters() -> None:
    model = Model(Pasted(C, 4, (3, 3), 2))
    before = dict(model.named_parameters())
    report = convert(model, ConvLSTM=Pasted)
    names = [f"encoder.conv_lstm.{w}_l{k}" for k in (0, 1) for w in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    assert report == Conversion(["encoder"], {}, names)
    after = dict(model.named_parameters())
    assert names == [name for name, p in after.items() if before.get(name) is not p]
    frozen = [name for name in names if not after[name].requires_grad]
    assert frozen == [name for name in names if "bias_hh" in name]
    assert not any(after[name].any() for name in frozen)
    assert type(model.encoder.conv_lstm) is fastlstm.ConvLSTM2d


def test_shared_modules_stay_shared_and_the_others_are_converted_as_ever() -> None:
    shared = Pasted(C, 4, (3, 3))
    model = nn.ModuleDict({"a": shared, "inner": nn.ModuleList([shared, nn.LSTM(3, 5)]), "b": Pasted(C, 4, (1, 3))})
    lstm = model["inner"][1]
    x = input_for(False)
    before = [model[name](x) for name in "ab"]
    report = convert(model, ConvLSTM=Pasted, backend="reference")
    assert report.converted == ["a", "inner.0", "inner.1", "b"]
    assert {name.rsplit(".", 2)[0] for name in report.new_parameters} == {"a", "b"}
    assert model["a"] is model["inner"][0]
    assert model["inner"][1] is lstm
    assert model["a"].conv_lstm.backend == lstm.backend == "reference"
    torch.testing.assert_close([model[name](x) for name in "ab"], before)
    assert convert(model, ConvLSTM=Pasted) == Conversion([], {}, [])


def test_what_it_was_like_stays() -> None:
    theirs = Pasted(C, [4, 6], [(3, 3), (5, 3)], 2).half().eval()
    theirs.note = "mine"
    theirs.cell_list[1].conv.weight.requires_grad_(False)
    theirs.cell_list[0].conv.bias.requires_grad_(False)
    model = Model(theirs).to(memory_format=torch.channels_last)
    convert(model, ConvLSTM=Pasted)
    ours = model.encoder
    assert (ours.note, ours.input_dim, ours.hidden_dim, ours.num_layers) == ("mine", C, [4, 6], 2)
    assert not any(module.training for module in ours.modules())
    assert {p.dtype for p in ours.parameters()} == {torch.float16}
    trained = [name for name, p in ours.conv_lstm.named_parameters() if p.requires_grad]
    assert trained == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l1"]
    assert all(p.is_contiguous() for p in ours.parameters())


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Model(Pasted(C, 4, (3, 3)))
        assert convert(model, ConvLSTM=Pasted).converted == ["encoder"]
    assert all(p.is_meta for p in model.parameters())


def test_there_is_no_way_back() -> None:
    model = nn.ModuleList([Pasted(C, 4, (3, 3)), fastlstm.ConvLSTM1dCell(C, 4, 3)])
    convert(model, ConvLSTM=Pasted)
    with pytest.warns(UserWarning, match="to_torch leaves 2 of 2 recurrent modules as they are"):
        converted, skipped, _ = fastlstm.to_torch(model)
    assert (converted, [*skipped]) == ([], ["0.conv_lstm", "1"])
    assert "ConvLSTM2d has no counterpart in torch.nn" in skipped["0.conv_lstm"]


def test_random_numbers_are_not_drawn() -> None:
    model = Model(Pasted(C, 4, (3, 3)))
    before = torch.get_rng_state()
    convert(model, ConvLSTM=Pasted)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("case", CASES)
def test_a_state_is_passed_on(case: str) -> None:
    theirs = Pasted(C, *CASES[case], return_all_layers=True)
    model, x = Model(copy.deepcopy(theirs)), input_for(False)
    convert(model, ConvLSTM=Pasted)
    states = model.encoder(x)[1]
    torch.testing.assert_close(model.encoder(x, states), theirs(x, theirs(x)[1]))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(copier: Callable[[nn.Module], nn.Module]) -> None:
    model, x = Model(Pasted(C, 4, (3, 3))), input_for(False)
    convert(model, ConvLSTM=Pasted)
    torch.testing.assert_close(copier(model)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("first", ["compile", "convert"])
def test_compiled(first: str) -> None:
    model, x = Model(Pasted(C, 4, (3, 3))), input_for(False)
    before = model(x)
    if first == "compile":
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(x), before)
        assert convert(compiled, ConvLSTM=Pasted, backend="reference").converted == ["_orig_mod.encoder"]
    else:
        convert(model, ConvLSTM=Pasted, backend="reference")
        compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), before)


class OtherOrder(Pasted):
    cell = type("Cell", (Cell,), {"order": "ifgo"})


class TimeFirst(Pasted):
    """It gives its outputs as it gets its input."""

    def forward(self, input_tensor: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        outputs, states = super().forward(input_tensor)
        return [y if self.batch_first else y.transpose(0, 1) for y in outputs], states


class Stateful(Pasted):
    """It goes on from where the last call ended."""

    states: Any = None

    def forward(self, input_tensor: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        outputs, self.states = super().forward(input_tensor, self.states)
        return outputs, self.states


class Normed(Pasted):
    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.norm = nn.GroupNorm(2, 4)


class Child(Pasted):
    pass


def changed(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = nn.ModuleDict({"it": Pasted(C, 4, (3, 3), 2)})
        change(model["it"])
        return model

    return make


def tied() -> nn.Module:
    model = nn.ModuleDict({"it": Pasted(C, 4, (3, 3)), "other": nn.Conv2d(C + 4, 16, 3)})
    model["other"].weight = model["it"].cell_list[0].conv.weight
    return model


def cell_elsewhere() -> nn.Module:
    model = nn.ModuleDict({"it": Pasted(C, 4, (3, 3))})
    model["cell"] = model["it"].cell_list[0]
    return model


def replace_forward(module: Any) -> None:
    module.forward = module.forward


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "subclass": (lambda: nn.ModuleList([Child(C, 4, (3, 3))]), r"Child is a subclass of .*Pasted: name it as ConvLSTM"),
    "hook": (changed(lambda m: m.register_forward_hook(print)), "it has hooks, which a new module would"),
    "hook of a cell": (changed(lambda m: m.cell_list[1].register_full_backward_hook(print)), r"its cell_list\.1 has hooks"),
    "hook of loading": (
        changed(lambda m: m.cell_list[0].conv.register_load_state_dict_post_hook(print)), r"its cell_list\.0\.conv has hooks",
    ),
    "hook of a weight": (
        changed(lambda m: m.cell_list[0].conv.weight.register_hook(print)), r"its cell_list\.0\.conv\.weight has hooks",
    ),
    "hook of a gradient": (
        changed(lambda m: m.cell_list[1].conv.bias.register_post_accumulate_grad_hook(print)),
        r"its cell_list\.1\.conv\.bias has hooks",
    ),
    "parametrization": (
        changed(lambda m: parametrizations.weight_norm(m.cell_list[0].conv)), r"its cell_list\.0\.conv has parametriz",
    ),
    "forward": (changed(replace_forward), "its forward was replaced on the instance"),
    "forward of a cell": (
        changed(lambda m: replace_forward(m.cell_list[0])), r"the forward of its cell_list\.0 was replaced on the instance",
    ),
    "tied": (tied, r"its cell_list\.0\.conv\.weight is also other\.weight, and would no longer be shared"),
    "a cell elsewhere": (cell_elsewhere, r"its cell_list\.0\.conv\.weight is also cell\.conv\.weight"),
    "within": (
        changed(lambda m: setattr(m.cell_list[1].conv, "bias", m.cell_list[0].conv.bias)),
        r"its cell_list\.0\.conv\.bias is also it\.cell_list\.1\.conv\.bias",
    ),
    "compiled": (lambda: nn.ModuleList([torch.compile(Pasted(C, 4, (3, 3)), backend="eager")]), "it was compiled by torch"),
    "compiled in place": (changed(lambda m: m.compile(backend="eager")), "it was compiled in place"),
    "attribute": (changed(lambda m: delattr(m, "return_all_layers")), "it has no attribute 'return_all_layers'"),
    "an int": (changed(lambda m: setattr(m, "hidden_dim", 4)), "its hidden_dim is 4, expected a list with an entry for each"),
    "layers": (changed(lambda m: m.cell_list.append(Cell(4, 4, (3, 3), True))), "its cell_list is ModuleList"),
    "sizes": (changed(lambda m: setattr(m, "hidden_dim", [5, 4])), r"\(16, 7, 3, 3\).*, expected .*\(20, 8, 3, 3\)"),
    "a buffer": (changed(lambda m: m.register_buffer("seen", torch.ones(1))), r"'seen': \(1,\)"),
    "dtypes": (changed(lambda m: m.cell_list[0].double()), "its Parameters are of several types, dtypes or devices"),
    "padding": (
        changed(lambda m: setattr(m.cell_list[0].conv, "padding", (0, 0))), "trial of both ended with RuntimeError: The size",
    ),
    "padding mode": (
        changed(lambda m: setattr(m.cell_list[0], "conv", nn.Conv2d(7, 16, 3, padding=1, padding_mode="replicate"))),
        "trial of both ended with AssertionError: Tensor-likes",
    ),
}  # fmt: skip
OTHERS: dict[type[Pasted], str] = {
    Normed: r"'norm\.weight': \(4,\).*, expected",
    OtherOrder: "it doesn't do what ours does: a trial of both ended with AssertionError: Tensor-likes are not close",
    TimeFirst: "a trial of both ended with AssertionError: The values for attribute 'shape' do not match",
    Stateful: "a trial of both ended with",
}


@pytest.mark.parametrize("case", [*LEFT, *OTHERS])
def test_what_is_left_is_told(case: str | type[Pasted]) -> None:
    if isinstance(case, str):
        (make, reason), cls = LEFT[case], Pasted
    else:
        reason, cls = OTHERS[case], case
        make = lambda: nn.ModuleList([cls(C, 4, (3, 3))])  # noqa: E731
    model = make()
    children, parameters = [*model.modules()], [*model.parameters()]
    with pytest.warns(UserWarning, match="convert leaves 1 of 1 recurrent modules as they are"):
        converted, skipped, new_parameters = convert(model, ConvLSTM=cls)
    assert (converted, new_parameters) == ([], [])
    ((name, told),) = skipped.items()
    assert re.search(reason, told)
    assert all(a is b for a, b in zip(model.modules(), children, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert getattr(model.get_submodule(name), "states", None) is None


def test_the_model_itself_is_left() -> None:
    with pytest.warns(UserWarning, match="the model itself: it is the model itself: a new module needs a parent"):
        report = convert(Pasted(C, 4, (3, 3)), ConvLSTM=Pasted)
    assert report.converted == []
    assert "it is the model itself: a new module needs a parent" in report.skipped[""]


@pytest.fixture
def one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_in_ddp_it_is_left(one_process: None) -> None:
    with pytest.warns(UserWarning, match="module.encoder: it is in a DistributedDataParallel"):
        report = convert(nn.parallel.DistributedDataParallel(Model(Pasted(C, 4, (3, 3)))), ConvLSTM=Pasted)
    assert "it is in a DistributedDataParallel" in report.skipped["module.encoder"]


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "an object": (Pasted(C, 4, (3, 3)), TypeError, r"ConvLSTM is Pasted\(.*, expected a class that derives from nn\.Module"),
    "a name": ("ConvLSTM", TypeError, "ConvLSTM is 'ConvLSTM', expected a class that derives"),
    "another class": (dict, TypeError, "ConvLSTM is <class 'dict'>, expected a class that derives"),
    "PyTorch's": (nn.LSTM, ValueError, r"ConvLSTM is torch\.nn\.modules\.rnn\.LSTM, expected the class of a ConvLSTM that was"),
    "ours": (fastlstm.ConvLSTM2d, ValueError, r"ConvLSTM is fastlstm\.modules\.conv\.ConvLSTM2d, expected the class"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors(case: str) -> None:
    cls, error, message = BAD[case]
    model = nn.ModuleList([nn.LSTM(3, 5)])
    with pytest.raises(error, match=f"(?s){message}"):
        convert(model, ConvLSTM=cls)
    assert type(model[0]) is nn.LSTM


def test_an_input_of_other_dimensions() -> None:
    model = Model(Pasted(C, 4, (3, 3)))
    convert(model, ConvLSTM=Pasted)
    assert isinstance(model.encoder, PastedConvLSTM)
    with pytest.raises(ValueError, match=r"input_tensor has shape \(2, 3, 4, 5\), expected 5 dimensions: batch, time"):
        model(torch.randn(2, 3, 4, 5))
