"""Which strategies fit, and which of them is recommended."""

import math
from dataclasses import dataclass

from scaledl.planning.memory import Layout, Memory
from scaledl.planning.time import StepTime

EQUAL = 0.03  # a difference in speed that says nothing: predictions are not as good as that
HEADROOM = 0.1  # of a device's memory, left to what no plan knows: the allocator's gaps, libraries, evaluations


@dataclass
class Row:
    """A strategy, and what it comes to."""

    layout: Layout
    micro_batch_size: int
    accumulation: int
    global_batch_size: int
    memory: Memory
    room: float  # bytes of a device
    largest_micro_batch: int
    time: StepTime | None = None
    note: str = ""

    @property
    def fits(self) -> bool:
        return fits(self.memory, self.room)

    @property
    def samples_per_second(self) -> float | None:
        return self.global_batch_size / self.time.total if self.time else None


def recommended(rows: list[Row]) -> tuple[Row | None, str]:
    """The fastest that fits, of those about as fast the one named first, and the reason in words."""
    fitting = [row for row in rows if row.fits]
    if not fitting:
        least = min(rows, key=lambda row: row.memory.total)
        return None, (
            f"none fits with {HEADROOM:.0%} of the memory to spare; {least.layout.name} comes nearest with "
            f"{least.memory.total / 2**30:.1f} of {least.room / 2**30:.1f} GiB: take more devices, larger ones, a "
            "smaller data.micro_batch_size, or activation_checkpointing=full"
        )
    if fitting[0].time is None:
        best = min(fitting, key=lambda row: row.memory.total)
        return best, "the smallest; how fast these devices are is not known"
    fastest = max(row.samples_per_second or 0.0 for row in fitting)
    best = next(row for row in fitting if (row.samples_per_second or 0.0) >= (1 - EQUAL) * fastest)
    left_out = [row.layout.name for row in rows if not row.fits]
    return best, "the fastest that fits, or as good as that" + (
        f"; too large: {', '.join(left_out)}" if left_out else ""
    )


def fits(memory: Memory, room: float) -> bool:
    return memory.total <= (1 - HEADROOM) * room


def largest_that_fits(memory: Memory, micro_batch_size: int, room: float, at_most: int) -> int:
    """About the largest number of samples, a power of two or `at_most`, that stays within the headroom; 0: none.

    A micro-batch's part of the memory is taken to grow with it, which for small ones is a little too much.
    """
    free = (1 - HEADROOM) * room - (memory.total - memory.activations)
    samples = free * micro_batch_size / max(memory.activations, 1)
    return 0 if samples < 1 else min(at_most, 2 ** int(math.log2(samples)))
