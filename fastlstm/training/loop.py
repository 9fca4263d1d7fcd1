"""The loop over steps: learners take turns, block by block, so that a noisy machine is equally unfair to both."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import torch

from fastlstm.training import processes
from fastlstm.training.learner import Learner
from fastlstm.training.options import Options
from fastlstm.training.run import Run
from fastlstm.training.text import heldout_batches, training_batch

BLOCK = 10
EVALUATIONS = 20


def train_steps(run: Run, stop: threading.Event, on_step: Callable[[Learner], None]) -> None:
    """Trains to the last step, or to the end of the block in which `stop` is set; saves on the way and at the end.

    Of several processes each trains on its own streams; `stop` of any of them stops them all.
    """
    options, data = run.options, run.corpus.train
    save_every = options.save_every
    device = torch.device(options.device)

    def put(x: torch.Tensor) -> torch.Tensor:
        return processes.mine(x).to(device)

    heldout = [(put(x), put(y)) for x, y in heldout_batches(run.corpus.heldout, options.batch, options.length)]
    evaluate_every = math.ceil(options.steps / EVALUATIONS)
    # From here on a killed run can be resumed.
    if run.step == 0:
        run.save()
    stopping = processes.any_of(stop.is_set())
    with ExitStack() as replicas:
        for learner in run.learners:
            replicas.enter_context(learner.replicated())
        while run.step < options.steps and not stopping:
            first = run.step
            last = min(options.steps, *(first - first % n + n for n in (BLOCK, save_every, evaluate_every)))
            for learner in run.learners:
                for step in range(first, last):
                    x, y, fresh = training_batch(data, options.seed, step, options.batch, options.length)
                    learner.step(put(x), put(y), fresh, learning_rate(options, step), options.clip)
                    on_step(learner)
            ended = last == options.steps
            if last % evaluate_every == 0 or ended:
                for learner in run.learners:
                    learner.evaluate(heldout)
            stopping = processes.any_of(stop.is_set())
            if last % save_every == 0 or ended or stopping:
                run.save()


def learning_rate(options: Options, step: int) -> float:
    """Half a cosine: from `lr` at step 0 towards 0 after the last one."""
    return options.lr * 0.5 * (1 + math.cos(math.pi * step / options.steps))


class Stop(threading.Event):
    """Set by the signal `number`."""

    number = signal.SIGINT


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Set by the first Ctrl-C, and by SIGTERM, as SLURM and Kubernetes send it. A second Ctrl-C interrupts at once.

    A second SIGTERM changes nothing: schedulers and `torchrun` both send it, to the same processes.
    """
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.number = signal.Signals(number)
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
