"""Several processes do what one does: DDP and FSDP2 over every variant, and `fastlstm train` under torchrun.

The processes are forked by one that has imported what they need, but where it is torchrun that starts them, or where what they
import is what is tested.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from fresh import Ended, Process, Server, server
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

from fastlstm.backends import VARIANTS
from fastlstm.cli import app
from fastlstm.modules import build
from fastlstm.training import processes
from fastlstm.training.checkpoint import load_checkpoint, newest_checkpoint
from fastlstm.training.errors import TrainError

T, B, I, H = 7, 6, 3, 5
PROCESSES = 2
# loopback only: gloo otherwise looks up the machine's name
ALONE = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
IMPORTS = (
    "import torch._dynamo, torch.distributed.fsdp, numba, fastlstm.cli, fastlstm.training.plot, typer.testing, pytest"
)
TRAIN = "from fastlstm.cli import main; main()"


def model(variant: str) -> nn.RNNBase:
    torch.manual_seed(0)
    return build(variant, I, H, num_layers=2, bidirectional=True, dtype=torch.float64)


def loss(rnn: nn.Module, x: Tensor) -> Tensor:
    y, finals = rnn(x)
    finals = finals if isinstance(finals, tuple) else (finals,)
    return y.square().mean() + sum(s.square().mean() for s in finals)


def batch() -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def update(rnn: nn.Module, x: Tensor, whole=lambda tensor: tensor) -> dict[str, Tensor]:
    """The gradients of all parameters, and their values after a step of SGD; `whole` puts together what is distributed."""
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
    loss(rnn, x).backward()
    found = {f"grad {name}": whole(p.grad) for name, p in rnn.named_parameters()}
    optimizer.step()
    return found | {name: whole(p.detach()) for name, p in rnn.named_parameters()}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    x = batch().chunk(PROCESSES, dim=1)[rank]
    results = {}
    for variant in VARIANTS:
        replicated = DistributedDataParallel(model(variant))
        found = {f"ddp {key.replace('module.', '')}": value for key, value in update(replicated, x).items()}
        sharded = fully_shard(model(variant), mesh=mesh)
        found |= {f"fsdp {key}": value for key, value in update(sharded, x, lambda t: t.full_tensor()).items()}
        results |= {f"{variant} {key}": value.contiguous() for key, value in found.items()}
    safetensors.torch.save_file(results, f"{folder}/results-{rank}")
    dist.destroy_process_group()
    # FSDP keeps the group for good, whose threads can abort an interpreter that ends
    os._exit(0)


@pytest.fixture(scope="module")
def forks(tmp_path_factory) -> Iterator[Server]:
    with server(IMPORTS, tmp_path_factory.mktemp("said"), **ALONE) as started:
        yield started


def start(command: list[str], environment: dict[str, str] = ALONE) -> subprocess.Popen:
    environment, said = os.environ | environment, {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **said)


def outputs(*started: subprocess.Popen) -> list[str]:
    return [process.communicate(timeout=120)[0] for process in started]


ONE_OF_TWO = f"""
import sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_distributed import one_of_two
one_of_two(int(sys.argv[1]), sys.argv[2])
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory, forks: Server) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("processes")
    started = [forks.start(ONE_OF_TWO, str(rank), str(folder)) for rank in range(PROCESSES)]
    ended = [process.end() for process in started]
    assert [one.returncode for one in ended] == [0, 0], ended
    return [safetensors.torch.load_file(folder / f"results-{rank}") for rank in range(PROCESSES)]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_and_update(results: list[dict[str, Tensor]], variant: str, way: str) -> None:
    expected = update(model(variant), batch())
    for found in results:
        ours = {key: found[f"{variant} {way} {key}"] for key in expected}
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


# --- fastlstm train

OPTIONS = ["--hidden", "8", "--embedding", "4", "--batch", "4", "--length", "5", "--layers", "2", "--dtype", "float64"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat, über 3 € [b]and[/b] ate.\n" * 20, encoding="utf-8")
    return path


def by_one(folder: Path, *arguments: str) -> None:
    result = CliRunner().invoke(app, ["train", "--checkpoint", str(folder), "--out", str(folder / "out"), *arguments])
    assert result.exit_code == 0, result.output


def by_two(folder: Path, *arguments: str) -> str:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES)]
    command = ["-m", "fastlstm", "train", "--checkpoint", str(folder), "--out", str(folder / "out"), *arguments]
    process = start([*torchrun, "--master-addr", "127.0.0.1", "--master-port", str(*free_ports(1)), *command])
    (output,) = outputs(process)
    assert process.returncode == 0, output
    return output


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # one that is free once more may be given again
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [server.getsockname()[1] for server in servers]


def assert_same_run(one: Path, other: Path) -> None:
    (tensors, record), (others, other_record) = (load_checkpoint(newest_checkpoint(folder)) for folder in (one, other))
    torch.testing.assert_close(tensors, others, rtol=1e-9, atol=1e-12)
    curves, other_curves = (r.pop("curves")["fastlstm"] for r in (record, other_record))
    # the loss is computed in float32
    for key in ("losses", "heldout"):
        torch.testing.assert_close(torch.tensor(curves[key]), torch.tensor(other_curves[key]), rtol=1e-6, atol=0)
    for r in (record, other_record):
        r["sha256"] = r["options"]["out"] = ""  # each has its own folder
    assert record == other_record


def test_train_by_two_is_train_by_one(text: Path, tmp_path: Path, forks: Server) -> None:
    first = ["--text", str(text), *OPTIONS, "--steps", "3", "--sample", "10"]
    more = ["--resume", "--steps", "6", "--sample", "0"]
    one, from_two, from_one = tmp_path / "one", tmp_path / "from-two", tmp_path / "from-one"
    by_one(one, *first)
    shutil.copytree(one, from_one)
    output = by_two(from_two, *first)
    assert output.count("10 generated characters") == 1
    assert output.count("losses.png") == 1
    assert_same_run(one, from_two)

    by_one(one, *more)
    by_one(from_two, *more)
    ended = both(forks, ["--checkpoint", str(from_one), "--out", str(from_one / "out"), *more])
    assert [one.returncode for one in ended] == [0, 0], ended
    assert_same_run(one, from_two)
    assert_same_run(one, from_one)


def as_torchrun(rank: int, port: int) -> dict[str, str]:
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    return ALONE | places | {"TORCHELASTIC_RUN_ID": "test"}


def begin(forks: Server, first: list[str], second: list[str] | None = None) -> list[Process]:
    """Two processes that train by these options."""
    (port,) = free_ports(1)
    options = enumerate((first, second or first))
    return [forks.start(TRAIN, "train", *of_one, **as_torchrun(rank, port)) for rank, of_one in options]


def both(forks: Server, first: list[str], second: list[str] | None = None) -> list[Ended]:
    return [process.end() for process in begin(forks, first, second)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_one_ends_both(text: Path, tmp_path: Path, forks: Server, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    options = ["--text", str(text), *OPTIONS, "--steps", "100000"]
    options += ["--checkpoint", str(folder), "--save-every", "3", "--out", str(tmp_path)]
    first, second = begin(forks, options)
    while first.poll() is None and not any(folder.glob("step-*[1-9]")):
        time.sleep(0.01)
    os.kill(second.pid, number)
    (output, of_first), (silent, of_second) = first.end(), second.end()
    codes = (of_first, of_second)
    step = load_checkpoint(newest_checkpoint(folder))[1]["step"]
    if number != signal.SIGKILL:
        assert codes == (130, 128 + number), output + silent
        assert f"Stopped at step {step:,} of 100,000; go on with" in output
    else:
        assert codes == (1, -signal.SIGKILL), output + silent
        assert output.endswith("fastlstm train: another process of this run has ended\n")
    assert silent == ""


def test_an_error_in_one_is_an_error_in_all(tmp_path: Path, forks: Server) -> None:
    # only the second process finds no text
    options = [*OPTIONS, "--out", str(tmp_path)]
    ended = both(forks, options, [*options, "--text", str(tmp_path / "none")])
    assert [one.returncode for one in ended] == [2, 2], ended
    (output, _), (silent, _) = ended
    assert output == f"fastlstm train: cannot read --text {tmp_path / 'none'}: No such file or directory\n"
    assert silent == ""


# The train command, once for each way to end, counting threads before and after the connection's end; the third step raises
COUNTING = """
import os
import sys
import time
import torch.distributed as dist
from fastlstm.cli import app
from fastlstm.training.model import CharModel

def threads():
    return len(os.listdir("/proc/self/task"))

def destroy(destroy=dist.destroy_process_group):
    before = threads()
    destroy()
    deadline = time.monotonic() + 10
    while threads() > 1 and time.monotonic() < deadline:  # the system takes a moment to forget a thread that was joined
        time.sleep(0.01)
    print("threads:", before, threads())

def forward(self, *arguments, forward=CharModel.forward):
    calls.append(None)
    if error and len(calls) == 3:
        raise error
    return forward(self, *arguments)

dist.destroy_process_group = destroy
CharModel.forward = forward
for error, text, port in ENDS:
    os.environ["MASTER_PORT"], calls = str(port), []
    try:
        app([*sys.argv[1:], "--text", text])
    except SystemExit as end:
        print("code:", end.code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_no_thread_outlives_the_connection(text: Path, tmp_path: Path, forks: Server) -> None:
    # one that does may abort the interpreter at its end, or wait for it for good
    ways = [
        ("None", "text", 0),
        ("None", "none", 2),
        ("RuntimeError('gloo: gone')", "text", 1),
        ("KeyboardInterrupt()", "text", 130),
        ("ZeroDivisionError()", "text", 1),  # which nobody expects: the process ends by it
    ]
    ports = free_ports(len(ways))
    options = ["train", *OPTIONS, "--steps", "4", "--sample", "0", "--out", str(tmp_path)]
    started = []
    for rank in range(PROCESSES):
        texts = [str(text if which == "text" or rank == 0 else tmp_path / "none") for _, which, _ in ways]
        ends = [f"({error}, {path!r}, {port})" for (error, _, _), path, port in zip(ways, texts, ports, strict=True)]
        code = COUNTING.replace("ENDS", f"[{', '.join(ends)}]")
        # autograd has a thread for every GPU
        started.append(
            forks.start(code, *options, **as_torchrun(rank, 0), CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
        )
    said = [process.end() for process in started]
    assert [code for _, code in said] == [1, 1], said
    for output, _ in said:
        assert re.findall(r"^code: (\d+)$", output, re.M) == [str(code) for *_, code in ways[:-1]], output
        counts = re.findall(r"^threads: (\d+) (\d+)$", output, re.M)
        assert len(counts) == len(ways), output
        assert all(int(before) > int(after) == 1 for before, after in counts), output


@pytest.mark.parametrize(
    ("batch", "device", "message"),
    [
        (3, "cpu", "--batch is 3, expected a multiple of 2: each of the 2 processes takes as many streams"),
        (4, "cuda:0", "--device is 'cuda:0', expected 'cpu': several processes train on the CPU only"),
    ],
)
def test_what_processes_cannot_share(monkeypatch: pytest.MonkeyPatch, batch: int, device: str, message: str) -> None:
    for name, value in as_torchrun(0, 0).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainError, match=message):
        processes.check(batch, device)


def test_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(10).view(2, 5)
    assert processes.mine(x).data_ptr() == x.data_ptr()
    shares = []
    for rank in range(PROCESSES):
        for name, value in as_torchrun(rank, 0).items():
            monkeypatch.setenv(name, value)
        shares.append(processes.mine(x))
    assert [s.shape[1] for s in shares] == [2, 3]
    assert torch.equal(torch.cat(shares, dim=1), x)
