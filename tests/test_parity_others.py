"""Implementations that we did not write, held to our oracles: torchrecurrent's peephole cell, Keras' LSTM and GRU on PyTorch.

ONNX Runtime is an oracle of its own wherever it is installed: see `fastlstm.parity.compare`.
"""

from typing import Any

import pytest
import torch
import torchrecurrent
from torch import Tensor, nn

from fastlstm.benchmarks.conv_loops import load_keras
from fastlstm.parity import assert_parity

CASES = ["T5 B3 I4 H16", "T1 B1 I16 H32", "T20 B2 I17 H33", "T12 B16 I16 H16 gain:100", "T5 B3 I4 H17 loss:h_n"]


def only_layer(module: nn.Module) -> list[Tensor]:
    if module.num_layers > 1 or module.bidirectional or not module.bias:
        raise NotImplementedError("one layer, one direction, with biases")
    return list(module.parameters())


def peephole(module: nn.Module) -> Any:
    """A loop over torchrecurrent's cell."""
    w_ih, w_hh, b_ih, b_hh, p = only_layer(module)
    cell = torchrecurrent.PeepholeLSTMCell(module.input_size, module.hidden_size, dtype=w_ih.dtype)
    weights = {"weight_ih": w_ih, "weight_hh": w_hh, "weight_ph": p.flatten(), "bias_ih": b_ih, "bias_hh": b_hh}

    def run(x: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = (s[0] for s in hx)
        y = []
        for x_t in x:
            h, c = torch.func.functional_call(cell, weights, (x_t, (h, c)))
            y.append(h)
        return torch.stack(y), (h[None], c[None])

    return run


def keras(name: str) -> Any:
    def layer(module: nn.Module) -> Any:
        """Keras' layer, whose variables are made of our weights at every call."""
        w_ih, w_hh, b_ih, b_hh = only_layer(module)
        kind = getattr(load_keras().layers, name)
        dtype = str(w_ih.dtype).removeprefix("torch.")
        theirs = kind(module.hidden_size, return_sequences=True, return_state=True, dtype=dtype)
        theirs.build((None, None, module.input_size))
        if name == "LSTM":
            variables = [w_ih.T, w_hh.T, b_ih + b_hh]
        else:
            variables = [zrn(w_ih).T, zrn(w_hh).T, torch.stack([zrn(b_ih), zrn(b_hh)])]

        def run(x: Tensor, hx: Any) -> tuple[Tensor, Any]:
            states = [s[0] for s in (hx if isinstance(hx, tuple) else (hx,))]
            others = [variable.value for variable in theirs.non_trainable_variables]
            (y, *finals), _ = theirs.stateless_call(variables, others, x.transpose(0, 1), initial_state=states)
            finals = [s[None] for s in finals]
            return y.transpose(0, 1), tuple(finals) if name == "LSTM" else finals[0]

        return run

    return layer


def zrn(rows: Tensor) -> Tensor:
    """Ours are r, z, n."""
    r, z, n = rows.chunk(3)
    return torch.cat([z, r, n])


@pytest.mark.parametrize(
    ("impl", "variant"),
    [(peephole, "peephole_lstm"), (keras("LSTM"), "lstm"), (keras("GRU"), "gru")],
    ids=["torchrecurrent", "keras lstm", "keras gru"],
)
def test_what_others_wrote(impl: Any, variant: str) -> None:
    found = assert_parity(impl, variant, cases=CASES, strict=True)
    weights = {"dweight_ih_l0", "dweight_hh_l0", "dbias_ih_l0", "dbias_hh_l0"}
    assert weights | {"y", "h_n", "dx", "dh0"} <= {row.quantity for row in found.rows}
