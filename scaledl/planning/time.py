"""How long a step takes: a roofline over the operations of a micro-batch, and what of communication does not hide.

Each kind of operation takes what it computes at the speed that a device reaches, or what it reads and writes at its
memory's. Shares of data-sheet figures that are reached were set once, on published trainings of dense transformers on
A100 and H100 (`scripts/plan_check.py published` prints all rows with their errors); other devices take the same.
"""

from dataclasses import dataclass, replace

from scaledl.hardware import Device
from scaledl.planning.memory import BF16, FP32, MAX_LIVE, Layout
from scaledl.planning.simulation import Cost, Masters, Simulation

MEMORY, NETWORK = 0.8, 0.8  # of the bandwidths, that large reads and large collectives reach
SHOWN = 0.3  # of communication that runs beside computing, for what the two slow each other down
LAUNCH, LAUNCH_COMPILED = 6e-6, 2e-6  # seconds of the host an operation
HOST_LINK, HOST_MEMORY = 20e9, 20e9  # bytes a second to the host's memory, and of it, a device


@dataclass
class StepTime:
    """Seconds of one optimiser step: computing, communication that is waited for, the optimiser; `sent` in bytes."""

    compute: float
    waiting: float
    optimizer: float
    sent: float

    @property
    def total(self) -> float:
        return self.compute + self.waiting + self.optimizer


def time_of(
    layout: Layout,
    passed: Simulation,
    masters: Masters,
    device: Device,
    *,
    accumulation: int,
    compiled: bool = False,
    tf32: bool = False,
) -> StepTime:
    """Of one optimiser step of `accumulation` micro-batches."""
    one = _compute(passed.costs, device, compiled, tf32)
    beside, alone, at_end = _communication(layout, passed, masters, device)
    per_pass, in_between, after = (sum(seconds) for seconds in (beside[1:], alone[1:], at_end[1:]))
    waiting = accumulation * (max(per_pass - one, SHOWN * per_pass) + in_between) + after
    sent = accumulation * (beside[0] + alone[0]) + at_end[0]
    return StepTime(accumulation * one, waiting, _optimizer(layout, passed, masters, device, tf32), sent)


def _compute(costs: dict[tuple[str, int], Cost], device: Device, compiled: bool, tf32: bool) -> float:
    total = 0.0
    for (kind, size), cost in costs.items():
        peak = device.peak("bf16" if size == BF16 else "32-true", tf32)
        assert peak is not None
        fuses = compiled and kind == "other"
        moving = (cost.fused_bytes if fuses else cost.bytes) / (MEMORY * device.bandwidth)
        reached = {"matrix": device.matrix, "attention": device.attention}.get(kind, 1.0)
        total += max(cost.flops / (peak * reached), moving)
    operations = sum(cost.count for cost in costs.values())
    return max(total, operations * (LAUNCH_COMPILED if compiled else LAUNCH))


def _communication(
    layout: Layout, passed: Simulation, masters: Masters, device: Device
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """(bytes, seconds) of a device: a pass beside computing, a pass in between, and a step after its last pass."""
    weights, trained = passed.weights, masters.trained
    n, copies = layout.shards, layout.copies
    link = _link(device, n, layout.tensor_parallel)
    between = (0.0, 0.0)
    if layout.tensor_parallel > 1:
        between = _ring(2 * passed.exchanged, layout.tensor_parallel, _link(device, layout.tensor_parallel))
    if layout.kind == "whole":
        # Gradients leave once a step, beside its last pass; DDP waits for what that pass does not hide.
        everywhere = _link(device, copies, layout.tensor_parallel)
        sent, seconds = _ring(2 * masters.gradients, copies, everywhere)
        return (
            (0.0, 0.0),
            between,
            (sent, SHOWN * seconds + max(0.0, (1 - SHOWN) * seconds - _backward(passed, device))),
        )
    if layout.kind == "fsdp":
        gathers = 2 if layout.reshard_after_forward else 1
        beside = _ring(gathers * weights + passed.frozen + FP32 * trained, n, link)
        if copies > 1:
            more = _ring(2 * FP32 * trained / n, copies, _link(device, copies, n * layout.tensor_parallel))
            beside = (beside[0] + more[0], beside[1] + more[1])
        return beside, between, (0.0, 0.0)
    size = weights / sum(passed.parameters.values())
    if layout.stage == 3:
        gathers = 2 if sum(passed.parameters.values()) > MAX_LIVE else 1
        return _ring(gathers * weights + passed.frozen + size * trained, n, link), between, (0.0, 0.0)
    if layout.stage == 1:
        return (0.0, 0.0), between, _ring(2 * size * trained, n, link)
    reduced = gathered = _ring(size * trained, n, link)
    return reduced, between, gathered


def _backward(passed: Simulation, device: Device) -> float:
    return 2 / 3 * _compute(passed.costs, device, compiled=False, tf32=False)


def _ring(size: float, ranks: int, bandwidth: float) -> tuple[float, float]:
    """Each of the ranks sends all but its own part of `size` bytes."""
    sent = size * (ranks - 1) / ranks
    return sent, sent / (NETWORK * bandwidth)


def _link(device: Device, ranks: int, apart: int = 1) -> float:
    """Bytes a second, one way, at which a ring runs through ranks that stand so many devices apart.

    Where it leaves a node, it does so on the network links of all its members there.
    """
    members = max(1, device.gpus_per_node // apart)
    return device.intra_node if ranks <= members else min(device.intra_node, members * device.inter_node)


def _optimizer(layout: Layout, passed: Simulation, masters: Masters, device: Device, tf32: bool) -> float:
    """Reading and writing weights that learn, gradients (three times: norm, clipping, step) and states."""
    moved = (5 * masters.gradients + 2 * masters.states) / layout.shards
    seconds = moved / (MEMORY * device.bandwidth)
    if layout.offload:
        return moved / HOST_MEMORY + 2 * passed.weights / layout.shards / HOST_LINK
    if masters.step_costs:  # of an optimiser that is not fused; matrices are made orthogonal by every rank
        shared = {
            key: cost if key[0] == "matrix" else replace(cost, bytes=cost.bytes / layout.shards)
            for key, cost in masters.step_costs.items()
        }
        seconds = max(seconds, _compute(shared, device, False, tf32))
    return seconds
