"""Many threads, many processes, many steps: the same bits, no hang, no leak."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from fastlstm import backends
from fastlstm.backends import VARIANTS
from fastlstm.modules import build

pytestmark = pytest.mark.cpu
each_drop_in = pytest.mark.parametrize("variant", ["lstm", "gru"])


def train_once(module: nn.Module, x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
    y, finals = module(x, lengths=lengths)
    finals = (finals,) if isinstance(finals, Tensor) else finals
    gradients = torch.autograd.grad(y.square().sum() + finals[0].sum(), list(module.parameters()))
    return [y.detach(), *(s.detach() for s in finals), *gradients]


@each_drop_in
def test_several_python_threads_at_once(variant):
    ours = build(variant, 64, 64, num_layers=2, bidirectional=True)
    inputs = [torch.randn(20, 3 + n, 64) for n in range(4)]
    expected = [train_once(ours, x) for x in inputs]
    results: list = [[] for _ in inputs]
    start = threading.Barrier(len(inputs))

    def work(n: int) -> None:
        start.wait()
        for _ in range(10):
            results[n].append(train_once(ours, inputs[n]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    for n in range(len(inputs)):
        assert len(results[n]) == 10
        for result in results[n]:
            torch.testing.assert_close(result, expected[n], rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [2, 24])
def test_the_same_bits_for_any_number_of_threads(variant, batch):
    options = {} if variant == "gru" else {"proj_size": 33}
    ours = build(variant, 48, 80, num_layers=2, bidirectional=True, **options)
    x = torch.randn(30, batch, 48)
    lengths = torch.arange(batch) + 30 - batch
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append([*train_once(ours, x), *train_once(ours, x, lengths)])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("I", [5, 20, 131])  # of which workers share rows, or panels
def test_the_same_bits_of_few_steps_for_any_number_of_threads(variant, I):
    ours, x = build(variant, I, 67, bidirectional=True), torch.randn(6, 9, I, requires_grad=True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y, _ = ours(x)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *ours.parameters()])])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@each_drop_in
@pytest.mark.parametrize("rows", [(30, 15), (12, 9), (1, 40)])
def test_a_single_step_that_some_sequences_do_not_have(variant, rows):
    """Workers share all rows of the batch, and of these take what exists."""
    exist, lack = rows
    ours = build(variant, 300, 17, dtype=torch.float64)
    x, lengths = torch.randn(1, exist + lack, 300, dtype=torch.float64), torch.tensor([1] * exist + [0] * lack)
    ours.backend = "reference"
    expected = train_once(ours, x, lengths)
    ours.backend = "auto"
    one = train_once(ours, x, lengths)
    torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-12)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        torch.testing.assert_close(train_once(ours, x, lengths), one, rtol=0, atol=0)


@pytest.fixture
def busy_processes():
    """One for each CPU, which this process then shares."""
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(os.cpu_count() or 1)]
    yield
    for process in processes:
        process.kill()
        process.wait()


@each_drop_in
@pytest.mark.parametrize("crowd", [True, False], ids=["a worker for each thread", "no more workers than CPUs"])
@pytest.mark.usefixtures("busy_processes")
def test_more_threads_than_cpus_beside_busy_processes(variant, crowd):
    ours, x = build(variant, 40, 90), torch.randn(60, 3, 40)
    expected = train_once(ours, x)
    if backends._C is not None:
        backends._C.crowd(crowd)
    for threads in range(2, 9, 3):
        torch.set_num_threads(threads)
        torch.testing.assert_close(train_once(ours, x), expected, rtol=0, atol=0)


MS = 1_000_000


@pytest.fixture
def room():
    if backends._C is None:
        pytest.skip("there is no extension")
    return backends._C.Room()


def calls(room, workers: int, start: int, *, missing: float, windows: float = 2) -> int:
    """Calls of 0.5 ms, for as many windows, in which `missing` workers had no CPU; when the last one ended, in ns."""
    for _ in range(int(windows * 20)):
        start += MS // 2
        room.note(workers, start, wall=MS // 2, lost=int(missing * MS / 2))
    return start


def test_fewer_workers_where_others_have_the_cpus(room):
    now = calls(room, 2, 0, missing=0.5)
    assert room.among(2, now) == 1
    # after a while all are tried again; in vain, for twice as long
    tried = now + 16 * MS
    assert room.among(2, tried) == 2
    now = calls(room, 2, tried, missing=0.5, windows=1)
    assert room.among(2, now + 31 * MS) == 1
    assert room.among(2, now + 32 * MS) == 2
    # the others are gone
    now = calls(room, 2, now + 32 * MS, missing=0)
    assert room.among(2, now) == 2


def test_as_many_fewer_as_there_are_cpus_missing(room):
    now = calls(room, 16, 0, missing=3)
    assert room.among(16, now) == 13
    now = calls(room, 13, now, missing=0.6)
    assert room.among(16, now) == 12
    assert room.among(8, now) == 8


def test_what_happens_once_is_nothing(room):
    now = 0
    for _ in range(9):
        now = calls(room, 2, now, missing=0.9, windows=1)
        assert room.among(2, now) == 2
        now = calls(room, 2, now, missing=0.01, windows=1)
    # nor do calls of long ago count
    for pause in (0, 3000 * MS):
        now = calls(room, 2, now + pause, missing=0.9, windows=1.9)
        assert room.among(2, now) == 2


def test_long_calls_are_tried_less_often(room):
    now = 0
    for _ in range(2):
        now += 50 * MS
        room.note(2, now, wall=50 * MS, lost=25 * MS)
    for count in (8, 16, 32, 32):  # calls until all are tried, each time in vain
        assert room.among(2, now + (count - 1) * 50 * MS) == 1
        assert room.among(2, now + count * 50 * MS) == 2
        now += count * 50 * MS + 50 * MS
        room.note(2, now, wall=50 * MS, lost=25 * MS)


def test_who_is_awake_and_has_no_cpu_does_not_sleep(room):
    asleep_for = backends._C.asleep_for
    assert asleep_for(MS, 6 * MS, 6 * MS + 20_000) == 5 * MS + 20_000
    assert asleep_for(MS, 6 * MS, 9 * MS) == 5 * MS + MS // 10
    # others were there before it slept
    assert asleep_for(2 * MS, MS, 9 * MS) == MS // 10


SHAPES = {
    "one step": (1, 6),
    "one step of some": (1, 34),
    "one step of many": (1, 100),
    "few rows": (2, 3),
    "some": (9, 5),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("steps", "batch"), SHAPES.values(), ids=SHAPES)
def test_the_same_bits_without_packing_and_in_half_precision(variant, dtype, steps, batch):
    ours = build(variant, 134, 202, dtype=dtype)
    x = torch.randn(steps, batch, 134).to(dtype)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(train_once(ours, x))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def send_results(pipe, ours: nn.Module, x: Tensor) -> None:
    pipe.send([t.numpy() for t in train_once(ours, x)])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@each_drop_in
def test_after_a_fork(variant):
    torch.set_num_threads(2)
    ours, x = build(variant, 64, 64, num_layers=2), torch.randn(20, 8, 64)
    expected = train_once(ours, x)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=send_results, args=(sender, ours, x))
    child.start()
    assert receiver.poll(60), "the child hangs"
    results = [torch.from_numpy(a) for a in receiver.recv()]
    child.join(60)
    assert child.exitcode == 0
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    torch.testing.assert_close(train_once(ours, x), expected, rtol=0, atol=0)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


@each_drop_in
def test_memory_does_not_grow(variant):
    if backends._C is not None:
        backends._C.poison(False)
    ours = build(variant, 8, 16, num_layers=2)
    optimizer = torch.optim.SGD(ours.parameters(), lr=1e-3)

    def steps(count: int) -> None:
        for n in range(count):
            x = torch.randn(5 + n % 7, 4, 8)
            optimizer.zero_grad()
            ours(x, lengths=[1, 5, 3, 0])[0].sum().backward()
            optimizer.step()

    steps(100)
    gc.collect()
    before = resident_bytes()
    steps(1000)
    gc.collect()
    assert resident_bytes() - before < 2**21
