"""Slots to train in, and seeds of episodes that every run is judged by."""

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="gymnasium, the extra rl, is not installed")

from scaledl.data.environment import Environment


def test_it_says_what_a_model_must_know_and_deals_slots_in_order() -> None:
    data = Environment("Acrobot-v1", 6, 6)
    assert data.facts() == {"in_dim": 6, "num_actions": 3}
    data.rank, data.world_size, data.micro_batch_size = 1, 2, 3
    batches = iter(data.train_dataloader())
    assert [next(batches)["slot"].tolist() for _ in range(3)] == [[3, 4, 5]] * 3


def test_judging_episodes_are_the_same_for_every_seed_and_others_in_each_split() -> None:
    def seeds(split: str, seed: int) -> list[int]:
        dataset = Environment("CartPole-v1", 4, 4, num_val=5, num_test=7, seed=seed).split(split)
        assert dataset is not None
        return dataset.__getitems__(np.arange(len(dataset)))["episode"].tolist()

    assert seeds("val", 0) == seeds("val", 1)
    assert len({*seeds("val", 0), *seeds("test", 0)}) == 12


def test_facts_that_are_not_the_environment_s_are_refused() -> None:
    with pytest.raises(ValueError, match="in_dim"):
        Environment("CartPole-v1", 4, 4, in_dim=5)
    with pytest.raises(ValueError, match=r"data\.num_val=0"):
        Environment("CartPole-v1", 4, 4, num_val=0)
