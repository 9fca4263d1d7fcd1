"""The GPU's ops on tensors of the CPU: C++ launches through a double of libcuda, Triton's interpreter runs."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from fake_cuda import FakeCuda, parameters
from torch import Tensor
from triton.runtime import interpreter as of_triton

from fastlstm.gpu import attend as gpu_attend
from fastlstm.gpu import attention_lstm as gpu_attention_lstm
from fastlstm.gpu import conv_lstm as gpu_conv_lstm
from fastlstm.gpu import gru as gpu_gru
from fastlstm.gpu import launch, plan
from fastlstm.gpu import lstm as gpu_lstm
from fastlstm.gpu.loop import forms
from fastlstm.kernels import gpu_compile
from fastlstm.ops import attend as ops_attend
from fastlstm.ops import attention_lstm as ops_attention_lstm
from fastlstm.ops import conv_lstm as ops_conv_lstm
from fastlstm.ops import gru as ops_gru
from fastlstm.ops import lstm as ops_lstm

DTYPES = {"i32": torch.int32, "i64": torch.int64, "u8": torch.uint8, "fp32": torch.float32, "fp64": torch.float64}
FEW, MANY = plan.Gpu(0, 227 * 1024), plan.Gpu(10**6, 227 * 1024)  # processors: none holds all programs, any does
LITTLE = plan.Gpu(0, 0)  # shared memory for no weights


class Interpreter:
    """What a GPU would do: kernels by the symbols they were loaded under, memory by the addresses that launches pass."""

    def __init__(self) -> None:
        self.specs: list[gpu_compile.Spec] = []
        self.tensors: dict[tuple[int, torch.dtype], Tensor] = {}
        self.launched: list[tuple[str, tuple[int, int], bool]] = []

    def image(self, spec: gpu_compile.Spec, target: object) -> gpu_compile.Image:
        self.specs.append(spec)
        return gpu_compile.Image(b"cubin", f"{spec.name}:{len(self.specs) - 1}", shared=0, threads=128)

    def values(self, arguments: list) -> list[int]:
        for argument in arguments:
            if isinstance(argument, Tensor):
                self.tensors[argument.data_ptr(), argument.dtype] = argument
        return launch_values(arguments)

    def launch(self, symbol, grid, threads, shared, stream, params, cooperative) -> None:
        spec = self.specs[int(symbol.split(":")[1])]
        names = gpu_compile.arguments(spec.name)
        slots = zip(names, parameters(params, len(names)), strict=True)
        given = {name: self.argument(spec, name, slot) for name, slot in slots}
        with np.errstate(over="ignore"):  # e^x may be infinite, on a GPU too
            gpu_compile.function(spec.name)[grid](**given, **dict(spec.constants))
        if given.get("barrier") is not None:
            assert not given["barrier"].any(), "a launch left what it counted"
        self.launched.append((spec.name, grid[:2], cooperative))

    def argument(self, spec: gpu_compile.Spec, name: str, slot: int) -> Tensor | int | None:
        if name in gpu_compile.INTEGERS:
            return slot & 0xFFFFFFFF
        if name == "barrier" and slot:  # the launcher's own memory
            count = ctypes.c_int32 * (64 * launch.BARRIER)
            return torch.frombuffer(count.from_address(slot), dtype=torch.int32)
        dtype = DTYPES[gpu_compile.ELEMENTS[name]] if name in gpu_compile.ELEMENTS else spec.dtype
        return self.tensors[slot, dtype] if slot else None


launch_values = launch.values


def forget() -> None:
    """What is known of launches, and of other GPUs than a test's."""
    for known in (launch.loaded, launch.prepared, forms):
        known.cache_clear()


def kept(name: str, function: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """The function of a type, which keeps what it returned: no longer than the patches last, for others pickle types."""

    def call(of: Any) -> Any:
        if (found := of.__dict__.get(name)) is None:
            monkeypatch.setitem(of.__dict__, name, found := function(of))
        return found

    return call


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton's interpreter makes of a type at every operation is made once. Sums of integers are taken as the code that is
    compiled takes them: the interpreter would look whether each fits."""
    builder, known = of_triton.interpreter_builder, {}
    make_tensor, make_block = tl.tensor.__init__, tl.block_type.__init__
    semantic = type(of_triton.interpreter_semantic)
    broadcast = semantic.broadcast_impl_value

    def first(of: tl.dtype) -> dict[str, Any]:
        made = tl.tensor.__new__(tl.tensor)
        make_tensor(made, None, of)
        return made.__dict__

    facts = kept("_facts", first, monkeypatch)

    def tensor(self: tl.tensor, handle: of_triton.TensorHandle, of: tl.dtype) -> None:
        self.__dict__.update(facts(of))
        self.handle = handle

    def block(self: tl.block_type, element: tl.dtype, shape: Sequence) -> None:
        key = element.name, getattr(element, "address_space", None), *[getattr(n, "value", n) for n in shape]
        if key not in known:
            make_block(self, element, shape)
            known[key] = self.__dict__
        self.__dict__ = known[key]

    def of_one_shape(self: Any, one: tl.tensor, other: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
        a, b = one.type, other.type
        if a.is_block() and b.is_block() and a.shape.values == b.shape.values:
            return one, other
        return broadcast(self, one, other)

    monkeypatch.setattr(semantic, "broadcast_impl_value", of_one_shape)
    monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
    monkeypatch.setattr(of_triton, "_get_np_dtype", kept("_np_dtype", of_triton._get_np_dtype, monkeypatch))
    monkeypatch.setattr(tl.tensor, "__init__", tensor)
    monkeypatch.setattr(tl.block_type, "__init__", block)
    monkeypatch.setattr(tl.block_type, "to_ir", lambda self, builder: self)


@contextmanager
def interpreted(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[Interpreter]:
    """Inside, the ops of the CPU are those of the GPU."""
    interpreter = Interpreter()
    fake_cuda.on_launch = interpreter.launch
    fake_cuda.set("multiprocessors", 1000)
    forget()
    monkeypatch.setattr(gpu_compile, "image", interpreter.image)
    monkeypatch.setattr(launch, "values", interpreter.values)
    monkeypatch.setattr(launch, "target", lambda index: None)
    monkeypatch.setattr(launch, "gpu", lambda device: FEW)
    monkeypatch.setattr(launch, "stream_of", lambda device: 7)
    for ops, fwd, bwd in (
        (ops_lstm.OPS, gpu_lstm.lstm_fwd, gpu_lstm.lstm_bwd),
        (ops_gru.OPS, gpu_gru.gru_fwd, gpu_gru.gru_bwd),
        (ops_conv_lstm.OPS, gpu_conv_lstm.conv_lstm_fwd, gpu_conv_lstm.conv_lstm_bwd),
        (ops_attention_lstm.OPS, gpu_attention_lstm.attention_lstm_fwd, gpu_attention_lstm.attention_lstm_bwd),
        (ops_attend.OPS, gpu_attend.attend_fwd, gpu_attend.attend_bwd),
    ):
        monkeypatch.setattr(ops, "fwd", fwd)
        monkeypatch.setattr(ops, "bwd", bwd)
    # Once: Triton itself puts the interpreter into its language at every call of every function, which is half of the time
    language = of_triton._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    monkeypatch.setattr(of_triton, "_patch_lang", lambda fn: of_triton._LangPatchScope())
    quicken(monkeypatch)
    torch.use_deterministic_algorithms(True)  # torch.empty hands out NaN then
    try:
        yield interpreter
    finally:
        language.restore()
        torch.use_deterministic_algorithms(False)
        forget()
