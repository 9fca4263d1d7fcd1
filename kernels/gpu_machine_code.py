"""The machine code of a persistent kernel for NVIDIA's GPUs, read: whether a step keeps the barrier's order, and what it costs.

A step, in the order of the code: look at the barrier until the others have arrived (acquire), load their rows, multiply,
activate, store one's own row, a fence, arrive. What a step is waited for is the way from the acquire to the arrival.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from fastlstm.kernels.gpu_compile import Spec, Target, compiled, cuobjdump

ACQUIRE, ARRIVE, FENCE = r"CCTL\.IVALL", r"(REDG|ATOMG)\b.*ADD", r"MEMBAR\b.*GPU"
PRODUCT, BARRIER, ACTIVATION = r"\bHMMA|GMMA\.", r"BAR\.SYNC", r"MUFU\."
EXACT = r"\bFFMA\b"  # a product in float32, or a part of an activation: its place says nothing
STORE, LOAD = r"\bSTG\b", r"\b(LDG|LDGSTS)\b"
PAST_THE_CACHE = r"STRONG\.GPU|BYPASS"  # of the first level


class Step(NamedTuple):
    """What a step is waited for: loads of rows that wait for each other and matrix instructions that do (of one block of
    features, where these are streamed), barriers of the block after the last of these, and transcendental instructions before
    the acquire and after it.

    Exact products in float32 are multiply-adds, and barriers after them those after the last load."""

    trips: int
    chain: int
    barriers: int
    early: int
    late: int


class Code(NamedTuple):
    """The instructions of a kernel, and of one step of it the places: `acquired`, `multiplied` (the last product, or of exact
    ones the last load), `arrived`, `end`."""

    instructions: list[str]
    acquired: int
    multiplied: int
    arrived: int
    end: int

    def places(self, pattern: str, first: int, last: int) -> list[int]:
        return [k for k in range(first, last) if re.search(pattern, self.instructions[k])]


def step_of(spec: Spec, target: Target) -> Step:
    return cost(disassembled(spec, target))


def disassembled(spec: Spec, target: Target) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled(spec, target).asm["cubin"])
        command = [cuobjdump(), "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return parsed(text, exact=dict(spec.constants)["PRECISION"] == "ieee")


def parsed(text: str, *, exact: bool = False) -> Code:
    """Raises ValueError where the code has no such step."""
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.MULTILINE)
    addresses, instructions = [int(address, 16) for address, _ in lines], [line for _, line in lines]

    def first(pattern: str, after: int) -> int:
        for k in range(after, len(instructions)):
            if re.search(pattern, instructions[k]):
                return k
        raise ValueError(f"there is no {pattern} behind instruction {after} of {len(instructions)}")

    acquired = first(ACQUIRE, 0)
    arrived, product = first(ARRIVE, first(EXACT if exact else PRODUCT, acquired)), LOAD if exact else PRODUCT
    multiplied = max(k for k in range(acquired, arrived) if re.search(product, instructions[k]))
    end = arrived
    while not (
        (jump := re.search(r"BRA 0x([0-9a-f]+)", instructions[end])) and int(jump[1], 16) <= addresses[acquired]
    ):
        end = first(r"\bBRA\b", end + 1)
    return Code(instructions, acquired, multiplied, arrived, end)


def cost(code: Code) -> Step:
    chains: dict[str, int] = {}
    products = code.places(PRODUCT, code.acquired, code.arrived) or code.places(EXACT, code.acquired, code.arrived)
    for k in products:
        # the registers that are written and those that are added to; the asynchronous instructions have one accumulator
        found = re.match(r".*\b(?:HMMA|FFMA)\S* (\S+), .*, (\S+)$", code.instructions[k].strip())
        to, added = (found[1], found[2]) if found else ("", "")
        chains[to] = chains.get(added.removesuffix(".reuse"), 0) + 1
    return Step(
        trips(code),
        max(chains.values()),
        len(code.places(BARRIER, code.multiplied, code.arrived)),
        len(code.places(ACTIVATION, 0, code.acquired)),
        len(code.places(ACTIVATION, code.acquired, code.arrived)),
    )


def trips(code: Code) -> int:
    """Of the loads behind the acquire: one more wherever a load comes after a use of what those before it bring. Copies to
    shared memory that pass no register wait for nothing, and take one."""
    count, coming, awaited = 0, set[int](), True
    for line in code.instructions[code.acquired : code.multiplied + 1]:
        load = re.search(r"\bLDG\.\S* R(\d+),", line)
        named = {int(n) for n in re.findall(r"\bR(\d+)", line.partition(",")[2] if load else line)}
        awaited = awaited or not coming.isdisjoint(named)
        if load:
            if awaited:
                count, coming, awaited = count + 1, set(), False
            width = next((n // 32 for n in (128, 64) if f".{n}" in line), 1)
            coming |= set(range(int(load[1]), int(load[1]) + width))
    return max(count, 1)


def faults(code: Code, *, streams: bool, stores: int) -> list[str]:
    """What breaks the barrier's order. Weights that a kernel `streams` may come through the first-level cache, whatever is
    exchanged may not; `stores` arrays are exchanged."""
    found = []
    loads = code.places(LOAD, code.acquired, code.multiplied + 1)
    through = [k for k in loads if not re.search(PAST_THE_CACHE, code.instructions[k])]
    if len(through) == len(loads):
        found.append("no load behind the acquire goes past the first-level cache")
    elif through and not streams:
        found.append(
            f"behind the acquire, this goes through the first-level cache: {code.instructions[through[0]].strip()}"
        )
    fences = code.places(FENCE, code.multiplied, code.arrived)
    if not fences:
        return [*found, "no fence precedes the arrival"]
    if len(code.places(STORE, code.multiplied, fences[-1])) < stores:
        found.append("a row is stored behind the fence, or not at all")
    if code.places(STORE, fences[-1], code.arrived):
        found.append("something is stored between the fence and the arrival")
    return found
