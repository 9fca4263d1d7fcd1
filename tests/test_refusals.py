"""What PyTorch's old exporter and nested tensors meet: one sentence with the remedy."""

import io

import pytest
import torch
from torch import Tensor, nn

import fastlstm

T, B, I, H = 3, 2, 4, 5
NODES = {
    "LSTM": fastlstm.LSTM(I, H),
    "GRU": fastlstm.GRU(I, H),
    "PeepholeLSTM": fastlstm.PeepholeLSTM(I, H),
    "CIFGLSTM": fastlstm.CIFGLSTM(I, H),
    "LSTMCell": fastlstm.LSTMCell(I, H),
    "GRUCell": fastlstm.GRUCell(I, H),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("inside", [False, True], ids=["root", "inside"])
@pytest.mark.parametrize("name", NODES)
def test_the_old_exporter(name: str, inside: bool) -> None:
    model = nn.Sequential(NODES[name]) if inside else NODES[name]
    x = torch.zeros(B, I) if name.endswith("Cell") else torch.zeros(T, B, I)
    expected = (
        rf"fastlstm\.{name} is to be exported by torch\.onnx\.export with dynamo=False, expected dynamo=True, or a "
    )
    with pytest.raises(NotImplementedError, match=expected):
        torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:Exporting a model to ONNX with a batch_size",
)
def test_the_remedy_for_the_old_exporter() -> None:
    model, x = nn.Sequential(fastlstm.GRU(I, H)), torch.zeros(T, B, I)
    fastlstm.to_torch(model)
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False)
    assert b"GRU" in file.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_decoder_has_no_node() -> None:
    model = fastlstm.AttentionLSTM(I, H, 6)
    with pytest.raises(
        NotImplementedError, match=r"fastlstm\.AttentionLSTM is to be exported to ONNX, .* no such node"
    ):
        torch.onnx.export(model, (torch.zeros(T, B, I), torch.zeros(T, B, 6)), io.BytesIO(), dynamo=False)


def nested(layout: torch.layout, *sizes: int) -> Tensor:
    return torch.nested.nested_tensor([torch.randn(3, *sizes), torch.randn(2, *sizes)], layout=layout)


PADDED = "is a nested tensor, expected a padded one, which torch.nested.to_padded_tensor"
TAKES = {
    "LSTM": ("input", lambda x: fastlstm.LSTM(I, H, batch_first=True)(x)),
    "GRU": ("input", lambda x: fastlstm.GRU(I, H, batch_first=True)(x)),
    "functional": ("input", lambda x: fastlstm.functional.lstm(x, [])),
    "decoder": ("input", lambda x: fastlstm.AttentionLSTM(I, H, I, batch_first=True)(x, torch.zeros(B, T, I))),
    "memory": ("memory", lambda x: fastlstm.AttentionLSTM(I, H, I, batch_first=True)(torch.zeros(B, T, I), x)),
    "pooling": ("memory", lambda x: fastlstm.AttentionPooling(I, H, batch_first=True)(x)),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.parametrize("taker", TAKES)
def test_nested_tensors(taker: str, layout: torch.layout) -> None:
    name, call = TAKES[taker]
    lengths = "memory_lengths=" if taker == "memory" else "lengths="
    with pytest.raises(RuntimeError, match=rf"{name} {PADDED}\({name}, 0\.0\) makes, and its sizes as {lengths}"):
        call(nested(layout, I))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_images() -> None:
    with pytest.raises(RuntimeError, match=f"input {PADDED}"):
        fastlstm.ConvLSTM1d(I, H, 3, batch_first=True)(nested(torch.jagged, I, 6))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_the_remedy_for_nested_tensors() -> None:
    lstm, x = fastlstm.LSTM(I, H, batch_first=True), nested(torch.jagged, I)
    y, (h_n, _) = lstm(torch.nested.to_padded_tensor(x, 0.0), lengths=[3, 2])
    for b, alone in enumerate(x.unbind()):
        expected, (h, _) = lstm(alone)
        torch.testing.assert_close(y[b, : len(alone)], expected)
        torch.testing.assert_close(h_n[:, b], h)
