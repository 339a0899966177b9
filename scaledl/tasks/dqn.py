"""Learn what each action is worth from what was seen once, again and again: deep Q-learning."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.episodes import STEPS
from scaledl.tasks.reinforcement import Reinforcement


class DQN(Reinforcement):
    """Q(s, a) towards r + gamma Q'(s', a') (Mnih et al. 2015), with a' chosen by Q (van Hasselt et al. 2016).

    In cycles: `collect_steps` in the environments, by the best action or, with probability epsilon, any; then
    `gradient_steps` optimiser steps on draws from the replay. The target network Q' is the network as it was when the
    cycle began. Which samples the cycle will draw is known then, and so Q' is asked for all of them at once: no second
    set of weights is kept, which every strategy would have to divide and update.

    A sample is a draw from the replay, keyed by (seed, step, place in the batch). Every rank steps the same
    environments by the same weights and noise, so that all hold the same replay, and takes its share of the draws:
    losses are those of one process up to rounding, until rounding flips an action.

    Args:
        num_envs: environments that step together.
        buffer_size: steps that the replay holds; the oldest go first.
        learning_starts: steps in the environments, all at random, before the first optimiser step.
        collect_steps: of all environments together, in each later cycle.
        gradient_steps: optimiser steps of a cycle, for which the target stays.
        double: let Q choose a', and Q' only say its value; else Q' does both.
        epsilon_end: the last probability of any action.
        epsilon_steps: in the environments, over which epsilon falls from 1 to it, linearly.

    Raises:
        ValueError: the settings contradict each other.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        env: str,
        scheduler: Callable[[Optimizer], Any] | None = None,
        gamma: float = 0.99,
        num_envs: int = 1,
        buffer_size: int = 50_000,
        learning_starts: int = 1024,
        collect_steps: int = 256,
        gradient_steps: int = 128,
        double: bool = True,
        epsilon_end: float = 0.04,
        epsilon_steps: int = 8000,
    ):
        super().__init__(model, optimizer, env, gamma, scheduler)
        for name, steps in (("learning_starts", learning_starts), ("collect_steps", collect_steps)):
            if not 1 <= num_envs <= steps <= buffer_size or steps % num_envs:
                raise ValueError(
                    f"task.{name}={steps} must be a multiple of task.num_envs={num_envs}, and at most "
                    f"task.buffer_size={buffer_size}"
                )
        if gradient_steps < 1:
            raise ValueError(f"task.gradient_steps={gradient_steps} must be at least 1")
        if not 0 <= epsilon_end <= 1:
            raise ValueError(f"task.epsilon_end={epsilon_end} is no probability; choose one between 0 and 1")
        self.shared_envs, self.buffer_size, self.double = num_envs, buffer_size, double
        self.learning_starts, self.collect_steps = learning_starts, collect_steps
        self.epsilon_end, self.epsilon_steps = epsilon_end, epsilon_steps
        self.steps_per_cycle = gradient_steps

    def scores(self, obs: Tensor) -> Tensor:
        return self.model(obs)

    def allocate(self) -> None:
        data, size, D = self.trainer.datamodule, self.buffer_size, self.spaces.in_dim  # type: ignore[attr-defined]
        n, G = data.global_batch_size // data.world_size, self.steps_per_cycle
        self._obs = self.carry("obs", size, D, shared=True)
        self._next_obs = self.carry("next_obs", size, D, shared=True)
        self._action = self.carry("action", size, dtype=torch.int64, shared=True)
        self._reward = self.carry("reward", size, shared=True)
        self._terminated = self.carry("terminated", size, shared=True)
        self._drawn = self.carry("drawn", n, G, dtype=torch.int64)
        self._target = self.carry("target", n, G, self.spaces.num_actions)

    def act(self) -> None:
        self._collect(self.collect_steps if self.step else self.learning_starts)
        self._draw()

    @torch.no_grad()
    def _collect(self, steps: int) -> None:
        episodes, E = self.episodes, len(self.episodes.envs)
        T = steps // E
        before = int(episodes.state[:, STEPS].sum())
        first = self.step * self._slots
        noise = Noise(self.model_builder.seed, torch.arange(first, first + E))
        explore, any_action = (
            noise.uniform("explore", T),
            noise.integers("action", self.spaces.num_actions, T),
        )  # (E, T)
        done_before = before + E * torch.arange(T)
        epsilon = (1 - (1 - self.epsilon_end) * done_before / self.epsilon_steps).clamp(min=self.epsilon_end)
        explores = explore < (epsilon if self.step else 1.0)
        seen_obs, seen_next = torch.zeros(2, T, E, self.spaces.in_dim)
        seen_action, seen_reward = any_action.T.clone(), torch.zeros(T, E)
        seen_end = torch.zeros(T, E)
        for t in range(T):
            episodes.restart()
            seen_obs[t] = torch.from_numpy(episodes.obs)
            if self.step:  # all ranks ask equally often
                best = self.scores(self.here(episodes.obs)).argmax(1).cpu()
                seen_action[t] = torch.where(explores[:, t], any_action[:, t], best)
            reward, terminated = episodes.step(seen_action[t].numpy())
            seen_reward[t], seen_end[t] = torch.from_numpy(reward), torch.from_numpy(terminated)
            seen_next[t] = torch.from_numpy(episodes.obs)
        at = ((before + torch.arange(steps)) % self.buffer_size).to(self.device)
        for kept, seen in (
            (self._obs, seen_obs),
            (self._next_obs, seen_next),
            (self._action, seen_action),
            (self._reward, seen_reward),
            (self._terminated, seen_end),
        ):
            kept[at] = seen.flatten(0, 1).to(self.device)

    @torch.no_grad()
    def _draw(self) -> None:
        """What this rank's share of the cycle's batches will be, and the target's values there."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        n, G = self._drawn.shape
        filled = min(int(self.episodes.state[:, STEPS].sum()), self.buffer_size)
        places = data.rank * n + torch.arange(n, device=self.device)
        positions = ((self.step + torch.arange(G, device=self.device)) * self._slots)[None] + places[:, None]  # (n, G)
        drawn = Noise(self.model_builder.seed, positions.flatten()).integers("replay", filled)
        self._drawn.copy_(drawn.view(n, G))
        self._target.copy_(self.scores(self._next_obs[drawn]).view(n, G, -1))

    def learn(self, rows: slice) -> dict[str, Tensor]:
        now = self.step % self.steps_per_cycle
        drawn, target = self._drawn[rows, now], self._target[rows, now]  # (B,), (B, A)
        return self.losses(
            self._obs[drawn],
            self._action[drawn],
            self._reward[drawn],
            self._next_obs[drawn],
            self._terminated[drawn],
            target,
        )

    def losses(
        self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor, terminated: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        """Of steps (B, ...), and Q' (B, num_actions) of what followed them."""
        if self.double:
            q, q_next = self.model(torch.cat((obs, next_obs))).float().chunk(2)
            best = q_next.argmax(1, keepdim=True)
        else:
            q, best = self.model(obs).float(), target.argmax(1, keepdim=True)
        goal = reward + self.gamma * (1 - terminated) * target.gather(1, best).squeeze(1)
        q = q.gather(1, action[:, None]).squeeze(1)
        return {"loss": F.smooth_l1_loss(q, goal), "q": q.mean()}

    @property
    def _slots(self) -> int:
        return self.trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
