"""What `fastlstm.convert` puts in the place of a ConvLSTM that was pasted into a model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.modules.conv import ConvLSTM2d

States = Sequence[Sequence[Tensor]]


class PastedConvLSTM(nn.Module):
    """A `ConvLSTM2d` that is called, and returns, as ndrplz/ConvLSTM_pytorch does, and the package conv-lstm.

    conv_lstm: has batch_first=True; here, batch_first says how the input is laid out, and results have the batch first always.
    """

    def __init__(self, conv_lstm: ConvLSTM2d, batch_first: bool, return_all_layers: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.return_all_layers = return_all_layers
        self.conv_lstm = conv_lstm

    def forward(
        self, input_tensor: Tensor, hidden_state: States | None = None
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """layer_output_list and last_state_list, of all layers or of the last one alone.

        input_tensor (B, T, C, *S), or (T, B, C, *S) without batch_first; hidden_state: h and c of each layer, (B, H, *S), or
        None for zeros. Outputs are (B, T, H, *S), last states [h, c].
        """
        if input_tensor.dim() != 5:
            raise ValueError(
                f"input_tensor has shape {tuple(input_tensor.shape)}, expected 5 dimensions: "
                "batch, time (or time, batch without batch_first), channels, height, width"
            )
        x = input_tensor if self.batch_first else input_tensor.transpose(0, 1)
        hx = None if hidden_state is None else self._joined(hidden_state, x)
        y, (h_n, c_n) = self.conv_lstm(x, hx, return_all_layers=self.return_all_layers)
        # where the channels of layers differ, each state has a dimension for its directions
        states = [[h.flatten(0, -4), c.flatten(0, -4)] for h, c in zip(h_n, c_n, strict=True)]
        return (y, states) if self.return_all_layers else ([y], states[-1:])

    def _joined(self, states: States, x: Tensor) -> tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]:
        """As ours takes them, of layers of the same channels or not."""
        widths = self.conv_lstm._hidden
        _check(states, [(len(x), H, *x.shape[3:]) for H in widths])
        h0, c0 = ([state[n] for state in states] for n in range(2))
        if len(set(widths)) > 1:
            return [h[None] for h in h0], [c[None] for c in c0]
        return torch.stack(h0), torch.stack(c0)


def _check(states: Any, shapes: list[tuple[int, ...]]) -> None:
    """An h and a c for each layer, of its shape."""
    L = len(shapes)
    if not isinstance(states, (tuple, list)):
        raise TypeError(
            f"hidden_state is of type {type(states).__name__}, expected a list of {L}: a pair (h, c) for each layer"
        )
    if len(states) != L:
        raise ValueError(f"hidden_state has {len(states)} entries, expected {L}: a pair (h, c) for each layer")
    for k, (state, shape) in enumerate(zip(states, shapes, strict=True)):
        if not isinstance(state, (tuple, list)) or len(state) != 2 or not all(isinstance(s, Tensor) for s in state):
            raise TypeError(f"hidden_state[{k}] is {state!r:.80}, expected a pair (h, c) of Tensors")
        for n, s in enumerate(state):
            if s.shape != shape:
                raise ValueError(
                    f"hidden_state[{k}][{n}] has shape {tuple(s.shape)}, expected {shape}: "
                    "batch, hidden channels and the image of its layer"
                )
