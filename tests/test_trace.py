"""A trace sees the recurrent calls of a program, changes nothing, and is written whatever becomes of the program."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_compile import quiet_compiler
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm.case import parse
from fastlstm.tracing import watch
from fastlstm.tracing.calls import shortest

X = torch.randn(5, 3, 8)
MAPS = torch.randn(5, 2, 3, 6, 7)


def packed() -> object:
    return pack_padded_sequence(torch.randn(10, 4, 8), [10, 8, 3, 2])


# What a row says of one call: a module, and what it is called with
SEEN: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple]]] = {
    "lstm T5 B3 I8 H16 L2 bi": (lambda: nn.LSTM(8, 16, 2, bidirectional=True), lambda: (X,)),
    "lstm T5 B3 I8 H6 P4 no_bias": (lambda: nn.LSTM(8, 6, bias=False, proj_size=4), lambda: (X,)),
    "gru T3 B5 I8 H7": (lambda: nn.GRU(8, 7, batch_first=True), lambda: (X,)),
    "gru T5 B1 I8 H7": (lambda: nn.GRU(8, 7), lambda: (X[:, 0],)),
    "lstm T10 B4 I8 H4 packed:1-10": (lambda: nn.LSTM(8, 4), lambda: (packed(),)),
    "lstm T5 B3 I8 H4 bf16": (lambda: nn.LSTM(8, 4).bfloat16(), lambda: (X.bfloat16(),)),
    "rnn T5 B3 I8 H4": (lambda: nn.RNN(8, 4), lambda: (X,)),
    "rnn T5 B3 I8 H4 bi": (lambda: nn.RNN(8, 4, bidirectional=True, nonlinearity="relu"), lambda: (X,)),
    "lstm T1 B3 I8 H4 cell": (lambda: nn.LSTMCell(8, 4), lambda: (X[0],)),
    "gru T1 B3 I8 H4 cell no_bias": (lambda: nn.GRUCell(8, 4, bias=False), lambda: (X[0],)),
    "rnn T1 B3 I8 H4 cell": (lambda: nn.RNNCell(8, 4), lambda: (X[0],)),
    "peephole_lstm T5 B3 I8 H4 L2 bi resets:0.2 zero_state": (
        lambda: _with(fastlstm.PeepholeLSTM(8, 4, 2, bidirectional=True), reset=(torch.arange(5) == 2)[:, None].expand(5, 3)),
        lambda: (X,),
    ),
    "cifg_peephole_lstm T5 B3 I8 H4 P2 lengths:1-5 no_bias zero_state": (
        lambda: _with(fastlstm.CIFGLSTM(8, 4, bias=False, proj_size=2, peephole=True), lengths=[1, 5, 3]),
        lambda: (X,),
    ),
    "cifg_peephole_lstm T1 B3 I8 H4 cell": (lambda: fastlstm.CIFGLSTMCell(8, 4, peephole=True), lambda: (X[0],)),
    "peephole_conv_lstm T5 B2 I3 H4,5 S6x7 k3x1 zero_state": (
        lambda: fastlstm.ConvLSTM2d(3, [4, 5], (3, 1), num_layers=2, peephole="channel"), lambda: (MAPS,),
    ),
    "cifg_conv_lstm T2 B5 I3 H4 S6x7 k3 stride:2 zero_state": (
        lambda: fastlstm.ConvLSTM2d(3, 4, 3, stride=2, coupled=True, batch_first=True, padding=1), lambda: (MAPS,),
    ),
    "conv_lstm T1 B2 I3 H4 S6x7 k3 zero_state": (lambda: fastlstm.ConvLSTM2dCell(3, 4, 3), lambda: (MAPS[0],)),
    "attention_lstm T5 B3 I8 H4 L2 S7 M6 A5 feed:context zero_state": (
        lambda: fastlstm.AttentionLSTM(8, 4, 6, 2, attention_size=5, feed="context"), lambda: (X, torch.randn(7, 3, 6)),
    ),
}  # fmt: skip


NO_CASES = ("rnn", "cifg_peephole_lstm T1 B3 I8 H4 cell")


def _with(module: nn.Module, **options: object) -> nn.Module:
    """A module that is called with options as well."""
    wrapper = nn.Module()
    wrapper.module = module
    wrapper.forward = lambda *args: module(*args, **options)  # type: ignore[method-assign]
    return wrapper


@contextmanager
def tracing() -> Iterator[fastlstm.tracing.Trace]:
    with fastlstm.trace(None) as seen:
        yield seen


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", SEEN)
def test_sizes_and_layouts(case: str) -> None:
    make, arguments = SEEN[case]
    module, args = make(), arguments()
    with tracing() as seen, torch.no_grad():
        module(*args)
    (row,) = seen.result["rows"]
    assert row["case"] == case + (" infer" if "bf16" in case else " fp32 infer")
    assert (row["calls"], row["backward_s"]) == (1, 0)
    if not case.startswith(NO_CASES):
        assert str(parse(row["case"])) == row["case"]


def test_a_step_of_a_decoder() -> None:
    decoder = fastlstm.AttentionLSTM(8, 4, 6)
    keys = decoder.precompute(torch.randn(7, 3, 6))
    with tracing() as seen:
        decoder.step(X[0], keys)
    assert seen.result["rows"][0]["case"] == "attention_lstm T1 B3 I8 H4 S7 M6 A4 step zero_state fp32 infer"


class Model(nn.Module):
    """One of each kind that PyTorch has, one after the other, and heads for the final states."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.lstm, self.gru, self.rnn = nn.LSTM(8, 6, 2, dropout=0.1), nn.GRU(6, 6, bidirectional=True), nn.RNN(12, 4)
        self.cell, self.gru_cell, self.ours = nn.LSTMCell(4, 4), nn.GRUCell(4, 4), fastlstm.LSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, _) = self.lstm(self.first(x))
        y, _ = self.rnn(self.gru(y)[0])
        state, g = None, None
        for step in y:
            state = self.cell(step, state)
            g = self.gru_cell(state[0], g)
        return self.ours(y)[0].sum() + h.sum() + g.sum()


def trained(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    loss = model(X)
    model.zero_grad()
    loss.backward(retain_graph=True)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def test_results_are_the_same_bits() -> None:
    model = Model()
    before = trained(model)
    with tracing():
        during = trained(model)
    after = trained(model)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(before, during, after, strict=True))


def test_names_are_put_back() -> None:
    places = [(module, name, getattr(module, name)) for module, name, _, _ in watch.PLACES]

    def fail() -> None:
        with tracing():
            assert all(getattr(module, name) is not original for module, name, original in places)
            raise ValueError("of the program")

    with pytest.raises(ValueError, match="of the program"):
        fail()
    assert all(getattr(module, name) == original for module, name, original in places)


def test_a_backward_makes_a_call_training() -> None:
    model = Model()
    with tracing() as seen:
        trained(model)  # two backwards
        for _ in range(2):
            model(X)
    for row in seen.result["rows"]:
        one = 5 if " cell " in row["case"] else 1
        train = row["case"].endswith(" train")
        assert row["calls"] == one * (1 if train else 2)
        assert (row["backward_s"] > 0) == train
        assert row["forward_s"] > 0
    assert len(seen.result["rows"]) == 2 * 6
    frozen = {
        row["case"].split()[0]: "frozen:x" in row["case"] for row in seen.result["rows"] if "train" in row["case"]
    }
    assert not any(frozen.values())


def test_what_needs_no_gradient_is_said() -> None:
    lstm = nn.LSTM(8, 4)
    h0 = torch.zeros(1, 3, 4, requires_grad=True)
    with tracing() as seen:
        lstm(X)[0].sum().backward()
        lstm(X.clone().requires_grad_(), (h0, torch.zeros(1, 3, 4)))[1][0].sum().backward()
    assert [row["case"].split("H4 ")[1] for row in seen.result["rows"]] == [
        "zero_state frozen:x fp32 train",
        "fp32 train",
    ]


class Slow(torch.autograd.Function):
    """Takes so many seconds forward, and twice as many backward."""

    @staticmethod
    def forward(ctx, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None]:
        time.sleep(2 * ctx.seconds)
        return dy, None


def test_seconds_are_those_of_the_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    op = torch._VF.lstm
    monkeypatch.setattr(torch._VF, "lstm", lambda x, *others: op(Slow.apply(x, 0.02), *others))
    first, second = nn.LSTM(8, 4), nn.LSTM(4, 4)
    with tracing() as seen:
        begin = time.perf_counter()
        y, _ = first(X.clone().requires_grad_())
        y, _ = second(Slow.apply(y, 0.1))
        y.sum().backward()
        whole = time.perf_counter() - begin
    forward, backward = (sum(row[f"{key}_s"] for row in seen.result["rows"]) for key in ("forward", "backward"))
    assert forward >= 2 * 0.02
    assert backward >= 2 * 0.04
    assert forward + backward <= whole - 0.1 - 0.2
    assert seen.result["seconds"] >= whole


def test_many_calls_are_counted_and_some_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, timed = nn.GRUCell(8, 4), []
    ran = watch.Watch.took
    monkeypatch.setattr(watch.Watch, "took", lambda *args: timed.append(1) or ran(*args))
    with tracing() as seen, torch.no_grad():
        for _ in range(900):
            cell(X[0])
    (row,) = seen.result["rows"]
    assert row["calls"] == 900
    assert abs(len(timed) - watch.ALL - 800 / watch.ONE_IN) < 5


def test_times_of_a_gpu_are_read_from_events(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """Says that 7 ms went by between any two."""

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None: ...

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: "Event") -> float:
            return 7.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = watch.clock
    monkeypatch.setattr(watch, "clock", lambda _: clock("cuda"))
    monkeypatch.setattr(watch, "SETTLE", 3)
    lstm = nn.LSTM(8, 4)
    with tracing() as seen:
        for _ in range(5):
            lstm(X)[0].sum().backward()
    (row,) = seen.result["rows"]
    assert (row["forward_s"], row["backward_s"]) == (pytest.approx(0.035), pytest.approx(0.035))


@quiet_compiler
def test_what_a_compiler_leaves_out_is_seen() -> None:
    """nn.LSTM is left out; a cell is taken into the graph, whole, and so are modules of ours."""
    lstm, cell, ours = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 4)), nn.LSTMCell(8, 4), fastlstm.LSTM(8, 4)
    want = lstm(X)[0], cell(X[0])[0], ours(X)[0]
    with tracing() as seen:
        compiled = torch.compile(lstm, backend="eager")
        for _ in range(2):
            y, _ = compiled(X)
        h, _ = torch.compile(cell, backend="eager", fullgraph=True)(X[0])
        z, _ = torch.compile(ours, backend="eager", fullgraph=True)(X)
    assert torch.equal(y, want[0])
    torch.testing.assert_close((h, z), want[1:])
    assert [(row["case"].split()[0], row["calls"]) for row in seen.result["rows"]] == [("lstm", 2)]


def test_threads_are_seen() -> None:
    with tracing() as seen:
        threads = [threading.Thread(target=nn.LSTM(8, 4), args=(X,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen.result["rows"][0]["calls"] == 3


def test_who_calls_and_what_convert_leaves() -> None:
    class Own(nn.LSTM):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    lstm = nn.LSTM(8, 4)
    with tracing() as seen, torch.no_grad():
        Own(8, 4)(X)
        nn.RNN(8, 4)(X)
        lstm(X)
        torch._VF.lstm(X, (torch.zeros(1, 3, 4),) * 2, lstm._flat_weights, True, 1, 0.0, False, False, False)
        fastlstm.LSTM(8, 4)(X)
    own, rnn, plain, alone, ours = [(row["by"].split(".")[-1], row["reason"]) for row in seen.result["rows"]]
    assert own[0] == "Own"
    assert "is a subclass of nn.LSTM that has forward of its own" in own[1]
    assert rnn == ("RNN", "torch.nn.modules.rnn.RNN has no counterpart in fastlstm")
    assert plain == ("LSTM", None)
    assert alone == ("torch", "no module calls it: convert finds modules only")
    assert ours == ("fastlstm", None)


def test_wrong_calls_raise_what_they_raise() -> None:
    lstm = nn.LSTM(8, 4)
    with tracing() as seen:
        with pytest.raises(TypeError, match="lstm"):
            torch._VF.lstm(X)
        with pytest.raises(RuntimeError, match="not divisible"):
            torch._VF.lstm(X, (torch.zeros(1, 3, 4),) * 2, lstm._flat_weights[:2], True, 1, 0.0, False, False, False)
        lstm(X[:, :0])
    assert seen.result["undescribed"] == 2  # there is no case of nothing


def test_calls_that_are_no_case_are_counted_alone() -> None:
    """Of no inputs, which PyTorch's cells take; and of weights that are refused, when the call was seen already."""
    lstm = fastlstm.LSTM(8, 4)
    lstm.weight_hh_l0 = nn.Parameter(torch.zeros(3, 4))
    with tracing() as seen:
        nn.GRUCell(0, 4)(X[0, :, :0])
        with pytest.raises(ValueError, match="w_hh"):
            lstm(X)
        fastlstm.GRU(8, 4)(X)
    assert [row["case"].split()[0] for row in seen.result["rows"]] == ["gru"]
    assert seen.result["undescribed"] == 2


def test_transforms_and_penalties() -> None:
    lstm = nn.LSTM(8, 4)
    weights = dict(lstm.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(lstm, weights, (X,))[0].square().sum()

    want = torch.func.grad(loss)(weights)
    with tracing() as seen:
        found = torch.func.grad(loss)(weights)
        gru, x = nn.GRU(8, 4), X.clone().requires_grad_()
        (dx,) = torch.autograd.grad(gru(x)[0].square().sum(), x, create_graph=True)
        dx.square().sum().backward()
    assert all(torch.equal(want[name], found[name]) for name in want)
    assert [row["calls"] for row in seen.result["rows"]] == [1, 1]


def test_one_at_a_time_and_a_file_that_can_be_written(tmp_path: Path) -> None:
    with tracing(), pytest.raises(RuntimeError, match="a trace is active already"), tracing():
        pass
    with pytest.raises(FileNotFoundError), fastlstm.trace(tmp_path / "nowhere/run.json"):
        raise AssertionError("it must not run")


@pytest.mark.parametrize(
    ("rows", "T", "B"), [(80, 8, 10), (50, 8, 10), (20, 8, 10), (11, 8, 10), (160, 100, 2), (7, 7, 1)]
)
def test_lengths_are_told_by_how_many_steps_there_are(rows: int, T: int, B: int) -> None:
    low = shortest(rows, T, B, 1)
    assert 1 <= low <= T
    if 2 * rows >= B * (T + 1):  # else all of them are short, but one
        assert abs(B * (T + low) / 2 - rows) <= B * T / 16 + B
