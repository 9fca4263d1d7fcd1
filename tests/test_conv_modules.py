"""The modules and cells of the ConvLSTM: parameters, copies, and what PyTorch makes of them: programs, transforms, DDP."""

import copy
import inspect
import io
import math
import pickle
import warnings

import pytest
import torch
from helpers import assert_same, random
from test_compile import quiet_compiler
from test_conv_lstm import CASES, KINDS, B, C, H, T, as_hx, module, resets, states
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap

import fastlstm

CELLS = {1: fastlstm.ConvLSTM1dCell, 2: fastlstm.ConvLSTM2dCell, 3: fastlstm.ConvLSTM3dCell}
ONE_LAYER = [name for name, (*_, options) in CASES.items() if "num_layers" not in options]
STACKED = "layers of different sizes"
WIDE = {"peephole": "hadamard", "spatial_size": (5, 4), "stride": 2, "num_layers": 2, "bidirectional": True}


def test_signatures():
    options = "stride=1, dilation=1, padding='same', peephole=None, coupled=False, spatial_size=None"
    for n, kind in KINDS.items():
        parameters = inspect.signature(kind).replace(return_annotation=inspect.Signature.empty).parameters.values()
        bare = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])
        assert str(bare) == (
            "(in_channels, hidden_channels, kernel_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, "
            f"bidirectional=False, device=None, dtype=None, *, {options}, checkpoint=False, forget_bias=0.0, backend='auto')"
        )
        parameters = inspect.signature(CELLS[n]).parameters.values()
        bare = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])
        assert str(bare) == (
            "(in_channels, hidden_channels, kernel_size, bias=True, device=None, dtype=None, *, "
            f"{options}, forget_bias=0.0, backend='auto')"
        )


def test_parameters_are_named_as_pytorchs_and_shaped_as_convolutions():
    ours = KINDS[2](3, 5, (3, 2), **WIDE)
    image = (3, 2)
    expected = {}
    for layer, channels in enumerate((3, 10)):
        for suffix in (f"_l{layer}", f"_l{layer}_reverse"):
            expected |= {
                "weight_ih" + suffix: (20, channels, 3, 2), "weight_hh" + suffix: (20, 5, 3, 2),
                "bias_ih" + suffix: (20,), "bias_hh" + suffix: (20,), "weight_peephole" + suffix: (3, 5, *image),
            }  # fmt: skip
    assert [(name, p.shape) for name, p in ours.named_parameters()] == list(expected.items())
    coupled = KINDS[3](3, 5, 1, coupled=True, peephole="channel", bias=False)
    assert [(name, p.shape) for name, p in coupled.named_parameters()] == [
        ("weight_ih_l0", (15, 3, 1, 1, 1)),
        ("weight_hh_l0", (15, 5, 1, 1, 1)),
        ("weight_peephole_l0", (2, 5, 1, 1, 1)),
    ]
    cell = CELLS[1](3, 5, 3, peephole="hadamard", spatial_size=7)
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole"]
    assert [name for name, _ in cell.named_parameters()] == names
    assert cell.weight_peephole.shape == (3, 5, 7)
    bare = CELLS[1](3, 5, 3, bias=False)
    assert bare.bias_ih is bare.bias_hh is bare.weight_peephole is None


def test_initial_weights_are_uniform_within_the_bound():
    ours = KINDS[2](3, [40, 20], [5, 3], 2, peephole="channel")
    for name, p in ours.named_parameters():
        bound = 1 / math.sqrt(40 * 25 if "l0" in name else 20 * 9)
        assert 0.8 * bound < p.abs().max() <= bound
    before = [p.clone() for p in ours.parameters()]
    ours.reset_parameters()
    assert all((p != old).any() for p, old in zip(ours.parameters(), before, strict=True))


def test_repr_says_what_is_not_usual():
    assert repr(KINDS[1](3, 5, 3)) == "fastlstm.ConvLSTM1d(3, 5, kernel_size=3)"
    assert repr(KINDS[2](3, [5, 6], [3, (1, 2)], 2, stride=2, checkpoint=True, backend="reference")) == (
        "fastlstm.ConvLSTM2d(3, [5, 6], kernel_size=[3, (1, 2)], num_layers=2, checkpoint=True, stride=2, "
        "backend='reference')"
    )
    shown = repr(CELLS[3](3, 5, 3, False, coupled=True))
    assert shown == "fastlstm.ConvLSTM3dCell(3, 5, kernel_size=3, bias=False, coupled=True)"


@pytest.mark.parametrize("case", ONE_LAYER)
@pytest.mark.parametrize("given", [True, False], ids=["states", "no states"])
def test_a_cell_is_one_step(case, given):
    ours = module(case)
    S, kernel, options = CASES[case]
    cell = CELLS[len(S)](
        C, kernel_size=kernel, dtype=torch.float64, **{"hidden_channels": H, "spatial_size": S} | options
    )
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in ours.state_dict().items()})
    x = random(1, B, C, *S)
    hx = as_hx(ours, states(ours, ours(x)[0].shape[3:])) if given else None
    _, finals = ours(x, hx)
    h, c = cell(x[0], None if hx is None else [s[0] for s in hx])
    assert_same((h[None], c[None]), finals)
    alone = cell(x[0, 1], None if hx is None else [s[0, 1] for s in hx])
    assert_same(alone, (h[1], c[1]))


def through_pickle(ours: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(ours))


def through_file(ours: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    fresh = copy.deepcopy(ours)
    fresh.reset_parameters()
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return fresh


def through_meta(ours: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(ours).to("meta")
    assert fresh(torch.empty(T, B, 3, 5, 4, dtype=torch.float64, device="meta"))[0].shape == (T, B, 10, 3, 2)
    fresh.to_empty(device="cpu")
    fresh.load_state_dict(ours.state_dict())
    return fresh


@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, through_pickle, through_file, through_meta])
def test_copies_compute_the_same(through):
    ours = KINDS[2](3, 5, (3, 2), **WIDE, dtype=torch.float64)
    copied = through(ours)
    assert repr(copied) == repr(ours)
    x = random(T, B, 3, 5, 4)
    assert_same(copied(x), ours(x))


def test_weights_are_read_at_every_call():
    ours, other = module("2d"), module("2d")
    other.reset_parameters()
    x = random(T, B, C, 4, 5)
    assert_same(functional_call(ours, dict(other.named_parameters()), (x,)), other(x))
    w = other.weight_hh_l0.detach()
    del ours.weight_hh_l0
    ours.weight_hh_l0 = w
    other.load_state_dict({**ours.state_dict(), "weight_hh_l0": w})
    assert_same(ours(x), other(x))


# two layers of different sizes in one direction, which is a third of what PyTorch would compile: the other case has both
DIFFERENT = {"bidirectional": False, "num_layers": 2, "hidden_channels": [4, 1], "kernel_size": [3, (1, 2)]}


@pytest.mark.parametrize(
    ("case", "options"),
    [(STACKED, DIFFERENT), ("two layers, two directions", {"checkpoint": True})],
    ids=["different sizes", "checkpoint"],
)
@quiet_compiler
def test_compile_whole_and_once(case, options):
    ours = module(case, **{"spatial_size": None, "peephole": "channel"} | options)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    use = {"lengths": torch.tensor([3, 5, 2]), "return_cells": True}
    compiled(random(6, 3, C, 4, 5).requires_grad_(), **use)
    with torch.compiler.set_stance("fail_on_recompile"):
        for steps, S in ((6, (4, 5)), (9, (4, 6)), (7, (9, 8))):
            x, results = random(steps, 3, C, *S).requires_grad_(), []
            for run in (compiled, ours):
                y, (h_n, c_n), cells = run(x, **use)
                goal = y.square().sum() + cells.sum() + sum(s.sin().sum() for s in (*h_n, *c_n))
                results.append([y, *h_n, *c_n, cells, *torch.autograd.grad(goal, [x, *ours.parameters()])])
            assert_same(*results)


@quiet_compiler
@pytest.mark.parametrize("case", ["1d", "3d", "stride", "a kernel of one"])
def test_compile_with_states_and_forecasts(case):
    ours = module(case)
    x = random(T, B, C, *CASES[case][0])

    def f(x: Tensor) -> Tensor:
        y, hx = ours(x, reset=resets())
        return torch.cat([y, ours(None, hx, steps=2)[0]])

    assert_same(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


@pytest.mark.parametrize("checkpoint", [False, True], ids=["", "checkpoint"])
@pytest.mark.parametrize("strict", [False, True])
@quiet_compiler
def test_exported_programs_run_at_other_sizes_and_train(checkpoint, strict):
    ours = module("2d", checkpoint=checkpoint)
    sizes = dict.fromkeys((0, 1, 3, 4), torch.export.Dim.DYNAMIC)
    program = torch.export.export(ours, (random(T, B, C, 4, 5),), dynamic_shapes=(sizes,), strict=strict)
    assert "conv_lstm_layer" in str(program.graph)
    exported, x = program.module(), random(7, 2, C, 6, 3)
    assert_same(exported(x), ours(x))
    found = torch.autograd.grad(exported(x)[0].square().sum(), list(exported.parameters()))
    assert_same(found, torch.autograd.grad(ours(x)[0].square().sum(), list(ours.parameters())))


@quiet_compiler
def test_programs_of_the_last_step_alone():
    ours, x, use = module("two layers, two directions"), random(T, B, C, 3, 4), {"return_sequence": False}
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(ours, (x,), use).module()
    results = []
    for run in (ours, compiled, exported):
        y, (h_n, _) = run(x, **use)
        parameters = list((exported if run is exported else ours).parameters())
        results.append([y, h_n, *torch.autograd.grad(y.sin().sum(), parameters)])
    for found in results[1:]:
        assert_same(found, results[0])


def test_onnx_has_no_such_node():
    with pytest.raises(Exception, match="ConvLSTM is to be exported to ONNX"):
        torch.onnx.export(module("2d").eval(), (random(T, B, C, 4, 5),), dynamo=True, verbose=False)


@pytest.mark.parametrize(
    "model",
    [*(cls(C, 4, 3) for cls in (KINDS[2], CELLS[2])), *(nn.Sequential(cls(C, 4, 3)) for cls in (KINDS[2], CELLS[2]))],
    ids=["module", "cell", "nested", "nested cell"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_onnx_has_no_such_node_without_dynamo_either(model):
    with pytest.raises(NotImplementedError, match=r"ConvLSTM2d\w* is to be exported to ONNX.*ONNX has no such node"):
        torch.onnx.export(model, (torch.zeros(B, C, 4, 5),), io.BytesIO(), dynamo=False)


def test_traced_programs_run_at_other_sizes():
    ours = module("2d").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks of arguments look at sizes; PyTorch deprecates torch.jit
        traced = torch.jit.trace(ours, (random(T, B, C, 4, 5),))
        x = random(7, 2, C, 6, 3)
        assert_same(traced(x), ours(x))


def test_traced_layers_of_one_size_share_a_state():
    ours = module("2d", num_layers=2).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, (h_n, _) = torch.jit.trace(ours, (random(T, B, C, 4, 5),))(x := random(7, 2, C, 6, 3))
    assert_same(h_n, ours(x)[1][0])


def results_of(ours: nn.Module, use: dict):
    """A module as a function of input and weights."""
    names = [name for name, _ in ours.named_parameters()]

    def f(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(names, weights, strict=True))
        y, (h_n, c_n), cells = functional_call(ours, named, (x,), {"return_cells": True, **use})
        return y, h_n, c_n, cells

    return f


USES = {
    "plain": ({}, {}),
    "no bias, lengths": ({"bias": False}, {"lengths": [1, 3]}),
    "two directions, lengths, resets": (
        {"bidirectional": True, "coupled": True},
        {"lengths": [3, 2], "reset": torch.tensor([[False, True], [True, False], [False, True]])},
    ),
    "the last step alone": ({"bidirectional": True}, {"return_sequence": False, "lengths": [3, 2]}),
    "checkpoint": ({"checkpoint": True}, {"reset": torch.tensor([[False, True], [True, False], [False, True]])}),
}
each_use = pytest.mark.parametrize(("options", "use"), USES.values(), ids=USES)


@each_use
@pytest.mark.parametrize("dims", [1, 2])
def test_derivatives_of_derivatives(options, use, dims):
    S = (3, 2)[:dims]
    ours = KINDS[dims](1, 2, 3, peephole="hadamard", spatial_size=S, dtype=torch.float64, **options)
    given = [random(3, 2, 1, *S).requires_grad_(), *ours.parameters()]
    assert torch.autograd.gradcheck(results_of(ours, use), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(results_of(ours, use), given, fast_mode=True)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@each_use
def test_forward_mode_and_hessians_are_the_reference_s(options, use):
    found = []
    for backend in ("auto", "reference"):
        torch.manual_seed(1)
        ours = KINDS[1](1, 2, 3, peephole="channel", dtype=torch.float64, backend=backend, **options)
        given = (random(3, 2, 1, 2), *[p.detach() for p in ours.parameters()])
        f = results_of(ours, use)
        x, *weights = given
        second = hessian(lambda x: f(x, *weights)[0].sin().sum())(x)  # noqa: B023
        found.append([jvp(f, given, tuple(t.cos() for t in given)), second])
    assert_same(*found)


@each_use
def test_vmap_of_grad_is_the_gradient_of_each_sample(options, use):
    ours = KINDS[2](1, 2, 3, peephole="channel", dtype=torch.float64, **options)
    names = [name for name, _ in ours.named_parameters()]
    weights = tuple(p.detach() for p in ours.parameters())
    x = random(4, 3, 2, 1, 3, 2)

    def loss(weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
        return sum(t.sin().sum() for t in results_of(ours, use)(x, *weights))

    each = vmap(grad(loss), (None, 0))(weights, x)
    for n in range(len(x)):
        assert_same(
            [g[n] for g in each], list(torch.autograd.grad(loss(tuple(ours.parameters()), x[n]), ours.parameters()))
        )
    assert len(names) == len(each)


def test_vmap_over_weights_is_an_ensemble():
    members = [KINDS[2](C, H, 3, peephole="channel", dtype=torch.float64) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(members)
    x = random(T, B, C, 4, 5)
    y, finals = vmap(lambda w: functional_call(members[0], w, (x,)))(weights)
    for n, member in enumerate(members):
        assert_same((y[n], tuple(s[n] for s in finals)), member(x))


def test_ddp_finds_no_unused_parameter(tmp_path):
    """Of the second step on, it would complain of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        for options in ({}, {"bidirectional": True}, {"checkpoint": True}):
            ours = module("two layers, two directions", **{"bidirectional": False} | options)
            parallel = nn.parallel.DistributedDataParallel(ours)
            for _ in range(3):
                y, _ = parallel(random(T, B, C, 3, 4), lengths=[5, 2, 3])
                y.square().sum().backward()
            assert all(p.grad is not None for p in ours.parameters())
    finally:
        torch.distributed.destroy_process_group()
