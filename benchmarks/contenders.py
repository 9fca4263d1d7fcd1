"""Who is measured: fastlstm.LSTM and its peers, each on the same weights and the same batch."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm.benchmarks.cases import Case

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
Forward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Work:
    """One batch, the weights in an `nn.LSTM`, and a random gradient of the output. `x` is (N, I) where it is packed."""

    case: Case
    mode: str  # "train": forward and backward; "infer": forward, no gradients
    dtype: torch.dtype
    module: nn.LSTM
    x: Tensor
    h0: Tensor
    c0: Tensor
    dy: Tensor

    def to(self, dtype: torch.dtype) -> "Work":
        """The same numbers in another dtype."""
        module = lstm_of(nn.LSTM, self.case, dtype, self.x.device, self.module.state_dict())
        tensors = {name: getattr(self, name).detach().to(dtype) for name in ("x", "h0", "c0", "dy")}
        return dataclasses.replace(self, dtype=dtype, module=module, **tensors)


@dataclass(frozen=True)
class Contender:
    """`step()` does the work once. Its results: y, h_n, c_n, then in training the gradients of x, h0, c0 and all weights."""

    work: Work
    step: Callable[[], list[Tensor]]
    path: str = ""  # which of PyTorch's implementations ran
    compile_s: float | None = None


def make_work(case: Case, mode: str, dtype: torch.dtype, device: str = "cpu") -> Work:
    """A random batch of the case: the same numbers for every contender."""
    random = torch.Generator().manual_seed(0)
    leading = (case.rows,) if case.layout == "packed" else (case.T, case.B)
    states, outputs = case.layers * case.directions, case.outputs

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    tensors = (
        normal(*leading, case.I),
        normal(states, case.B, outputs),
        normal(states, case.B, case.H),
        normal(*leading, case.directions * outputs),
    )
    return Work(case, mode, dtype, lstm_of(nn.LSTM, case, dtype, torch.device(device)), *tensors)


def lstm_of(
    kind: type, case: Case, dtype: torch.dtype, device: torch.device, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    options = {"num_layers": case.layers, "bidirectional": case.directions == 2, "proj_size": case.P}
    module = kind(case.I, case.H, **options, dtype=dtype, device=device)
    if state is not None:
        module.load_state_dict(state)
    return module


def contender(name: str, work: Work) -> Contender:
    """The contender of that name, ready to run. Raises NotImplementedError, with the reason, where it can't do the work."""
    return CONTENDERS[name](work)


def ours(work: Work) -> Contender:
    case = work.case
    module = lstm_of(fastlstm.LSTM, case, work.dtype, work.x.device, work.module.state_dict())

    def forward(x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if case.layout == "packed":
            y, (h_n, c_n) = module(PackedSequence(x, batch_sizes(case)), (h0, c0))
            return y.data, h_n, c_n
        y, (h_n, c_n) = module(x, (h0, c0), lengths=case.lengths)
        return y, h_n, c_n

    return Contender(work, step(work, forward, module))


def dense(work: Work) -> Contender:
    """Ours on a dense batch of as many sequences and, to within one step each, as many valid steps."""
    case = work.case
    if case.layout == "dense":
        raise NotImplementedError("the case is dense itself")
    equal = dataclasses.replace(case, layout="dense", T=round(case.rows / case.B))
    return ours(make_work(equal, work.mode, work.dtype, str(work.x.device)))


def torch_lstm(work: Work) -> Contender:
    def forward(x: PackedSequence | Tensor, h0: Tensor, c0: Tensor) -> tuple:
        y, (h_n, c_n) = work.module(x, (h0, c0))
        return y, h_n, c_n

    run = step(work, packing(work.case, forward), work.module)
    with SeenOps() as seen, warnings.catch_warnings():
        # It warns, once, that oneDNN knows no projection; the path says so.
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        run()
    path = "oneDNN" if any("mkldnn_rnn" in op for op in seen.names) else "op chain"
    return Contender(work, run, "cuDNN" if any("cudnn_rnn" in op for op in seen.names) else path)


def cell_loop(work: Work) -> Contender:
    loop = CellLoop(work)
    return Contender(work, step(work, packing(work.case, loop), loop))


def compiled_loop(work: Work) -> Contender:
    loop = CellLoop(work)
    run = step(work, packing(work.case, torch.compile(loop)), loop)
    start = time.perf_counter()
    run()
    return Contender(work, run, compile_s=time.perf_counter() - start)


def onnx_runtime(work: Work) -> Contender:
    case = work.case
    if work.mode == "train":
        raise NotImplementedError("ONNX Runtime is measured in inference only")
    if work.dtype != torch.float32 or work.x.device.type != "cpu":
        raise NotImplementedError("ONNX Runtime's LSTM is measured in float32 on the CPU")
    if case.P or case.layout == "packed":
        raise NotImplementedError("ONNX's LSTM knows no projection and no packed input")
    try:
        import onnxruntime

        from fastlstm.onnx import lstm_model

        model = lstm_model(dict(work.module.named_parameters()), case.layers, case.directions)
    except ImportError as error:
        raise NotImplementedError(f"{error.name} is not installed") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise spin on into the time of the others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    lengths = torch.full((case.B,), case.T) if case.lengths is None else case.lengths
    feeds = {"x": work.x, "lengths": lengths.int(), "h0": work.h0, "c0": work.c0}
    arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
    return Contender(work, lambda: [torch.from_numpy(array) for array in session.run(None, arrays)])


CONTENDERS = {
    "ours": ours,
    "torch": torch_lstm,
    "cell": cell_loop,
    "compile": compiled_loop,
    "onnx": onnx_runtime,
    "dense": dense,
}


class CellLoop(nn.Module):
    """What one writes by hand: `nn.LSTMCell` in a Python loop over time, layer by layer."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        case = work.case
        if case.P:
            raise NotImplementedError("nn.LSTMCell knows no projection")
        self.directions = case.directions
        self.cells = nn.ModuleList()
        for weights in work.module.all_weights:
            cell = nn.LSTMCell(weights[0].shape[1], case.H, dtype=work.dtype, device=work.x.device)
            for own, weight in zip(cell.parameters(), weights, strict=True):
                own.data.copy_(weight.data)
            self.cells.append(cell)

    def forward(self, x: PackedSequence | Tensor, h0: Tensor, c0: Tensor) -> tuple:
        packed = isinstance(x, PackedSequence)
        layer = list(x.data.split(x.batch_sizes.tolist())) if packed else list(x)
        h_n, c_n = [], []
        for k in range(0, len(self.cells), self.directions):
            sides = []
            for d in range(self.directions):
                y, h, c = self.run(self.cells[k + d], layer, h0[k + d], c0[k + d], reverse=d == 1)
                sides.append(y)
                h_n.append(h)
                c_n.append(c)
            layer = [torch.cat(pair, dim=1) for pair in zip(*sides, strict=True)]
        y = PackedSequence(torch.cat(layer), x.batch_sizes) if packed else torch.stack(layer)
        return y, torch.stack(h_n), torch.stack(c_n)

    def run(self, cell: nn.LSTMCell, x: list[Tensor], h: Tensor, c: Tensor, reverse: bool) -> tuple:
        y = [h] * len(x)
        for t in reversed(range(len(x))) if reverse else range(len(x)):
            n = len(x[t])
            y[t], c_t = cell(x[t], (h[:n], c[:n]))
            h, c = (y[t], c_t) if n == len(h) else (torch.cat([y[t], h[n:]]), torch.cat([c_t, c[n:]]))
        return y, h, c


class SeenOps(TorchDispatchMode):
    """The names of the ops that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op.name())
        return op(*args, **(kwargs or {}))


def packing(case: Case, run: Callable[..., tuple]) -> Forward:
    """PyTorch's way with variable length: `run` gets and gives a PackedSequence; a padded batch is packed and padded again."""

    def forward(x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if case.layout == "dense":
            return run(x, h0, c0)
        if case.layout == "packed":
            y, h_n, c_n = run(PackedSequence(x, batch_sizes(case)), h0, c0)
            return y.data, h_n, c_n
        y, h_n, c_n = run(pack_padded_sequence(x, case.lengths), h0, c0)
        return pad_packed_sequence(y, total_length=case.T)[0], h_n, c_n

    return forward


def batch_sizes(case: Case) -> Tensor:
    return (torch.arange(case.T)[:, None] < case.lengths).sum(1)


def step(work: Work, forward: Forward, module: nn.Module) -> Callable[[], list[Tensor]]:
    """One training step without the optimizer, or one inference."""
    if work.mode == "infer":
        module.eval()

        def infer() -> list[Tensor]:
            with torch.no_grad():
                return list(forward(work.x, work.h0, work.c0))

        return infer

    wanted = [tensor.requires_grad_() for tensor in (work.x, work.h0, work.c0)] + list(module.parameters())

    def train() -> list[Tensor]:
        y, h_n, c_n = forward(work.x, work.h0, work.c0)
        return [y.detach(), h_n.detach(), c_n.detach(), *torch.autograd.grad(y, wanted, work.dy)]

    return train
