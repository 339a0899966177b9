"""A device's bytes, part by part, of a model that one can count by hand: 1000 parameters, 800 in two blocks."""

from dataclasses import replace

import pytest

from scaledl.planning.memory import MAX_LIVE, REDUCE_BUCKET, Layout, layout_of, memory_of
from scaledl.planning.simulation import REST, Masters, Simulation

PASSED = Simulation(
    parameters={0: 400, 1: 400, REST: 200},
    trained={0: 400, 1: 400, REST: 200},
    weights=4000,
    buffers=8,
    peaks={(0, 0): 500, (1, 0): 600, (1, REST): 900},
    sharded_peaks={(0, 0): 500, (1, 0): 1000, (1, REST): 900},
    with_gradients=4700,
)
LOW = replace(PASSED, weights=2000)  # in bf16
MASTERS = Masters(weights=4000, trained=1000, gradients=4000, states=8000)


def of(layout: Layout, passed: Simulation = PASSED, masters: Masters = MASTERS, **arguments) -> list[float]:
    found = memory_of(layout, passed, masters, **({"accumulation": 1, "average": False} | arguments))
    return [found.weights, found.gradients, found.optimizer, found.activations, found.buffers]


def test_one_process_gives_gradients_back_before_the_backward_pass() -> None:
    assert of(Layout("single", "whole")) == [4000, 4000, 8000, 700, 8]
    assert of(Layout("single", "whole"), accumulation=2) == [4000, 4000, 8000, 900, 8]


def test_ddp_holds_all_and_its_buckets() -> None:
    assert of(Layout("ddp", "whole", copies=4)) == [4000, 4000, 8000, 900, 8]


def test_an_average_of_the_weights_is_held_where_masters_are() -> None:
    assert of(Layout("ddp", "whole", copies=4), average=True)[2] == 12_000
    assert of(Layout("fsdp", "fsdp", shards=4), average=True)[2] == 3000


def test_a_step_that_is_not_fused_needs_its_own() -> None:
    masters = Masters(4000, 1000, 4000, 4000, step_extra=5000)
    assert of(Layout("ddp", "whole", copies=4), masters=masters)[3] == 5000


def test_fsdp_divides_and_gathers_a_block_at_a_time() -> None:
    found = of(Layout("fsdp", "fsdp", shards=4))
    assert found[:4] == [1000, 1000, 2000, 1000]
    # backward of block 0: what is in no block, the block and the buffer it came through; block 1's gradients leave
    assert found[3] + found[4] == 1000 + 4 * (200 + 400 + 400) + 4 * 400 + 8
    low = of(Layout("fsdp", "fsdp", shards=4), LOW)
    assert found[4] - low[4] == 2 * (200 + 400 + 400)
    kept = of(Layout("fsdp", "fsdp", shards=4, reshard_after_forward=False))
    assert kept[4] - found[4] == 4 * 400


def test_gradients_leave_only_of_what_is_trained() -> None:
    adapted = replace(PASSED, trained={0: 10, 1: 10})
    layout = Layout("fsdp", "fsdp", shards=4)
    assert of(layout)[4] - of(layout, adapted)[4] == 4 * (400 - 10)


def test_a_frozen_copy_lies_where_the_weights_do() -> None:
    passed, masters = replace(LOW, frozen=2000), replace(MASTERS, frozen=4000)
    layouts = [Layout("", "whole", copies=4), *(Layout("", "zero", shards=4, stage=stage) for stage in (2, 3))]
    layouts.append(Layout("", "fsdp", shards=4))
    more = [[b - a for a, b in zip(of(layout, LOW), of(layout, passed, masters), strict=True)] for layout in layouts]
    assert more == [[4000, 0, 0, 0, 0], [2000, 0, 0, 0, 0], [500, 0, 0, 0, 2000], [1000, 0, 0, 0, 0]]


def test_offload_leaves_the_shards_to_the_host() -> None:
    assert of(Layout("fsdp", "fsdp", shards=4, offload=True))[:3] == [0, 0, 0]


def test_zero_has_masters_besides_the_weights_and_buckets_of_a_fixed_size() -> None:
    one, two, three = (of(Layout("", "zero", shards=4, stage=stage), LOW) for stage in (1, 2, 3))
    assert one[:3] == [2000, 2000, (4000 + 8000) / 4]
    assert two[:3] == [2000, 500, 3000]
    assert three[:3] == [500, 500, 3000]
    assert [found[3] for found in (one, two, three)] == [0, 400, 900]  # gradients of 1 and 2 come as activations go
    assert of(Layout("", "zero", shards=4, stage=2), LOW, accumulation=2)[3] == 900
    assert two[4] == 2 * 2 * REDUCE_BUCKET + 8  # two, to fill one while the other leaves
    assert three[4] == 2 * REDUCE_BUCKET + 2 * 1000 + 8  # all weights are few enough to stay gathered
    assert MAX_LIVE > 1000


def test_on_the_host_a_bucket_takes_what_is_written() -> None:
    found = of(Layout("", "zero", shards=2, stage=2), on_host=True)
    assert found[3:] == [0, 4000 + 8]  # it is full when the pass needs no more


@pytest.mark.parametrize(
    ("node", "shards", "copies", "together"),
    [
        ({"_target_": "scaledl.distributed.strategy.DDP"}, 1, 16, 1),
        ({"_target_": "scaledl.distributed.fsdp.FSDP"}, 16, 1, 1),
        ({"_target_": "scaledl.distributed.fsdp.FSDP", "tensor_parallel_size": 4}, 4, 1, 4),
        ({"_target_": "scaledl.distributed.fsdp.HSDP"}, 8, 2, 1),
        ({"_target_": "scaledl.distributed.fsdp.HSDP", "shard_size": 4}, 4, 4, 1),
        ({"_target_": "scaledl.distributed.zero.DeepSpeed", "stage": 2, "offload": False}, 16, 1, 1),
    ],
)
def test_devices_are_laid_out_as_the_strategies_do(node: dict, shards: int, copies: int, together: int) -> None:
    sharded = {"shard_size": None, "tensor_parallel_size": 1, "reshard_after_forward": True, "cpu_offload": False}
    found = layout_of("", sharded | node, gpus=16, gpus_per_node=8)
    assert found is not None
    assert (found.shards, found.copies, found.tensor_parallel) == (shards, copies, together)
    assert found.data_ranks == 16 // together


def test_what_cannot_be_divided_is_no_layout() -> None:
    node = {"_target_": "scaledl.distributed.fsdp.FSDP", "shard_size": None, "tensor_parallel_size": 3}
    assert layout_of("", node, gpus=16, gpus_per_node=8) is None
    assert layout_of("", {"_target_": "scaledl.distributed.strategy.Single"}, gpus=2, gpus_per_node=8) is None
