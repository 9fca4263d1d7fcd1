"""Exported and traced programs: they run at other sizes, and train as the module does, saved and loaded too."""

import io

import pytest
import torch
from helpers import IN_PYTORCH, H, I, assert_same, random
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fastlstm
from fastlstm.backends import VARIANTS
from fastlstm.modules import build

ANY = torch.export.Dim.DYNAMIC
CELLS = {
    "lstm": fastlstm.LSTMCell, "gru": fastlstm.GRUCell, "peephole_lstm": fastlstm.PeepholeLSTMCell,
    "cifg_lstm": fastlstm.CIFGLSTMCell, "cifg_peephole_lstm": lambda *a, **kw: fastlstm.CIFGLSTMCell(*a, peephole=True, **kw),
}  # fmt: skip
pytestmark = [
    # the checks of arguments look at sizes
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    # PyTorch's compiler makes an instance of each autograd.Function that it traces, and imports deprecated torch.jit
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    # its decompositions ask its own pytree in a way that it deprecates
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]


def loaded(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def export(module: nn.Module, x: Tensor, strict: bool = False) -> torch.export.ExportedProgram:
    return torch.export.export(module, (x,), dynamic_shapes=(dict.fromkeys(range(x.dim() - 1), ANY),), strict=strict)


def exported_without_grad(module: nn.Module, x: Tensor) -> nn.Module:
    with torch.no_grad():
        return export(module, x).module()


def traced_without_grad(module: nn.Module, x: Tensor) -> nn.Module:
    with torch.no_grad():
        return torch.jit.trace(module, (x,))


def traced_and_loaded(module: nn.Module, x: Tensor) -> nn.Module:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, (x,)), file)
    file.seek(0)
    return torch.jit.load(file)


WAYS = {
    "export": lambda module, x: export(module, x).module(),
    "export, strict": lambda module, x: export(module, x, strict=True).module(),
    "export under no_grad": exported_without_grad,
    "export, loaded": lambda module, x: loaded(export(module, x)).module(),
    "export, compiled": lambda module, x: torch.compile(export(module, x).module(), backend="aot_eager"),
    "trace": lambda module, x: torch.jit.trace(module, (x,)),
    "trace under no_grad": traced_without_grad,
    "trace, loaded": traced_and_loaded,
}
OTHERS = [variant for variant in VARIANTS if variant not in IN_PYTORCH]
# The LSTM and the GRU in each way, and in each way one of the others, which are the LSTM's op with more arguments
each_way = pytest.mark.parametrize(
    ("variant", "way"),
    [(variant, way) for k, way in enumerate(WAYS) for variant in (*IN_PYTORCH, OTHERS[k % len(OTHERS)])],
)


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs and the gradients of the input and of all weights."""
    x = x.clone().requires_grad_()
    out = module(x)
    out = [out] if isinstance(out, Tensor) else [out[0], *([out[1]] if isinstance(out[1], Tensor) else out[1])]
    goal = sum((t.square() * (k + 1)).sum() for k, t in enumerate(out))
    return [*out, *torch.autograd.grad(goal, [x, *module.parameters()])]


@each_way
def test_layers_train(variant, way):
    ours = build(variant, I, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    program = WAYS[way](ours, random(5, 2, I))
    for T, B in ((5, 2), (7, 3), (2, 4)):
        x = random(T, B, I)
        assert_same(results(program, x), results(ours, x))


@each_way
def test_cells_train(variant, way):
    ours = CELLS[variant](I, H, dtype=torch.float64)
    program = WAYS[way](ours, random(2, I))
    for B in (2, 5):
        x = random(B, I)
        assert_same(results(program, x), results(ours, x))


class Everything(nn.Module):
    """A projection, lengths, resets and all cell states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastlstm.LSTM(I, H, proj_size=2, batch_first=True, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c), cells = self.lstm(x, lengths=[3, 5], reset=x[..., 0] > 0.5, return_cells=True)
        return torch.cat([y.flatten(), h.flatten(), c.flatten(), cells.flatten()])


def test_everything_trains():
    ours = Everything()
    program = torch.export.export(ours, (random(2, 5, I),)).module()
    x = random(2, 5, I)
    assert_same(results(program, x), results(ours, x))


def test_transforms_of_a_program():
    ours, xs = fastlstm.LSTM(I, H, dtype=torch.float64), random(3, 5, 2, I)
    program = export(ours, xs[0]).module()
    weights = dict(ours.named_parameters())

    def loss(module: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, weights, (x,))[0].square().sum()

    got, expected = (vmap(lambda x, m=module: grad(lambda w: loss(m, w, x))(weights))(xs) for module in (program, ours))
    assert_same(got, expected)


def test_a_decomposed_program_infers_and_says_that_it_does_not_train():
    ours, x = fastlstm.GRU(I, H, dtype=torch.float64), random(5, 2, I)
    program = export(ours, x).run_decompositions()
    assert [str(n.target) for n in program.graph.nodes if "fastlstm" in str(n.target)] == ["fastlstm.gru_fwd.default"]
    y, _ = program.module()(x)
    assert_same(y, ours(x)[0])
    with pytest.warns(UserWarning, match="fastlstm::gru_fwd: an autograd kernel was not registered"):
        y.sum().backward()


def test_a_program_without_kernels_runs_by_the_reference(monkeypatch):
    ours, x = fastlstm.GRU(I, H, dtype=torch.float64), random(5, 2, I)
    program = export(ours, x).module()
    expected = results(ours, x)
    monkeypatch.setattr("fastlstm.backends.extension_status", lambda: "not built")
    assert_same(results(program, x), expected)
