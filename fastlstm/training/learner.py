"""One model in training: its optimizer, the state it carries from step to step, and its curves."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastlstm.training import processes
from fastlstm.training.errors import TrainingFailed
from fastlstm.training.model import CharModel, State


class Learner:
    """`losses` (nats) and `seconds` have one entry per step, `heldout` one `(step, loss)` per evaluation.

    Of several processes each sees its own share of the streams, and `state` is that of its share. Weights, losses and what
    `tensors` gives are those of all, and the same in all.
    """

    def __init__(self, name: str, model: CharModel) -> None:
        self.name = name
        self.model = model
        self.replica: nn.Module = model
        self.optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
        self.state: State | None = None
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.heldout: list[tuple[int, float]] = []

    @contextmanager
    def replicated(self) -> Iterator[None]:
        """Steps taken inside are taken by all processes together."""
        self.replica = processes.replicated(self.model)
        try:
            yield
        finally:
            self.replica = self.model

    def step(self, inputs: Tensor, targets: Tensor, fresh: bool, lr: float, clip: float) -> None:
        """One update from `(T, B)` characters; the state before them is carried over, unless `fresh`."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        self.optimizer.zero_grad()
        logits, state = self.replica(inputs, None if fresh else self.state)
        loss = cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.state = tuple(s.detach() for s in state)
        value = processes.summed(loss.item())[0] / processes.count()
        self.seconds.append(time.perf_counter() - began)
        if not value < float("inf"):
            raise TrainingFailed(f"the loss is {value} at step {len(self.losses) + 1}: try a lower --lr or --clip")
        self.losses.append(value)

    @torch.no_grad()
    def evaluate(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        """Appends the mean loss over held-out text, read from a zero state."""
        self.model.eval()
        state, total = None, 0.0
        for inputs, targets in batches:
            # so few streams that this process has none of them
            if not inputs.numel():
                continue
            logits, state = self.model(inputs, state)
            total += cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum").item()
        total, characters = processes.summed(total, sum(targets.numel() for _, targets in batches))
        self.heldout.append((len(self.losses), total / characters))

    def curves(self) -> dict[str, Any]:
        return {"losses": self.losses, "seconds": self.seconds, "heldout": self.heldout}

    def load_curves(self, curves: dict[str, Any]) -> None:
        self.losses, self.seconds = list(curves["losses"]), list(curves["seconds"])
        self.heldout = [(step, loss) for step, loss in curves["heldout"]]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name. No random state: batches depend on seed and step only.

        Processes call it together.
        """
        found = {f"model.{name}": p for name, p in self.model.state_dict().items()}
        for name, p in self.model.named_parameters():
            found |= {f"optimizer.{name}.{key}": value for key, value in self.optimizer.state[p].items()}
        found |= {f"state.{k}": processes.gathered(s) for k, s in enumerate(self.state or ())}
        return {f"{self.name}.{key}": value.detach().to("cpu", copy=True).contiguous() for key, value in found.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`, from a dictionary that may hold other learners' too."""
        device = self.model.head.weight.device

        def under(prefix: str) -> dict[str, Tensor]:
            prefix = f"{self.name}.{prefix}."
            # Fresh memory: a view into a file's buffer may be aligned otherwise, which can change the bits of a GEMM.
            return {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(under("model"))
        states = {k: under(f"optimizer.{name}") for k, (name, _) in enumerate(self.model.named_parameters())}
        self.optimizer.load_state_dict(
            {
                "state": {k: s for k, s in states.items() if s},
                "param_groups": self.optimizer.state_dict()["param_groups"],
            }
        )
        carried = [s for _, s in sorted(under("state").items())]
        self.state = tuple(processes.mine(s).contiguous().to(device) for s in carried) or None
