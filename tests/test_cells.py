"""The cells: `nn.LSTMCell` and `nn.GRUCell` in their place, and one step of the modules, of every variant."""

import copy
import inspect
import pickle

import pytest
import torch
from helpers import assert_same, random
from torch import Tensor, nn
from torch.func import functional_call

import fastlstm
from fastlstm.modules import build

I, H, B, T = 3, 5, 4, 6
CELLS = {
    "lstm": fastlstm.LSTMCell,
    "gru": fastlstm.GRUCell,
    "peephole_lstm": fastlstm.PeepholeLSTMCell,
    "cifg_lstm": fastlstm.CIFGLSTMCell,
    "cifg_peephole_lstm": lambda *sizes, **options: fastlstm.CIFGLSTMCell(*sizes, peephole=True, **options),
}

each_kind = pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
each_variant = pytest.mark.parametrize("variant", CELLS)
each_bias = pytest.mark.parametrize("bias", [True, False])


def cell(variant: str, **options) -> nn.RNNCellBase:
    return CELLS[variant](I, H, dtype=torch.float64, **options)


def pair(kind: str, **options) -> tuple[nn.RNNCellBase, nn.RNNCellBase]:
    """PyTorch's cell and ours, of the same weights."""
    theirs, ours = (getattr(library, kind)(I, H, dtype=torch.float64, **options) for library in (nn, fastlstm))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def random_states(module: nn.Module, *batch: int) -> list[Tensor]:
    return [random(*batch, H) for _ in range(1 if isinstance(module, (nn.GRUCell, fastlstm.GRUCell)) else 2)]


def call(module: nn.Module, x: Tensor, states: list[Tensor] | None) -> list[Tensor]:
    """The new states: `[h, c]`, or `[h]` of a GRU."""
    hx = None if states is None else tuple(states) if len(states) == 2 else states[0]
    results = module(x, hx)
    return [results] if isinstance(results, Tensor) else list(results)


def run(module: nn.Module, x: Tensor, states: list[Tensor] | None) -> list[Tensor]:
    """What `call` returns, then the gradients of input, given states and weights from random output gradients."""
    x, *given = (t.detach().requires_grad_() for t in (x, *(states or [])))
    outputs = call(module, x, given if states else None)
    torch.manual_seed(3)
    d_outputs = [random(*t.shape).to(t.dtype) for t in outputs]
    leaves = [x, *given, *module.parameters()]
    return [*outputs, *torch.autograd.grad(outputs, leaves, d_outputs, allow_unused=True, materialize_grads=True)]


BATCHES = {"a batch": (B,), "unbatched": (), "one": (1,), "none": (0,)}


@each_kind
@each_bias
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_values_and_gradients_are_pytorchs(kind, bias, batch):
    theirs, ours = pair(kind, bias=bias)
    x, hx = random(*batch, I), random_states(ours, *batch)
    assert_same(run(ours, x, hx), run(theirs, x, hx))
    assert_same(run(ours, x, None), run(theirs, x, None))
    assert_same(call(ours, x, None), call(ours, x, [torch.zeros_like(s) for s in hx]))


@each_kind
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 17, 65), (16, 32, 33), (65, 3, 2)], ids=str)
def test_sizes(kind, sizes):
    input_size, hidden_size, batch = sizes
    theirs, ours = (getattr(lib, kind)(input_size, hidden_size, dtype=torch.float64) for lib in (nn, fastlstm))
    ours.load_state_dict(theirs.state_dict())
    hx = [random(batch, hidden_size) for _ in random_states(ours)]
    x = random(batch, input_size)
    assert_same(run(ours, x, hx), run(theirs, x, hx))


STRIDES = {
    "expanded": lambda B, n: random(1, n).expand(B, n),
    "expanded over features": lambda B, n: random(B, 1).expand(B, n),
    "transposed": lambda B, n: random(n, B).t(),
    "every other": lambda B, n: random(B, 2 * n)[:, ::2],
    "a step of many": lambda B, n: random(B, T, n)[:, 2],
}


@each_kind
@pytest.mark.parametrize("strided", STRIDES.values(), ids=STRIDES)
def test_strides(kind, strided):
    theirs, ours = pair(kind)
    leaves = [t.requires_grad_() for t in (strided(B, I), *(strided(B, H) for _ in random_states(ours)))]
    for module in (theirs, ours):
        module.weight_hh = nn.Parameter(theirs.weight_hh.detach().t().contiguous().t())
    outputs = [call(module, leaves[0], leaves[1:]) for module in (ours, theirs)]
    assert_same(*outputs)
    assert_same(*[torch.autograd.grad([t.sin().sum() for t in outs], leaves) for outs in outputs])


@each_variant
@each_bias
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_one_step_of_the_module_and_a_loop(variant, bias, backend):
    """Values and gradients of T cells in a loop are those of the module over T steps, for any T."""
    ours, module = cell(variant, bias=bias, backend=backend), build(variant, I, H, bias=bias, dtype=torch.float64)
    module.load_state_dict({name + "_l0": w for name, w in ours.state_dict().items()})
    for steps in (1, T):
        x, states = random(steps, B, I), random_states(ours, B)
        results = []
        for m, weights in ((ours, ours.parameters()), (module, module.parameters())):
            leaves = [t.detach().requires_grad_() for t in (x, *states)]
            if m is ours:
                hs, last = [], leaves[1:]
                for x_t in leaves[0]:
                    last = call(ours, x_t, last)
                    hs.append(last[0])
                outputs = [torch.stack(hs), *last]
            else:
                hx = [s[None] for s in leaves[1:]]
                y, finals = module(leaves[0], tuple(hx) if len(hx) == 2 else hx[0])
                outputs = [y, *(s[0] for s in (finals if isinstance(finals, tuple) else (finals,)))]
            goal = sum(t.sin().sum() for t in outputs)
            results.append([*outputs, *torch.autograd.grad(goal, [*leaves, *weights])])
        assert_same(*results)


@each_variant
def test_shapes_of_the_parameters(variant):
    ours, module = cell(variant), build(variant, I, H)
    expected = {name.removesuffix("_l0"): w.shape for name, w in module.state_dict().items()}
    assert {name: w.shape for name, w in ours.state_dict().items()} == expected
    assert (
        list(ours.state_dict()) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole"][: len(expected)]
    )
    assert isinstance(ours, nn.RNNCellBase)
    assert not cell(variant, bias=False).state_dict().keys() & {"bias_ih", "bias_hh"}
    assert all(w.abs().max() <= H**-0.5 for w in ours.parameters())
    assert all(w.any() for w in ours.parameters())


@each_kind
def test_state_dict_loads_both_ways_and_seeds_agree(kind):
    torch.manual_seed(7)
    theirs = getattr(nn, kind)(I, H)
    torch.manual_seed(7)
    ours = getattr(fastlstm, kind)(I, H)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(B, I)
    torch.testing.assert_close(ours(x), theirs(x))
    assert repr(ours) == f"fastlstm.{theirs!r}"


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "PeepholeLSTMCell", "CIFGLSTMCell"])
def test_constructor_takes_what_pytorch_takes(name):
    cls = getattr(fastlstm, name)
    ours = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    theirs = inspect.signature(nn.LSTMCell).parameters.values()
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
    made = cls(3, 5, False, "meta", torch.bfloat16, backend="reference")
    assert repr(made) == f"fastlstm.{name}(3, 5, bias=False, backend='reference')"
    assert {(w.device.type, w.dtype) for w in made.parameters()} == {("meta", torch.bfloat16)}


@each_variant
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(variant, copied):
    ours = cell(variant, backend="numba")
    other = copied(ours)
    assert repr(other) == repr(ours)
    assert ("peephole=True" in repr(ours)) == (variant == "cifg_peephole_lstm")
    x, hx = random(B, I), random_states(ours, B)
    torch.testing.assert_close(run(other, x, hx), run(ours, x, hx), rtol=0, atol=0)
    assert not {w.data_ptr() for w in other.parameters()} & {w.data_ptr() for w in ours.parameters()}


@pytest.mark.cpu
@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_meta(variant, dtype):
    ours = cell(variant)
    x, *states = (t.to(dtype) for t in (random(B, I), *random_states(ours, B)))
    results = call(ours.to(dtype), x, states)
    wanted = call(copy.deepcopy(ours).double(), x.double(), [s.double() for s in states])
    for got, want in zip(results, wanted, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=16 * torch.finfo(dtype).eps)
    ghosts = call(copy.deepcopy(ours).to("meta"), x.to("meta"), None)
    assert [(g.device.type, g.shape, g.dtype) for g in ghosts] == [("meta", t.shape, dtype) for t in results]


@pytest.mark.cpu
@each_variant
def test_autocast(variant):
    ours = cell(variant).float()
    x, hx = torch.randn(B, I), [s.float() for s in random_states(ours, B)]
    wanted = run(ours, x, hx)
    with torch.autocast("cpu", torch.bfloat16):
        results = run(ours, x, hx)
    assert {t.dtype for t in results} == {torch.float32}
    for got, want in zip(results, wanted, strict=True):
        assert (got.float() - want).norm() <= 0.03 * want.norm()


NARROWED = {"nothing": [], "input": [0], "h": [1], "the last state": [-1], "states": [1, -1], "everything": [0, 1, -1]}


@pytest.mark.cpu
@each_kind
@pytest.mark.parametrize("narrowed", NARROWED.values(), ids=NARROWED)
def test_dtypes_under_autocast(kind, narrowed):
    theirs, ours = (module.float() for module in pair(kind))
    given = [torch.randn(B, I), *(s.float() for s in random_states(ours, B))]
    for k in narrowed:
        given[k] = given[k].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for states in (given[1:], None):
            expected = call(theirs, given[0], states)
            assert [t.dtype for t in call(ours, given[0], states)] == [t.dtype for t in expected]


@each_variant
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning", "ignore:`torch.jit:DeprecationWarning"
)
def test_compile(variant):
    """A loop over a cell, whole and once for all batches."""
    ours = cell(variant)

    def two_steps(x, *states):
        return call(ours, x[1], call(ours, x[0], list(states)))

    compiled = torch.compile(two_steps, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(random(2, B, I), *random_states(ours, B))
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in (B, 7):
            results = []
            x, states = random(2, batch, I), random_states(ours, batch)
            for step in (compiled, two_steps):
                outputs = step(x, *states)
                goal = sum(t.sin().sum() for t in outputs)
                results.append([*outputs, *torch.autograd.grad(goal, list(ours.parameters()))])
            assert_same(*results)


def loss(weights: dict[str, Tensor], module: nn.Module, x: Tensor, states: list[Tensor]) -> Tensor:
    hx = tuple(states) if len(states) == 2 else states[0]
    results = functional_call(module, weights, (x, hx))
    return sum(t.sin().sum() for t in ([results] if isinstance(results, Tensor) else results))


@each_variant
def test_transforms(variant):
    ours, other = cell(variant), cell(variant)
    x, hx = random(B, I), random_states(ours, B)
    weights = {name: w.detach() for name, w in other.named_parameters()}
    expected = torch.autograd.grad(loss(dict(other.named_parameters()), ours, x, hx), list(other.parameters()))
    assert_same(list(torch.func.grad(loss)(weights, ours, x, hx).values()), list(expected))
    each = torch.vmap(torch.func.grad(loss), (None, None, 0, 0))(weights, ours, x[:, None], [s[:, None] for s in hx])
    assert_same([g.sum(0) for g in each.values()], list(expected))


@each_variant
def test_gradcheck(variant):
    ours, reference = cell(variant, backend="numba"), cell(variant, backend="reference")
    reference.load_state_dict(ours.state_dict())
    leaves = [t.requires_grad_() for t in (random(2, I), *random_states(ours, 2))]
    assert torch.autograd.gradcheck(lambda x, *hx: tuple(call(ours, x, list(hx))), leaves)
    assert torch.autograd.gradgradcheck(lambda x, *hx: tuple(call(reference, x, list(hx))), leaves, fast_mode=True)


@each_variant
def test_a_loop_without_gradients_saves_nothing(variant):
    ours, saved = cell(variant), []
    x, hx = random(B, I), random_states(ours, B)
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        with torch.no_grad():
            results = call(ours, x, hx)
        assert not saved
        call(ours, x, hx)
        assert saved
    assert all(t.grad_fn is None and t.is_contiguous() for t in results)


@each_variant
def test_results_own_their_memory(variant):
    ours = cell(variant)
    x, hx = random(B, I), random_states(ours, B)
    before = [s.clone() for s in hx]
    for t in call(ours, x, hx):
        t.detach().zero_()
    assert_same(hx, before)
    assert all(t.any() for t in call(ours, x, hx))
