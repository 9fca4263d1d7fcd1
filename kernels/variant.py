"""What a variant is: the one place that says its gates, states and weights."""

from dataclasses import dataclass
from functools import cached_property

# A weight's name in our functions, and in PyTorch's modules, where a layer's suffix follows
PARAMETERS = {
    "w_ih": "weight_ih",
    "w_hh": "weight_hh",
    "b_ih": "bias_ih",
    "b_hh": "bias_hh",
    "w_hr": "weight_hr",
    "w_peephole": "weight_peephole",
}


@dataclass(frozen=True)
class Slots:
    """The pre-activations of a record, on which the CPU's gate kernel works (`cpu.py` describes the rest of it).

    gates: a letter each, of the weights' gate that it is a part of.
    x, h: the first slot and the number of slots that the weights of x and of h feed; where they differ, each feeds its own.
    """

    gates: str
    x: tuple[int, int]
    h: tuple[int, int]


@dataclass(frozen=True)
class Variant:
    """A recurrence as a value, which checks, cells, stacks, export, parity and benchmarks read; nobody takes names apart.

    What it says must be true of the op that runs it and of its reference: those know the variants that are named here.

    Sizes: I input, H hidden, P projection, R = P or H.
    """

    name: str  # on the command line, in results and in messages
    op: str  # the stem of the op pair that runs it: "lstm" for `lstm_fwd` and `lstm_bwd`
    gates: str  # a letter each, in the order of the weights' rows
    states: tuple[str, ...]  # a letter each; h, which is R wide, comes first, and others are H wide
    peepholes: str = ""  # the gates that see the cell, in the order of the rows of w_peephole
    projects: bool = False  # whether there may be a w_hr
    counterpart: str | None = None  # PyTorch's class of the same weights and results
    own_slots: Slots | None = None  # where the weights of x and h don't both feed a slot for each gate
    sees_new: str = "o"  # those of the peepholes that see the new cell; the others see the one before
    promotes: bool = False  # whether results are as wide as the initial state under autocast on a CPU, as nn.GRU's

    def __post_init__(self) -> None:
        # now, not when first asked for: in Python 3.11 that takes a lock, which PyTorch's compiler can't follow
        self.coupled, self.slots  # noqa: B018

    def __hash__(self) -> int:
        # asked for at every call, when a backend is looked up
        return hash(self.name)

    @cached_property
    def coupled(self) -> bool:
        """Whether i stands for f as well, f = 1 - i."""
        return "i" in self.gates and "f" not in self.gates

    @property
    def forget(self) -> tuple[int, int] | None:
        """The gate whose bias lets the cell remember, by its place, and the sign of that: i's, negated, where f = 1 - i."""
        if "f" in self.gates:
            return self.gates.index("f"), 1
        return (self.gates.index("i"), -1) if self.coupled else None

    @cached_property
    def slots(self) -> Slots:
        every = (0, len(self.gates))
        return self.own_slots or Slots(self.gates, every, every)

    def weights(self, I: int, H: int, P: int | None = None, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
        """The shape of each weight of a layer in one direction, in PyTorch's order."""
        rows = len(self.gates) * H
        shapes: dict[str, tuple[int, ...]] = {"w_ih": (rows, I), "w_hh": (rows, H if P is None else P)}
        if bias:
            shapes |= {"b_ih": (rows,), "b_hh": (rows,)}
        if P is not None:
            shapes["w_hr"] = P, H
        if self.peepholes:
            shapes["w_peephole"] = len(self.peepholes), H
        return shapes

    def widths(self, H: int, R: int) -> tuple[int, ...]:
        """How many features each state has."""
        return R, *(H,) * (len(self.states) - 1)
