"""What users are told: `strict`, `report`, and the names that a printed model has."""

import doctest
import importlib

import pytest
from test_conv_convert import C, Model, Pasted
from torch import nn
from torch.nn.utils import parametrize

import fastlstm
from fastlstm import backends, convert, report, to_torch
from fastlstm.convert import Conversion


class Mine(nn.LSTM):
    pass


class Named(nn.GRU):
    def _get_name(self) -> str:
        return "TheirGRU"


def model() -> nn.ModuleDict:
    return nn.ModuleDict(
        {"encoder": nn.LSTM(3, 5), "rnn": nn.RNN(5, 2), "cell": fastlstm.GRUCell(3, 5, backend="reference")}
    )


def test_report() -> None:
    it = model()
    it["again"] = it["encoder"]
    none = "torch.nn.modules.rnn.RNN has no counterpart in fastlstm"
    gemm = backends.gemm_path()
    numba = f"fastlstm.LSTM, by numba: C++ loop ({gemm} matrix products) over Numba gate kernels"
    cell = {"cell": "fastlstm.GRUCell, by reference: asked for"}
    makes = "fastlstm.convert(model) makes it ours"
    assert report(it) == (cell, {"encoder": makes, "rnn": none, "again": makes})
    with pytest.warns(UserWarning, match="convert leaves 1 of 3"):
        convert(it)
    found = report(it)
    assert found == ({"encoder": numba, "again": numba} | cell, {"rnn": none})
    assert str(found).splitlines() == [
        "3 of 4 recurrent modules are fastlstm's",
        f"  encoder: {numba}",
        f"  cell: {cell['cell']}",
        f"  again: {numba}",
        f"  rnn: not ours: {none}",
    ]
    assert report(nn.Linear(3, 5)) == ({}, {})
    assert "the model itself: not ours: fastlstm.convert" in str(report(nn.GRU(3, 5)))


def test_report_of_what_can_not_run() -> None:
    module = fastlstm.LSTM(3, 5, backend="triton")
    assert "fastlstm.LSTM, which can't run: backend 'triton' can't run lstm here" in report(module).ours[""]
    attention, images = fastlstm.AttentionLSTM(3, 5, 7), fastlstm.ConvLSTM2d(3, 5, 3, backend="reference")
    shown = report(nn.ModuleList([attention, images, fastlstm.CIFGLSTM(3, 5, peephole=True)])).ours
    assert [text.split(":")[0] for text in shown.values()] == [
        "fastlstm.AttentionLSTM, by numba",
        "fastlstm.ConvLSTM2d, by reference",
        "fastlstm.CIFGLSTM, by numba",
    ]


def test_strict_changes_nothing_where_something_would_be_left() -> None:
    it = model()
    with pytest.raises(
        ValueError, match=r"convert leaves 1 of 2 .*\n  rnn: torch.*\nNothing was changed, since strict is"
    ):
        convert(it, strict=True)
    assert type(it["encoder"]) is nn.LSTM
    del it["rnn"]
    assert convert(it, strict=True) == Conversion(["encoder"], {}, [])
    assert convert(it, strict=True) == Conversion([], {}, [])
    it["peephole"] = fastlstm.PeepholeLSTM(3, 5)
    with pytest.raises(
        ValueError, match=r"to_torch leaves 1 of 3 .*\n  peephole: .*PeepholeLSTM has no counterpart in torch"
    ):
        to_torch(it, strict=True)
    assert type(it["encoder"]) is fastlstm.LSTM
    del it["peephole"]
    assert to_torch(it, strict=True) == Conversion(["encoder", "cell"], {}, [])


class Hidden(nn.Module):
    """Has its layers where PyTorch doesn't see them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.LSTM(3, 5)]


def test_nothing_found() -> None:
    for it, options in ((Hidden(), {}), (nn.Linear(3, 5), {"ConvLSTM": Pasted})):
        expected = f"convert found no recurrent module in {type(it).__name__}: it sees registered submodules, not those"
        with pytest.warns(UserWarning, match=expected) as caught:
            assert convert(it, **options) == Conversion([], {}, [])
        assert caught[0].filename == __file__
        with pytest.raises(ValueError, match=expected):
            convert(it, strict=True, **options)
    with pytest.raises(ValueError, match=r"convert found no .*test_conv_convert\.Pasted in LSTM"):
        convert(nn.LSTM(3, 5), ConvLSTM=Pasted, strict=True)


def test_without_its_class_a_pasted_one_stays() -> None:
    it = Model(Pasted(C, 4, (3, 3)))
    with pytest.warns(UserWarning, match="a ConvLSTM that was pasted into the model is named by ConvLSTM="):
        assert convert(it) == Conversion([], {}, [])
    assert type(it.encoder) is Pasted


def test_ours_are_told_apart_where_a_model_is_printed() -> None:
    it = nn.Sequential(nn.LSTM(3, 5), Mine(3, 5), Named(3, 5), nn.Linear(5, 2))
    shown = str(it)
    convert(it)
    assert type(it[0]) is fastlstm.LSTM
    lines = [line.strip() for line in str(it).splitlines()]
    assert lines[1:-1] == [
        "(0): fastlstm.LSTM(3, 5)",
        "(1): Mine[fastlstm.LSTM](3, 5)",
        "(2): TheirGRU[fastlstm.GRU](3, 5)",
        "(3): Linear(in_features=5, out_features=2, bias=True)",
    ]
    to_torch(it)
    assert str(it) == shown
    lstm = fastlstm.LSTM(3, 5)
    parametrize.register_parametrization(lstm, "weight_hh_l0", nn.Identity())
    assert repr(lstm).startswith("ParametrizedLSTM[fastlstm.LSTM](\n")
    others = (
        fastlstm.GRUCell(3, 5), fastlstm.ConvLSTM1d(3, 5, 3), fastlstm.ConvLSTM3dCell(3, 5, 3),
        fastlstm.AttentionLSTM(3, 5, 7), fastlstm.AttentionPooling(3, 5),
    )  # fmt: skip
    assert [repr(m).split("(")[0] for m in others] == [f"fastlstm.{type(m).__name__}" for m in others]


def test_example() -> None:
    assert not doctest.testmod(importlib.import_module("fastlstm.report")).failed
