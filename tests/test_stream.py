"""`fastlstm.Stream`: the bits of whole sequences, by steps and chunks; its state; a snapshot of weights."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import fastlstm
from fastlstm import Stream, backends
from fastlstm.kernels.variant import PARAMETERS
from fastlstm.modules import build

pytestmark = pytest.mark.cpu
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# variant, input and hidden size, batch, options: units that fill panels and that don't, pairs of inputs and odd ones
CASES = {
    "lstm": ("lstm", 8, 32, 1, {}),
    "lstm, odd, layers": ("lstm", 7, 17, 3, {"num_layers": 3}),
    "lstm, projection": ("lstm", 12, 33, 2, {"num_layers": 2, "proj_size": 20}),
    "lstm, projection of some blocks": ("lstm", 9, 70, 4, {"proj_size": 69}),
    "lstm, no bias, batch first": ("lstm", 16, 20, 5, {"bias": False, "batch_first": True}),
    "lstm, many rows": ("lstm", 6, 18, 300, {"num_layers": 2}),
    "gru": ("gru", 16, 48, 1, {"num_layers": 2}),
    "gru, odd": ("gru", 5, 9, 4, {}),
    "peephole": ("peephole_lstm", 10, 24, 2, {"num_layers": 2}),
    "cifg": ("cifg_lstm", 10, 19, 1, {}),
    "cifg, peephole, projection": ("cifg_peephole_lstm", 10, 40, 3, {"proj_size": 7}),
}
each_case = pytest.mark.parametrize(("variant", "I", "H", "B", "options"), CASES.values(), ids=CASES)


def tuple_of(state: object) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def assert_equal(ours: object, theirs: object) -> None:
    for a, b in zip(tuple_of(ours), tuple_of(theirs), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@each_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_of_the_whole_sequence(variant, I, H, B, options, dtype):
    """Step by step, in chunks of any length, and at once; with one thread and with several."""
    module = build(variant, I, H, dtype=dtype, **options)
    T = 30 if B < 300 else 5
    x = torch.randn(T, B, I).to(dtype)
    given = x.transpose(0, 1) if module.batch_first else x
    whole, final = module(given)
    whole = whole.detach().transpose(0, 1) if module.batch_first else whole.detach()
    for chunks, threads in (((1,) * T, 1), ((1, 2, 1, 1), 2), ((3,), 3), ((T,), 2)):
        torch.set_num_threads(threads)
        stream, t, found = Stream(module, B), 0, []
        for n in [*chunks, T - sum(chunks)]:
            part = x[t : t + n]
            if n == 1:
                found.append(stream.step(part[0])[None])
            elif module.batch_first:
                found.append(stream.run(part.transpose(0, 1)).transpose(0, 1))
            else:
                found.append(stream.run(part))
            t += n
        assert torch.equal(torch.cat(found), whole)
        assert_equal(stream.state, final)


def test_large_weights_and_long_chunks_on_several_threads():
    """Weights beyond the cache, so that a plan takes inputs' products of many steps at once; more steps than a chunk holds."""
    module = fastlstm.LSTM(200, 600)
    x = torch.randn(13, 6, 200)
    whole = module(x)[0].detach()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        stream = Stream(module, 6)
        assert torch.equal(torch.cat([stream.run(x[:9]), stream.step(x[9])[None], stream.run(x[10:])]), whole)
    projected, x = fastlstm.LSTM(96, 256, proj_size=96), torch.randn(6, 4, 96)
    whole = projected(x)[0].detach()
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        stream = Stream(projected, 4)
        assert torch.equal(torch.cat([stream.run(x[:3]), stream.step(x[3])[None], stream.run(x[4:])]), whole)
    small = fastlstm.GRU(4, 4)
    x = torch.randn(700, 1, 4)
    assert torch.equal(Stream(small).run(x), small(x)[0])


@pytest.mark.parametrize("variant", ["lstm", "gru"])
# of the second, weights outgrow the cache; of the last four, parts of at most 4 rows read them as they lie (of two, in panels
# that are not full)
@pytest.mark.parametrize(
    ("B", "I", "H"), [(1, 40, 24), (5, 300, 280), (1, 299, 272), (2, 21, 48), (1, 29, 300), (2, 40, 45)]
)
def test_calls_of_few_steps_sum_as_those_of_many(variant, B, I, H):
    """So that parts of a sequence, however short but for a single step, have the bits of the whole."""
    module = build(variant, I, H)
    x = torch.randn(14, B, I)
    with torch.no_grad():
        whole, state, parts = module(x)[0], None, []
        for part in x.split([2, 3, 4, 5]):
            y, state = module(part, state)
            parts.append(y)
    assert torch.equal(torch.cat(parts), whole)


def test_inputs_of_any_strides():
    module = fastlstm.LSTM(4, 6).bfloat16()
    x = torch.randn(4, 3, 9, 2).bfloat16()[..., 0].transpose(0, 2)[:, :, :4]  # (9, 3, 4), features far apart
    whole = module(x)[0].detach()
    stream = Stream(module, 3)
    assert torch.equal(torch.stack([stream.step(row) for row in x]), whole)
    stream.reset()
    assert torch.equal(stream.run(x), whole)
    stream.reset()
    odd = torch.empty(9, 3, 5, dtype=torch.bfloat16)[:, :, :4].copy_(x)  # rows an odd distance apart
    assert torch.equal(stream.run(odd), whole)
    negative = torch._neg_view(x[0].contiguous())
    stream.reset()
    assert torch.equal(stream.step(negative), module(-x[:1].repeat(2, 1, 1))[0][0])
    assert stream.run(x[:0]).shape == (0, 3, 6)


def test_one_feature_one_unit():
    module = fastlstm.GRU(1, 1)
    x = torch.randn(5, 1, 1)
    stream = Stream(module)
    assert torch.equal(torch.stack([stream.step(row) for row in x]), module(x)[0])


@pytest.mark.parametrize("variant", ["lstm", "gru"])
def test_reset_of_some_rows(variant):
    """They go on as if a sequence began, the others as if nothing had happened: as `reset=` of the module."""
    module = build(variant, 6, 20, num_layers=2)
    x = torch.randn(9, 4, 6)
    cut = torch.zeros(9, 4, dtype=torch.bool)
    cut[3, 1] = cut[3, 2] = cut[5, 0] = cut[7] = True
    whole = module(x, reset=cut)[0]
    stream = Stream(module, 4)
    found = []
    for t in range(9):
        if t == 3:
            stream.reset([2, 1])
        elif t == 5:
            stream.reset(cut[t])
        elif t == 7:
            stream.reset()
        found.append(stream.step(x[t]))
    assert torch.equal(torch.stack(found), whole)


def test_reset_of_some_rows_leaves_float32_cells_of_others():
    module = fastlstm.LSTM(6, 20).bfloat16()
    x = torch.randn(8, 2, 6).bfloat16()
    stream = Stream(module, 2)
    found = [stream.step(row) for row in x[:4]]
    stream.reset(torch.tensor([1]))
    found += [stream.step(row) for row in x[4:]]
    assert torch.equal(torch.stack(found)[:, 0], module(x)[0][:, 0])


@pytest.mark.parametrize("variant", ["lstm", "gru"])
def test_state_is_the_modules(variant):
    module = build(variant, 6, 20, num_layers=2)
    x = torch.randn(9, 3, 6)
    initial = module(x)[1]
    stream = Stream(module, 3)
    stream.state = initial
    assert_equal(stream.state, initial)
    y, final = module(x[:5], initial)
    assert torch.equal(stream.run(x[:5]), y)
    kept = stream.state
    assert_equal(kept, final)
    stream.run(x[5:])
    stream.state = kept  # a copy: what came since is not in it
    assert torch.equal(stream.run(x[5:]), module(x[5:], final)[0])


@pytest.mark.parametrize("variant", ["lstm", "gru", "cifg_peephole_lstm"])
def test_weights_are_a_snapshot(variant):
    module = build(variant, 6, 20, num_layers=2)
    x = torch.randn(8, 2, 6)
    before = module(x)[0].detach()
    stream = Stream(module, 2)
    first = stream.run(x[:4])
    after = stream.state
    with torch.no_grad():
        for w in module.parameters():
            w.copy_(torch.randn(w.shape) / 4)
    assert torch.equal(torch.cat([first, stream.run(x[4:])]), before)
    stream.state = after
    stream.refresh()
    assert_equal(stream.state, after)
    assert torch.equal(stream.run(x[4:]), module(x[4:], after)[0])
    for name in PARAMETERS.values():  # each of them is taken
        if hasattr(module, f"{name}_l1"):
            stream.state = after
            with torch.no_grad():
                getattr(module, f"{name}_l1").mul_(2)
            old = stream.run(x[4:])
            stream.state = after
            stream.refresh()
            new = stream.run(x[4:])
            assert not torch.equal(new, old), name
            assert torch.equal(new, module(x[4:], after)[0]), name


def test_under_modes_of_pytorch():
    module = fastlstm.LSTM(6, 20)
    x = torch.randn(6, 1, 6)
    expected = module(x)[0].detach()
    with torch.inference_mode():
        stream = Stream(module)
        first = [stream.step(row) for row in x[:2]]
    stream.reset()
    with torch.no_grad():
        first += [stream.step(row) for row in x.clone().requires_grad_()[:2]]
    assert torch.equal(torch.cat(first), expected[[0, 1, 0, 1]].squeeze(1))
    with torch.autocast("cpu"), torch.device("meta"):
        rest = torch.cat([stream.step(row) for row in x[2:]])
    assert torch.equal(rest, expected[2:].squeeze(1))
    assert not rest.requires_grad
    inside = nn.ModuleDict({"rnn": nn.LSTM(6, 20)})
    fastlstm.convert(inside, keep_type=True)
    assert torch.equal(Stream(inside["rnn"]).run(x), inside["rnn"](x)[0])
    reparametrized = nn.utils.parametrizations.weight_norm(fastlstm.GRU(6, 8), "weight_hh_l0")
    assert torch.equal(Stream(reparametrized).run(x), reparametrized(x)[0])


def test_a_step_allocates_nothing_but_its_result():
    module = fastlstm.LSTM(16, 32, num_layers=2)
    stream, x = Stream(module), torch.randn(1, 16)
    stream.step(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(5):
            stream.step(x)
    taken = [event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0]
    assert taken == [32 * 4] * 5


def test_streams_in_several_threads():
    module = fastlstm.GRU(32, 64)
    inputs = [torch.randn(60, 1, 32) for _ in range(4)]
    expected = [module(x)[0] for x in inputs]
    found: list = [None] * 4

    def work(n: int) -> None:
        stream = Stream(module)
        found[n] = torch.stack([stream.step(row) for row in inputs[n]])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_threads_in_one_stream_are_told():
    stream, x = Stream(fastlstm.LSTM(128, 256), 16), torch.randn(300, 16, 128)
    told: list = []
    with ThreadPoolExecutor(2) as pool:
        for _ in range(50):
            calls = [pool.submit(stream.run, x) for _ in range(2)]
            told += [error for call in calls if (error := call.exception())]
            if told:
                break
    (error,) = told
    assert isinstance(error, RuntimeError)
    assert "used by two threads at once, expected one at a time" in str(error)
    stream.run(x[:1])


ERRORS = {
    "PyTorch's": (lambda: Stream(nn.LSTM(3, 5)), TypeError, r"module is a torch.nn.modules.rnn.LSTM, expected .*convert\("),
    "a cell": (lambda: Stream(fastlstm.LSTMCell(3, 5)), TypeError, "module is a fastlstm.modules.cells.LSTMCell, expected"),
    "a number": (lambda: Stream(3), TypeError, "module is a builtins.int, expected"),
    "a ConvLSTM": (lambda: Stream(fastlstm.ConvLSTM2d(3, 5, 3)), TypeError, "expected a fastlstm.LSTM, GRU"),
    "two directions": (lambda: Stream(fastlstm.GRU(3, 5, bidirectional=True)), ValueError, "two directions, expected one"),
    "dropout": (lambda: Stream(fastlstm.LSTM(3, 5, 2, dropout=0.5)), ValueError, r"training, with dropout 0.5.*eval\(\)"),
    "batch of 0": (lambda: Stream(fastlstm.LSTM(3, 5), 0), ValueError, "batch_size is 0, expected at least 1"),
    "batch of 1.0": (lambda: Stream(fastlstm.LSTM(3, 5), 1.0), TypeError, "batch_size should be of type int"),
    "reference": (lambda: Stream(fastlstm.LSTM(3, 5, backend="reference")), RuntimeError, "CPU kernels.*asked for"),
    "meta": (lambda: Stream(fastlstm.LSTM(3, 5, device="meta")), RuntimeError, "its weights are on meta"),
    "complex": (lambda: Stream(fastlstm.GRU(3, 5, dtype=torch.complex64)), RuntimeError, "no CPU kernels for torch.complex64"),
    "pickled": (lambda: pickle.dumps(stream()), TypeError, "can't be pickled or copied"),
    "copied": (lambda: copy.deepcopy(stream()), TypeError, "can't be pickled or copied"),
    "no tensor": (lambda: stream().step([1.0]), TypeError, "x is of type list, expected a Tensor"),
    "one row": (lambda: stream().step(torch.zeros(3)), ValueError, r"shape \(3,\), expected \(2, 3\): \(B, I\)"),
    "other B": (lambda: stream().step(torch.zeros(1, 3)), ValueError, r"shape \(1, 3\), expected \(2, 3\)"),
    "other I": (lambda: stream().run(torch.zeros(4, 2, 4)), ValueError, r"\(4, 2, 4\), expected \(any, 2, 3\): \(T, B, I\)"),
    "a step to run": (lambda: stream().run(torch.zeros(2, 3)), ValueError, r"expected \(any, 2, 3\)"),
    "dtype": (lambda: stream().step(torch.zeros(2, 3).double()), ValueError, r"dtype \(torch.float64\) does not match"),
    "device": (lambda: stream().step(torch.zeros(2, 3, device="meta")), RuntimeError, "not at the same device"),
    "sparse": (lambda: stream().step(torch.zeros(2, 3).to_sparse()), RuntimeError, "x has layout torch.sparse_coo"),
    "gradient": (lambda: stream().step(torch.zeros(2, 3, requires_grad=True)), RuntimeError, "it is for inference"),
    "row 2": (lambda: stream().reset([0, 2]), IndexError, "rows holds 2, expected values from 0 to 1"),
    "row 0.5": (lambda: stream().reset([0.5]), TypeError, "rows holds 0.5, expected integers"),
    "mask of 3": (lambda: stream().reset(torch.zeros(3) > 0), ValueError, r"rows has shape \(3,\), expected \(2,\)"),
    "a word": (lambda: stream().reset("all"), TypeError, "rows is of type str"),
    "no pair": (lambda: set_state(torch.zeros(1, 2, 5)), RuntimeError, "expects two hidden states"),
    "other state": (lambda: set_state((torch.zeros(1, 2, 5), torch.zeros(1, 2, 4))), RuntimeError, r"hidden\[1\] size"),
    "state's dtype": (lambda: set_state((torch.zeros(1, 2, 5).double(),) * 2), RuntimeError, "has dtype torch.float64"),
}  # fmt: skip


def stream() -> Stream:
    return Stream(fastlstm.LSTM(3, 5), 2)


def set_state(state: object) -> None:
    stream().state = state


@pytest.mark.parametrize(("call", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_errors(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_errors_of_a_module_that_changed():
    module = fastlstm.LSTM(3, 5)
    of = Stream(module)
    module.double()
    with pytest.raises(ValueError, match="other sizes or another dtype than when the stream was made"):
        of.refresh()
    hooked = fastlstm.LSTM(3, 5)
    hooked.register_forward_pre_hook(lambda module, inputs: None)
    with pytest.raises(ValueError, match="forward hooks, which a stream would not run"):
        Stream(hooked)

    class Doubled(fastlstm.LSTM):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    with pytest.raises(TypeError, match="Doubled, whose own forward a stream would not run"):
        Stream(Doubled(3, 5))


def test_a_stream_says_what_it_is():
    assert repr(stream()) == "fastlstm.Stream(fastlstm.LSTM(3, 5), batch_size=2)"
    assert backends.explain("lstm", "cpu", torch.float32).backend == "numba"
