"""One batch of a case with the weights of a variant, and one step on it: what every contender gets and does."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastlstm.benchmarks.cases import CELLS, AttentionCase, Case
from fastlstm.kernels.variant import Variant

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
# x and the initial states to y, then the final states
Forward = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Work:
    """One batch, the weights in a module of ours, and a random gradient of the output. `x` is (N, I) where it is packed."""

    case: Case
    variant: Variant
    mode: str  # "train": forward and backward; "infer": forward, no gradients
    dtype: torch.dtype
    module: nn.Module
    x: Tensor
    states: tuple[Tensor, ...]
    dy: Tensor
    reset: Tensor | None
    memory: Tensor | None = None  # (S, B, M)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a forward gets, and what gradients are wanted of."""
        return (self.x, *self.states) if self.memory is None else (self.x, self.memory, *self.states)

    def to(self, dtype: torch.dtype) -> "Work":
        """The same numbers in another dtype."""
        module = module_of(self, dtype=dtype)
        x, dy = self.x.detach().to(dtype), self.dy.to(dtype)
        states = tuple(s.detach().to(dtype) for s in self.states)
        memory = None if self.memory is None else self.memory.detach().to(dtype)
        return dataclasses.replace(self, dtype=dtype, module=module, x=x, states=states, dy=dy, memory=memory)


@dataclass(frozen=True)
class Contender:
    """`step()` does the work once. Its results: y and the final states, then in training the gradients of x, a memory, the
    initial states and all weights."""

    work: Work
    step: Callable[[], list[Tensor]]
    path: str = ""  # which of PyTorch's implementations ran
    compile_s: float | None = None


def make_work(case: Case, variant: Variant, mode: str, dtype: torch.dtype, device: str = "cpu") -> Work:
    """A random batch of the case: the same numbers for every contender.

    Raises NotImplementedError, with the reason, where there is no such work.
    """
    if variant not in case.variants.values():
        raise NotImplementedError(f"a case of other variants than {variant.name}")
    if case.P and not variant.projects:
        raise NotImplementedError(f"a {variant.op.upper()} has no projection")
    if case.layout == "cell" and variant not in CELLS:
        raise NotImplementedError("measured as a layer only")
    if case.layout == "step" and mode == "train":
        raise NotImplementedError("single steps are for inference: training knows the whole target")
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    leading = {"packed": (case.rows,), "cell": (case.B,), "step": (case.B,)}.get(case.layout, (case.T, case.B))
    stack = () if case.layout == "cell" else (case.layers * case.directions,)
    x = normal(*leading, *case.row(case.I))
    states = tuple(normal(*stack, case.B, *case.row(width)) for width in variant.widths(case.H, case.outputs))
    dy = normal(*leading, *case.row(case.directions * case.outputs))
    reset = (torch.rand(case.T, case.B, generator=random) < case.resets).to(device) if case.resets else None
    module, memory = case.module(variant, dtype=dtype, device=device), None
    if isinstance(case, AttentionCase):
        memory = normal(case.S, case.B, case.M)
        if case.layout == "step" and case.F:
            states = *states, normal(case.B, case.F)
    return Work(case, variant, mode, dtype, module, x, states, dy, reset, memory)


def module_of(work: Work, **options: Any) -> nn.Module:
    """A module of ours with the work's weights; on a GPU by our kernels there."""
    chosen = {"dtype": work.dtype, "device": work.x.device, "backend": "triton" if work.x.is_cuda else "auto"} | options
    module = work.case.module(work.variant, **chosen)
    module.load_state_dict(work.module.state_dict())
    return module


def forward_of_ours(work: Work, module: nn.Module) -> Forward:
    """As a user calls it: dense, packed, or with `lengths=` and `reset=`; a decoder with its memory."""
    case = work.case
    if isinstance(case, AttentionCase):
        return decoding(work, case, module)

    def forward(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        hx = states[0] if len(states) == 1 else states
        if case.layout == "cell":
            results = module(x, hx)
            return as_tuple(results)
        if case.layout == "packed":
            y, finals = module(PackedSequence(x, batch_sizes(case)), hx)
            return y.data, *as_tuple(finals)
        y, finals = module(x, hx, lengths=case.lengths, reset=work.reset)
        return y, *as_tuple(finals)

    return forward


def decoding(work: Work, case: AttentionCase, module: nn.Module) -> Forward:
    """A call of a decoder, or a single step of it, with the keys that are computed here."""
    lengths = case.memory_lengths
    if case.layout == "step":
        with torch.no_grad():
            precomputed = module.precompute(work.memory, lengths)

    def forward(x: Tensor, memory: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if case.layout == "step":
            y, finals = module.step(x, precomputed, states)
        else:
            y, finals = module(x, memory, states, memory_lengths=lengths)
        return y, *finals[: len(states)]

    return forward


def packing(case: Case, run: Callable[..., tuple]) -> Forward:
    """PyTorch's way with variable length: `run` gets and gives a PackedSequence; a padded batch is packed and padded again."""

    def forward(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if case.layout in ("dense", "cell"):
            return run(x, *states)
        if case.layout == "packed":
            y, *finals = run(PackedSequence(x, batch_sizes(case)), *states)
            return y.data, *finals
        y, *finals = run(pack_padded_sequence(x, case.lengths), *states)
        return pad_packed_sequence(y, total_length=case.T)[0], *finals

    return forward


def batch_sizes(case: Case) -> Tensor:
    return (torch.arange(case.T)[:, None] < case.lengths).sum(1)


def as_tuple(finals: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (finals,) if isinstance(finals, Tensor) else finals


def step(
    work: Work, forward: Forward, module: nn.Module, as_ours: Callable[[list[Tensor]], list[Tensor]] = list
) -> Callable[[], list[Tensor]]:
    """One training step without the optimizer, or one inference. `as_ours` makes our weights' gradients of the module's."""
    if work.mode == "infer":
        module.eval()

        def infer() -> list[Tensor]:
            with torch.no_grad():
                return list(forward(*work.inputs))

        return infer

    inputs = [tensor.requires_grad_() for tensor in work.inputs]
    wanted = inputs + [weight for weight in module.parameters() if weight.requires_grad]

    def train() -> list[Tensor]:
        outputs = forward(*work.inputs)
        gradients = torch.autograd.grad(outputs[0], wanted, work.dy, allow_unused=True, materialize_grads=True)
        of_inputs, of_weights = gradients[: len(inputs)], gradients[len(inputs) :]
        return [*(t.detach() for t in outputs), *of_inputs, *as_ours(of_weights)]

    return train
