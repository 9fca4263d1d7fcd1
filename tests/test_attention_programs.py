"""What PyTorch makes of the Attention LSTM: compiled, exported and traced programs, transforms, DDP."""

import io
import warnings

import pytest
import torch
from attention_cases import MEMORY_LENGTHS, SOME, USES, each_case, flat, given, gradients, some
from helpers import assert_same, random
from test_compile import quiet_compiler
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap

import fastlstm
from fastlstm.functional import AttentionState


@quiet_compiler
@pytest.mark.parametrize(
    ("case", "use", "weights"),
    [
        *((case, use, (k + n) % 2 == 1) for k, case in enumerate(SOME) for n, use in enumerate(("plain", "both"))),
        ("at once, products", "both", False),  # PyTorch's attention, masked
    ],
)
def test_compile_whole(case, use, weights):
    """Each case in both uses, with weights in one and without in the other; each use with them and without."""
    torch.compiler.reset()
    ours = some(case)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    options = {name: torch.tensor(lengths).clamp(max=2) for name, lengths in USES[use].items()}
    x, memory, state = given(ours, T=2)
    leaves, results = [x.requires_grad_(), memory.requires_grad_(), *ours.parameters()], []
    for run in (compiled, ours):
        found = run(x, memory, state, need_weights=weights, **options)
        results.append((found, gradients(flat(found), leaves)))
    assert_same(*results)


@quiet_compiler
@each_case
def test_compile_a_loop_over_steps(case):
    torch.compiler.reset()
    ours = some(case)
    x, memory, _ = given(ours, T=2)

    def f(x: Tensor, memory: Tensor, rows: Tensor) -> tuple:
        precomputed, state = ours.precompute(memory, torch.tensor(MEMORY_LENGTHS)), None
        for x_t in x:
            _, state = ours.step(x_t, precomputed, state)
            precomputed, state = precomputed.index_select(rows), state.index_select(rows)
        return ours.step(x[0], precomputed, state, need_weights=True)

    rows = torch.tensor([2, 0, 1])
    assert_same(torch.compile(f, fullgraph=True, backend="aot_eager")(x, memory, rows), f(x, memory, rows))


@quiet_compiler
@pytest.mark.parametrize("strict", [False, True])
@each_case
def test_exported_programs_run_at_other_sizes_and_train(case, strict):
    ours = some(case)
    x, memory, _ = given(ours, T=2)
    dynamic = torch.export.Dim.DYNAMIC
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        ours, (x, memory), {"memory_lengths": torch.tensor(MEMORY_LENGTHS)}, strict=strict,
        dynamic_shapes={"input": {1: batch}, "memory": {0: dynamic, 1: batch}, "memory_lengths": {0: batch}},
    )  # fmt: skip
    exported = program.module()
    x, memory, lengths = random(2, 2, x.shape[2]), random(9, 2, memory.shape[2]), torch.tensor([7, 0])
    found, right = exported(x, memory, memory_lengths=lengths), ours(x, memory, memory_lengths=lengths)
    assert_same(found, right)
    pairs = zip(
        torch.autograd.grad(found[0].square().sum(), list(exported.parameters())),
        torch.autograd.grad(right[0].square().sum(), list(ours.parameters())),
        strict=True,
    )
    for ours_d, theirs in pairs:
        assert_same(ours_d, theirs)


@quiet_compiler
def test_exported_programs_are_saved_and_loaded():
    """With the states that they take and return."""
    ours = some("fed")
    x, memory, _ = given(ours, T=2)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = ours

        def forward(self, x: Tensor, memory: Tensor, state: AttentionState) -> tuple:
            return self.decoder.step(x, self.decoder.precompute(memory), state)

    with torch.no_grad():
        _, state = ours(x, memory)
    for module, arguments in ((ours, (x, memory)), (Step(), (x[0], memory, state))):
        file = io.BytesIO()
        torch.export.save(torch.export.export(module, arguments), file)
        file.seek(0)
        found = torch.export.load(file).module()(*arguments)
        assert isinstance(found[1], AttentionState)
        assert_same(found, module(*arguments))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_has_no_such_node(dynamo):
    ours = Outputs(some("fed").float()).eval()
    arguments = tuple(t.float() for t in given(ours.decoder)[:2])
    with pytest.raises(Exception, match="AttentionLSTM is to be exported to ONNX"):
        torch.onnx.export(ours, arguments, io.BytesIO(), dynamo=dynamo, verbose=False)


class Outputs(nn.Module):
    """A decoder's outputs alone: programs have no None, which the state may hold."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.decoder(x, memory)[0]


def results_of(ours: nn.Module, use: dict):
    """A module as a function of input, memory, state and weights."""
    names = [name for name, _ in ours.named_parameters()]

    def f(*tensors: Tensor) -> tuple[Tensor, ...]:
        n = len(tensors) - len(names)
        x, memory, *state = tensors[:n]
        named = dict(zip(names, tensors[n:], strict=True))
        found = functional_call(ours, named, (x, memory, tuple(state)), {"need_weights": True, **use})
        return tuple(flat(found))

    return f


def tensors(ours: nn.Module, **sizes: int) -> list[Tensor]:
    x, memory, state = given(ours, **sizes)
    return [t for t in (x, memory, *state, *[p.detach() for p in ours.parameters()]) if t is not None]


@pytest.mark.parametrize("use", ["plain", "both"])
@each_case
def test_derivatives_of_derivatives(case, use):
    ours = some(case, I=1, H=2, M=2, A=3)
    leaves = [t.requires_grad_() for t in tensors(ours, T=2, S=2)]
    lengths = {"lengths": [1, 2, 0], "memory_lengths": [1, 0, 2]} if use == "both" else {}
    assert torch.autograd.gradcheck(results_of(ours, lengths), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(results_of(ours, lengths), leaves, fast_mode=True)


@pytest.mark.parametrize("memory_lengths", [None, [1, 0, 2]])
@pytest.mark.parametrize("attention", ["dot", "general"])
def test_second_derivatives_where_pytorch_attends(attention, memory_lengths):
    """Without weights, PyTorch's attention runs, which has first ones alone: in turn, again, and never silently."""
    torch.manual_seed(0)
    ours = fastlstm.AttentionLSTM(1, 2, 2, attention=attention, feed=None, dtype=torch.float64)
    x, memory = (torch.randn(2, 3, n, dtype=torch.float64, requires_grad=True) for n in (1, 2))
    lengths = memory_lengths and torch.tensor(memory_lengths)

    def f(x: Tensor, memory: Tensor) -> Tensor:
        return ours(x, memory, memory_lengths=lengths)[0]

    assert torch.autograd.gradgradcheck(f, (x, memory), fast_mode=True)
    loss = f(x, memory).square().sum()
    first, again, last = (torch.autograd.grad(loss, [x, memory], retain_graph=keep) for keep in (True, True, False))
    torch.testing.assert_close(first, again)
    torch.testing.assert_close(first, last)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, [x, memory])


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@each_case
def test_forward_mode_and_hessians_are_the_reference_s(case):
    found = []
    for backend in ("auto", "reference"):
        ours = some(case, backend=backend)
        f, at = results_of(ours, {"memory_lengths": MEMORY_LENGTHS}), tensors(ours)
        second = hessian(lambda x: f(x, *at[1:])[0].sin().sum())(at[0])  # noqa: B023
        plain = functional_call(ours, dict(ours.named_parameters()), tuple(at[:2]))[0]
        without = jvp(lambda m: ours(at[0], m)[0], (at[1],), (at[1].cos(),))  # noqa: B023
        found.append([jvp(f, tuple(at), tuple(t.cos() for t in at)), second, plain, without])
    assert_same(*found)


@pytest.mark.parametrize("use", ["plain", "both"])
@each_case
def test_vmap_of_grad_is_the_gradient_of_each_sample(case, use):
    ours = some(case)
    x, memory, _ = given(ours)
    weights = {name: p.detach() for name, p in ours.named_parameters()}
    inputs, memories = torch.stack([x, x.cos()]), torch.stack([memory, memory.sin()])

    def loss(weights: dict[str, Tensor], x: Tensor, memory: Tensor) -> Tensor:
        return sum(t.sin().sum() for t in flat(functional_call(ours, weights, (x, memory), USES[use])))

    each = vmap(grad(loss), (None, 0, 0))(weights, inputs, memories)
    for n in range(2):
        alone = torch.autograd.grad(loss(dict(ours.named_parameters()), inputs[n], memories[n]), ours.parameters())
        assert_same([g[n] for g in each.values()], list(alone))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@each_case
def test_traced_programs(case):
    ours = Outputs(some(case)).eval()
    x, memory, _ = given(ours.decoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks of arguments look at sizes; PyTorch deprecates torch.jit
        traced = torch.jit.trace(ours, (x, memory))
    assert_same(traced(x.cos(), memory.sin()), ours(x.cos(), memory.sin()))


def test_ddp_finds_no_unused_parameter(tmp_path):
    """Of the second step on, it would complain of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        for case in SOME:
            ours = some(case)
            parallel = nn.parallel.DistributedDataParallel(ours)
            for _ in range(3):
                x, memory, _ = given(ours)
                parallel(x, memory, **USES["both"])[0].square().sum().backward()
            assert all(p.grad is not None for p in ours.parameters())
    finally:
        torch.distributed.destroy_process_group()
