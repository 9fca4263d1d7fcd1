"""Work that is made of derivatives: a gradient penalty, the gradients of many models, and those of each sample.

Ours and PyTorch's do it on the same weights. What comes out is the gradients alone.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from fastlstm.benchmarks.work import Contender, Work, module_of, refuse

MODELS = 32  # of an ensemble


def both(work: Work) -> tuple[nn.Module, nn.Module]:
    """Ours, and PyTorch's."""
    case = work.case
    refuse(case, "work made of derivatives", ("reverse", "zero_state", "frozen"))
    if case.mode != "train" or case.layout != "dense" or case.resets or not getattr(work.variant, "counterpart", None):
        raise NotImplementedError("it is measured in training, on dense batches of what PyTorch has as well")
    theirs = getattr(nn, work.variant.counterpart)(case.I, case.H, **case.options, dtype=work.dtype)
    theirs.load_state_dict(work.module.state_dict())
    return module_of(work), theirs


def penalty(work: Work, which: int) -> Contender:
    """A step of a critic in WGAN-GP: the norm of its gradient in between real and made-up sequences is part of the loss."""
    module = both(work)[which]
    weights = list(module.parameters())
    random = torch.Generator().manual_seed(1)
    made_up = torch.randn(work.x.shape, generator=random).to(work.dtype)
    share = torch.rand(1, work.case.B, 1, generator=random).to(work.dtype)

    def critic(x: Tensor) -> Tensor:
        return module(x)[0][-1].sum(-1)

    def run() -> list[Tensor]:
        between = (share * work.x.detach() + (1 - share) * made_up).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        steepness = slope.transpose(0, 1).flatten(1).norm(dim=1)
        loss = critic(made_up).mean() - critic(work.x.detach()).mean() + 10 * (steepness - 1).square().mean()
        return list(torch.autograd.grad(loss, weights))

    return Contender(work, run)


def loss_of(module: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(module, weights, (x,))[0].square().sum()


def one_by_one(modules: Iterable[nn.Module], xs: Iterable[Tensor]) -> list[Tensor]:
    found = [
        torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
        for module, x in zip(modules, xs, strict=True)
    ]
    return [torch.stack(gradients) for gradients in zip(*found, strict=True)]


def ensemble(work: Work, which: int) -> Contender:
    """The gradients of 32 models on one batch: ours by `vmap`, PyTorch's in a loop, since no `vmap` takes them."""
    module = both(work)[which]
    models = [type(module)(work.case.I, work.case.H, **work.case.options, dtype=work.dtype) for _ in range(MODELS)]
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for model in models:
            for weight in model.parameters():
                weight.copy_(torch.rand(weight.shape, generator=random) / 4 - 1 / 8)
    x = work.x.detach()
    if which:
        return Contender(work, lambda: one_by_one(models, [x] * MODELS))
    weights = {name: t.detach() for name, t in stack_module_state(models)[0].items()}
    of_each = vmap(grad(lambda w, x: loss_of(module, w, x)), (0, None))
    return Contender(work, lambda: list(of_each(weights, x).values()))


def samples(work: Work, which: int) -> Contender:
    """The gradients of each sequence of the batch: ours by `vmap`, PyTorch's in a loop."""
    module = both(work)[which]
    xs = work.x.detach().transpose(0, 1).unsqueeze(2).contiguous()  # (B, T, 1, I)
    if which:
        return Contender(work, lambda: one_by_one([module] * len(xs), xs))
    weights = {name: t.detach() for name, t in module.named_parameters()}
    of_each = vmap(grad(lambda w, x: loss_of(module, w, x)), (None, 0))
    return Contender(work, lambda: list(of_each(weights, xs).values()))


KINDS: dict[str, Callable[[Work, int], Contender]] = {"penalty": penalty, "ensemble": ensemble, "samples": samples}


def differ(ours: Contender, theirs: Contender) -> str | None:
    """How the gradients of both differ, by more than half of the dtype's digits, or None."""
    eps = torch.finfo(ours.work.dtype).eps
    for k, (a, b) in enumerate(zip(ours.step(), theirs.step(), strict=True)):
        error, size = (a - b).norm().item(), b.norm().item()
        if not error <= eps**0.5 * size:  # 0 where a gradient is: that of the first step's weights of h
            return f"gradient {k} differs from PyTorch's by {error:.1e} of {size:.1e}"
    return None
