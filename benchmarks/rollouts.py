"""What TorchRL has for episodes that end inside a batch: its modules over rollouts, by its own Triton kernels."""

from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.benchmarks.work import Work, refuse

NOT_MEASURED = ("bias", "bidirectional", "lengths", "P")


class Rollouts(nn.Module):
    """`LSTMModule` or `GRUModule` of torchrl, where that is installed, as its own benchmark calls it: a TensorDict of whole
    rollouts, batch first, with `is_init` where an episode begins.

    Its kernels are Triton, in Python, so a GPU machine needs a `pip install torchrl` and nothing that is built. `backend` is
    its word for them; it has others for tests without a GPU.
    """

    def __init__(self, work: Work, backend: str = "triton") -> None:
        super().__init__()
        case, kind = work.case, work.variant.counterpart
        refuse(case, "TorchRL's Triton backend", NOT_MEASURED)
        if not kind or case.layout != "dense":
            raise NotImplementedError("TorchRL has LSTMs and GRUs, over rollouts")
        if work.dtype != torch.float32:
            raise NotImplementedError("TorchRL's kernels take float32")
        if backend == "triton" and not work.x.is_cuda:
            raise NotImplementedError("TorchRL's Triton kernels run on GPUs")
        try:
            from tensordict import TensorDict
            from torchrl import modules
        except ImportError as error:
            raise NotImplementedError(f"{error.name} is not installed") from error
        self.TensorDict, self.names = TensorDict, [f"{name}0" for name in work.variant.states]
        self.rollout = getattr(modules, f"{kind}Module")(
            case.I, case.H, case.layers, device=work.x.device, default_recurrent_mode=True,
            in_keys=["x", *self.names], out_keys=["y", *(("next", name) for name in self.names)],
            recurrent_backend=backend,
        )  # fmt: skip
        getattr(self.rollout, kind.lower()).load_state_dict(work.module.state_dict())
        reset = torch.zeros(case.T, case.B, dtype=torch.bool) if work.reset is None else work.reset
        self.is_init = reset.to(work.x.device).t().contiguous()
        self.zeros = torch.zeros(case.B, case.T, case.layers, case.H, device=work.x.device)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        # as ours, at each call: loops follow cuDNN's setting for recurrent nets
        rnn: Any = torch.backends.cudnn.rnn
        self.rollout.recurrent_matmul_precision = "tf32" if rnn.fp32_precision == "tf32" else "ieee"
        B, T = self.is_init.shape
        given = dict.fromkeys(self.names, self.zeros)
        for name, state in zip(self.names, states, strict=False):  # to it, a reset goes back to the state of that step
            first = state.transpose(0, 1) * ~self.is_init[:, 0, None, None]
            given[name] = torch.cat([first[:, None], self.zeros[:, 1:]], dim=1)
        data = self.TensorDict({"x": x.transpose(0, 1), "is_init": self.is_init[:, :, None], **given}, [B, T])
        out = self.rollout(data)
        return out["y"].transpose(0, 1), *(out["next", name][:, -1].transpose(0, 1) for name in self.names)
