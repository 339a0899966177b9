"""What one device holds at most, by part, under each strategy."""

from dataclasses import asdict, dataclass
from typing import Any

from scaledl.planning.simulation import REST, Masters, Simulation

FP32, BF16 = 4, 2

# DeepSpeed's defaults, in elements, which ScaleDL leaves as they are (deepspeed/runtime/zero/config.py).
REDUCE_BUCKET, MAX_LIVE = 500_000_000, 1_000_000_000


@dataclass
class Memory:
    """Bytes of one device. `activations` is what a pass needs besides the other parts; `buffers` are of communication.

    `optimizer` holds masters that are not the weights themselves, the optimiser's states and an average of the weights.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass
class Layout:
    """How a strategy lays a model out over devices.

    Attributes:
        kind: `whole` (single, DDP), `fsdp` or `zero`.
        shards: devices that share one copy of the model.
        copies: of the model, each computing other data.
        tensor_parallel: devices that share each matrix product.
        stage: ZeRO's.
    """

    name: str
    kind: str
    shards: int = 1
    copies: int = 1
    tensor_parallel: int = 1
    stage: int = 0
    offload: bool = False
    reshard_after_forward: bool = True

    @property
    def data_ranks(self) -> int:
        return self.shards * self.copies if self.kind != "zero" else self.shards


def layout_of(name: str, node: Any, gpus: int, gpus_per_node: int) -> Layout | None:
    """Of a node of conf/strategy, by its class; None where so many devices cannot be divided so."""
    target = node["_target_"].rpartition(".")[2]
    if target == "Single":
        return Layout(name, "whole") if gpus == 1 else None
    if target == "DDP":
        return Layout(name, "whole", copies=gpus)
    if target == "DeepSpeed":
        return Layout(name, "zero", shards=gpus, stage=node["stage"], offload=node["offload"])
    together = node["tensor_parallel_size"]
    if gpus % together:
        return None
    ranks = gpus // together
    of_node = max(1, min(gpus, gpus_per_node) // together) if target == "HSDP" else ranks
    shards = node["shard_size"] or of_node
    if ranks % shards:
        return None
    kind = "fsdp" if ranks > 1 else "whole"
    return Layout(
        name,
        kind,
        shards,
        ranks // shards,
        together,
        offload=node["cpu_offload"],
        reshard_after_forward=node["reshard_after_forward"],
    )


def memory_of(
    layout: Layout, passed: Simulation, masters: Masters, *, accumulation: int, average: bool, on_host: bool = False
) -> Memory:
    """The most that a device holds in a step.

    Args:
        passed: a micro-batch with the weights as they are while computing.
        masters: the weights as they are optimised.
        average: an exponential moving average of the weights is kept in fp32.
        on_host: devices are processors, where memory that is asked for and not written is not taken.
    """
    ranks, averaged = layout.shards, FP32 * masters.trained * average
    if layout.kind == "zero":
        return _zero(layout, passed, masters, averaged, accumulation > 1, on_host)
    weights, states = (masters.weights + masters.frozen) / ranks, (masters.states + averaged) / ranks
    gradients = masters.gradients / ranks
    if layout.kind == "whole":
        kept = accumulation > 1 or layout.copies > 1  # DDP's buckets stay from step to step
        most = gradients + passed.work if kept else passed.with_gradients
        activations = max(most - gradients, masters.step_extra)
        return Memory(weights, gradients, states, activations, passed.buffers)
    activations = max([*passed.sharded_peaks.values(), masters.step_extra / ranks])
    whole_at_most = _fsdp(layout, passed)
    if layout.offload:
        weights = gradients = states = 0.0
    return Memory(weights, gradients, states, activations, whole_at_most - activations + passed.buffers)


def _fsdp(layout: Layout, passed: Simulation) -> float:
    """The most of activations, gathered weights, and gradients on their way, in any block's forward or backward pass.

    What stands outside of blocks stays gathered throughout. Of a block there are the gathered weights and the buffer
    that they came or the next ones come through, and in the backward pass the buffer through which the gradients of
    the block before leave, in fp32.
    """
    of, trained = passed.parameters, passed.trained
    size = passed.weights / sum(of.values())  # bytes of a gathered parameter

    def at(place: tuple[int, int]) -> float:
        phase, block = place
        own, rest = of.get(block, 0) if block != REST else 0, of.get(REST, 0)
        beside = max(own, of.get(block - 1, 0)) if block > 0 else own
        gathered = rest + own + beside
        if not layout.reshard_after_forward:
            gathered = sum(of.values()) + beside
        leaving = FP32 * trained.get(block + 1, 0) if phase and block != REST else 0
        if phase and block == REST:
            leaving = FP32 * max(trained.get(0, 0), trained.get(REST, 0))
        return passed.sharded_peaks[place] + size * gathered + leaving

    return max(at(place) for place in passed.sharded_peaks)


def _zero(
    layout: Layout, passed: Simulation, masters: Masters, averaged: float, accumulates: bool, on_host: bool
) -> Memory:
    """ZeRO: weights as computed with, fp32 masters and states in shards, gradients in a bucket of a fixed size."""
    ranks, count = layout.shards, sum(passed.parameters.values())
    size, whole = passed.weights / count, float(passed.weights + passed.frozen)
    optimizer = (FP32 * masters.trained + masters.states + averaged) / ranks
    bucket = size * (min(count, REDUCE_BUCKET) if on_host else REDUCE_BUCKET * (2 if layout.stage < 3 else 1))
    shard = size * masters.trained / ranks
    gradients = size * masters.trained if layout.stage == 1 else shard
    if layout.stage == 3:
        weights, gathered = whole / ranks, min(whole, size * MAX_LIVE)
    else:
        weights, gathered = whole, 0.0
    if layout.offload:
        optimizer, gradients = 0.0, shard
        weights = 0.0 if layout.stage == 3 else weights
    # The pass needs most when its backward half begins: gradients come, and on a host the bucket fills, as it shrinks.
    later = 0.0 if accumulates or layout.stage == 3 else gradients + bucket * on_host
    activations = max(passed.work - later, 0.0)
    return Memory(weights, gradients, optimizer, activations, bucket + gathered + passed.buffers)
