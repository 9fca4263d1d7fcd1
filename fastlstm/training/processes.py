"""Training in several processes, as `torchrun` starts them: each takes its share of the streams, the first one speaks.

A process that is alone gets everything back as it was given. What `torchrun` says about a process stands in its environment.
"""

import gc
import importlib
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastlstm.training.errors import TrainError, TrainingFailed

T = TypeVar("T")


def count() -> int:
    return int(os.environ["WORLD_SIZE"]) if _from_torchrun() else 1


def rank() -> int:
    return int(os.environ["RANK"]) if _from_torchrun() else 0


def _from_torchrun() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def joined() -> Iterator[None]:
    """Connects the processes for what is done inside. Where one of them ends early, the others raise TrainingFailed."""
    if count() == 1:
        yield
        return
    # its functions keep the group there is when they are imported, whose threads would outlive the interpreter and abort it
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("gloo")
    try:
        yield
    except BaseException as error:
        _clear_frames(error)
        # gloo has no exception of its own
        if not isinstance(error, RuntimeError) or "gloo" not in str(error):
            raise
        raise TrainingFailed("another process of this run has ended") from None
    finally:
        gc.collect()  # replicas in cycles
        dist.destroy_process_group()


def _clear_frames(error: BaseException | None) -> None:
    """So that none of them keeps a replica."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def check(batch: int, device: str) -> None:
    """Raises TrainError where the processes can't share the work."""
    if batch % count():
        raise TrainError(
            f"--batch is {batch}, expected a multiple of {count()}: each of the {count()} processes takes as many streams"
        )
    if count() > 1 and torch.device(device).type != "cpu":
        raise TrainError(f"--device is {device!r}, expected 'cpu': several processes train on the CPU only")


def together(prepare: Callable[[], T]) -> T:
    """What `prepare` returns, once it is done in every process. The first TrainError of any is raised in all of them."""
    if count() == 1:
        return prepare()
    result, failure = None, None
    try:
        result = prepare()
    except TrainError as error:
        failure = (type(error), str(error))
    failures: list[tuple[type[TrainError], str] | None] = [None] * count()
    dist.all_gather_object(failures, failure)
    for found in filter(None, failures):
        kind, message = found
        raise kind(message)
    return result  # type: ignore[return-value]


def replicated(model: nn.Module) -> nn.Module:
    """The model to train by: its backward leaves the mean of all processes' gradients in every one of them.

    It must be gone before the connection is. The last one to let go of it waits for its threads; a replica does that under
    the interpreter's lock, which these threads may want first.
    """
    return model if count() == 1 else DistributedDataParallel(model)


def mine(x: Tensor) -> Tensor:
    """This process's share of the streams, which are dimension 1 of `x`."""
    B = x.shape[1]
    return x[:, B * rank() // count() : B * (rank() + 1) // count()]


def gathered(state: Tensor) -> Tensor:
    """The states (L, B, H) of all streams, from this process's share of them."""
    if count() == 1:
        return state
    shares = [torch.empty_like(state, memory_format=torch.contiguous_format) for _ in range(count())]
    dist.all_gather(shares, state.contiguous())
    return torch.cat(shares, dim=1)


def summed(*numbers: float) -> list[float]:
    """Each number's sum over the processes: the same bits in all of them."""
    if count() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return summed(flag)[0] > 0
