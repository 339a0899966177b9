"""Where samples stand in the endless line of them: the noise of a sample hangs on it, so it is exact."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scaledl.data.base import BatchDataset, Data
from scaledl.data.samples import Samples

GLOBAL = 24


class Numbers(Data):
    """Sample i is the number i."""

    def datasets(self) -> dict[str, BatchDataset]:
        return {"train": Samples(np.arange(50, dtype=np.float32)[:, None], np.arange(50))}


def ranks(world_size: int, micro: int, seen: int = 0, step: int = 0) -> list[Data]:
    """The data of each rank of a run that begins at optimiser step `step`, after `seen` samples."""
    found = []
    for rank in range(world_size):
        data = Numbers(GLOBAL, micro, seed=3)
        data.rank, data.world_size = rank, world_size
        data.load_state_dict({"samples_seen": seen})
        data.trainer = SimpleNamespace(global_step=step)  # type: ignore[assignment]
        found.append(data)
    return found


LAYOUTS = [(1, 24), (1, 6), (2, 12), (2, 4), (3, 8), (4, 3), (4, 1), (8, 3)]
STARTS = [(0, 0), (5 * GLOBAL, 5), (5 * 64, 5), (7, 0)]  # from new; resumed; with another batch size; anywhere


@pytest.mark.parametrize(("world_size", "micro"), LAYOUTS)
@pytest.mark.parametrize(("seen", "step"), STARTS)
def test_positions_are_those_of_the_samples_that_are_fed(world_size: int, micro: int, seen: int, step: int) -> None:
    for data in ranks(world_size, micro, seen, step):
        batches = data.train_dataloader().batch_sampler
        first = step * data.accumulation  # Lightning goes on counting micro-batches as this run makes them
        for batch_idx, fed in zip(range(first, first + 3 * data.accumulation), batches, strict=False):
            np.testing.assert_array_equal(batches.samples_at(data.positions(batch_idx).numpy()), fed)


@pytest.mark.parametrize(("world_size", "micro"), LAYOUTS)
@pytest.mark.parametrize(("seen", "step"), STARTS)
def test_ranks_and_micro_batches_of_a_step_make_up_its_global_batch(
    world_size: int, micro: int, seen: int, step: int
) -> None:
    data = ranks(world_size, micro, seen, step)
    for each in data:
        each.train_dataloader()
    for later in range(3):
        first = (step + later) * data[0].accumulation
        found = torch.cat([each.positions(first + i) for each in data for i in range(each.accumulation)])
        assert found.tolist() == list(range(seen + later * GLOBAL, seen + (later + 1) * GLOBAL))


def test_what_was_seen_is_counted_on_from_where_the_run_began() -> None:
    (data,) = ranks(1, 6, seen=100, step=5)
    data.train_dataloader()
    assert data.state_dict() == {"samples_seen": 100}
    data.trainer.global_step = 8
    assert data.state_dict() == {"samples_seen": 100 + 3 * GLOBAL}
