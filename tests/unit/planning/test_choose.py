"""The fastest that fits is recommended, and time follows from the slowest of computing, memory, links and host."""

from dataclasses import replace

import pytest

from scaledl.hardware import Device
from scaledl.planning.choose import Row, largest_that_fits, recommended
from scaledl.planning.memory import Layout, Memory
from scaledl.planning.simulation import Cost, Masters, Simulation
from scaledl.planning.time import LAUNCH, MEMORY, NETWORK, SHOWN, StepTime, time_of

DEVICE = Device("toy", {"bf16": 1e12, "fp32": 1e11}, 1e9, 1e9, 1e8, 1e7, 4, matrix=0.5, attention=0.25)
WHOLE = Layout("ddp", "whole")
COSTS = {("matrix", 2): Cost(10, flops=1e12, bytes=8.0), ("other", 2): Cost(10, bytes=1e9, fused_bytes=1e8)}
PASSED = Simulation(parameters={0: 1000}, weights=2000, peaks={(0, 0): 1}, costs=COSTS)
MASTERS = Masters(4000, 1000, 4000, 8000)


def row(name: str, total: float, seconds: float | None) -> Row:
    time = None if seconds is None else StepTime(seconds, 0, 0, 0)
    return Row(Layout(name, "whole"), 1, 1, 8, Memory(total, 0, 0, 0, 0), 100.0, 1, time)


def test_the_fastest_that_fits_is_recommended() -> None:
    rows = [row("ddp", 91, 1.0), row("fsdp", 90, 2.0), row("hsdp", 50, 3.0)]
    best, reason = recommended(rows)
    assert best is rows[1]
    assert reason == "the fastest that fits, or as good as that; too large: ddp"


def test_of_two_about_as_fast_the_first_is_recommended() -> None:
    rows = [row("ddp", 50, 1.0), row("deepspeed_3", 50, 0.98)]
    assert recommended(rows)[0] is rows[0]
    assert recommended([rows[0], row("deepspeed_3", 50, 0.9)])[0] is not rows[0]


def test_none_that_fits_says_which_comes_nearest() -> None:
    best, reason = recommended([row("ddp", 300, 1.0), row("fsdp", 120, 1.0)])
    assert best is None
    assert "fsdp comes nearest" in reason


def test_without_times_the_smallest_is_recommended() -> None:
    rows = [row("ddp", 80, None), row("fsdp", 20, None)]
    assert recommended(rows)[0] is rows[1]


@pytest.mark.parametrize(("room", "largest"), [(100, 16), (60, 8), (30, 2), (19, 1), (10, 0), (1000, 48)])
def test_the_largest_micro_batch_is_a_power_of_two(room: float, largest: int) -> None:
    assert largest_that_fits(Memory(10, 0, 0, 20, 0), 4, room, at_most=48) == largest


def test_computing_takes_the_share_of_the_peak_that_is_reached() -> None:
    found = time_of(WHOLE, PASSED, MASTERS, DEVICE, accumulation=3)
    assert found.compute == pytest.approx(3 * (1e12 / (0.5 * 1e12) + 1e9 / (MEMORY * 1e9)))
    assert found.waiting == found.sent == 0
    compiled = time_of(WHOLE, PASSED, MASTERS, DEVICE, accumulation=3, compiled=True)
    assert found.compute - compiled.compute == pytest.approx(3 * 9e8 / (MEMORY * 1e9))


def test_small_operations_wait_for_the_host() -> None:
    small = replace(PASSED, costs={("other", 2): Cost(1000, bytes=1.0)})
    assert time_of(WHOLE, small, MASTERS, DEVICE, accumulation=1).compute == 1000 * LAUNCH


def test_communication_is_waited_for_where_computing_does_not_hide_it() -> None:
    many = Simulation(parameters={0: 10**8}, weights=2 * 10**8, peaks={(0, 0): 1}, costs=COSTS)
    masters = Masters(4 * 10**8, 10**8, 4 * 10**8, 8 * 10**8)
    compute = time_of(WHOLE, many, masters, DEVICE, accumulation=1).compute
    within, across = (time_of(Layout("fsdp", "fsdp", shards=n), many, masters, DEVICE, accumulation=1) for n in (4, 8))
    sent = (2 * 2e8 + 4e8) * 3 / 4  # gathered twice in bf16, reduced in fp32
    assert within.sent == pytest.approx(sent)
    assert within.waiting == pytest.approx(sent / (NETWORK * 1e8) - compute)
    # a ring of 8 leaves each node of 4 on its 4 slow links
    assert across.waiting == pytest.approx((2 * 2e8 + 4e8) * 7 / 8 / (NETWORK * 4e7) - compute)
    fast = replace(DEVICE, intra_node=1e12)
    hidden = time_of(Layout("fsdp", "fsdp", shards=4), many, masters, fast, accumulation=1)
    assert hidden.waiting == pytest.approx(SHOWN * sent / (NETWORK * 1e12))


def test_zero_one_reduces_once_a_step_and_zero_two_in_every_pass() -> None:
    one, two = (
        time_of(Layout("", "zero", shards=4, stage=stage), PASSED, MASTERS, DEVICE, accumulation=5).sent
        for stage in (1, 2)
    )
    assert one == pytest.approx((2000 + 2000) * 3 / 4)
    assert two == pytest.approx((5 * 2000 + 2000) * 3 / 4)


def test_tensor_parallel_sums_stand_between_computing() -> None:
    divided = replace(PASSED, exchanged=10**6)
    found = time_of(Layout("tp", "whole", tensor_parallel=2), divided, MASTERS, DEVICE, accumulation=2)
    assert found.waiting == pytest.approx(2 * 2 * 1e6 * 1 / 2 / (NETWORK * 1e8))


def test_a_sharded_optimizer_touches_its_share() -> None:
    whole, sharded = (
        time_of(layout, PASSED, MASTERS, DEVICE, accumulation=1).optimizer
        for layout in (WHOLE, Layout("fsdp", "fsdp", shards=4))
    )
    assert whole == pytest.approx(4 * sharded) == pytest.approx((2 * 4000 + 3 * 4000 + 2 * 8000) / (MEMORY * 1e9))


def test_what_is_frozen_is_not_optimized_nor_sent_back() -> None:
    adapted = Masters(4000, 10, 40, 80)
    found = time_of(Layout("", "zero", shards=4, stage=2), PASSED, adapted, DEVICE, accumulation=1)
    assert found.sent == pytest.approx((20 + 20) * 3 / 4)
    assert found.optimizer == pytest.approx((5 * 40 + 2 * 80) / 4 / (MEMORY * 1e9))
