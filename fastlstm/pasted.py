"""The ConvLSTM that people paste into their models, and a module of ours in its place: for `convert`.

That of ndrplz/ConvLSTM_pytorch, and of the package conv-lstm, which is a copy: gates i, f, o, g of one convolution.
"""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from fastlstm.loaders import from_conv_cat
from fastlstm.modules.conv import ConvLSTM2d
from fastlstm.modules.conv_adapter import PastedConvLSTM
from fastlstm.subclasses import full_name, own_class

ATTRIBUTES = (
    "input_dim", "hidden_dim", "kernel_size", "num_layers", "batch_first", "bias", "return_all_layers", "cell_list",
)  # fmt: skip

SIGNATURE = {"input_tensor": inspect.Parameter.empty, "hidden_state": None}  # of its forward


def check_class(cls: Any) -> None:
    """Whether it can be what `convert` gets as `ConvLSTM`."""
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise TypeError(f"ConvLSTM is {cls!r}, expected a class that derives from nn.Module: its objects are replaced")
    if cls.__module__.split(".")[0] in ("torch", "fastlstm"):
        raise ValueError(
            f"ConvLSTM is {full_name(cls)}, expected the class of a ConvLSTM that was pasted into the model: "
            "PyTorch has none, and ours stay as they are"
        )


def why_not(model: nn.Module, module: nn.Module, cls: type[nn.Module]) -> str | None:
    """Why `module`, an object of `cls` in `model`, can't be replaced by one of ours; None if it can."""
    if module is model:
        return "it is the model itself: a new module needs a parent, so convert one that holds it"
    if own_class(module) is not cls:
        return (
            f"{full_name(own_class(module))} is a subclass of {full_name(cls)}: name it as ConvLSTM to have it replaced"
        )
    for name, part in module.named_modules():
        where = f"its {name}" if name else "it"
        if parametrize.is_parametrized(part):
            return f"{where} has parametrizations, which a new module would not have"
        if any("_hooks" in kind and hooks for kind, hooks in vars(part).items()):
            return f"{where} has hooks, which a new module would not have"
        if "forward" in vars(part):
            which = f"the forward of {where}" if name else "its forward"
            return f"{which} was replaced on the instance: that would no longer run"
    return _why_not_fit(module) or _why_not_free(model, module) or _why_not_called(module) or _why_not_same(module)


def replacement(module: Any, backend: str) -> PastedConvLSTM:
    """Ours, with Parameters of the values that those of `module` have; its attributes go along."""
    convs: list[Any] = [cell.conv for cell in module.cell_list]
    part: dict[str, Tensor] = {}
    kernels: list[int | tuple[int, ...]] = [tuple(conv.weight.shape[2:]) for conv in convs]
    for layer, (conv, H) in enumerate(zip(convs, module.hidden_dim, strict=True)):
        part |= from_conv_cat("ifog", conv.weight, conv.bias, conv.weight.shape[1] - H, layer=layer)
    conv_lstm = ConvLSTM2d(
        module.input_dim, [*module.hidden_dim], kernels, module.num_layers, module.bias, batch_first=True,
        device="meta", backend=backend,
    )  # fmt: skip
    conv_lstm.load_state_dict(part, assign=True)
    for name, parameter in conv_lstm.named_parameters():
        kind, _, layer_k = name.rpartition("_l")
        conv = convs[int(layer_k)]
        # their one bias is bias_ih: a second one that trains would double its steps
        theirs = {"weight_ih": conv.weight, "weight_hh": conv.weight, "bias_ih": conv.bias}.get(kind)
        parameter.requires_grad_(theirs is not None and theirs.requires_grad)
    made = PastedConvLSTM(conv_lstm, module.batch_first, module.return_all_layers)
    vars(made).update({name: value for name, value in vars(module).items() if name not in vars(nn.Module())})
    return made.train(module.training)


def _why_not_fit(module: Any) -> str | None:
    """By its attributes and Parameters."""
    if lacking := [name for name in ATTRIBUTES if not hasattr(module, name)]:
        return f"it has no attribute {lacking[0]!r}, as the ConvLSTM has that can be replaced"
    for name in ("hidden_dim", "kernel_size", "cell_list"):
        value = getattr(module, name)
        if not isinstance(value, (list, tuple, nn.ModuleList)) or len(value) != module.num_layers:
            return f"its {name} is {value!r}, expected a list with an entry for each of {module.num_layers} layers"
    found = {name: tuple(parameter.shape) for name, parameter in module.named_parameters(remove_duplicate=False)}
    found |= {name: tuple(buffer.shape) for name, buffer in module.named_buffers()}
    expected = {}
    for layer, (C, H) in enumerate(zip((module.input_dim, *module.hidden_dim), module.hidden_dim, strict=False)):
        k = nn.modules.utils._pair(module.kernel_size[layer])
        expected[f"cell_list.{layer}.conv.weight"] = (4 * H, C + H, *k)
        if module.bias:
            expected[f"cell_list.{layer}.conv.bias"] = (4 * H,)
    if found != expected:
        return f"it has Parameters and buffers of shapes {found}, expected {expected}"
    kinds = {(type(p), p.dtype, p.device) for p in module.parameters()}
    if len(kinds) > 1 or not all(kind is nn.Parameter for kind, *_ in kinds):
        return "its Parameters are of several types, dtypes or devices, or sharded"
    return None


def _why_not_free(model: nn.Module, module: nn.Module) -> str | None:
    """By what else refers to it or its Parameters."""
    for holder in model.modules():
        if isinstance(holder, DistributedDataParallel) and module in set(holder.modules()):
            return "it is in a DistributedDataParallel, which keeps to its Parameters: convert before that"
        if holder._modules.get("_orig_mod") is module:
            return "it was compiled by torch.compile, which would go on to run it: convert before that"
    if vars(module).get("_compiled_call_impl"):
        return "it was compiled in place, which would go on to run it: convert before that"
    own = [name for name, found in model.named_modules(remove_duplicate=False) if found is module]
    every = list(model.named_parameters(remove_duplicate=False))
    for name, parameter in module.named_parameters():
        if elsewhere := {n for n, p in every if p is parameter} - {f"{prefix}.{name}" for prefix in own}:
            return f"its {name} is also {min(elsewhere)}, and would no longer be shared"
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return f"its {name} has hooks, which a new Parameter would not have"
    return None


def _why_not_called(module: nn.Module) -> str | None:
    """By the arguments of its forward."""
    found = {name: parameter.default for name, parameter in inspect.signature(module.forward).parameters.items()}
    if found in (SIGNATURE, {"input_tensor": inspect.Parameter.empty}):
        return None
    return (
        f"its forward takes {inspect.signature(module.forward)}, expected (input_tensor, hidden_state=None), or "
        "(input_tensor): ours takes these alone"
    )


def _why_not_same(module: nn.Module) -> str | None:
    """By trials, in training and not: it and ours, with the same drawn weights, on the same drawn inputs and states."""
    device = next(module.parameters()).device
    device = torch.device("cpu") if device.type == "meta" else device
    draw = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64, device="cpu").to(device)

    of_device = {"devices": []} if device.type == "cpu" else {"devices": [device], "device_type": device.type}
    try:
        twin: Any = copy.deepcopy(module).to_empty(device=device).double()
        # what draws random numbers draws none of the user's
        with torch.random.fork_rng(**of_device), torch.no_grad(), torch.autocast(device.type, enabled=False):
            for p in twin.parameters():
                p.copy_(drawn(*p.shape) / p[0].numel() ** 0.5)
            ours = replacement(twin, "reference")
            for training, B, T in ((True, 2, 3), (False, 2, 3), (False, 3, 2)):
                twin.train(training)
                ours.train(training)
                x = drawn(B, T, twin.input_dim, 4, 5)
                x = x if twin.batch_first else x.transpose(0, 1)
                torch.testing.assert_close(ours(x), twin(x))
                states = [(drawn(B, H, 4, 5), drawn(B, H, 4, 5)) for H in twin.hidden_dim]
                _compare_with(states, x, ours, twin)
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        return f"it doesn't do what ours does: a trial of both ended with {type(error).__name__}: {''.join(first)}"
    return None


def _compare_with(states: list[tuple[Tensor, Tensor]], x: Tensor, ours: nn.Module, twin: nn.Module) -> None:
    """From these states, where it takes any."""
    if "hidden_state" not in inspect.signature(twin.forward).parameters:
        return
    try:
        expected = twin(x, states)
    except NotImplementedError:  # as ndrplz's
        return
    torch.testing.assert_close(ours(x, states), expected)
