"""What a step of a resident loop takes on an H100, predicted from its machine code: no GPU has confirmed any of it.

`python -m fastlstm.benchmarks.step_model` prints what each change of the kernels brings: docs/decisions/0036. `floor` writes
predictions beside what it measures, so that the first GPU says which term is wrong.
"""

from typing import Any, NamedTuple

from fastlstm.gpu.launch import H100
from fastlstm.kernels.gpu_compile import Spec
from fastlstm.kernels.gpu_machine_code import Step

# Of an H100. Its clock is published (1,755 MHz under load); a processor of compute capability 9.0 gives 16 results of a
# transcendental per cycle (CUDA's programming guide). The others are estimates, decision records 8 and 20
CLOCK = 1.755e9
TRIP_S = 0.3e-6  # a round trip to the second-level cache, some 500 cycles under load
WAIT_TRIPS = 4  # of an arrival (stores, then an atomic) and a wait (a look that comes too late, then one that doesn't)
PROCESSOR_BYTES_S = 64 * CLOCK  # from the second-level cache to one processor
ALL_BYTES_S = 5.5e12  # and to all of them
PRODUCT_S = 19e-9  # from a matrix instruction to the next that waits for it
BARRIER_S = 22e-9  # of a block
RESULTS_S = 16 * CLOCK  # transcendentals of a processor


class Counts(NamedTuple):
    """What a step's time is made of. Bytes are those that a program reads of the second-level cache: rows, which are exchanged,
    and weights, where they don't stay on chip. `trips` to `late`: `Step`, but for the chain, which is that of all features."""

    programs: int
    warps: int
    rows: int
    weights: int
    trips: int
    chain: int
    barriers: int
    late: int


def counts(spec: Spec, grid: tuple[int, int], step: Step) -> Counts:
    constants: dict[str, Any] = dict(spec.constants)
    K, size, kept = constants["K"], spec.dtype.itemsize, constants["KEEP"]
    slots = 1 if spec.name.endswith("backward") else 4
    blocks = 1 if kept else -(-K // constants["BK"])
    weights = 0 if kept else slots * constants["BH"] * K * size
    rows = constants["BM"] * K * size
    trips = 1 if spec.stages > 1 and blocks > 1 else step.trips * blocks
    return Counts(grid[0] * grid[1], spec.warps, rows, weights, trips, step.chain * blocks, step.barriers, step.late)


def terms(c: Counts) -> dict[str, float]:
    """Seconds of each part of a step. Streamed weights come while products are taken: the longer of both counts."""
    read = c.rows + c.weights
    arrival = max(read / PROCESSOR_BYTES_S, c.programs * read / ALL_BYTES_S)
    product = c.chain * PRODUCT_S
    return {
        "wait": WAIT_TRIPS * TRIP_S,
        "trips": c.trips * TRIP_S,
        "bytes": max(arrival - product, 0.0) if c.weights else arrival,
        "products": product,
        "barriers": c.barriers * BARRIER_S,
        "activations": c.late * c.warps * 32 / RESULTS_S,
    }


def predicted_s(c: Counts) -> float:
    return sum(terms(c).values())


# The LSTM in bfloat16 at B 16, H 768, from before the machine code was read to now (records 20, 29 and 36): one change after
# another, and of which pass it changes what. A test holds the last of CHANGES against the compiled kernels
BEFORE = {
    "forward": Counts(programs=96, warps=4, rows=24576, weights=0, trips=5, chain=48, barriers=3, late=10),
    "backward": Counts(programs=48, warps=4, rows=98304, weights=98304, trips=1, chain=192, barriers=24, late=4),
}
CHANGES: list[tuple[str, dict[str, dict[str, int]]]] = [
    ("1. the backward's sum is brought into the loads' layout once", {"backward": {"barriers": 4}}),
    (
        "2. each warp sums a part of the features",
        {"forward": {"chain": 12, "barriers": 4}, "backward": {"chain": 48}},
    ),
    ("3. rows arrive at once, by more warps", {"forward": {"warps": 8, "chain": 6, "trips": 1, "barriers": 3}}),
    (
        "4. the backward's weights stay, on twice as many processors",
        {"backward": {"programs": 96, "warps": 16, "weights": 0, "chain": 12, "trips": 3, "late": 2}},
    ),
    ("3. again: 128 registers, so that the backward's rows arrive at once", {"backward": {"trips": 1, "barriers": 3}}),
    ("4. again: 16 units per program in place of 8, since each reads all rows", {"backward": {"programs": 48}}),
    ("no transcendental behind the backward's wait", {"backward": {"late": 0}}),
]
# What a GPU may decide, of the kernels as they are now
TO_TRY = [("to try: the same in the forward", {"forward": {"programs": 48, "barriers": 4}})]


def changes() -> list[tuple[str, Counts, Counts]]:
    """Each change, and what the counts of forward and backward are with it and all before it; then what is to be tried."""
    now, rows = dict(BEFORE), [("before", BEFORE["forward"], BEFORE["backward"])]
    for what, passes in CHANGES + TO_TRY:
        now |= {of: now[of]._replace(**changed) for of, changed in passes.items()}
        rows.append((what, now["forward"], now["backward"]))
    return rows


def table() -> str:
    """Of every row of `changes` the predicted microseconds of a step; and the terms of the kernels as they are; in Markdown."""
    lines = ["| LSTM, bf16, B 16, H 768 | forward, us | backward, us |", "| --- | --- | --- |"]
    lines += [
        f"| {what} | {1e6 * predicted_s(forward):.1f} | {1e6 * predicted_s(backward):.1f} |"
        for what, forward, backward in changes()
    ]
    _, *now = changes()[len(CHANGES)]
    lines += ["", "| as it is | " + " | ".join(terms(now[0])) + " |", "| --- " * 7 + "|"]
    for of, c in zip(BEFORE, now, strict=True):
        lines.append(f"| {of}, us | " + " | ".join(f"{1e6 * s:.2f}" for s in terms(c).values()) + " |")
    return "\n".join(lines)


def main() -> None:
    print(table())
    print(f"\nPredicted for an H100 ({H100.processors} processors); unverified: none of it has run on a GPU.")


if __name__ == "__main__":
    main()
