"""What an Attention LSTM is run on: input, memory, lengths of the memory, and states."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm.checks.input import check_strided, lengths_tensor, numbers
from fastlstm.checks.states import check_state_fits
from fastlstm.checks.weights import check_alike


def check_dense(name: str, t: Any) -> None:
    more = "lengths=" if name == "input" else "memory_lengths="
    if isinstance(t, PackedSequence):
        raise TypeError(f"{name} is a PackedSequence, expected a Tensor: pad it, and pass {more}")
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} is of type {type(t).__name__}, expected a Tensor")
    check_strided(name, t, "it is read as dense rows", more)


def check_decoder_input(x: Tensor, w: Tensor, I: int, step: bool = False) -> None:
    """`x` is the input, of a step if `step`; `w` any weight."""
    dims = (1, 2) if step else (2, 3)
    if x.dim() not in dims:
        raise ValueError(f"AttentionLSTM: Expected input to be {dims[0]}D or {dims[1]}D, got {x.dim()}D instead")
    check_alike(x, w)
    if x.shape[-1] != I:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {I}, got {x.shape[-1]}")


def check_memory(memory: Tensor, w: Tensor, M: int, batch_first: bool) -> None:
    """`w` is any weight."""
    leading = "batch, slots" if batch_first else "slots, batch"
    if memory.dim() not in (2, 3):
        raise ValueError(
            f"memory has {memory.dim()} dimensions, expected 3: ({leading}, memory_size), or 2 where unbatched"
        )
    if memory.dtype != w.dtype or memory.device != w.device:
        raise ValueError(
            f"memory is {memory.dtype} on {memory.device}, expected {w.dtype} on {w.device}: those of the weights"
        )
    if memory.shape[-1] != M:
        raise RuntimeError(
            f"memory has {memory.shape[-1]} features in its shape {tuple(memory.shape)}, expected {M}: memory_size"
        )
    if memory.shape[1 if batch_first and memory.dim() == 3 else 0] == 0:
        raise RuntimeError(
            f"memory has no slots in its shape {tuple(memory.shape)}, expected at least 1; "
            "memory_lengths tells of empty memories"
        )


def check_memory_fits(memory: Tensor, rows: int, x: Tensor, batch: int) -> None:
    """`memory`, of `rows` sequences, and `x`, of `batch`, are both batched or not, and of as many."""
    if memory.dim() != x.dim():
        raise ValueError(
            f"memory has shape {tuple(memory.shape)} and input {tuple(x.shape)}, expected both to be batched, or neither"
        )
    check_memory_batch(rows, batch)


def check_memory_batch(rows: int, batch: int) -> None:
    if rows != batch:
        raise RuntimeError(f"memory is of {rows} sequences, expected {batch}: the batch of input")


def check_memory_lengths(lengths: Any, S: int, B: int, batched: bool) -> Tensor:
    """`lengths` (B,) as an int64 tensor on the CPU."""
    lengths = lengths_tensor("memory_lengths", lengths, "slots")
    if lengths.shape != (B,) and (batched or lengths.shape != ()):
        raise ValueError(
            f"memory_lengths has shape {tuple(lengths.shape)}, expected {(B,)}: one length for each sequence of the batch"
        )
    if B and (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool):
        raise TypeError(f"memory_lengths has dtype {lengths.dtype}, expected integers: each is a number of slots")
    lengths = lengths.to("cpu", torch.int64).reshape(B)
    if not torch.compiler.is_compiling():
        for n in numbers(lengths):
            if not 0 <= n <= S:
                raise ValueError(f"memory_lengths holds {n}, expected values from 0 to {S}: the slots of memory")
    return lengths


def check_decoder_hx(hx: Any, feed: str | None) -> None:
    """A pair (h0, c0), or a state, whose third is what is fed; `check_decoder_states` looks at what they are."""
    if not isinstance(hx, (tuple, list)) or len(hx) not in (2, 3):
        got = f"of length {len(hx)}" if isinstance(hx, (tuple, list)) else f"of type {type(hx).__name__}"
        raise RuntimeError(f"hx is {got}, expected a state (h, c, fed) or a pair (h0, c0)")
    for k, s in enumerate(hx):
        if not isinstance(s, Tensor) and (k < 2 or s is not None):
            raise TypeError(f"hx[{k}] is of type {type(s).__name__}, expected a Tensor: hx is (h, c, fed) or (h0, c0)")
        if s is not None and s.layout is not torch.strided:
            raise RuntimeError(f"hx[{k}] has layout {s.layout}, expected torch.strided: it is read as dense rows")
    if feed is None and len(hx) == 3 and hx[2] is not None:
        raise ValueError("fed is given, expected None where feed is None: nothing is fed")


def check_decoder_states(
    states: Sequence[Tensor | None], x: Tensor, batched: bool, L: int, B: int, H: int, F: int
) -> None:
    """`(h0, c0, fed0)`, or some of them None: (L, B, H) twice, and (B, F); without B where `batched` is False."""
    batch = (B,) if batched else ()
    for name, s, shape in zip(("h", "c", "fed"), states, ((L, *batch, H), (L, *batch, H), (*batch, F)), strict=True):
        if s is None:
            continue
        if s.shape != shape:
            what = "what is fed" if name == "fed" else "layers, hidden size"
            raise RuntimeError(
                f"{name} of hx has shape {tuple(s.shape)}, expected {shape}: {'batch and ' if batched else ''}{what}"
            )
        check_state_fits(s, name, x)


def check_value(name: str, value: Any, kind: type, what: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is of type {type(value).__name__}, expected {kind.__name__}: {what}")


def check_precomputed(precomputed: Any, kind: type) -> None:
    """A hand-made one holds what `precompute` gives. (The ops look at the values of lengths.)"""
    check_value("precomputed", precomputed, kind, "what precompute returns")
    memory, keys, lengths = precomputed
    check_dense("memory of precomputed", memory)
    if keys is not None:
        check_dense("keys of precomputed", keys)
    if lengths is None:
        return
    name = "memory_lengths of precomputed"
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{name} is of type {type(lengths).__name__}, expected a Tensor or None: call precompute")
    if memory.dim() == 3 and lengths.shape != memory.shape[1:2]:
        raise ValueError(f"{name} has shape {tuple(lengths.shape)}, expected {(memory.shape[1],)}: the memory's batch")
    if lengths.dtype is not torch.int64 or not lengths.is_cpu:
        raise ValueError(f"{name} is {lengths.dtype} on {lengths.device}, expected torch.int64 on cpu: call precompute")


def check_keys(keys: Tensor | None, memory: Tensor, w_key: Tensor | None) -> None:
    """Keys of a memory (S, B, M), projected already, are of the size, dtype and device that `w_key` gives."""
    if w_key is None and keys is None:
        return
    why = "the memory was precomputed with other weights; call this module's precompute"
    if w_key is None or keys is None:
        got, expected = ("None", "a Tensor") if keys is None else ("a Tensor", "None")
        raise ValueError(f"keys of precomputed are {got}, expected {expected}: {why}")
    shape = (*memory.shape[:2], w_key.shape[0])
    if keys.shape != shape or keys.dtype != w_key.dtype or keys.device != w_key.device:
        raise ValueError(
            f"keys of precomputed are {tuple(keys.shape)}, {keys.dtype} on {keys.device}, expected {shape}, "
            f"{w_key.dtype} on {w_key.device}: {why}"
        )
