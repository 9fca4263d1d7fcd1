"""One batch of a case with the weights of a variant, and one step on it: what every contender gets and does."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm.case import AttentionCase, Case
from fastlstm.kernels.variant import Variant

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
# x and the initial states to y, then the final states
Forward = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Work:
    """One batch, the weights in a module of ours, and a random gradient of the output. `x` is (N, I) where it is packed."""

    case: Case  # with its variant, dtype and mode
    module: nn.Module
    x: Tensor
    states: tuple[Tensor, ...]
    dy: Tensor
    reset: Tensor | None
    memory: Tensor | None = None  # (S, B, M)
    zeros: tuple[Tensor, ...] = ()  # in the place of states, where the case gives none: for those who need them

    @property
    def variant(self) -> Variant:
        return self.case.kind

    @property
    def mode(self) -> str | None:
        return self.case.mode

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def named(self) -> dict[str, Tensor]:
        """What a forward gets, in its order."""
        states = dict(zip(("h0", "c0", "fed0"), self.states, strict=False))
        return {"x": self.x, **({} if self.memory is None else {"memory": self.memory}), **states}

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(self.named.values())

    def to(self, dtype: torch.dtype) -> "Work":
        """The same numbers in another dtype."""
        module = module_of(self, dtype=dtype)
        x, dy = self.x.detach().to(dtype), self.dy.to(dtype)
        states, zeros = (tuple(s.detach().to(dtype) for s in given) for given in (self.states, self.zeros))
        memory = None if self.memory is None else self.memory.detach().to(dtype)
        return dataclasses.replace(self, module=module, x=x, states=states, dy=dy, memory=memory, zeros=zeros)


@dataclass(frozen=True)
class Contender:
    """`step()` does the work once. Its results: y and the final states, then in training the gradients of x, a memory, the
    initial states and all weights."""

    work: Work
    step: Callable[[], list[Tensor]]
    path: str = ""  # which of PyTorch's implementations ran
    compile_s: float | None = None


# What no contender is measured with
NOT_MEASURED = (
    "reverse", "gain", "strided", "loss", "return_cells", "stride", "dilation", "padding", "unequal", "blind", "memory_gain",
    "need_weights",
)  # fmt: skip


def make_work(case: Case, device: str = "cpu") -> Work:
    """A random batch of a case that has a variant, a dtype and a mode: the same numbers for every contender.

    Raises NotImplementedError, with the reason, where there is no such work.
    """
    refuse(case, "the benchmark", NOT_MEASURED)
    if set(case.frozen) - {"x", "memory", "h0", "c0", "fed0"}:
        raise NotImplementedError("of what is frozen, the benchmark knows x, memory, h0, c0 and fed0")
    if 0 in case.lengths:
        raise NotImplementedError("the benchmark knows no sequence of no steps")
    if isinstance(case, AttentionCase) and case.lengths:
        raise NotImplementedError("decoders are measured with targets of one length")
    if case.layout in ("step", "stream") and case.mode == "train":
        raise NotImplementedError("single steps are for inference: training knows the whole sequence")
    assert case.dtype is not None
    dtype, random = DTYPES[case.dtype], torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    leading = {"packed": (case.rows,), "cell": (case.B,), "step": (case.B,)}.get(case.layout, (case.T, case.B))
    x = normal(*leading, *case.input[2:])
    shapes = list(case.states.values())
    first = shapes[:2]
    states = tuple(normal(*(shape[1:] if case.layout == "cell" else shape)) for shape in first)
    dy = normal(*leading, *case.row(case.outputs["y"]))
    reset = (torch.rand(case.T, case.B, generator=random) < case.resets).to(device) if case.resets else None
    module, memory = case.module(dtype=dtype, device=device), None
    if isinstance(case, AttentionCase):
        memory = normal(case.S, case.B, case.M)
        if case.layout == "step":
            states = *states, *(normal(*shape) for shape in shapes[2:])
    zeros = tuple(torch.zeros_like(s) for s in states) if case.zero_state else ()
    return Work(case, module, x, () if zeros else states, dy, reset, memory, zeros)


def refuse(case: Case, who: str, fields: Sequence[str]) -> None:
    """Raises NotImplementedError where the case says what `who` doesn't know."""
    if words := case.said(*fields):
        raise NotImplementedError(f"{who} knows no {', '.join(words)}")


def module_of(work: Work, **options: Any) -> nn.Module:
    """A module of ours with the work's weights; on a GPU by our kernels there."""
    chosen = {"dtype": work.dtype, "device": work.x.device, "backend": "triton" if work.x.is_cuda else "auto"} | options
    module = work.case.module(**chosen)
    module.load_state_dict(work.module.state_dict())
    return module


def forward_of_ours(work: Work, module: Callable[..., Any]) -> Forward:
    """As a user calls it: dense, packed, or with `lengths=` and `reset=`; a decoder with its memory."""
    case = work.case
    if isinstance(case, AttentionCase):
        return decoding(work, case, module)
    sizes = batch_sizes(case)
    extra = {"lengths": torch.tensor(case.lengths)} if case.layout == "lengths" else {}
    extra |= {} if work.reset is None else {"reset": work.reset}

    def forward(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        hx = as_hx(states)
        if case.layout == "cell":
            results = module(x, hx)
            return as_tuple(results)
        if case.layout == "packed":
            y, finals = module(PackedSequence(x, sizes), hx)
            return y.data, *as_tuple(finals)
        y, finals = module(x, hx, **extra)
        return y, *as_tuple(finals)

    return forward


def streaming(case: Case, module: nn.Module) -> Forward:
    """Step by step, by a stream whose weights were packed before."""
    stream = fastlstm.Stream(module, case.B)

    def forward(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if states:
            stream.state = as_hx(states)
        else:
            stream.reset()
        y = torch.stack([stream.step(row) for row in x])
        return y, *as_tuple(stream.state)

    return forward


def decoding(work: Work, case: AttentionCase, module: Any) -> Forward:
    """A call of a decoder, or a single step of it, with the keys that are computed here."""
    lengths = torch.tensor(case.memory_lengths) if case.memory_lengths else None
    kept = len(work.states + work.zeros)
    if case.layout == "step":
        with torch.no_grad():
            precomputed = module.precompute(work.memory, lengths)

    def forward(x: Tensor, memory: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if case.layout == "step":
            y, finals = module.step(x, precomputed, states or None)
        else:
            y, finals = module(x, memory, states or None, memory_lengths=lengths)
        return y, *finals[:kept]

    return forward


def packing(case: Case, run: Callable[..., tuple]) -> Forward:
    """PyTorch's way with variable length: `run` gets and gives a PackedSequence; a padded batch is packed and padded again."""
    lengths, sizes = lengths_of(case), batch_sizes(case)

    def forward(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if case.layout in ("dense", "cell", "stream"):
            return run(x, *states)
        if case.layout == "packed":
            y, *finals = run(PackedSequence(x, sizes), *states)
            return y.data, *finals
        y, *finals = run(pack_padded_sequence(x, lengths), *states)
        return pad_packed_sequence(y, total_length=case.T)[0], *finals

    return forward


def lengths_of(case: Case) -> Tensor | None:
    return torch.tensor(case.lengths) if case.lengths else None


def batch_sizes(case: Case) -> Tensor | None:
    """Of a packed batch, whose steps end with the longest sequence."""
    lengths = lengths_of(case)
    return None if lengths is None else (torch.arange(case.lengths[0])[:, None] < lengths).sum(1)


def as_hx(states: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...] | None:
    """States as a module takes them, None where there are none."""
    return states[0] if len(states) == 1 else states or None


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

    inputs = [tensor.requires_grad_() for name, tensor in work.named.items() if name not in work.case.frozen]
    wanted = inputs + [weight for weight in module.parameters() if weight.requires_grad]

    def train() -> list[Tensor]:
        outputs = forward(*work.inputs)
        gradients = torch.autograd.grad(outputs[0], wanted, work.dy, allow_unused=True, materialize_grads=True)
        of_inputs, of_weights = gradients[: len(inputs)], gradients[len(inputs) :]
        return [*(t.detach() for t in outputs), *of_inputs, *as_ours(of_weights)]

    return train
