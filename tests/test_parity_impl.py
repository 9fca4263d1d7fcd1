"""Somebody's implementation held to the oracles: classes, factories, what they refuse and what they get wrong."""

import json
import sys
from pathlib import Path

import pytest
import torch
from running_examples import load
from torch import Tensor, nn
from typer.testing import CliRunner

from fastlstm.cli import app
from fastlstm.parity import assert_parity

LINES = ["lstm T3 B3 I4 H16", "lstm T3 B3 I4 H16 L2 bi", "lstm T3 B3 I4 H16 resets:0.2"]


class Plain(nn.LSTM):
    """Right, and of one direction only."""

    def __init__(self, *args, **options) -> None:
        if options.get("bidirectional"):
            raise NotImplementedError("one direction only")
        super().__init__(*args, **options)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx, d: Tensor) -> Tensor:
        return d * 1.001


class WrongStates(nn.LSTM):
    def forward(self, x, hx=None):
        return super().forward(x, None if hx is None else (hx[0], Scaled.apply(hx[1])))


class Half(nn.LSTM):
    def forward(self, x, hx=None):
        y, finals = super().forward(x, hx)
        return y.half(), finals


class Short(nn.LSTM):
    def forward(self, x, hx=None):
        y, finals = super().forward(x, hx)
        return y[:-1], finals


class NoGradient(nn.LSTM):
    @torch.no_grad()
    def forward(self, x, hx=None):
        return super().forward(x, hx)


class OtherNames(nn.Module):
    def __init__(self, I: int, H: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4 * H, I))


def by_hand(module: nn.Module):
    """A loop over time, which knows one layer and dense batches."""
    w_ih, w_hh, b_ih, b_hh = module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0
    if module.num_layers > 1:
        raise ValueError("one layer only")

    def run(x: Tensor, hx: tuple[Tensor, Tensor] | None = None):
        h, c = (s[0] for s in hx) if hx else x.new_zeros(2, x.shape[1], module.hidden_size)
        y = []
        for x_t in x:
            i, f, g, o = (x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            y.append(h)
        return torch.stack(y), (h[None], c[None])

    return run


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put on Python's path to find an implementation ends with a test."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_what_is_right_passes_and_what_is_refused_is_told() -> None:
    found = assert_parity(Plain, "lstm", cases=LINES)
    assert {row.quantity for row in found.rows} >= {
        "y",
        "h_n",
        "c_n",
        "dx",
        "dh0",
        "dc0",
        "dweight_hh_l0",
        "dbias_ih_l0",
    }
    assert {row.oracle for row in found.rows} >= {"reference", "torch"}
    bidirectional, resets = (f"{line} fp32" for line in LINES[1:])
    assert found.refused[bidirectional] == "NotImplementedError: one direction only"
    assert "unexpected keyword argument 'reset'" in found.refused[resets]
    with pytest.raises(AssertionError, match=r"2 were refused\n  refused: 1 cases, such as 'lstm T3 B3 I4 H16"):
        assert_parity(Plain, "lstm", cases=LINES, strict=True)


def test_a_factory_gets_our_module_with_the_weights() -> None:
    found = assert_parity(by_hand, "lstm", cases=[LINES[0], "T1 B2 I3 H4 zero_state", LINES[1]])
    assert found.refused == {f"{LINES[1]} fp32": "ValueError: one layer only"}
    assert "dweight_ih_l0" in {row.quantity for row in found.rows}


def test_every_named_case_of_the_variant_is_tried() -> None:
    found = assert_parity(nn.GRU, "gru")
    ran = {row.case for row in found.rows}
    assert "gru T7 B6 I5 H16 L3 bi fp32" in ran
    assert "gru T9 B7 I4 H17 packed:9,9,6,5,5,2,1 fp32" in ran
    assert len(ran) > 10
    assert not any("reverse" in line for line in ran | found.refused.keys())


@pytest.mark.parametrize(
    ("impl", "message"),
    [
        (
            WrongStates,
            r"(?s)2 of \d+ errors.*  dc0: 2 errors, such as 1\.0e-03, allowed .* in .lstm T3 B3 I4 H16 fp32.\n  right",
        ),
        (Half, r"y: 4 errors, such as inf, allowed 0\.0e\+00 by dtype of the input"),
        (Short, r"failed: 1 cases, .*: ValueError: y has shape \(2, 3, 16\), expected \(3, 3, 16\)"),
        (NoGradient, r"failed: 1 cases, .*: RuntimeError: element 0 of tensors does not require grad"),
        (
            OtherNames,
            r"Nothing was compared.\n  refused: 1 cases, .*its parameters lack \['bias_hh_l0', .*\], and \['w'\]",
        ),
        (lambda module: None, r"Nothing was compared.\n  refused: .*TypeError: 'NoneType' object is not callable"),
    ],
    ids=["gradient", "dtype", "shape", "no gradient", "names", "no callable"],
)
def test_what_is_wrong_is_told_by_quantity(impl: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_parity(impl, "lstm", cases=LINES[:1])


def test_without_gradients_inference_can_be_held() -> None:
    assert_parity(NoGradient, "lstm", cases=[f"{LINES[0]} infer"])


@pytest.mark.parametrize(
    ("impl", "variant", "message"),
    [
        ("torch.nn", "lstm", "impl is 'torch.nn', expected package.module:name"),
        ("torch.nn:Lstm", "lstm", "impl is 'torch.nn:Lstm', expected package.module:name: module 'torch.nn' has no"),
        ("no_such_thing:Lstm", "lstm", "expected package.module:name: No module named 'no_such_thing'"),
        ("torch:float32", "lstm", "expected a class or a function, which this is not: dtype"),
        (nn.LSTM, "rnn", "variant is 'rnn', expected one of 'lstm', 'gru'"),
    ],
)
def test_bad_arguments(impl: object, variant: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assert_parity(impl, variant)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_own.py").write_text("from torch import nn\n\n\nclass Mine(nn.LSTM):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    options = [
        "--impl",
        "our_own:Mine",
        "--case",
        LINES[0],
        "--case",
        LINES[2],
        "--dtype",
        "fp32",
        "--json",
        "found.json",
    ]
    result = CliRunner().invoke(app, ["parity", *options], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    rows = json.loads(Path("found.json").read_text())
    assert rows[0]["backend"] == "our_own:Mine"
    assert rows[-1]["case"] == f"{LINES[2]} fp32"
    assert "unexpected keyword argument 'reset'" in rows[-1]["refused"]
    assert "0 cases failed, 1 were refused" in result.output


def test_the_command_fails_where_something_is_wrong_or_nothing_was_compared() -> None:
    for impl, words in (("WrongStates", "dc0: 2 errors"), ("OtherNames", "Nothing was compared")):
        options = ["--impl", f"{__name__}:{impl}", "--case", LINES[0], "--dtype", "fp32"]
        result = CliRunner().invoke(app, ["parity", *options], env={"COLUMNS": "80"})
        assert result.exit_code == 1
        assert words in result.output
    result = CliRunner().invoke(app, ["parity", "--impl", "torch.nn:LSTM"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "--impl needs --variant as well" in result.output


def test_the_worked_example_finds_its_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("own_kernel", monkeypatch)
    with pytest.raises(AssertionError) as error:
        assert_parity(example.WithMistake, "lstm", cases=example.ONE_LAYER[:1])
    right = str(error.value).partition("right everywhere: ")[2]
    assert right == "c_n, h_n, y"
    assert not assert_parity(example.Small, "lstm", cases=example.ONE_LAYER, strict=True).refused
    found = assert_parity(example.Small, "lstm", cases=["lstm T3 B3 I4 H5 L2", example.ONE_LAYER[0]])
    assert "unexpected keyword argument 'num_layers'" in found.refused["lstm T3 B3 I4 H5 L2 fp32"]


def test_bench_times_it_after_parity(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    lines = [
        "lstm T3 B3 I4 H16 fp32",
        "lstm T3 B3 I4 H16 L2 bi fp32",
        "lstm T3 B3 I4 H16 packed:1-3 no_bias zero_state fp32",
    ]
    options = [word for line in lines for word in ("--case", line)]
    options += ["--impl", f"{__name__}:Plain", "--against", "cell", "--pairs", "1", "--threads", "1"]
    result = CliRunner().invoke(
        app, ["bench", *options, "--mode", "train", "--json", str(file)], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    rows = {(row["case"], row["against"]): row for row in json.loads(file.read_text())["rows"]}
    assert len(rows[f"{lines[0]} train", f"{__name__}:Plain"]["ratios"]) == 1
    assert "ratios" in rows[f"{lines[2]} train", f"{__name__}:Plain"]
    assert (
        rows[f"{lines[1]} train", f"{__name__}:Plain"]["reason"]
        == "it refuses: NotImplementedError: one direction only"
    )
    assert f"{__name__}:Plain" in result.output


@pytest.mark.parametrize("impl", ["WrongStates", "by_hand"])
def test_bench_holds_it_to_the_same_errors_as_ours(impl: str, tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    options = ["--case", f"{LINES[0]} fp32 train", "--impl", f"{__name__}:{impl}", "--pairs", "1", "--threads", "1"]
    result = CliRunner().invoke(app, ["bench", *options, "--against", "cell", "--json", str(file)])
    row = json.loads(file.read_text())["rows"][-1]
    if impl == "by_hand":
        assert result.exit_code == 0, result.output
        assert "ratios" in row
    else:
        assert result.exit_code == 1
        assert row["reason"].startswith(f"{__name__}:WrongStates: the error of dc0 is 1.0e-03")
