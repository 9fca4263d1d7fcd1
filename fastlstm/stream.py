"""Inference by steps or chunks: a module that was packed once, and its state."""

from typing import Any

import torch
from torch import Tensor, nn

from fastlstm import backends, checks
from fastlstm.kernels.variant import PARAMETERS, Variant
from fastlstm.modules.base import Recurrent


class Stream:
    """A module of the recurrent family run by steps or chunks, with its state kept: for audio, control, robots.

    module: an `LSTM`, `GRU`, `PeepholeLSTM` or `CIFGLSTM` on the CPU, of any number of layers in one direction, in float32,
        float64, bfloat16 or float16.
    batch_size: B, how many sequences run side by side.

    Sizes: B batch, I input, H hidden, P projection, R = P or H, L layers, T time.

    **Weights are packed once, when the stream is made: a snapshot.** What changes in the module afterwards (training,
    `load_state_dict`, `.to`) changes nothing here until `refresh()`. So a step does little but its products, and allocates
    nothing but its result.

    **The bits are those of the module's call on the whole sequence**, `module(x)[0]`, however it is cut into steps and chunks,
    and for any number of threads. (But a sequence of one step: the module's call with T = 1 does not pack its weights for up to
    8 rows without a projection, 2 in bfloat16, and sums in another order: the last bits differ, by about 1e-7 in float32. And
    less precise float32, by `backends.set_float32_precision`, is for 64 rows there, but 16 here.)

    It begins with zero states. It is for inference: results have no gradient, there is no dropout, and autocast does not act.
    One thread may use a stream at a time, which does not hold Python's lock while it computes; streams of one module are
    independent. It can't be pickled or copied.

    Raises TypeError for another kind of module, or one whose class has a `forward` of its own; ValueError for two directions,
    hooks, dropout in training, or a batch_size below 1; RuntimeError where the CPU kernels can't run it.

    >>> lstm = fastlstm.LSTM(10, 20).eval()
    >>> stream = Stream(lstm)
    >>> x = torch.randn(50, 1, 10)
    >>> y = torch.stack([stream.step(x[t]) for t in range(50)])
    >>> torch.equal(y, lstm(x)[0])
    True
    """

    def __init__(self, module: nn.RNNBase, batch_size: int = 1) -> None:
        self.batch_size = checks.positive("batch_size", batch_size)
        self.module = module
        weights, self._R = _weights(module)
        variant: Variant = module.variant
        w_ih = weights[0]["w_ih"]
        self._dtype, self._like = w_ih.dtype, w_ih.new_empty(0)
        self._step_x = torch.Size((batch_size, module.input_size))
        with torch.inference_mode(False):  # states are written outside of it, too
            self._step_y = torch.empty(batch_size, self._R, dtype=self._dtype, device="cpu")  # what results are like
            self._states = tuple(
                torch.zeros(len(weights), batch_size, width, dtype=self._dtype, device="cpu")
                for width in variant.widths(module.hidden_size, self._R)
            )
        self._packed = backends.make_stream(
            variant=variant.name, dtype=str(self._dtype).removeprefix("torch."), layers=len(weights), B=batch_size,
            I=module.input_size, H=module.hidden_size, P=self._R if "w_hr" in weights[0] else 0,
            h=self._states[0].data_ptr(), c=self._states[-1].data_ptr(),
        )  # fmt: skip
        self._sizes = _shapes(weights)
        self._pack(weights)
        self.reset()

    def step(self, x: Tensor) -> Tensor:
        """The output of the next step, (B, R), from its input `x` (B, I), of the module's dtype."""
        # what is right passes these, and what is not is told apart below
        fits = (
            isinstance(x, Tensor)
            and x.shape == self._step_x
            and x.dtype is self._dtype
            and x.is_cpu
            and x.is_contiguous()
        )
        row = self._step_x[1]
        if not fits or x.requires_grad or x.is_neg():
            x = checks.check_steps_of_stream(x, self._step_x, "(B, I)", self._like)
            row = x.stride(0)
        y = torch.empty_like(self._step_y)
        self._packed.run(x.data_ptr(), y.data_ptr(), 1, 0, row)
        return y

    def run(self, x: Tensor) -> Tensor:
        """The outputs (T, B, R) of the next T steps, from `x` (T, B, I); both (B, T, ...) where the module is `batch_first`.

        T may differ from call to call, and be 0.
        """
        B, I = self._step_x
        batch_first = self.module.batch_first
        shape, sizes = ((B, -1, I), "(B, T, I)") if batch_first else ((-1, B, I), "(T, B, I)")
        x = checks.check_steps_of_stream(x, shape, sizes, self._like)
        x = x.transpose(0, 1) if batch_first else x
        y = torch.empty(len(x), *self._step_y.shape, dtype=self._dtype, device="cpu")
        self._packed.run(x.data_ptr(), y.data_ptr(), len(x), x.stride(0), x.stride(1))
        return y.transpose(0, 1) if batch_first else y

    def reset(self, rows: Any = None) -> None:
        """Begin anew, with zero states: all sequences, or those of `rows`, a bool Tensor (B,) or integers from 0 to B - 1."""
        which = checks.check_rows(rows, self.batch_size)
        with torch.no_grad():
            for s in self._states:
                s[:, which] = 0
        self._load(which)

    @property
    def state(self) -> Any:
        """The state after the last step, as the module's `hx`: (h, c), or h of a GRU; h is (L, B, R), c (L, B, H). A copy.

        It may be set. In bfloat16 and float16, cells (and a GRU's h) are kept in float32 from step to step, and rounded here.
        """
        states = tuple(s.clone() for s in self._states)
        return states if len(states) > 1 else states[0]

    @state.setter
    def state(self, hx: Any) -> None:
        checks.check_hx(self.module.variant, hx)
        given = hx if len(self._states) > 1 else (hx,)
        checks.check_states(given, self._like, True, [tuple(s.shape) for s in self._states])
        with torch.no_grad():
            for s, new in zip(self._states, given, strict=True):
                s.copy_(new)
        self._load(range(self.batch_size))

    def refresh(self) -> None:
        """Take the module's weights as they are now; the state stays.

        Raises ValueError where their sizes or dtype have changed, and what the constructor raises.
        """
        weights, _ = _weights(self.module)
        if _shapes(weights) != self._sizes or weights[0]["w_ih"].dtype is not self._dtype:
            raise ValueError(
                "module's weights have other sizes or another dtype than when the stream was made: make another"
            )
        self._pack(weights)

    def _pack(self, weights: list[dict[str, Tensor]]) -> None:
        dense = [{name: w.detach().contiguous() for name, w in layer.items()} for layer in weights]
        self._packed.pack([[layer[name].data_ptr() if name in layer else 0 for name in PARAMETERS] for layer in dense])

    def _load(self, rows: Any) -> None:
        for b in rows:
            self._packed.load(b)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Stream can't be pickled or copied: it holds packed weights; make one of the module instead, and set its state"
        )

    def __repr__(self) -> str:
        return f"fastlstm.Stream({self.module!r}, batch_size={self.batch_size})"


def _weights(module: Any) -> tuple[list[dict[str, Tensor]], int]:
    """The weights of each layer by their names, and R, of a module that a stream can run."""
    _check_kind(module)
    if module.bidirectional:
        raise ValueError(
            "module has two directions, expected one: the second begins at an end that a stream has not reached"
        )
    if module.training and module.dropout:
        raise ValueError(
            f"module is in training, with dropout {module.dropout}, and a stream does none: call module.eval() first"
        )
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(
            "module has forward hooks, which a stream would not run: remove them, or use torch.nn.utils.parametrizations"
        )
    weights = module.all_weights
    device, dtype = weights[0][0].device, weights[0][0].dtype
    choice = backends.explain(module.variant, device.type, dtype, module.backend, True)
    if choice.backend != "numba" or device.type != "cpu":
        reason = choice.reason if choice.backend != "numba" else f"its weights are on {device}"
        raise RuntimeError(f"a stream is run by the CPU kernels, and they can't run this module: {reason}")
    none = torch.empty(0, module.input_size, dtype=dtype, device="cpu")
    _, R, named = checks.check_weights(module.variant, weights, 1, none)
    return named, R


def _check_kind(module: Any) -> None:
    if isinstance(module, Recurrent):
        of = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
        if of.__module__.startswith("fastlstm."):
            return
        raise TypeError(
            f"module is a {type(module).__name__}, whose own forward a stream would not run: give it the module within"
        )
    remedy = "fastlstm.convert(module) makes it ours" if isinstance(module, (nn.LSTM, nn.GRU)) else "it runs no other"
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    raise TypeError(f"module is a {kind}, expected a fastlstm.LSTM, GRU, PeepholeLSTM or CIFGLSTM: {remedy}")


def _shapes(weights: list[dict[str, Tensor]]) -> list[dict[str, tuple[int, ...]]]:
    return [{name: tuple(w.shape) for name, w in layer.items()} for layer in weights]
