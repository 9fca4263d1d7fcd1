"""`return_cells=True`: the last layer's cell state of every step, in the layout of the output, and differentiable."""

import pytest
import torch
from helpers import (
    LENGTHS,
    WITH_CELLS,
    B,
    H,
    I,
    T,
    assert_same,
    call,
    each_case,
    each_layout,
    module,
    random,
    random_states,
    run,
)
from torch import Tensor, nn

OPTIONS = {
    "plain": {},
    "projection": {"proj_size": 2},
    "two layers, two directions, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projection, two layers, two directions": {"num_layers": 2, "bidirectional": True, "proj_size": 1},
}

each_variant = pytest.mark.parametrize("variant", WITH_CELLS)


@each_case(OPTIONS, WITH_CELLS)
@each_layout
def test_kernels_are_the_reference(layout, variant, options):
    """Of a sequence with resets: values, and the gradients that come through outputs, final states and cells together."""
    ours, reference = (module(variant, backend=backend, **options) for backend in ("numba", "reference"))
    reference.load_state_dict(ours.state_dict())
    x, hx = random(T, B, I), random_states(ours, B)
    reset = torch.rand(T, B) < 0.3
    results = [run(m, layout, LENGTHS, x, hx, reset=reset, return_cells=True) for m in (ours, reference)]
    assert results[0][3].shape[-1] == H * (2 if ours.bidirectional else 1)
    assert_same(*results)


@each_case(OPTIONS, WITH_CELLS)
@each_layout
def test_asking_for_cells_changes_no_bit(layout, variant, options):
    ours = module(variant, **options)
    x, hx = random(T, B, I), random_states(ours, B)
    *results, _ = call(ours, layout, LENGTHS, x, hx, return_cells=True)
    torch.testing.assert_close(results, call(ours, layout, LENGTHS, x, hx), rtol=0, atol=0)


def step_by_step(ours: nn.RNNBase, x: Tensor, states: tuple[Tensor, Tensor]) -> Tensor:
    """c of each step of one layer and direction, out of the final states of runs of one step."""
    cells = []
    for x_t in x:
        _, states = ours(x_t[None], states)
        cells.append(states[1])
    return torch.cat(cells)


@each_variant
@pytest.mark.parametrize("options", [{}, {"proj_size": 2}, {"proj_size": 1, "bias": False}], ids=str)
def test_cells_are_those_of_single_steps(variant, options):
    ours = module(variant, **options)
    x, hx = random(T, B, I), random_states(ours, B)
    _, (_, c_n), cells = ours(x, hx, return_cells=True)
    assert_same(cells, step_by_step(ours, x, tuple(hx)))
    assert torch.equal(cells[-1], c_n[0])
    results = []
    for c in (cells, step_by_step(ours, x, tuple(hx))):
        gradients = torch.autograd.grad(
            c.sin().sum(), list(ours.parameters()), allow_unused=True, materialize_grads=True
        )
        results.append(gradients)
    assert_same(*results)


def part(whole: nn.RNNBase, variant: str, suffix: str, **options) -> nn.RNNBase:
    """One layer and direction of a stack, as a module of its own."""
    weights = {name: w for name, w in whole.state_dict().items() if name.endswith(suffix)}
    one = module(variant, weights[f"weight_ih{suffix}"].shape[1], **options)
    one.load_state_dict({name.removesuffix(suffix) + "_l0": w for name, w in weights.items()})
    return one


@each_variant
@pytest.mark.parametrize("options", [{}, {"proj_size": 2}], ids=str)
def test_cells_of_a_stack_are_its_last_layers(variant, options):
    """Both directions of it, side by side: D * H features, also where outputs are projections."""
    ours = module(variant, num_layers=2, bidirectional=True, **options)
    x, (h0, c0) = random(T, B, I), random_states(ours, B)
    cells = ours(x, (h0, c0), return_cells=True)[2]
    first = module(variant, bidirectional=True, **options)
    first.load_state_dict({name: w for name, w in ours.state_dict().items() if "_l0" in name})
    between = first(x, (h0[:2], c0[:2]))[0]
    there, back = (part(ours, variant, suffix, **options) for suffix in ("_l1", "_l1_reverse"))
    forward = step_by_step(there, between, (h0[2:3], c0[2:3]))
    reverse = step_by_step(back, between.flip(0), (h0[3:], c0[3:])).flip(0)
    assert cells.shape == (T, B, 2 * H)
    assert_same(cells, torch.cat([forward, reverse], dim=-1))


@each_variant
def test_cells_are_zero_beyond_a_length(variant):
    """As outputs are; what a gradient says there is not heard."""
    ours = module(variant, num_layers=2, bidirectional=True)
    lengths = [0, 6, 2, 3]
    beyond = torch.arange(T)[:, None] >= torch.tensor(lengths)
    x, hx = random(T, B, I).masked_fill(beyond[..., None], torch.nan), random_states(ours, B)
    y, (_, c_n), cells = ours(x, hx, lengths=lengths, return_cells=True)
    assert not cells[beyond].any()
    assert not y[beyond].any()
    last = torch.tensor(lengths[1:]) - 1
    assert torch.equal(cells[last, torch.arange(1, B), :H], c_n[2, 1:])
    assert torch.equal(cells[0, 1:, H:], c_n[3, 1:])
    d_cells, weights = random(T, B, 2 * H), list(ours.parameters())
    poisoned = d_cells.masked_fill(beyond[..., None], torch.nan)
    gradients = torch.autograd.grad(cells, weights, d_cells, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(cells, weights, poisoned), gradients, rtol=0, atol=0)


@each_variant
def test_cells_of_an_unbatched_sequence(variant):
    ours = module(variant, bidirectional=True, batch_first=True)
    x, hx = random(T, I), random_states(ours)
    expected = ours(x[None], tuple(s[:, None] for s in hx), return_cells=True)[2][0]
    cells = ours(x, tuple(hx), return_cells=True)[2]
    assert cells.shape == (T, 2 * H)
    assert torch.equal(cells, expected)


@each_variant
@pytest.mark.parametrize("options", [{"bidirectional": True}, {"num_layers": 2, "proj_size": 2}], ids=str)
@pytest.mark.parametrize("given", ["nothing", "reset", "lengths"])
def test_gradcheck(variant, options, given):
    """Through the cells alone: no gradient comes through outputs or final states."""
    ours = module(variant, 2, 3, **options)
    leaves = [t.requires_grad_() for t in (random(3, 2, 2), *random_states(ours, 2))]
    reset = torch.tensor([[False, False], [False, True], [False, False]])
    more = {"nothing": {}, "reset": {"reset": reset}, "lengths": {"lengths": [3, 1]}}[given]
    assert torch.autograd.gradcheck(lambda x, h0, c0: ours(x, (h0, c0), **more, return_cells=True)[2], leaves)


@each_variant
def test_without_gradients_and_in_half_precision(variant):
    ours = module(variant)
    x = random(T, B, I)
    expected = ours(x, return_cells=True)[2]
    with torch.no_grad():
        cells = ours(x, return_cells=True)[2]
    assert cells.grad_fn is None
    assert torch.equal(cells, expected)
    half = ours.to(torch.bfloat16)(x.bfloat16(), return_cells=True)[2]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=16 * torch.finfo(torch.bfloat16).eps)


@each_variant
def test_cells_own_their_memory(variant):
    _, (_, c_n), cells = module(variant)(random(T, B, I), return_cells=True)
    assert cells.is_contiguous()
    assert cells.untyped_storage().nbytes() == cells.nbytes
    cells.detach().zero_()
    assert c_n.any()
