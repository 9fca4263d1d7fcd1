"""The usual calls go to the op with little asked (`functional.quick`): results, gradients and errors are the same."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

import fastlstm
from fastlstm.functional import quick
from fastlstm.modules import build

pytestmark = pytest.mark.cpu
I, H, B, T = 5, 7, 3, 4
OPTIONS = {
    "plain": {},
    "no bias, batch first": {"bias": False, "batch_first": True},
    "two layers, dropout": {"num_layers": 2, "dropout": 0.5},
    "projection": {"proj_size": 2, "num_layers": 2},
    "projection, no bias": {"proj_size": 2, "bias": False},
}
CELLS = (fastlstm.LSTMCell, fastlstm.GRUCell, fastlstm.PeepholeLSTMCell, fastlstm.CIFGLSTMCell)
with_and_without = pytest.mark.parametrize("graph", [True, False], ids=["gradients", "no gradients"])
each_variant = pytest.mark.parametrize("variant", ["lstm", "gru", "peephole_lstm", "cifg_lstm", "cifg_peephole_lstm"])


@pytest.fixture
def taken(monkeypatch):
    """What the short way was asked for, and whether it gave something."""
    found: list[bool] = []
    for name in ("layers", "step"):
        original = getattr(quick, name)

        def watched(*args, original=original):
            result = original(*args)
            found.append(result is not None)
            return result

        monkeypatch.setattr(quick, name, watched)
    return found


def the_long_way(call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(quick, "is_usual", lambda: False)
        return call()


def states_of(module: nn.RNNBase) -> object:
    L, R = module.num_layers, module.proj_size or H
    h, c = torch.randn(L, B, R), torch.randn(L, B, H)
    return h if isinstance(module, fastlstm.GRU) else (h, c)


def bits_of(module: nn.Module, *arguments: object) -> list[Tensor]:
    """What a call returns, and where there is a graph the gradients of a loss that all of it is in."""
    results = list(pytree.tree_leaves(module(*arguments)))
    if torch.is_grad_enabled():
        loss = sum((t * torch.linspace(-1, 2, t.numel()).view(t.shape)).sum() for t in results)
        given = [t for t in pytree.tree_leaves(arguments) if t.requires_grad]
        results += torch.autograd.grad(loss, [*module.parameters(), *given])
    return results


@with_and_without
@each_variant
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_modules(variant, options, graph, taken, monkeypatch):
    if variant == "gru" and "proj_size" in options:
        return
    module = build(variant, I, H, **options).eval()
    x = torch.randn((B, T, I) if module.batch_first else (T, B, I), requires_grad=graph)
    states = pytree.tree_map(lambda s: s.requires_grad_(graph), states_of(module))
    with torch.set_grad_enabled(graph):
        for arguments in ((x,), (x, states), (x[..., :1, :],)):
            results = bits_of(module, *arguments)
            assert taken.pop()
            expected = the_long_way(lambda arguments=arguments: bits_of(module, *arguments), monkeypatch)
            torch.testing.assert_close(results, expected, rtol=0, atol=0)
    assert not taken


@with_and_without
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_cells(kind, bias, graph, taken, monkeypatch):
    cell = kind(I, H, bias=bias)
    x, h, c = (torch.randn(B, n, requires_grad=graph) for n in (I, H, H))
    states = h if kind is fastlstm.GRUCell else (h, c)
    with torch.set_grad_enabled(graph):
        results = bits_of(cell, x, states)
        assert taken == [True]
        torch.testing.assert_close(results, the_long_way(lambda: bits_of(cell, x, states), monkeypatch), rtol=0, atol=0)


def test_results_are_owners_in_the_usual_shape():
    with torch.no_grad():
        y, (h_n, c_n) = fastlstm.LSTM(I, H)(torch.randn(T, B, I))
    assert all(t._base is None for t in (y, h_n, c_n))
    assert h_n.shape == c_n.shape == (1, B, H)


def test_zeros_stay_zeros():
    """Initial states that were not given are shared by calls; what a caller gets may be edited."""
    module, x = fastlstm.GRU(I, H), torch.randn(1, B, I)
    with torch.inference_mode():
        first = module(x)
        kept = first[0].clone()
        for t in first:
            t.fill_(9)
    with torch.no_grad():
        assert torch.equal(module(x)[0], kept)


UNUSUAL = {
    "func.grad": lambda module, x: torch.func.grad(lambda x: module(x)[0].sum())(x),
    "autocast": lambda module, x: torch.no_grad()(torch.autocast("cpu")(module))(x),
    "vmap": lambda module, x: torch.no_grad()(torch.vmap(module))(x[None]),
    "jvp": lambda module, x: torch.no_grad()(torch.func.jvp)(module, (x,), (x,)),
    "trace": lambda module, x: torch.no_grad()(torch.jit.trace)(module, x, check_trace=False),
}


@pytest.mark.parametrize("call", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_what_is_not_usual_is_not_asked(call, taken):
    module = fastlstm.GRU(I, H)
    call(module, torch.randn(T, B, I))
    assert not taken


def layer(*arguments: object, **options: object):
    module = fastlstm.LSTM(I, H, **options)
    return lambda: module(*arguments)


def cell(*arguments: object):
    module = fastlstm.LSTMCell(I, H)
    return lambda: module(*arguments)


def with_weight(weight: Tensor):
    module = fastlstm.LSTM(I, H)
    module.weight_hh_l0 = nn.Parameter(weight)
    return lambda: module(torch.zeros(T, B, I))


Z = torch.zeros
WRONG = {
    "input_size": layer(Z(T, B, 4)),
    "no steps": layer(Z(0, B, I)),
    "dtype": layer(Z(T, B, I).double()),
    "integers": layer(Z(T, B, I).long()),
    "no tensor": layer([1.0]),
    "four dimensions": layer(Z(1, T, B, I)),
    "state of another batch": layer(Z(T, B, I), (Z(1, 2, H), Z(1, 2, H))),
    "state of another width": layer(Z(T, B, I), (Z(1, B, 2), Z(1, B, 2))),
    "states without layers": layer(Z(T, B, I), (Z(B, H), Z(B, H))),
    "states of two layers": layer(Z(T, B, I), (Z(2, B, H), Z(2, B, H))),
    "one state": layer(Z(T, B, I), Z(1, B, H)),
    "c of another width": layer(Z(T, B, I), (Z(1, B, H), Z(1, B, 2))),
    "a state's dtype": layer(Z(T, B, I), (Z(1, B, H), Z(1, B, H).double())),
    "on meta": layer(Z(T, B, I, device="meta")),
    "sparse": layer(Z(T, B, I).to_sparse()),
    "sparse, batch first": layer(Z(T, B, I).to_sparse(), batch_first=True),
    "nested, batch first": lambda: layer(torch.nested.nested_tensor([Z(2, I), Z(3, I)]), batch_first=True)(),
    "no weights": lambda: fastlstm.functional.lstm(Z(T, B, I), 3),
    "layers unlike each other": lambda: fastlstm.functional.gru(
        Z(T, B, I), [(Z(3 * H, I), Z(3 * H, H), Z(3 * H), Z(3 * H)), (Z(3 * H, H), Z(3 * H, H))]
    ),
    "a weight's shape": with_weight(Z(4 * H, 3)),
    "a weight's dtype": with_weight(Z(4 * H, H).double()),
    "a weight's dimensions": with_weight(Z(4 * H * H)),
    "a weight on meta": with_weight(Z(4 * H, H, device="meta")),
    "cell: input_size": cell(Z(B, 4), (Z(B, H), Z(B, H))),
    "cell: batch": cell(Z(B, I), (Z(2, H), Z(2, H))),
    "cell: width": cell(Z(B, I), (Z(B, 2), Z(B, H))),
    "cell: dtype": cell(Z(B, I), (Z(B, H), Z(B, H).double())),
    "cell: three dimensions": cell(Z(1, B, I), (Z(1, B, H), Z(1, B, H))),
    "cell: on meta": cell(Z(B, I), (Z(B, H), Z(B, H, device="meta"))),
}


@with_and_without
@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_is_wrong_is_told_as_ever(call, graph, monkeypatch):
    with torch.set_grad_enabled(graph):
        with pytest.raises(Exception) as long:  # noqa: PT011  (whatever it is)
            the_long_way(call, monkeypatch)
        with pytest.raises(long.type) as short:
            call()
    assert str(short.value) == str(long.value)


def test_functions_of_a_step_take_matrices():
    """A state of one layer's shape is taken by the op, and not by a cell's function."""
    w = Z(4 * H, I), Z(4 * H, H)
    with torch.no_grad(), pytest.raises(RuntimeError, match="Input batch size 3 doesn't match hidden0 batch size 1"):
        fastlstm.functional.lstm_cell(Z(B, I), (Z(1, B, H), Z(1, B, H)), *w)


def test_a_mode_that_has_a_say_is_asked(taken):
    """Under fake tensors all is fake, also what is kept for calls to come."""
    layer, mode = fastlstm.LSTM(I, H), FakeTensorMode(allow_non_fake_inputs=True)
    quick._kept_zeros.cache_clear()
    x = torch.randn(T, B, I)
    with mode:
        y, _ = layer(mode.from_tensor(x))
    assert isinstance(y, FakeTensor)
    assert not taken
    assert type(layer(x)[0]) is Tensor
    assert taken == [True]
