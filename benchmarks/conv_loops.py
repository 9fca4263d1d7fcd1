"""What one has instead of our ConvLSTM: a Python loop over one convolution, well written, and Keras's layer."""

import os
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.benchmarks.loops import gates
from fastlstm.benchmarks.work import Work, refuse
from fastlstm.kernels.conv_lstm import CONV_LSTM

NOT_LOOPED = ("bias", "bidirectional", "lengths", "resets", "hadamard")


class ConvLoop(nn.Module):
    """Layer by layer and step by step, one convolution over `cat([x, h])`, as it is pasted everywhere.

    `channels_last`: weights and frames are brought into that layout once, at the start, and the output is left in it.
    """

    def __init__(self, work: Work, channels_last: bool = False) -> None:
        super().__init__()
        case = work.case
        refuse(case, "this loop", NOT_LOOPED)
        self.variant, self.format = work.variant, torch.contiguous_format
        if channels_last:
            self.format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(work.x.dim() - 1)
            if self.format is None:
                raise NotImplementedError("PyTorch has channels_last for 2d and 3d only")
        kind = getattr(nn, f"Conv{len(case.S)}d")
        self.convs, self.peepholes = nn.ModuleList(), nn.ParameterList()
        weights = dict(work.module.named_parameters())
        for k in range(case.layers):
            w_ih, w_hh = weights[f"weight_ih_l{k}"], weights[f"weight_hh_l{k}"]
            weight = torch.cat([w_ih, w_hh], dim=1).detach()
            conv = kind(*reversed(weight.shape[:2]), case.kernel, padding="same", device="meta")
            conv.weight = nn.Parameter(weight.contiguous(memory_format=self.format))
            conv.bias = nn.Parameter((weights[f"bias_ih_l{k}"] + weights[f"bias_hh_l{k}"]).detach())
            self.convs.append(conv)
            if work.variant.peepholes:
                self.peepholes.append(weights[f"weight_peephole_l{k}"].detach().clone())

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer = list(self.laid(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        finals = []
        for k, conv in enumerate(self.convs):
            h, c = self.laid(h0[k]), self.laid(c0[k])
            p = self.peepholes[k] if len(self.peepholes) else None
            for t, frame in enumerate(layer):
                h, c = gates(self.variant, conv(torch.cat([frame, h], dim=1)), c, p)
                layer[t] = h
            finals.append((h, c))
        h_n, c_n = (torch.stack(s) for s in zip(*finals, strict=True))
        return torch.stack(layer), h_n, c_n

    def laid(self, frames: Tensor) -> Tensor:
        return frames.contiguous(memory_format=self.format)

    def as_ours(self, gradients: list[Tensor]) -> list[Tensor]:
        """One convolution's gradients are those of two; `parameters` has all convolutions before all peepholes."""
        n, found = len(self.convs), []
        for k, (dw, db) in enumerate(zip(gradients[: 2 * n : 2], gradients[1 : 2 * n : 2], strict=True)):
            H = dw.shape[0] // len(self.variant.gates)
            found += [*dw.split([dw.shape[1] - H, H], dim=1), db, db, *gradients[2 * n + k : 2 * n + k + 1]]
        return found


class KerasLayers(nn.Module):
    """Keras 3's layers on its torch backend, a module per layer, batch first and channels last as they are by default."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        case = work.case
        refuse(case, "Keras, as it is measured here,", NOT_LOOPED)
        if work.variant != CONV_LSTM:
            raise NotImplementedError("Keras has no peepholes and no coupled gates")
        if work.dtype not in (torch.float32, torch.float64) or work.x.is_cuda:
            raise NotImplementedError("Keras is measured in float32 and float64, on the CPU")
        keras = load_keras()
        self.layers = nn.ModuleList()
        weights = dict(work.module.named_parameters())
        inputs = case.I
        for k in range(case.layers):
            kind = getattr(keras.layers, f"ConvLSTM{len(case.S)}D")
            layer = kind(
                case.H, case.kernel, padding="same", return_sequences=True, return_state=True,
                data_format="channels_last", dtype=str(work.dtype).removeprefix("torch."),
            )  # fmt: skip
            layer.build((None, case.T, *case.S, inputs))
            w_ih, w_hh, b_ih, b_hh = (weights[f"{name}_l{k}"].detach() for name in NAMES)
            layer.set_weights([hwio(w_ih).numpy(), hwio(w_hh).numpy(), (b_ih + b_hh).numpy()])
            self.layers.append(layer)
            inputs = case.H

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, ...]:
        y, finals = x.transpose(0, 1).movedim(2, -1), []
        for k, layer in enumerate(self.layers):
            y, *state = layer(y, initial_state=[s[k].movedim(1, -1) for s in (h0, c0)])
            finals.append([s.movedim(-1, 1) for s in state])
        return y.movedim(-1, 2).transpose(0, 1), *(torch.stack(s) for s in zip(*finals, strict=True))

    def as_ours(self, gradients: list[Tensor]) -> list[Tensor]:
        """Keras registers a layer's bias, kernel and recurrent kernel, in this order."""
        found: list[Tensor] = []
        for db, dw, du in zip(*(gradients[k::3] for k in range(3)), strict=True):
            found += [oihw(dw), oihw(du), db, db]
        return found


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def hwio(weight: Tensor) -> Tensor:
    """PyTorch's (out, in, *k) as Keras's (*k, in, out); its gates are i, f, c, o, ours by other names."""
    return weight.movedim((1, 0), (-2, -1))


def oihw(weight: Tensor) -> Tensor:
    return weight.movedim((-2, -1), (1, 0))


def load_keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")  # it has no other way to be told, and asks at its import only
    try:
        import keras
    except ImportError as error:
        raise NotImplementedError(f"{error.name} is not installed") from error
    if keras.config.backend() != "torch":
        raise NotImplementedError(f"Keras runs on {keras.config.backend()}, expected torch")
    return keras
