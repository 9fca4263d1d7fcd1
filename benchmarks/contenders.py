"""Who is measured: ours and its peers, each on the same weights and the same batch."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from fastlstm import backends
from fastlstm.benchmarks.attention_loops import AttentionLoop, JoeyDecoder, LSTMThenAttention
from fastlstm.benchmarks.conv_loops import ConvLoop, KerasLayers
from fastlstm.benchmarks.loops import CellLoop, Cutting
from fastlstm.benchmarks.rollouts import Rollouts
from fastlstm.benchmarks.work import (
    Contender,
    Forward,
    Work,
    as_hx,
    as_tuple,
    forward_of_ours,
    make_work,
    module_of,
    packing,
    refuse,
    step,
    streaming,
)
from fastlstm.case import AttentionCase, Case, ConvCase
from fastlstm.kernels.conv_lstm import CONV_LSTM
from fastlstm.kernels.lstm import LSTM
from fastlstm.parity.impl import is_module, load, told

AsOurs = ConvLoop | KerasLayers | AttentionLoop | JoeyDecoder | LSTMThenAttention


def contender(name: str, work: Work) -> Contender:
    """The contender of that name, ready to run. Raises NotImplementedError, with the reason, where it can't do the work."""
    return CONTENDERS[name](work) if name in CONTENDERS else somebodys(name, work)


def ours(work: Work) -> Contender:
    module = module_of(work)
    forward = streaming(work.case, module) if work.case.layout == "stream" else forward_of_ours(work, module)
    return Contender(work, step(work, forward, module))


def at_once(of: Callable[[Work], Contender]) -> Callable[[Work], Contender]:
    """Two Python threads, each of which does the work: in the time of one where they scale, of two where they wait in turn."""

    def both(work: Work) -> Contender:
        pool, pair = ThreadPoolExecutor(2), [of(work), of(work)]

        def run() -> list[Tensor]:
            results, _ = pool.map(lambda one: one.step(), pair)
            return results

        return Contender(work, run, pair[0].path)

    return both


def somebodys(name: str, work: Work) -> Contender:
    """An implementation, "package.module:name", as `fastlstm parity --impl` takes it."""
    impl, order = load(name), [key for key, _ in work.module.named_parameters()]
    try:
        if is_module(impl):
            args, options = work.case.arguments
            module = impl(*args, **options).to(work.x.device, work.dtype)
            module.load_state_dict(work.module.state_dict())
            call = module
        else:
            module = module_of(work, backend="reference")
            call = impl(module)
        names = [key for key, _ in module.named_parameters()]
        run = step(
            work,
            forward_of_ours(work, call),
            module,
            lambda gradients: [dict(zip(names, gradients, strict=True))[key] for key in order],
        )
        run()
    except Exception as error:
        raise NotImplementedError(f"it refuses: {told(error)}") from error
    return Contender(work, run)


def reference(work: Work) -> Contender:
    """The oracle."""
    module = module_of(work, backend="reference")
    return Contender(work, step(work, forward_of_ours(work, module), module))


def dense(work: Work) -> Contender:
    """Ours on a dense batch of as many sequences and, to within one step each, as many valid steps."""
    case = work.case
    if not case.lengths:
        raise NotImplementedError("the case is dense itself")
    equal = dataclasses.replace(case, layout="dense", lengths=(), T=round(case.rows / case.B))
    return ours(make_work(equal, str(work.x.device)))


def our_lstm(work: Work) -> Contender:
    """Our own LSTM, or ConvLSTM, of the same size: what peepholes or an attention cost, and what a gate fewer saves."""
    case, plain = work.case, CONV_LSTM if isinstance(work.case, ConvCase) else LSTM
    if work.variant == plain:
        raise NotImplementedError("it is the LSTM itself")
    if isinstance(case, AttentionCase):
        shared = {field.name: getattr(case, field.name) for field in dataclasses.fields(Case)}
        case = Case(**shared | {"layout": "dense", "variant": plain.name})
    return ours(make_work(dataclasses.replace(case, variant=plain.name), str(work.x.device)))


def checkpointed(work: Work) -> Contender:
    """Ours with gates computed anew in the backward: what the memory that it saves costs."""
    if not isinstance(work.case, ConvCase):
        raise NotImplementedError("only ConvLSTMs have checkpoint=True")
    module = module_of(work, checkpoint=True)
    return Contender(work, step(work, forward_of_ours(work, module), module))


def our_fp32(work: Work) -> Contender:
    """Ours in float32: what half precision brings."""
    if work.dtype == torch.float32:
        raise NotImplementedError("the work is in float32 itself")
    return ours(work.to(torch.float32))


def our_high(work: Work) -> Contender:
    """Ours in float32 by products of 16 bits of each factor."""
    if work.dtype != torch.float32:
        raise NotImplementedError(f"the work is in {work.dtype}, and it is about float32")
    if backends.gemm_path() != "avx512+amx":
        raise NotImplementedError("this CPU has nothing that takes such products faster")
    one = ours(work)

    def run() -> list[Tensor]:
        before = backends.float32_precision()
        backends.set_float32_precision("high")
        try:
            return one.step()
        finally:
            backends.set_float32_precision(before)

    return Contender(work, run)


def torch_module(work: Work) -> Contender:
    """PyTorch's own module; for a variant that it lacks, its LSTM of the same size, which its users would fall back to."""
    case = work.case
    if isinstance(case, ConvCase):
        raise NotImplementedError("PyTorch has no ConvLSTM")
    if isinstance(case, AttentionCase):
        raise NotImplementedError("PyTorch has no decoder with attention")
    if work.reset is not None:
        raise NotImplementedError("PyTorch knows no resets")
    name = work.variant.counterpart or "LSTM"
    options = {"dtype": work.dtype, "device": work.x.device}
    if case.layout == "cell":
        module: nn.Module = getattr(nn, f"{name}Cell")(case.I, case.H, bias=case.bias, **options)
    else:
        module = getattr(nn, name)(case.I, case.H, **case.options, **options)
    if work.variant.counterpart:
        module.load_state_dict(work.module.state_dict())

    def forward(x: PackedSequence | Tensor, *states: Tensor) -> tuple:
        if case.layout == "stream":
            y, hx = [], as_hx(states)
            for row in x.split(1):
                output, hx = module(row, hx)
                y.append(output)
            return torch.cat(y), *as_tuple(hx)
        results = module(x, as_hx(states))
        if case.layout == "cell":
            return as_tuple(results)
        return results[0], *as_tuple(results[1])

    run = step(work, packing(case, forward), module)
    with SeenOps() as seen, warnings.catch_warnings():
        # It warns, once, that oneDNN knows no projection; the path says so.
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        run()
    path = "oneDNN" if any("mkldnn_rnn" in op for op in seen.names) else "op chain"
    return Contender(work, run, "cuDNN" if any("cudnn_rnn" in op for op in seen.names) else path)


def cutting(work: Work) -> Contender:
    if work.reset is None:
        raise NotImplementedError("there is nothing to cut")
    if not work.variant.counterpart:
        raise NotImplementedError("PyTorch has no such module to run between cuts")
    kind = getattr(nn, work.variant.counterpart)
    module = kind(work.case.I, work.case.H, **work.case.options, dtype=work.dtype, device=work.x.device)
    module.load_state_dict(work.module.state_dict())
    cut = Cutting(work, module)
    return Contender(work, step(work, from_zeros(work, cut), cut))


def torchrl_rollouts(work: Work) -> Contender:
    module = Rollouts(work)
    return Contender(work, step(work, module, module), "Triton")


def cell_loop(work: Work) -> Contender:
    if isinstance(work.case, ConvCase):
        return as_module(work, ConvLoop(work))
    if isinstance(work.case, AttentionCase):
        return as_module(work, AttentionLoop(work, work.case))
    loop = CellLoop(work)
    return Contender(work, step(work, from_zeros(work, packing(work.case, loop)), loop))


def channels_last_loop(work: Work) -> Contender:
    if not isinstance(work.case, ConvCase):
        raise NotImplementedError("its frames are no images")
    return as_module(work, ConvLoop(work, channels_last=True))


def keras_layers(work: Work) -> Contender:
    if not isinstance(work.case, ConvCase):
        raise NotImplementedError("Keras is measured with ConvLSTMs only")
    return as_module(work, KerasLayers(work))


def joeynmt(work: Work) -> Contender:
    if not isinstance(work.case, AttentionCase):
        raise NotImplementedError("JoeyNMT is a decoder with attention")
    return as_module(work, JoeyDecoder(work, work.case))


def attending_at_once(work: Work) -> Contender:
    if not isinstance(work.case, AttentionCase):
        raise NotImplementedError("there is nothing to attend to")
    return as_module(work, LSTMThenAttention(work, work.case))


def as_module(work: Work, module: AsOurs) -> Contender:
    return Contender(work, step(work, from_zeros(work, module), module, module.as_ours))


def from_zeros(work: Work, forward: Callable[..., tuple]) -> Forward:
    """Zeros for those who must be given states, where the case gives none."""
    return lambda *inputs: forward(*inputs, *work.zeros)


def compiled_loop(work: Work) -> Contender:
    if isinstance(work.case, (ConvCase, AttentionCase)):
        other = ConvLoop(work) if isinstance(work.case, ConvCase) else AttentionLoop(work, work.case)
        run = step(work, from_zeros(work, torch.compile(other)), other, other.as_ours)
    else:
        loop = CellLoop(work)
        run = step(work, from_zeros(work, packing(work.case, torch.compile(loop))), loop)
    start = time.perf_counter()
    run()
    return Contender(work, run, compile_s=time.perf_counter() - start)


def compiled_ours(work: Work) -> Contender:
    """Ours under `torch.compile`: its compile time beside that of a loop."""
    module = module_of(work)
    run = step(work, torch.compile(forward_of_ours(work, module), dynamic=True), module)
    start = time.perf_counter()
    run()
    return Contender(work, run, compile_s=time.perf_counter() - start)


def onnx_runtime(work: Work) -> Contender:
    case = work.case
    if work.mode == "train":
        raise NotImplementedError("ONNX Runtime is measured in inference only")
    if work.dtype != torch.float32 or work.x.device.type != "cpu":
        raise NotImplementedError("ONNX Runtime is measured in float32 on the CPU")
    if isinstance(case, ConvCase):
        raise NotImplementedError("ONNX has no ConvLSTM")
    if isinstance(case, AttentionCase):
        raise NotImplementedError("ONNX has no decoder with attention")
    refuse(case, "our export of one", ("bias",))
    if case.P or case.resets or case.layout in ("packed", "cell"):
        raise NotImplementedError("ONNX knows no projection, no resets, no packed input and no cells")
    try:
        import onnxruntime

        from fastlstm.onnx import recurrent_model

        weights = dict(work.module.named_parameters())
        model = recurrent_model(work.variant.name, weights, case.layers, case.directions)
    except ImportError as error:
        raise NotImplementedError(f"{error.name} is not installed") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise spin on into the time of the others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    one = numpy.ones(case.B, dtype=numpy.int32)
    lengths = torch.tensor(case.lengths or [case.T] * case.B, dtype=torch.int32)
    feeds = {"x": work.x, "lengths": lengths} | dict(zip(("h0", "c0"), work.states + work.zeros, strict=False))
    arrays = {name: tensor.numpy() for name, tensor in feeds.items()}

    def run() -> list[Any]:
        if case.layout != "stream":
            return session.run(None, arrays)
        y, given = [], {name: array for name, array in arrays.items() if name != "lengths"}
        for row in arrays["x"]:
            output, *finals = session.run(None, given | {"x": row[None], "lengths": one})
            given |= dict(zip(("h0", "c0"), finals, strict=False))
            y.append(output)
        return [numpy.concatenate(y), *finals]

    return Contender(work, lambda: [torch.from_numpy(array) for array in run()])


CONTENDERS = {
    "ours": ours,
    "reference": reference,
    "torch": torch_module,
    "cell": cell_loop,
    "channels-last": channels_last_loop,
    "keras": keras_layers,
    "joeynmt": joeynmt,
    "sdpa": attending_at_once,
    "checkpoint": checkpointed,
    "compile": compiled_loop,
    "compile-ours": compiled_ours,
    "onnx": onnx_runtime,
    "dense": dense,
    "lstm": our_lstm,
    "cut": cutting,
    "torchrl": torchrl_rollouts,
    "fp32": our_fp32,
    "high": our_high,
    "at-once": at_once(ours),
    "torch-at-once": at_once(torch_module),
}
# They do other work than ours: there is nothing to compare their results with
OTHER_WORK = ("dense", "lstm", "fp32", "high", "at-once", "torch-at-once")


class SeenOps(TorchDispatchMode):
    """The names of the ops that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op.name())
        return op(*args, **(kwargs or {}))
