"""What the recurrent modules share: `nn.RNNBase`, with variants that it doesn't know."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm import onnx
from fastlstm.backends import check_backend
from fastlstm.call import Call
from fastlstm.functional.driver import recurrent
from fastlstm.kernels.lstm import CIFG_LSTM, CIFG_PEEPHOLE_LSTM
from fastlstm.kernels.variant import PARAMETERS, Variant
from fastlstm.modules.forget_bias import add_forget_bias, check_forget_bias
from fastlstm.sequences import Input, Lengths


class Ours(nn.Module):
    """What is ours of every module: its name where a model is printed, and a word to PyTorch's old exporter."""

    def _get_name(self) -> str:
        return shown_name(self, super()._get_name())

    def _slow_forward(self, *input: Any, **kwargs: Any) -> Any:
        """What runs in place of `forward` where `torch.jit` traces, as that exporter does."""
        onnx.check_exporter(self._get_name(), isinstance(self, (nn.RNNBase, nn.RNNCellBase)))
        return super()._slow_forward(*input, **kwargs)


class Recurrent(Ours, nn.RNNBase):
    """Parameters, names and shapes as `nn.RNNBase` makes them, or its own where PyTorch has no such variant."""

    variant: Variant
    backend = "auto"  # of a module that was unpickled from one of PyTorch's
    _forget_bias = 0.0  # an instance has one where it isn't 0; subclasses have a `forget_bias` of their own

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        forget_bias: float = 0.0,
        backend: str = "auto",
    ) -> None:
        check_backend(backend)
        check_forget_bias(self.variant, forget_bias, bias)
        if not self.variant.projects and proj_size != 0:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if forget_bias != 0:
            self._forget_bias = float(forget_bias)
        super().__init__(
            # by this mode callers tell one state from two
            self.variant.op.upper(),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device if self.variant.counterpart else "meta",
            dtype,
        )
        self.backend = backend
        if not self.variant.counterpart:
            self._make_own_weights(device, dtype)

    def _make_own_weights(self, device: torch.device | str | int | None, dtype: torch.dtype | None) -> None:
        H, P = self.hidden_size, self.proj_size or None
        for k, names in enumerate(self._all_weights):
            for name in names:
                delattr(self, name)  # set anew, it stands in the order of its layer
            suffix = names[0].removeprefix("weight_ih")
            names.clear()
            directions = 2 if self.bidirectional else 1
            I = self.input_size if k < directions else directions * (P or H)
            for name, shape in self.variant.weights(I, H, P, bias=self.bias).items():
                names.append(PARAMETERS[name] + suffix)
                setattr(self, names[-1], nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        names = [name for names in self._all_weights for name in names if name.startswith(PARAMETERS["b_ih"])]
        add_forget_bias(self, self.variant, names, self._forget_bias)

    @property
    def all_weights(self) -> list[list[Tensor]]:  # type: ignore[override]
        return [weights_of(self, names) for names in self._all_weights]

    def flatten_parameters(self) -> None:
        if self.variant.counterpart:
            super().flatten_parameters()

    def _run(self, input: Input, hx: Any, lengths: Lengths, reset: Tensor | None, return_cells: bool = False) -> Any:
        call = Call(
            bidirectional=self.bidirectional, batch_first=self.batch_first, dropout=self.dropout, training=self.training,
            lengths=lengths, reset=reset, return_cells=return_cells, backend=self.backend,
        )  # fmt: skip
        return recurrent(self.variant, input, self.all_weights, hx, call)

    def extra_repr(self) -> str:
        return super().extra_repr() + own_repr(self._forget_bias, self.backend)


def shown_name(module: nn.Module, name: str) -> str:
    """What a module is called where a model is printed: `fastlstm.LSTM` tells ours from PyTorch's; `Theirs[fastlstm.LSTM]`."""
    ours = next(cls for cls in type(module).__mro__ if cls.__module__.startswith("fastlstm."))
    return f"fastlstm.{name}" if type(module) is ours else f"{name}[fastlstm.{ours.__name__}]"


def own_repr(forget_bias: float, backend: str) -> str:
    """The options that PyTorch's modules don't have, where they aren't the default."""
    shown = f", forget_bias={forget_bias}" if forget_bias != 0 else ""
    return shown + (f", backend={backend!r}" if backend != "auto" else "")


def weights_of(module: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """`getattr`, which for a Parameter fails first and takes a microsecond; other tensors stand in for it as attributes."""
    parameters: Any = module._parameters
    return [parameters[name] if name in parameters else getattr(module, name) for name in names]


def take_variant_of_old(module: nn.Module) -> None:
    """For a CIFG LSTM that was pickled when an instance had a number of peepholes, and no variant."""
    peepholes = vars(module).pop("peepholes", None)
    if peepholes is not None:
        module.variant = CIFG_PEEPHOLE_LSTM if peepholes else CIFG_LSTM
