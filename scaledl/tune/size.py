"""A size of micro-batches and what it came to."""

from dataclasses import dataclass

CLOSE = 0.95  # of the best speed, at which a smaller size is preferred: it leaves memory to spare


@dataclass
class Size:
    """Speed and memory (the most of any rank, in bytes) of a micro-batch size, or the reason why it does not run."""

    size: int
    samples_per_second: float | None = None
    memory: float | None = None
    memory_there: float | None = None
    reason: str = ""


def best(tried: list[Size]) -> int:
    """The smallest size that is nearly as fast as the fastest.

    Raises:
        ValueError: none ran.
    """
    speeds = {each.size: each.samples_per_second for each in tried if each.samples_per_second}
    if not speeds:
        raise ValueError(f"no micro-batch runs; of {tried[0].size} samples: {tried[0].reason}")
    return min(size for size, speed in speeds.items() if speed >= CLOSE * max(speeds.values()))
