"""What learning by acting has in common: environments that a policy steps through, and episodes that judge it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.episodes import ENDED, HEADER, LAST_RETURN, STEPS, Episodes, episode_seed, spaces
from scaledl.tasks.base import Task

ASK_EVERY = 16  # steps between two questions whether any rank still plays


class Reinforcement(Task):
    """A policy that makes its own samples. A subclass writes `scores`, `allocate` and `learn`.

    Training takes place in cycles of `steps_per_cycle` optimiser steps: the first one acts, all learn from what was
    seen. A batch says which slots of the global batch it stands for, `slot` (B,). An evaluation plays the whole
    episodes of the seeds `episode` (B,), always taking the best action: `return`, the sum of rewards, and `length`.

    All ranks step equally often. What a cycle has seen, and the actions of the episodes at hand, are in checkpoints: a
    resumed run goes on within the episode, by replaying it.

    Args:
        env: a gymnasium environment, as the data's.
        gamma: the discount of rewards, a step.

    Raises:
        ValueError: gamma is not in [0, 1].
    """

    steps_per_cycle: int
    shared_envs: int | None = None  # that every rank steps alike; None: each steps those of its own slots

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        env: str,
        gamma: float,
        scheduler: Callable[[Optimizer], Any] | None = None,
    ):
        super().__init__(model, optimizer, scheduler)
        if not 0 <= gamma <= 1:
            raise ValueError(f"task.gamma={gamma} must lie in [0, 1]; 0.99 is usual")
        self.env, self.gamma, self.spaces = env, gamma, spaces(env)
        self.episodes: Episodes = None  # type: ignore[assignment]
        self._carried: dict[str, tuple[int, Tensor]] = {}
        self._progress: dict[str, Tensor] = {}
        self.step, self.rows = 0, slice(0, 0)  # optimiser steps before this batch; its place in this rank's share

    def scores(self, obs: Tensor) -> Tensor:
        """(B, num_actions), largest for the best action."""
        raise NotImplementedError

    def allocate(self) -> None:
        """Ask `carry` for every tensor that outlives a batch."""
        raise NotImplementedError

    def act(self) -> None:
        """Step the environments; what was seen goes into what `allocate` made."""
        raise NotImplementedError

    def learn(self, rows: slice) -> dict[str, Tensor]:
        """Losses and metrics of some of this rank's slots, from what was seen."""
        raise NotImplementedError

    # -- nothing from here on is for a subclass to write -----------------------------------------------------------

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if "episode" in batch:
            returns, lengths = self.play(batch["episode"].tolist())
            return {"return": returns.mean(), "length": lengths.mean()}
        if batch["slot"].is_meta:  # does the model fit?
            scores = self.scores(torch.zeros(1, self.spaces.in_dim, device="meta"))
            if scores.shape[1] != self.spaces.num_actions:
                raise ValueError(
                    f"the model scores {scores.shape[1]} actions, but {self.env} has {self.spaces.num_actions}: set "
                    "model.num_actions to it"
                )
            return {"loss": scores.sum()}
        if self.episodes is None:
            self.episodes = self._begun()
        if self.step % self.steps_per_cycle == 0 and self.rows.start == 0:
            self.act()
            self._progress = {}
        if not self._progress:
            self._progress = self._report()
        return {**self.learn(self.rows), **self._progress}

    @torch.no_grad()
    def play(self, seeds: list[int], look: Callable[[Episodes], None] | None = None) -> tuple[Tensor, Tensor]:
        """Returns and lengths (n,) of the whole episodes of these seeds, by the best actions; all ranks play together.

        Args:
            look: is shown the environments before the first step and after every one, and can draw them.
        """
        mode = None if look is None else getattr(look, "render_mode", None)
        episodes = Episodes(self.env, len(seeds), lambda slot, number: seeds[slot], render_mode=mode)
        for t in range(self.spaces.max_steps):
            if t % ASK_EVERY == 0 and not self.on_any_rank(bool((~episodes.over).any())):
                break
            if look is not None and not episodes.over.all():
                look(episodes)
            episodes.step(self.scores(self.here(episodes.obs)).argmax(1).cpu().numpy())
        if look is not None:
            look(episodes)
        returns, lengths = torch.from_numpy(episodes.state[:, [LAST_RETURN, STEPS]].T).float().to(self.device)
        return returns, lengths

    def carried(self) -> dict[str, list[tuple[int, Tensor]]]:
        return {name: [held] for name, held in self._carried.items()}

    def carry(
        self, name: str, *shape: int, dtype: torch.dtype = torch.float32, shared: bool = False, host: bool = False
    ) -> Tensor:
        """Zeros (*shape) that go into checkpoints.

        Args:
            shared: the same on all ranks; else the first axis is this rank's share of the slots.
            host: on the host, not on the device.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        device = torch.device("cpu") if host else self.trainer.strategy.root_device
        slots = data.global_batch_size
        size = math.prod(shape)
        padded = -(-size // slots) * slots if shared else size
        flat = torch.zeros(padded, dtype=dtype, device=device)
        first = 0 if shared else data.rank * shape[0]
        self._carried[name] = first, flat.view(1, slots if shared else shape[0], -1)
        return flat[:size].view(shape)

    def on_fit_start(self) -> None:
        self._carried, self._progress = {}, {}
        self.episodes = None  # type: ignore[assignment]
        data, shared = self.trainer.datamodule, self.shared_envs is not None  # type: ignore[attr-defined]
        num = self.shared_envs or data.global_batch_size // data.world_size
        width = HEADER + self.spaces.max_steps
        self._state = self.carry("episodes", num, width, dtype=torch.float64, shared=shared, host=True)
        self.allocate()

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        begin = batch_idx % data.accumulation * data.micro_batch_size
        self.rows = slice(begin, begin + data.micro_batch_size)
        self.step = int(data.positions(batch_idx)[0]) // data.global_batch_size

    def here(self, obs: np.ndarray) -> Tensor:
        return torch.from_numpy(obs.copy()).to(self.device)

    def on_any_rank(self, flag: bool) -> bool:
        if self._trainer is None or self.trainer.world_size == 1:
            return flag
        return bool(self.sums(torch.tensor([float(flag)])) > 0)

    def sums(self, values: Tensor) -> Tensor:
        """Sums over the ranks that take different data, of values on the host."""
        if self._trainer is None or self.trainer.world_size == 1:
            return values
        mean = self.trainer.strategy.reduce(values.to(self.device), reduce_op="mean")
        return mean.cpu() * self.trainer.datamodule.world_size  # type: ignore[attr-defined]

    def _begun(self) -> Episodes:
        """The environments, where their state says they are: at the beginning, or where a checkpoint left them."""
        seed, data = self.model_builder.seed, self.trainer.datamodule  # type: ignore[attr-defined]
        first = 0 if self.shared_envs else data.rank * len(self._state)
        return Episodes(
            self.env, len(self._state), lambda slot, number: episode_seed(seed, first + slot, number), self._state
        )

    def _report(self) -> dict[str, Tensor]:
        """`env_steps` so far, and `return`: the mean over environments of the last episode that ended in each."""
        state = self.episodes.state
        ended = state[:, ENDED] > 0
        here = torch.tensor([state[:, STEPS].sum(), ended.sum(), state[ended, LAST_RETURN].sum()], dtype=torch.float64)
        steps, count, total = (here if self.shared_envs else self.sums(here)).tolist()
        found = {"env_steps": torch.tensor(steps, device=self.device)}
        return found | ({"return": torch.tensor(total / count, device=self.device)} if count else {})
