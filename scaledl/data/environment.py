"""Environments instead of samples: the numbers of the slots they stand in, and seeds of the episodes that judge."""

import numpy as np
import torch
from torch import Tensor

from scaledl.data.base import BatchDataset, Data
from scaledl.episodes import spaces

FIRST_SEED = {"val": 1_000_000, "test": 2_000_000}  # of the episodes, which do not depend on the run's seed


class Environment(Data):
    """Slots `slot` (B,) int64 to train in, always the same in one order; seeds `episode` (B,) of episodes to play.

    What is seen there is made by the task's own policy (tasks/reinforcement.py). global_batch_size is the number of
    slots over all ranks: environments for a policy gradient, draws from the replay for DQN.

    Args:
        env: a gymnasium environment by its name, with a finite set of actions.
        num_val, num_test: episodes of an evaluation.
        in_dim, num_actions: null = found out; models link to them.
    """

    def __init__(
        self,
        env: str,
        global_batch_size: int,
        micro_batch_size: int,
        num_val: int = 20,
        num_test: int = 100,
        in_dim: int | None = None,
        num_actions: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        if num_val < 1 or num_test < 0:
            raise ValueError(f"data.num_val={num_val} episodes must be at least 1, data.num_test={num_test} at least 0")
        self.env, self.sizes = env, {"val": num_val, "test": num_test}
        self.spaces = spaces(env)
        for name, given in {"in_dim": in_dim, "num_actions": num_actions}.items():
            if given not in (None, fact := self.facts()[name]):
                raise ValueError(f"data.{name}={given}, but {env} has {name}={fact}; set it to null or {fact}")
        self.eval_batch_size = 20  # episodes side by side

    def facts(self) -> dict[str, int]:
        return {"in_dim": self.spaces.in_dim, "num_actions": self.spaces.num_actions}

    def describe(self) -> str:
        return f"{self.env}, {self.spaces.in_dim} numbers seen, {self.spaces.num_actions} actions"

    def datasets(self) -> dict[str, BatchDataset]:
        splits: dict[str, BatchDataset] = {"train": Numbers("slot", 0, self.global_batch_size)}
        return splits | {s: Numbers("episode", FIRST_SEED[s], size) for s, size in self.sizes.items() if size}


class Numbers:
    """`size` whole numbers from `first` on, in their order."""

    shuffled = False

    def __init__(self, name: str, first: int, size: int) -> None:
        self.name, self.first, self.size = name, first, size

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {self.name: torch.as_tensor(indices) + self.first}
